//! The formats that a client can request contain the same numbers.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use crate::support::demo::{Forms, play, program};
use crate::support::exporter::{Exporter, Place, Setup, TIMEOUT, wait_for};
use crate::support::exposition::{Labels, Metrics, bound, with_plain_bound};
use crate::support::prometheus::{Prometheus, Scrape, StoredExemplar};
use crate::support::protobuf::{of_protobuf, text};

const OPENMETRICS: &str = "Accept: application/openmetrics-text;version=1.0.0;escaping=underscores";
const PROTOBUF: &str =
    "Accept: application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";

/// Starts an exporter that has counted and measured something.
fn played(place: &Place) -> Exporter {
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let exporter = Setup::fibre(place, &demo).secure().start();
    exporter.wait_until_ready();
    play(&demo, &["--rate", "100", "--blocks", "50", "--wait-attached"]);
    exporter.scrape_until("all blocks", |scrape| scrape.sum("bitcoin_blocks_connected_total", &[]) == 50.0);
    exporter
}

/// Returns a response's body and content type.
fn fetch(exporter: &Exporter, path: &str, header: &str) -> (Vec<u8>, String) {
    let output = exporter.fetch(path, &["--fail", "--include", "--header", header]);
    assert!(output.status.success(), "{output:?}");
    let head = output.stdout.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let text = String::from_utf8_lossy(&output.stdout[..head]).to_lowercase();
    let content_type =
        text.lines().find_map(|line| line.strip_prefix("content-type: ")).expect("a content type");
    (output.stdout[head + 4..].to_vec(), content_type.to_owned())
}

/// The strict parser of Prometheus's own Python client.
const PARSE: &str = r#"
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
for family in text_string_to_metric_families(sys.stdin.read()):
    for sample in family.samples:
        print(json.dumps([family.type, family.unit, sample.name, sample.labels, float(sample.value)]))
"#;

/// Returns the output of a script that uses this client to parse a page.
fn parsed(script: &str, page: &[u8]) -> String {
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run python3");
    python.stdin.take().expect("its input").write_all(page).expect("write");
    let output = python.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(page));
    text(&output.stdout)
}

#[test]
fn openmetrics_passes_a_strict_parser() {
    let place = Place::new();
    let exporter = played(&place);
    let (body, content_type) = fetch(&exporter, "/metrics", OPENMETRICS);
    assert_eq!(
        content_type,
        "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores"
    );
    assert!(body.ends_with(b"\n# EOF\n"));
    let output = parsed(PARSE, &body);
    let mut series = BTreeMap::new();
    let (mut created, mut counters, mut seconds) = (0, 0, 0);
    for line in output.lines() {
        let (kind, unit, name, labels, value): (String, String, String, Labels, f64) =
            serde_json::from_str(line).expect("a line");
        seconds += usize::from(unit == "seconds");
        if name.ends_with("_created") {
            created += 1;
            assert!(value > 1.7e9, "{line}");
            continue;
        }
        counters += usize::from(kind == "counter" || (kind == "histogram" && name.ends_with("_count")));
        assert!(series.insert((name, with_plain_bound(labels)), value).is_none(), "twice: {line}");
    }
    assert!(created > 20 && created == counters, "{created} times of creation of {counters} series");
    assert!(seconds > 0, "no unit");
    Metrics(series).measured().assert_same(&exporter.scrape().measured());
}

