//! The interpretation of metrics, from families as the exporter creates them.

mod network;

use std::time::{Duration, Instant};

use super::html::page;
use super::*;
use crate::exposition::Kind;
use crate::slow::{EventFields, EventRecord, RelatedRow};

const TARGETS: [&str; 2] = ["bitcoind", "billing"];

/// A probe's row in the tables below: target, name, state, reason, hits.
type Row = (&'static str, &'static str, &'static str, &'static str, u64);

const PROBES: [Row; 4] = [
    ("bitcoind", "udp:block", "attached", "", 525),
    ("bitcoind", "udp:race", "absent", "no such probe", 0),
    ("billing", "charge", "waiting", "/opt/billing: No such file", 0),
    ("billing", "refund", "waiting", "/opt/billing: No such file", 0),
];

/// A snapshot of an exporter with these probes, of which the last two are missing.
fn snapshot_at(probes: &[Row], at: Instant) -> Snapshot {
    let mut own = Families::default();
    let info = own.gauge("fibre_exporter_info", "");
    info.number(
        &[("version", "2"), ("node", "london"), ("kernel", "6.18"), ("attach", "uprobe_multi")],
        1u64,
    );
    own.gauge("fibre_exporter_start_time_seconds", "").number(&[], 1000.0);
    let of = |target: &'static str, name: &'static str| [("target", target), ("probe", name)];
    let states = own.gauge("fibre_exporter_probe_state", "");
    for &(target, name, state, reason, _) in probes {
        states.number(&[&of(target, name)[..], &[("state", state), ("reason", reason)]].concat(), 1u64);
    }
    let hits = own.counter("fibre_exporter_probe_hits_total", "");
    probes.iter().for_each(|&(target, name, _, _, number)| hits.number(&of(target, name), number));
    Snapshot {
        at,
        time: 1100.0,
        targets: TARGETS.map(str::to_owned).to_vec(),
        missing: [("billing", "charge"), ("billing", "refund")].map(|(a, b)| (a.into(), b.into())).to_vec(),
        own,
        metrics: Vec::new(),
        more_metrics: 0,
        series: 3,
        network: None,
        talkers: Vec::new(),
        blocked: Vec::new(),
        slow: Vec::new(),
        visitors: Vec::new(),
        connect: connect(&ScrapeAccess { node: "london", port: 9435, ..ScrapeAccess::default() }),
        links: vec![Link { path: "/metrics", about: "Metrics" }],
    }
}

pub(super) fn snapshot() -> Snapshot {
    snapshot_at(&PROBES, Instant::now())
}

fn seen(snapshot: Snapshot) -> Status {
    status(snapshot, &mut History::default())
}

fn subjects(status: &Status) -> Vec<(Severity, &str)> {
    status.attention.iter().map(|one| (one.severity, one.subject.as_str())).collect()
}

#[test]
fn missing_probes_are_grouped_by_reason() {
    let status = seen(snapshot());
    assert_eq!(status.state, Health::NotReady);
    assert_eq!(status.summary, "Not ready: 1 of 4 probes is attached; 2 are missing, 1 is optional.");
    let notices = subjects(&status);
    assert_eq!(notices[0], (Severity::Error, "billing: charge, refund are not attached yet"));
    assert_eq!(notices[1], (Severity::Note, "bitcoind: udp:race is absent"));
    assert!(status.attention[0].reason.contains("No such file") && !status.attention[0].action.is_empty());
    assert_eq!((status.totals.attached, status.totals.probes, status.totals.hits), (1, 4, 525.0));
}

#[test]
fn absent_optional_probes_are_no_problem() {
    for (state, notice) in [("absent", "is absent"), ("not_running", "is not attached yet")] {
        let mut rows = PROBES;
        rows[1].2 = state;
        let mut all = snapshot_at(&rows[..2], Instant::now());
        all.missing.clear();
        let status = seen(all);
        assert_eq!(status.state, Health::Working);
        assert_eq!(status.summary, "Working: 1 of 2 probes is attached; 1 is optional.");
        assert_eq!(subjects(&status), [(Severity::Note, format!("bitcoind: udp:race {notice}").as_str())]);
    }
}

