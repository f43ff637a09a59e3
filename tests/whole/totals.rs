//! The numbers: every metric of the profile `fibre` equals what the demo reports, whatever the client, and whichever
//! way the events take.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_yaml::Value as Yaml;

use crate::support::dashboard::{Dashboard, Variable};
use crate::support::demo::{Demo, Totals, play, program};
use crate::support::exporter::{Exporter, Place, Setup, TIMEOUT, exporter, finish, wait_for};
use crate::support::exposition::Metrics;
use crate::support::prometheus::{Prometheus, Scrape};

/// Enough blocks for every bucket of every histogram to count something.
const MANY: &[&str] = &["--rate", "0", "--blocks", "3000", "--wait-attached"];

#[test]
fn all_metrics_match_the_demo_over_authenticated_https() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let exporter = Setup::fibre(&place, &demo).secure().start();
    exporter.wait_until_ready();
    let totals = play(&demo, MANY);
    assert_eq!(totals.fired("validation:block_connected"), 3000);
    let scrape = exporter.scrape();
    scrape.measured().assert_same(&totals.series("demo"));
    accounting_balances(&scrape, &totals);
    assert_eq!(scrape.sum("fibre_exporter_probe_delivered_total", &[]), 0.0, "nothing needs the ring");
}

/// Checks the exporter's own metrics after a run of the demo without losses.
fn accounting_balances(scrape: &Metrics, totals: &Totals) {
    assert_eq!(scrape.value("fibre_exporter_up", &[]), 1.0);
    assert_eq!(scrape.value("fibre_exporter_probes_attached", &[]), 6.0);
    assert_eq!(scrape.sum("fibre_exporter_errors_total", &[]), 0.0);
    assert_eq!(scrape.sum("fibre_exporter_probe_lost_total", &[]), 0.0);
    assert_eq!(scrape.value("fibre_exporter_program_misses_total", &[("program", "probe_multi")]), 0.0);
    for probe in [
        "udp:block_reconstructed",
        "udp:block_reconstruction_detail",
        "udp:block_send_start",
        "udp:block_race_winner",
        "udp:block_race_time",
        "validation:block_connected",
    ] {
        let of = |what: &str| scrape.value(&format!("fibre_exporter_probe_{what}"), &[("probe", probe)]);
        assert_eq!(of("attached"), 1.0, "{probe}");
        assert_eq!(of("hits_total"), totals.fired(probe) as f64, "{probe}");
        assert_eq!(of("aggregated_total") + of("delivered_total"), of("hits_total"), "{probe}");
        let (_, event) = probe.split_once(':').expect("a provider");
        let processed = scrape.value("fibre_exporter_events_processed_total", &[("event_type", event)]);
        assert_eq!(processed, totals.fired(probe) as f64, "{probe}");
        assert!(of("last_hit_timestamp_seconds") > scrape.value("process_start_time_seconds", &[]) - 1.0);
    }
}