/// Metrics that clash with names that OpenMetrics gives to parts of other metrics: the strict parser rejects two with
/// the same name.
#[test]
fn colliding_names_stay_distinct_in_openmetrics() {
    let place = Place::new();
    let binary = place.copy_of(&program("forms"), "forms");
    let names = [
        "counter: hits_total",
        "gauge: hits, value: n",
        "counter: calls_total",
        "gauge: calls_created, value: n",
    ];
    let histogram = "histogram: h_seconds, value: pid";
    let all = names.iter().chain([&histogram, &"counter: h_seconds_total"]);
    let metrics: String = all.map(|metric| format!("    - {{ {metric} }}\n")).collect();
    let yaml = format!(
        "node_name: test\ntargets:\n- name: forms\n  binary: {}\n  probes:\n  - on: usdt:forms:i32\n    args: {{ n: 0 }}\n    metrics:\n{metrics}",
        binary.display()
    );
    let exporter = Setup::new(&place, yaml).start();
    exporter.wait_until_ready();
    Forms::start(&binary).fire("i32", 10);
    exporter.scrape_until("all hits", |scrape| scrape.sum("hits_total", &[]) > 0.0);
    let (body, _) = fetch(&exporter, "/metrics", OPENMETRICS);
    let found = parsed(PARSE, &body);
    for line in [
        "[\"unknown\", \"\", \"hits_total\"",
        "[\"gauge\", \"\", \"hits\"",
        "[\"unknown\", \"\", \"calls_total\"",
        "[\"gauge\", \"\", \"calls_created\"",
        "[\"histogram\", \"seconds\", \"h_seconds_count\"",
        "[\"unknown\", \"\", \"h_seconds_total\"",
    ] {
        assert_eq!(found.lines().filter(|found| found.starts_with(line)).count(), 1, "{line}\n{found}");
    }
}

#[test]
fn protobuf_has_the_same_values() {
    let place = Place::new();
    let exporter = played(&place);
    let (body, content_type) = fetch(&exporter, "/metrics", PROTOBUF);
    assert!(
        content_type.starts_with("application/vnd.google.protobuf; proto=io.prometheus"),
        "{content_type}"
    );
    let found = of_protobuf(&body);
    assert_eq!(found.value("fibre_exporter_up", &[]), 1.0);
    found.measured().assert_same(&exporter.scrape().measured());
}

/// Prints the exemplars of a page, with the labels of their buckets.
const EXEMPLARS: &str = r#"
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
for family in text_string_to_metric_families(sys.stdin.read()):
    for sample in family.samples:
        if sample.exemplar:
            one = sample.exemplar
            print(json.dumps([sample.name, sample.labels, one.labels, one.value, float(one.timestamp)]))
"#;

/// A slow event is the exemplar of its bucket until another one falls into it: in OpenMetrics, in protocol buffers, and
/// as stored by Prometheus.
#[test]
fn slow_events_are_bucket_exemplars() {
    const METRIC: &str = "fibre_block_reconstruction_duration_seconds";
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let file = place.path("events.db");
    let slow = format!(
        "slow_events:\n  file: {}\n  metrics:\n    {METRIC}: {{ over: 100ms, fields: [height, peer, pid] }}\n",
        file.display()
    );
    let exporter = Setup::fibre(&place, &demo).secure().yaml(&slow).start();
    exporter.wait_until_ready();
    let scrape = Scrape::secure(&exporter, &place);
    let both = [
        &["--enable-feature=exemplar-storage"][..],
        &["--enable-feature=exemplar-storage,native-histograms"],
    ]
    .map(|features| Prometheus::start_with(&scrape, features).unwrap());
    play(&demo, &["--rate", "0", "--blocks", "300", "--wait-attached"]);
    exporter.scrape_until("every slow event to be written", |scrape| {
        let of = |what: &str| scrape.sum(&format!("fibre_exporter_slow_events_{what}"), &[]);
        of("total") > 10.0 && of("total") == of("kept_total")
    });
    let rows = crate::slow::events(&["--file", &file.display().to_string(), "--limit", "10000"]);
    // The last event in each bucket, according to the bounds on the page.
    let page = text(&fetch(&exporter, "/metrics", OPENMETRICS).0);
    assert!(!exporter.text().contains(" # {"), "the text format has none");
    let output = parsed(EXEMPLARS, page.as_bytes());
    let mut found = BTreeMap::new();
    for line in output.lines() {
        let (name, labels, of, value, time): (String, Labels, Labels, f64, f64) =
            serde_json::from_str(line).expect("a line");
        assert_eq!(name, format!("{METRIC}_bucket"), "{line}");
        let characters: usize =
            of.iter().map(|(name, value)| name.chars().count() + value.chars().count()).sum();
        assert!(characters <= 128, "{line}");
        found.insert(bound(&labels["le"]).to_bits(), (of, value, time));
    }
    let bounds: Vec<f64> = exporter
        .scrape()
        .0
        .keys()
        .filter(|(name, _)| *name == format!("{METRIC}_bucket"))
        .map(|(_, labels)| bound(&labels["le"]))
        .collect();
    let mut expected = BTreeMap::new();
    for row in &rows {
        let value = row["value"].as_f64().expect("a number");
        let bound =
            bounds.iter().copied().filter(|bound| value <= *bound).min_by(f64::total_cmp).expect("+Inf");
        expected.insert(bound.to_bits(), row);
    }
    assert!(expected.len() > 1 && found.len() == expected.len(), "{found:?}");
    let is_of = |row: &serde_json::Value, of: &Labels, value: f64| {
        ["height", "peer", "pid"].iter().all(|name| row["fields"][*name] == of[*name].as_str())
            && (row["value"].as_f64().expect("a number") - value).abs() < 1e-9
    };
    for (bound, row) in expected {
        let (of, value, time) = &found[&bound];
        assert!(is_of(row, of, *value), "{of:?} {value} is not {row}");
        assert!(*time > 1.7e9, "{time}");
    }
    for prometheus in &both {
        let stored = || prometheus.exemplars(&format!("{METRIC}_bucket")).unwrap();
        wait_for("Prometheus to have exemplars", || !stored().is_empty());
        for StoredExemplar { series, exemplar } in stored() {
            let of: Labels = serde_json::from_value(exemplar["labels"].clone()).expect("labels");
            let value: f64 = exemplar["value"].as_str().expect("a text").parse().expect("a number");
            assert!(rows.iter().any(|row| is_of(row, &of, value)), "{exemplar} is no slow event");
            let bound = bound(&series["le"]);
            assert!(value <= bound && value > 0.1, "{value} is not in the bucket up to {bound}");
        }
    }
}