#[test]
fn many_absent_targets_are_folded() {
    let shown = |count: usize| {
        let names: Vec<&'static str> =
            (0..count).map(|number| &*Box::leak(format!("app{number}").into_boxed_str())).collect();
        let mut rows = vec![PROBES[0]];
        rows.extend(names.iter().map(|name| (*name, "f", "waiting", "no such process", 0)));
        let mut all = snapshot_at(&rows, Instant::now());
        all.targets = ["bitcoind"].into_iter().chain(names.iter().copied()).map(str::to_owned).collect();
        all.missing = names.iter().map(|name| (name.to_string(), "f".to_owned())).collect();
        seen(all)
    };
    let few = shown(5);
    assert_eq!(few.attention.len(), 5);
    assert!(!page(&few).contains("<details>"));
    let many = shown(200);
    let eight = "app0, app1, app2, app3, app4, app5, app6, app7";
    let subject = format!("200 targets have probes that are not attached yet: {eight} and 192 more");
    assert_eq!(subjects(&many), [(Severity::Error, subject.as_str())]);
    assert_eq!(many.attention[0].reason, "app0: no such process");
    let page = page(&many);
    assert!(page.contains("<summary>200 targets without an attached probe</summary>"), "{page}");
    assert!(page.contains("<li>app199 (waiting: no such process)</li>"), "{page}");
    assert_eq!(page.matches("<th scope=\"row\">").count(), 2, "{page}");
}

/// In a program that hardly runs, a few hits take a large share of its CPU time.
#[test]
fn overhead_is_reported_if_it_is_more_than_a_sliver_of_a_core() {
    let warned = |seconds: f64| {
        let mut history = History::default();
        let begun = Instant::now();
        let mut at = |elapsed: u64, cost: f64| {
            let mut all = snapshot_at(&PROBES[..1], begun + Duration::from_secs(elapsed));
            all.own.gauge("fibre_exporter_target_tracing_ratio", "").number(&[("target", "bitcoind")], 0.4);
            let of = [("target", "bitcoind"), ("probe", "udp:block")];
            all.own.counter("fibre_exporter_probe_cost_seconds_total", "").number(&of, cost);
            status(all, &mut history)
        };
        at(0, 0.0);
        let status = at(10, seconds);
        subjects(&status).contains(&(Severity::Warning, "bitcoind: tracing takes 40 % of its CPU time"))
    };
    assert!(warned(1.0));
    assert!(!warned(0.01));
}

#[test]
fn summary_matches_the_tiles() {
    let mut rows = PROBES;
    rows[1].2 = "shed";
    rows[3].2 = "absent";
    let mut all = snapshot_at(&rows, Instant::now());
    all.missing.truncate(1);
    let status = seen(all);
    let totals = &status.totals;
    assert_eq!((totals.probes, totals.attached, totals.missing, totals.shed), (4, 1, 1, 1));
    let detached = "1 is detached for the time that tracing takes";
    assert_eq!(
        status.summary,
        format!("Not ready: 1 of 4 probes is attached; 1 is missing, {detached}, 1 is optional.")
    );
    let is_missing: Vec<_> =
        status.targets.iter().flat_map(|target| &target.probes).map(|probe| probe.is_missing).collect();
    assert_eq!(is_missing, [false, false, true, false]);
    let mut all = snapshot_at(&rows[..2], Instant::now());
    all.missing.clear();
    assert_eq!(seen(all).summary, format!("Working in part: 1 of 2 probes is attached; {detached}."));
    let mut one = snapshot_at(&rows[..1], Instant::now());
    one.missing.clear();
    assert_eq!(seen(one).summary, "Working: the probe is attached, and nothing needs attention.");
}