#[test]
fn prometheus_stack_panels_match_the_demo() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let exporter = Setup::fibre(&place, &demo).secure().start();
    exporter.wait_until_ready();
    let scrape = Scrape::secure(&exporter, &place);
    let prometheus = Prometheus::start(&scrape).unwrap();
    prometheus.wait_until_up(TIMEOUT).unwrap();

    // It runs until every panel has data: a rate needs an increase between two scrapes, and tracing's share of the time
    // needs two measurements of a living process.
    let node = Demo::start(&demo, &["--rate", "100", "--wait-attached"]);
    let dashboard = Dashboard::load(&repository("grafana/fibre.json")).unwrap();
    let variables: &[Variable] =
        &[("job", "fibre"), ("node", "demo"), ("instance", &scrape.target), ("window", "5m"), ("top", "10")];
    wait_for_panels("the shipped dashboard's", || {
        prometheus.queries_without_data(&dashboard, variables).unwrap()
    });

    let config = place.path("config.yaml").display().to_string();
    let (code, text, told) = finish(crate::support::exporter::exporter().args(["dashboard", &config]));
    assert_eq!((code, told.as_str()), (Some(0), ""));
    let generated = Dashboard::parse(&text).unwrap();
    wait_for_panels("the generated dashboard's", || {
        let mut empty = prometheus.queries_without_data(&generated, variables).unwrap();
        // The column that counts probes that are not attached: there are none.
        let not_attached = |query: &String| query.ends_with("state=~\"waiting|refused\"} == 1)");
        assert!(empty.iter().any(not_attached), "{empty:#?}");
        empty.retain(|query| !not_attached(query));
        empty
    });
    assert_eq!(prometheus.query(r#"ALERTS{alertstate="firing"}"#).unwrap(), [], "all is well");

    let totals = node.stop();
    let blocks = totals.fired("validation:block_connected") as f64;
    wait_for("Prometheus to have scraped the last block", || {
        let found = prometheus.query("bitcoin_blocks_connected_total").unwrap();
        found.iter().any(|sample| sample.value == blocks)
    });
    measured(&prometheus).assert_same(&totals.series("demo"));
}

/// Waits until no query is without data; fails with those that still are.
fn wait_for_panels(whose: &str, mut without_data: impl FnMut() -> Vec<String>) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let empty = without_data();
        if empty.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{whose} queries without data: {empty:#?}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Returns the profile's series as stored by Prometheus, without the labels that it adds itself.
fn measured(prometheus: &Prometheus) -> Metrics {
    let all = prometheus.query(r#"{__name__=~"(fibre|bitcoin)_.+", job="fibre"}"#).unwrap();
    let series: BTreeMap<_, _> = all
        .into_iter()
        .map(|mut sample| {
            let name = sample.labels.remove("__name__").expect("a name");
            sample.labels.retain(|label, _| label != "job" && label != "instance");
            // OpenMetrics, which Prometheus prefers, formats bounds differently and has creation times.
            if let Some(bound) = sample.labels.get_mut("le")
                && let Ok(number) = bound.parse::<f64>()
                && number.is_finite()
            {
                *bound = number.to_string();
            }
            ((name, sample.labels), sample.value)
        })
        // The stack's recording rules are named after what they record, with colons.
        .filter(|((name, _), _)| !name.contains(':') && !name.ends_with("_created"))
        .collect();
    Metrics(series).measured()
}

#[test]
fn promtool_accepts_a_scrape() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let exporter = Setup::fibre(&place, &demo).start();
    exporter.wait_until_ready();
    for _ in 0..2 {
        let text = exporter.text();
        let mut promtool = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run promtool (Debian's package prometheus)");
        promtool.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("write to promtool");
        let output = promtool.wait_with_output().expect("wait for promtool");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        // First without any event, then with all kinds.
        play(&demo, &["--rate", "0", "--blocks", "50", "--wait-attached"]);
    }
}

#[test]
fn verbose_logs_each_event_once_without_side_effects() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let exporter = Setup::fibre(&place, &demo).arguments(&["--verbose"]).start();
    exporter.wait_until_ready();
    let totals = play(&demo, &["--rate", "0", "--blocks", "200", "--wait-attached"]);
    let scrape = exporter.scrape();
    scrape.measured().assert_same(&totals.series("demo"));
    accounting_balances(&scrape, &totals);
    one_line_for_each_event(&exporter, &totals);
}

#[test]
fn user_space_metrics_match_the_demo() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let yaml =
        format!("node_name: demo\ntargets:\n- {{name: relay, binary: {}}}\nverbose: true\n", demo.display());
    let mut config: Yaml = serde_yaml::from_str(&yaml).unwrap();
    config["targets"][0]["probes"] = probes_for_the_ring();
    let setup = Setup::new(&place, serde_yaml::to_string(&config).unwrap());

    let plan = place.write("plan.yaml", &serde_yaml::to_string(&config).unwrap());
    let (status, plan, wrong) = finish(exporter().arg("check").arg(plan));
    let computed = |place: &str| plan.lines().filter(|line| line.contains(place)).count();
    let routes = (computed(" user space: "), computed(" kernel: "));
    assert_eq!((status, routes), (Some(0), (18, 0)), "{plan}{wrong}");

    let exporter = setup.start();
    exporter.wait_until_ready();
    let totals = play(&demo, &["--rate", "0", "--blocks", "200", "--wait-attached"]);
    let scrape = exporter.scrape();
    scrape.measured().assert_same(&totals.series("demo"));
    accounting_balances(&scrape, &totals);
    assert_eq!(scrape.sum("fibre_exporter_probe_aggregated_total", &[]), 0.0);
    one_line_for_each_event(&exporter, &totals);
}

/// Returns the probes of the profile `fibre`, with an additional condition on each metric: it is always true, but
/// compares with a string that is too long for the kernel.
fn probes_for_the_ring() -> Yaml {
    let text = std::fs::read_to_string(repository("profiles/fibre.yaml")).unwrap();
    let profile: Yaml = serde_yaml::from_str(&text).unwrap();
    let mut probes = profile["probes"].clone();
    for probe in probes.as_sequence_mut().unwrap() {
        let name = probe["on"].as_str().unwrap();
        // The first argument is the hash, in one of two forms.
        let bytes = name.contains("race") || name.contains("connected");
        let hash = if bytes { "{index: 0, type: hex, len: 32}" } else { "{index: 0, type: string, max: 80}" };
        if probe.get("args").is_none() {
            probe["args"] = Yaml::Mapping(serde_yaml::Mapping::new());
        }
        probe["args"]["hash"] = serde_yaml::from_str(hash).unwrap();
        for metric in probe["metrics"].as_sequence_mut().unwrap() {
            let mut conditions =
                vec![format!("hash != \"{}\"", "no hash has this many letters ".repeat(3)).into()];
            conditions.extend(metric.get("when").cloned());
            metric["when"] = Yaml::Sequence(conditions);
        }
    }
    probes
}

fn one_line_for_each_event(exporter: &Exporter, totals: &Totals) {
    let blocks = totals.fired("validation:block_connected");
    let connected = || events(exporter, "Block connected: ");
    wait_for("the last event's line", || connected().len() as u64 >= blocks);
    for (text, probe) in [
        ("Block reconstructed: height=", "udp:block_reconstructed"),
        ("Block reconstruction detail: height=", "udp:block_reconstruction_detail"),
        ("Block send started", "udp:block_send_start"),
        ("Block delivery: height=", "udp:block_race_winner"),
        ("Block connected: height=", "validation:block_connected"),
    ] {
        wait_for(text, || events(exporter, text).len() as u64 >= totals.fired(probe));
        assert_eq!(events(exporter, text).len() as u64, totals.fired(probe), "{text}");
    }
    wait_for("the last race", || {
        events(exporter, "Block race: height=").len() as u64 >= totals.fired("udp:block_race_time")
    });
    let mut transactions = 0;
    for (number, line) in connected().iter().enumerate() {
        let fields: Vec<_> = line.split(' ').map(|field| field.split_once('=').expect(line)).collect();
        let [("height", height), ("tx_count", count), ("connection_time", time)] = fields[..] else {
            panic!("another form: {line}");
        };
        assert_eq!(height, (900_000 + number).to_string(), "{line}");
        transactions += count.parse::<u64>().expect(line);
        // Milliseconds with one decimal place.
        let (whole, tenth) = time.strip_suffix("ms").and_then(|time| time.split_once('.')).expect(line);
        assert!(whole.parse::<u64>().is_ok() && tenth.len() == 1 && tenth.parse::<u8>().is_ok(), "{line}");
    }
    let sum = totals.series("demo").value("bitcoin_block_tx_count_sum", &[]);
    assert_eq!(transactions as f64, sum);
}

/// Returns what follows `text` in the log lines of this kind of event.
fn events(exporter: &Exporter, text: &str) -> Vec<String> {
    let head = format!(" [INFO] exporter: {text}");
    exporter
        .log()
        .lines()
        .filter_map(|line| line.split_once(&head))
        .map(|(_, rest)| rest.to_owned())
        .collect()
}

#[test]
fn node_without_udp_probes_reports_them_absent() {
    let place = Place::new();
    let binary = place.copy_of(&program("forms"), "bitcoind");
    let exporter = Setup::fibre(&place, &binary).start();
    // No probe exists at all: it is not ready, and says why.
    let (status, body) = exporter.health("/ready");
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("validation:block_connected is absent: "), "{body}");
    exporter.wait_for_log("[ERROR] exporter: Attached 0/6 probes");
    assert_eq!(exporter.health("/health").0, 200);
    let scrape = exporter.scrape();
    assert_eq!(scrape.value("fibre_exporter_probes_attached", &[]), 0.0);
    assert_eq!(scrape.select("fibre_exporter_probe_state", &[("state", "absent")]).len(), 6);
    assert_eq!(scrape.measured(), Metrics::default(), "no zero for what cannot be counted");
}

#[test]
fn new_process_counts_from_its_first_event() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let exporter = Setup::fibre(&place, &demo).start();
    exporter.wait_until_ready();
    // The probes are attached to the file, so a process that starts now has them from its first instruction.
    let totals = Demo::start(&demo, &["--rate", "0", "--blocks", "100"]).end();
    assert_eq!(totals.fired("validation:block_connected"), 100);
    exporter.scrape().measured().assert_same(&totals.series("demo"));
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
