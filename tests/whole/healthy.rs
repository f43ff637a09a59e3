//! A day on which nothing is wrong: neither the shipped rules nor the generated ones fire, whatever an exporter of that
//! kind exports.
//!
//! The series and their growth between two scrapes are those of a running exporter; `promtool test rules` extends them
//! to a day.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::demo::{play, program};
use crate::support::exporter::{Exporter, Place, Setup, exporter, finish};
use crate::support::exposition::{Labels, Metrics};

/// The length of the day's steps in minutes.
const STEP: u32 = 2;
const DAY: u32 = 24 * 60 / STEP;

/// The number of blocks played between two scrapes, and the fraction of them that falls into a step: one block every
/// ten minutes.
const BLOCKS: &str = "20";
const PER_STEP: f64 = STEP as f64 * 0.1 / 20.0;

/// Scrapes twice, with twenty blocks in between if there is a `binary` to play them.
fn two_scrapes(exporter: &Exporter, binary: Option<&Path>) -> (String, Metrics, Metrics) {
    if binary.is_none() {
        exporter.wait_until_ready();
    }
    let before = exporter.scrape();
    if let Some(binary) = binary {
        play(binary, &["--rate", "0", "--blocks", BLOCKS, "--wait-attached"]);
        let connected = "bitcoin_blocks_connected_total";
        exporter
            .scrape_until("the blocks", |now| now.sum(connected, &[]) >= 20.0 + before.sum(connected, &[]));
    }
    let text = exporter.text();
    let after = Metrics::parse(&text).expect("metrics");
    (text, before, after)
}

/// Formats a series as in PromQL.
fn series(name: &str, labels: &Labels) -> String {
    let mut all = labels.clone();
    all.extend([("job", "fibre"), ("instance", "a:9435")].map(|(k, v)| (k.to_owned(), v.to_owned())));
    let pairs: Vec<_> = all.iter().map(|(name, value)| format!("{name}={}", json!(value))).collect();
    format!("{name}{{{}}}", pairs.join(","))
}

/// Returns what Prometheus would have recorded on that day: counters keep growing at the same rate, everything else
/// stays constant. The day begins at 0.
fn day(text: &str, before: &Metrics, after: &Metrics, scale: f64) -> Vec<Value> {
    let kinds: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let base = |name: &str| {
        ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end).map(str::to_owned))
    };
    let grows = |name: &str| {
        kinds.get(name) == Some(&"counter")
            || base(name).is_some_and(|base| kinds.get(base.as_str()) == Some(&"histogram"))
    };
    let now = after.value("process_start_time_seconds", &[]);
    let is_time = |name: &str| {
        ["_timestamp_seconds", "start_time_seconds", "not_after_seconds"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    let grown = |key: &(String, Labels)| {
        let of = |metrics: &Metrics| metrics.0.get(key).copied().unwrap_or(0.0);
        of(after) - of(before)
    };
    let mut input = Vec::new();
    for ((name, labels), value) in after.0.iter().filter(|(_, value)| value.is_finite()) {
        let first = before.0.get(&(name.clone(), labels.clone())).copied().unwrap_or(0.0);
        let growth = match name.strip_suffix("_duration_seconds_bucket") {
            // The demo's block durations are made up; on this day, all are fast.
            Some(base) => {
                let mut all = labels.clone();
                all.remove("le");
                grown(&(format!("{base}_duration_seconds_count"), all))
            }
            None => value - first,
        };
        let values = match () {
            () if grows(name) => format!("{first}+{}x{DAY}", growth.max(0.0) * scale),
            () if is_time(name) => format!("{}x{DAY}", value - now),
            () => format!("{value}x{DAY}"),
        };
        input.push(json!({"series": series(name, labels), "values": values}));
    }
    for (name, value) in [("up", "1"), ("scrape_duration_seconds", "0.01")] {
        input.push(json!({"series": series(name, &Labels::new()), "values": format!("{value}x{DAY}")}));
    }
    input
}

/// Runs promtool; the error is its report on alerts that fire at any time of that day.
fn alarms(place: &Place, config: &Path, input: &[Value]) -> Result<(), String> {
    let (status, printed, errors) = finish(exporter().arg("dashboard").arg("--alerts").arg(config));
    assert_eq!(status, Some(0), "{errors}");
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("docker/prometheus/rules/fibre.yml");
    let rules = [shipped.clone(), place.write("rules.yml", &printed)];
    let any = "count by (alertname, severity) (count_over_time(ALERTS{alertstate=\"firing\"}[1d]))";
    let tests = json!({
        "rule_files": rules,
        "evaluation_interval": format!("{STEP}m"),
        "tests": [{
            "interval": format!("{STEP}m"),
            "input_series": input,
            "promql_expr_test": [{"expr": any, "eval_time": "24h", "exp_samples": []}],
        }],
    });
    // JSON is YAML.
    let file = place.write("tests.yml", &tests.to_string());
    let output = Command::new("promtool").args(["test", "rules"]).arg(file).output().expect("run promtool");
    let told = [output.stdout, output.stderr].concat();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&told).into_owned()) }
}