#[test]
fn every_histogram_of_a_slow_event_has_the_exemplar() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let histogram = |name: &str| {
        format!("    - {{ histogram: {name}, value: elapsed, buckets: [2ms, 500ms], slow: 1ms }}\n")
    };
    let yaml = format!(
        "node_name: demo\nslow_events: {{ file: {} }}\ntargets:\n- name: bitcoind\n  binary: {}\n  probes:\n  - on: usdt:udp:block_reconstructed\n    args: {{ elapsed: {{ index: 5, unit: us }} }}\n    metrics:\n{}{}",
        place.path("events.db").display(),
        demo.display(),
        histogram("one_seconds"),
        histogram("other_seconds").replace("slow:", "native: true, slow:")
    );
    let exporter = Setup::new(&place, yaml).start();
    exporter.wait_until_ready();
    play(&demo, &["--rate", "0", "--blocks", "100"]);
    for name in ["one_seconds", "other_seconds"] {
        wait_for(&format!("an exemplar of {name}"), || {
            let page = text(&fetch(&exporter, "/metrics", OPENMETRICS).0);
            page.lines().any(|line| line.starts_with(&format!("{name}_bucket")) && line.contains(" # {"))
        });
    }
    // Each event is kept once.
    let scrape = exporter.scrape();
    let slow = scrape.sum("fibre_exporter_slow_events_total", &[]);
    assert!(slow > 0.0 && slow <= scrape.sum("one_seconds_count", &[]), "{slow}");
}

