//! Gauges of the time of the latest hit, as the kernel and as user space records it.

use std::time::{SystemTime, UNIX_EPOCH};

use super::probe;
use crate::support::demo::{Forms, private_copy};
use crate::support::program::directory;
use crate::support::tracer::{Series, Tracer};

/// The precision of the metric, plus some margin for rounding.
const STEP: f64 = 0.0011;

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[test]
fn timestamp_is_that_of_the_latest_matching_hit() {
    let directory = directory();
    let binary = private_copy("forms", directory.path());
    let probes = [
        probe(
            "i8",
            "v: 0",
            &["timestamp: hit_timestamp_seconds", "timestamp: never_timestamp_seconds, when: v > 127"],
        ),
        probe(
            "u8",
            "v: 0",
            &["timestamp: hit_timestamp_seconds", "timestamp: by_value_timestamp_seconds, labels: { v: v }"],
        ),
    ];
    let config = format!(
        "node_name: test\ntargets:\n- name: forms\n  binary: {}\n  probes:\n{}",
        binary.display(),
        probes.concat()
    );
    let tracers = [false, true].map(|all_to_ring| Tracer::start_by(&config, all_to_ring));
    let shown = |tracer: &Tracer| -> Series {
        tracer.accounting_at_rest();
        tracer.render()
    };
    let time = |series: &Series, name: &str| series[name].parse::<f64>().unwrap();
    for tracer in &tracers {
        assert!(shown(tracer).is_empty(), "there was no hit");
    }
    let mut forms = Forms::start(&binary);
    let mut times = Vec::new();
    for form in ["i8", "u8", "i8"] {
        let before = now();
        forms.fire(form, 20);
        let after = now();
        times = tracers.iter().map(|tracer| time(&shown(tracer), "hit_timestamp_seconds")).collect();
        for time in &times {
            assert!(*time >= before - STEP && *time <= after + STEP, "{form}: {before} to {after}: {time}");
        }
    }
    for (tracer, latest) in tracers.iter().zip(times) {
        let series = shown(tracer);
        // A later scrape shows the same, as nothing has happened.
        assert!((time(&series, "hit_timestamp_seconds") - latest).abs() <= STEP, "{latest}: {series:?}");
        assert!(!series.contains_key("never_timestamp_seconds"), "{series:?}");
        let by_value: Vec<_> = series.keys().filter(|name| name.starts_with("by_value")).collect();
        assert!(by_value.len() > 1, "{series:?}");
        assert!(by_value.iter().all(|name| time(&series, name) <= latest + STEP), "{latest}: {series:?}");
    }
}