#[test]
fn many_idle_entries_are_folded() {
    let probes = |idle: usize| -> Vec<Row> {
        let mut all = vec![PROBES[0]];
        let name = |number| &*Box::leak(format!("idle{number}").into_boxed_str());
        all.extend((0..idle).map(|number| ("bitcoind", name(number), "attached", "", 0)));
        all
    };
    let shown = |idle: usize| {
        let mut all = snapshot_at(&probes(idle), Instant::now());
        all.missing.clear();
        let metric = |number| {
            let name = &*Box::leak(format!("m{number}_total").into_boxed_str());
            let mut family = Family::new(name, Kind::Counter, "");
            family.number(&[], if number == 0 { 7u64 } else { 0 });
            metric(family.head(), &mut family.samples(), "london")
        };
        all.metrics = (0..=idle).map(metric).collect();
        page(&seen(all))
    };
    let few = shown(8);
    assert!(!few.contains("<details>") && few.matches("<th scope=\"row\">").count() == 20, "{few}");
    let many = shown(120);
    assert!(many.contains("<summary>120 probes without a hit</summary>"), "{many}");
    assert!(many.contains("<summary>120 metrics without a value yet</summary>"), "{many}");
    assert!(many.contains("<li>idle119 (attached)</li>") && many.contains("<li>m120_total</li>"), "{many}");
    assert!(many.matches("<th scope=\"row\">").count() < 6, "{many}");
}

#[test]
fn losses_suggest_a_remedy_and_subside() {
    let began = Instant::now();
    let losing = |after: u64, lost: u64| {
        let mut all = snapshot_at(&PROBES[..1], began + Duration::from_secs(after));
        all.missing.clear();
        let row = [("target", "bitcoind"), ("probe", "udp:block"), ("reason", "ring_full")];
        all.own.counter("fibre_exporter_probe_lost_total", "").number(&row, lost);
        all
    };
    let mut history = History::default();
    let first = status(losing(0, 7), &mut history);
    assert_eq!(first.state, Health::Degraded);
    assert_eq!(subjects(&first), [(Severity::Warning, "bitcoind: 7 hits lost (ring_full)")]);
    assert!(first.attention[0].action.contains("ring: { size"));
    assert_eq!(status(losing(2, 9), &mut history).state, Health::Degraded);
    for after in (4..80).step_by(2) {
        status(losing(after, 9), &mut history);
    }
    let calm = status(losing(80, 9), &mut history);
    assert_eq!((calm.state, calm.attention[0].severity), (Health::Working, Severity::Note));
    assert_eq!(calm.totals.lost, 9.0);
}

#[test]
fn undelivered_slow_events_are_reported() {
    let notices = |writable: u64, failed: u64, dropped: u64, waiting: u64| {
        let mut all = snapshot_at(&PROBES[..1], Instant::now());
        all.missing.clear();
        all.own.gauge("fibre_exporter_slow_events_writable", "").number(&[], writable);
        all.own.counter("fibre_exporter_webhook_requests_failed_total", "").number(&[], failed);
        all.own.gauge("fibre_exporter_webhook_events_waiting", "").number(&[], waiting);
        let reasons = all.own.counter("fibre_exporter_webhook_events_dropped_total", "");
        reasons.number(&[("reason", "expired")], dropped);
        seen(all).attention.iter().map(|one| one.severity).collect::<Vec<_>>()
    };
    assert!(
        notices(1, 0, 0, 5).is_empty() && notices(1, 9, 0, 0).is_empty(),
        "what was sent in the end was sent"
    );
    assert_eq!(notices(0, 0, 0, 0), [Severity::Warning]);
    assert_eq!(notices(1, 3, 0, 5), [Severity::Warning]);
    assert_eq!(notices(1, 3, 2, 0), [Severity::Note]);
}

#[test]
fn every_loss_reason_has_an_explanation() {
    for (reason, _) in crate::kernel::LOST {
        let mut all = snapshot_at(&PROBES[..1], Instant::now());
        let row = [("target", "bitcoind"), ("probe", "udp:block"), ("reason", reason)];
        all.own.counter("fibre_exporter_probe_lost_total", "").number(&row, 1u64);
        // There is advice on every reason.
        let action =
            seen(all).attention.iter().find(|one| one.subject.contains(reason)).unwrap().action.clone();
        assert!(!action.contains("accounting.md"), "{reason}: {action}");
    }
}

#[test]
fn rates_appear_with_the_second_snapshot() {
    let (mut history, began) = (History::default(), Instant::now());
    let first = status(snapshot_at(&PROBES, began), &mut history);
    assert_eq!(first.totals.hits_per_second, None);
    let mut later = PROBES;
    later[0].4 += 20;
    let second = status(snapshot_at(&later, began + Duration::from_secs(2)), &mut history);
    assert_eq!(second.totals.hits_per_second, Some(10.0));
    assert_eq!(second.targets[0].probes[0].recent, [10.0]);
}