/// Prometheus has the same numbers for a native histogram as the text format has for the classic one.
#[test]
fn native_histograms_match_classic_ones() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let yaml = format!(
        "node_name: demo\ntargets:\n- name: bitcoind\n  binary: {}\n  probes:\n  - on: usdt:udp:block_reconstructed\n    args: {{ elapsed: {{ index: 5, unit: us }}, height: 6 }}\n    metrics:\n    - {{ histogram: native_seconds, value: elapsed, native: true, buckets: [2ms, 500ms] }}\n    - {{ histogram: never_seconds, value: elapsed, native: true, when: height < 0 }}\n",
        demo.display()
    );
    let exporter = Setup::new(&place, yaml).secure().start();
    exporter.wait_until_ready();
    let scrape = Scrape::secure(&exporter, &place);
    let prometheus = Prometheus::start_with(&scrape, &["--enable-feature=native-histograms"]).unwrap();
    let totals = play(&demo, &["--rate", "0", "--blocks", "2000"]);
    let fired = totals.fired("udp:block_reconstructed").to_string();
    wait_for("Prometheus to have all of them", || {
        prometheus.histogram("native_seconds").is_ok_and(|found| found["count"] == fired.as_str())
    });
    let found = prometheus.histogram("native_seconds").unwrap();
    let text = exporter.scrape();
    let number =
        |value: &serde_json::Value| value.as_str().expect("a text").parse::<f64>().expect("a number");
    assert!((number(&found["sum"]) - text.value("native_seconds_sum", &[])).abs() < 1e-6, "{found}");
    // Each bucket by itself, by its upper bound; the last one's is infinite.
    let mut classic: Vec<(f64, f64)> = Vec::new();
    for ((name, labels), below) in &text.0 {
        if name == "native_seconds_bucket" {
            classic.push((bound(&labels["le"]), *below));
        }
    }
    classic.sort_by(|a, b| a.0.total_cmp(&b.0));
    for at in (1..classic.len()).rev() {
        classic[at].1 -= classic[at - 1].1;
    }
    classic.retain(|(_, count)| *count > 0.0);
    let buckets = found["buckets"].as_array().expect("buckets");
    assert!(
        classic.len() > 8 && classic[0].1 > 0.0 && buckets.len() == classic.len(),
        "{found}\n{classic:?}"
    );
    for (bucket, (bound, count)) in buckets.iter().zip(&classic) {
        let upper = number(&bucket[2]);
        assert!(
            (upper - bound).abs() <= bound * 1e-9 || upper == *bound,
            "{bucket} is not the one up to {bound}"
        );
        assert_eq!(number(&bucket[3]), *count, "{bucket}");
    }
    // An empty native histogram still is one; and a Prometheus that does not request native histograms gets the classic
    // ones.
    assert_eq!(prometheus.histogram("never_seconds").unwrap()["count"], "0");
    let plain = Prometheus::start(&scrape).unwrap();
    wait_for("the other Prometheus to have all of them", || {
        plain
            .query("native_seconds_count")
            .is_ok_and(|found| found.iter().any(|one| one.value.to_string() == fired))
    });
}

#[test]
fn prometheus_over_protobuf_has_the_same_values() {
    let place = Place::new();
    let exporter = played(&place);
    let scrape = Scrape::secure(&exporter, &place);
    let prometheus = Prometheus::start_with(&scrape, &["--enable-feature=native-histograms"]).unwrap();
    prometheus.wait_until_up(TIMEOUT).unwrap();
    let value = |query: &str| {
        let samples = prometheus.query(query).unwrap();
        samples.iter().map(|sample| sample.value).sum::<f64>()
    };
    wait_for("Prometheus to have all blocks", || value("bitcoin_blocks_connected_total") == 50.0);
    let text = exporter.scrape().measured();
    for (name, sum) in text.0.iter().fold(BTreeMap::new(), |mut sums, ((name, _), value)| {
        *sums.entry(name.clone()).or_insert(0.0) += value;
        sums
    }) {
        let found = value(&format!("sum({name})"));
        assert!((found - sum).abs() <= 1e-9 * sum.abs(), "{name}: {found} is not {sum}");
    }
}

#[test]
fn serves_only_requested_metrics() {
    let place = Place::new();
    let exporter = played(&place);
    let path = "/metrics?name%5B%5D=bitcoin_blocks_connected_total&name%5B%5D=fibre_exporter_up";
    let (body, content_type) = fetch(&exporter, path, "Accept: text/plain");
    assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
    let found = Metrics::parse(&text(&body)).unwrap();
    let names: Vec<_> = found.0.keys().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["bitcoin_blocks_connected_total", "fibre_exporter_up"]);
    let (body, _) = fetch(&exporter, "/metrics?name%5B%5D=nothing", OPENMETRICS);
    assert_eq!(text(&body), "# EOF\n");
}

#[test]
fn serves_zstd_when_preferred() {
    let place = Place::new();
    let exporter = played(&place);
    let (packed, _) = fetch(&exporter, "/metrics", "Accept-Encoding: zstd");
    let mut body = String::new();
    ruzstd::decoding::StreamingDecoder::new(&packed[..])
        .expect("a frame")
        .read_to_string(&mut body)
        .expect("text");
    assert_eq!(Metrics::parse(&body).unwrap().value("fibre_exporter_up", &[]), 1.0);
}
