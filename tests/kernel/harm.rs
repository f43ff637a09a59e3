//! A traced program computes the same as untraced: a million calls of each leaf of `demo/leaf.c`, whose variables are
//! in the red zone, for every form of site and with both ways to attach. Every hit is seen, or the probe is refused.

use std::fmt::Write;
use std::process::Command;

use crate::support::demo::private_copy;
use crate::support::harm;
use crate::support::program::directory;
use crate::support::tracer::Tracer;
use exporter::targets::ProbeState;

const CALLS: u64 = 1_000_000;

/// The number of leaves in the program.
const LEAVES: usize = 10;

/// Functions of `leaf.c` that are probed at their entry or return.
const FUNCTIONS: [&str; 5] =
    ["entry_endbr64", "entry_plain", "entry_push", "entry_endbr64_push", "entry_nop5"];

/// A probe, and whether it can be attached.
type Probe = (String, bool);

fn usdt() -> Vec<Probe> {
    // Of the last two, the kernel would overwrite the red zone at one and never report a hit of the other.
    [("nop", true), ("nop_nop5", true), ("nop_nop10", true), ("nop5", false), ("nop10", false)]
        .map(|(name, fit)| (format!("on: usdt:leaf:{name}"), fit))
        .into()
}

fn functions() -> Vec<Probe> {
    // The kernel would replace the first instruction of the last one by a call, which kills a forked child; the next
    // instruction is probed instead.
    FUNCTIONS.map(|name| (format!("function: {name}"), true)).into()
}

/// Sites where the red zone is in use: a store into it, and a five-byte nop.
fn inside() -> Vec<Probe> {
    [("0x1", true), ("0x17", false)].map(|(at, fit)| (format!("function: entry_push+{at}"), fit)).into()
}

/// Attaches the probes, calls every leaf a million times, and checks the leaves' results and the tracer's counts. The
/// metric is a YAML list of one, whose series `pN`, for probe number N, must then have this value.
fn no_harm(attach: &str, probes: &[Probe], metric: &str, shown: (&str, u64)) {
    no_harm_in(CALLS, attach, probes, metric, shown);
}

fn no_harm_in(calls: u64, attach: &str, probes: &[Probe], metric: &str, shown: (&str, u64)) {
    let directory = directory();
    let binary = private_copy("leaf", directory.path());
    let mut yaml = format!(
        "node_name: test\nattach: {attach}\ntargets:\n- name: leaf\n  binary: {}\n  probes:\n",
        binary.display()
    );
    for (n, (point, _)) in probes.iter().enumerate() {
        writeln!(yaml, "  - {point}\n    {}", metric.replace("pN", &format!("p{n}"))).unwrap();
    }
    let tracer = Tracer::start_unready(&yaml, false);
    let output = Command::new(&binary).arg(calls.to_string()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(told.lines().count(), LEAVES, "{told}");
    for line in told.lines() {
        let leaf: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!((&leaf["calls"], &leaf["wrong"]), (&calls.into(), &0.into()), "{attach}: {line}");
        assert_eq!(leaf["red_zone"], true, "the compiler has put it elsewhere: {line}");
    }
    let (accounting, series) = (tracer.accounting_at_rest(), tracer.render());
    // A duration takes two probes: the call and its return.
    let of_each = accounting.len() / probes.len();
    for (n, (point, fit)) in probes.iter().enumerate() {
        let value = series.get(&shown.0.replace("pN", &format!("p{n}")));
        for at in n * of_each..(n + 1) * of_each {
            let (state, accounting) = (tracer.state(at).0, accounting[at]);
            if *fit {
                assert_eq!(state, ProbeState::Attached, "{point}");
                assert_eq!(
                    (accounting.hits, accounting.aggregated),
                    (calls, calls),
                    "{attach}, {point}: {accounting:?}"
                );
                assert_eq!(value, Some(&shown.1.to_string()), "{attach}, {point}: {series:#?}");
            } else {
                assert!(matches!(state, ProbeState::Refused(_)), "{point}: {state:?}");
                assert_eq!(accounting.begun, 0, "{point}: {accounting:?}");
            }
        }
    }
}

/// The leaves are called with the seeds 0, 1, 2, ...; this metric sums them.
const ARGUMENT: &str = "args: { v: { index: 0, type: u64 } }\n    metrics: [{ counter: pN_total, value: v }]";
const SEEDS: (&str, u64) = ("pN_total", CALLS * (CALLS - 1) / 2);
/// A leaf returns twelve times its seed plus 66.
const RETURN: &str =
    "returns: u64\n    returns_by: trampoline\n    metrics: [{ counter: pN_total, value: retval }]";
const RETURNED: (&str, u64) = ("pN_total", 12 * SEEDS.1 + 66 * CALLS);
const RETURN_BY_EXITS: &str = "returns: u64\n    metrics: [{ counter: pN_total, value: retval }]";
const DURATION: &str =
    "returns_by: trampoline\n    metrics: [{ histogram: pN_seconds, value: duration, buckets: [10] }]";
const TIMED: (&str, u64) = ("pN_seconds_count", CALLS);
const HIT: &str = "metrics: [{ counter: pN_total }]";
const HITS: (&str, u64) = ("pN_total", CALLS);

#[test]
fn usdt_probes() {
    no_harm("auto", &usdt(), ARGUMENT, SEEDS);
    no_harm("perf", &usdt(), ARGUMENT, SEEDS);
    no_harm("auto", &inside(), HIT, HITS);
    no_harm("perf", &inside(), HIT, HITS);
}

#[test]
fn entries_with_uprobe_multi() {
    no_harm("auto", &functions(), ARGUMENT, SEEDS);
}

#[test]
fn entries_with_perf_events() {
    no_harm("perf", &functions(), ARGUMENT, SEEDS);
}

#[test]
fn returns_with_uprobe_multi() {
    no_harm("auto", &functions(), RETURN, RETURNED);
}

#[test]
fn returns_with_perf_events() {
    no_harm("perf", &functions(), RETURN, RETURNED);
}

/// With one link, the entry stores the time for the return.
#[test]
fn durations_with_uprobe_multi() {
    no_harm("auto", &functions(), DURATION, TIMED);
}

/// An exit is single-stepped, which takes ten times as long as an entry.
fn exits(attach: &str) {
    let calls = harm::calls(50_000);
    let returned = 6 * calls * (calls - 1) + 66 * calls;
    no_harm_in(calls, attach, &functions(), RETURN_BY_EXITS, ("pN_total", returned));
}

#[test]
fn exits_with_uprobe_multi() {
    exits("auto");
}

#[test]
fn exits_with_perf_events() {
    exits("perf");
}