/// Makes a different program in which the provider `udp` is missing: a bitcoind as Bitcoin Core builds it.
fn without_fibre(place: &Place) -> std::path::PathBuf {
    let plain = place.copy_of(&program("fibre-demo"), "bitcoind");
    let mut bytes = fs::read(&plain).expect("read a program");
    let mut renamed = 0;
    for at in 0..bytes.len() - 4 {
        if &bytes[at..at + 4] == b"udp\0" {
            bytes[at] = b'x';
            renamed += 1;
        }
    }
    assert!(renamed > 0, "no probe of udp");
    fs::write(&plain, bytes).expect("write a program");
    plain
}

#[test]
fn healthy_exporter_fires_no_alert() {
    let place = Place::new();
    let fibre = place.copy_of(&program("fibre-demo"), "fibre");
    let plain = without_fibre(&place);
    let everything = format!(
        "node_name: all\nslow_events: {{ file: {} }}\ntargets:\n  - name: t\n    binary: {}\n    profile: fibre\n    probes:\n      - on: usdt:validation:block_connected\n        args: {{ duration_us: 5 }}\n        metrics: [{{ histogram: slow_us, value: duration_us, buckets: [1], slow: 1000000000 }}]\n",
        place.path("events.db").display(),
        fibre.display()
    );
    let packets = "node_name: packets\nnetwork:\n  interfaces: [lo]\n  count: { talkers: true, flows: true, tcp: true, dns: true, drop_reasons: true, cgroups: true }\n  detect: { syn_flood: true, port_scan: true, tcp_anomalies: true }\n  block: { socket: SOCKET }\n".replace("SOCKET", &place.path("control").display().to_string());
    let bitcoind =
        |path: &Path, name: &str| format!("bitcoind_path: {}\nnode_name: {name}\n", path.display());
    let days = [
        ("fibre", bitcoind(&fibre, "fibre"), Some(&fibre)),
        ("plain", bitcoind(&plain, "plain"), Some(&plain)),
        ("everything", everything, Some(&fibre)),
        ("packets", packets, None),
    ];
    let mut last = None;
    for (name, yaml, binary) in days {
        let own = Place::new();
        let exporter = Setup::new(&own, yaml).start();
        let (text, before, after) = two_scrapes(&exporter, binary.map(|path| path.as_path()));
        let scale = if binary.is_some() { PER_STEP } else { 1.0 };
        let input = day(&text, &before, &after, scale);
        assert!(input.len() > 40, "{name}: {}", input.len());
        let said = alarms(&own, &own.path("config.yaml"), &input);
        assert!(said.is_ok(), "{name}: {}", said.unwrap_err());
        exporter.stop();
        last = Some((own, input));
    }
    // If something were wrong, an alert would fire.
    let (place, input) = last.expect("a day");
    let reload = Labels::from([("reason".to_owned(), "test".to_owned())]);
    let failed = series("fibre_exporter_config_last_reload_successful", &reload);
    let wrong = json!({"series": failed, "values": format!("0x{DAY}")});
    let told = alarms(&place, &place.path("config.yaml"), &[&input[..], &[wrong]].concat());
    assert!(told.as_ref().is_err_and(|told| told.contains("ReloadFailed")), "{told:?}");
}