#[test]
fn status_is_bounded_and_retains_missing_probes() {
    let mut many: Vec<Row> = (0..5000)
        .map(|number| {
            ("bitcoind", &*Box::leak(format!("p{number}").into_boxed_str()), "attached", "", number)
        })
        .collect();
    many.push(PROBES[2]);
    let long: &'static str = Box::leak("x".repeat(1 << 20).into_boxed_str());
    many.push(("billing", "long", "refused", long, 0));
    let mut all = snapshot_at(&many, Instant::now());
    all.missing = many[5000..].iter().map(|row| (row.0.to_owned(), row.1.to_owned())).collect();
    let status = seen(all);
    assert_eq!(status.left_out.probes, 5002 - 300);
    assert_eq!(status.targets[1].probes.len(), 2);
    let busiest: Vec<_> = status.targets[0].probes.iter().map(|probe| probe.hits).collect();
    assert_eq!((busiest.len(), busiest[0], busiest[297]), (298, 4702.0, 4999.0), "in their order");
    assert!(serde_json::to_string(&status).unwrap().len() < 200_000);
    assert!(page(&status).len() < 200_000);
}

#[test]
fn untrusted_text_is_escaped() {
    let hostile = "\"'><script>alert(1)</script>";
    let mut rows = PROBES;
    (rows[0].1, rows[2].3) = (hostile, hostile);
    let mut all = snapshot_at(&rows, Instant::now());
    all.targets[1] = "billing".to_owned();
    let mut family = Family::new("a_total", Kind::Counter, hostile);
    family.number(&[("peer", hostile)], 1u64);
    let mut histogram = Family::new("b_seconds", Kind::Histogram(vec![1.0]), "");
    histogram.histogram_of(&[], &[("peer", hostile)], &[1, 0], 0.5);
    all.metrics = [&family, &histogram].map(|one| metric(one.head(), &mut one.samples(), "london")).into();
    let fields = EventFields(vec![("peer".to_owned(), hostile.to_owned())]);
    let event = EventRecord {
        time: 1,
        target: hostile.to_owned(),
        probe: hostile.to_owned(),
        metric: "b_seconds".to_owned(),
        value: 2.0,
        over: Some(1.0),
        worst: None,
        fields: fields.clone(),
        related: vec![RelatedRow { after: -0.5, probe: "udp:race".to_owned(), fields }],
        wanted: None,
        ranked: None,
    };
    all.slow.push(Arc::new(crate::slow::StoredEvent { id: 1, node: "london".to_owned(), event }));
    all.visitors.push(Visitor {
        peer: "192.0.2.1".parse().unwrap(),
        user: Some(hostile.to_owned()),
        agent: hostile.to_owned(),
        at: 1.0,
        took: Duration::from_millis(2),
        bytes: 3,
        status: 200,
        requests: 1,
    });
    all.connect = connect(&ScrapeAccess { node: hostile, user: Some(hostile), ..ScrapeAccess::default() });
    let status = seen(all);
    let text = page(&status);
    assert_eq!(text.matches("<script").count(), 1, "its own only: {text}");
    assert!(!text.contains("\"'>") && !text.contains("alert(1)</"));
    assert!(text.matches("&lt;script&gt;").count() >= 7);
    let json: serde_json::Value = serde_json::to_value(&status).unwrap();
    assert_eq!(json["metrics"][0]["series"][0]["labels"][0][1], hostile);
    assert_eq!(json["slow"][0]["related"][0]["fields"][0][1], hostile);
    assert_eq!(json["scrapes"]["recent"][0]["user"], hostile);
}

#[test]
fn expiring_certificate_and_missing_scrapes_are_reported() {
    let mut all = snapshot_at(&PROBES[..1], Instant::now());
    all.missing.clear();
    all.time = 100_000.0;
    all.own
        .gauge("fibre_exporter_tls_certificate_not_after_seconds", "")
        .number(&[], 100_000.0 + 3.5 * 86_400.0);
    let status = seen(all);
    let notices = subjects(&status);
    assert_eq!(notices[0], (Severity::Warning, "The TLS certificate expires in 3 days"));
    assert_eq!(notices[1], (Severity::Note, "/metrics has not been scraped yet"));
    assert_eq!(status.state, Health::Degraded);
}
