//! Functions whose first instruction cannot be probed or is the head of a loop, and jumps that go through a thunk: each
//! call counts once, with its arguments, and the program computes the same as untraced.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::harm;
use crate::support::program::{compile, directory, run};
use crate::support::tracer::Tracer;

const SOURCE: &str = include_str!("entries.c");
const FUNCTIONS: [&str; 12] = [
    "locked",
    "filled",
    "patchable",
    "turns",
    "spins",
    "nests",
    "thaws",
    "spreads",
    "skips",
    "keeps",
    "interprets",
    "passes_on",
];
const CALLS: u64 = 350;

fn program(directory: &Path) -> PathBuf {
    // Five bytes of padding, which are one instruction, begin `patchable`. The tables of `spreads` hold addresses.
    let flags = ["-O2", "-fcf-protection=none", "-mindirect-branch=thunk", "-fno-pie", "-no-pie"];
    compile("gcc", "entries.c", SOURCE, &flags, directory)
}

/// Returns the number of calls of `nests` that a call with this argument makes, including itself, and the sum of their
/// arguments.
fn nested(argument: u64) -> (u64, u64) {
    let (mut calls, mut sum, mut n) = (1, argument, argument);
    loop {
        if n > 1 {
            let inner = nested(n - 1);
            (calls, sum) = (calls + inner.0, sum + inner.1);
        }
        n /= 2;
        if n == 0 {
            return (calls, sum);
        }
    }
}

/// Returns the number of calls of the function, and the sum of their first arguments.
fn made(function: &str, calls: u64) -> (u64, u64) {
    let arguments = (0..calls).map(|n| n % 7);
    match function {
        // `passes_on` calls it too.
        "filled" => (2 * calls, 2 * arguments.sum::<u64>()),
        "nests" => arguments.map(nested).fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1)),
        _ => (calls, arguments.sum()),
    }
}

/// Traces all functions with these metrics, in which `NAME` is replaced by the function's name, while the program runs.
fn traced(attach: &str, more: &str, check: impl Fn(&Tracer, &dyn Fn(&str) -> u64, &str, (u64, u64))) {
    let directory = directory();
    let program = program(directory.path());
    let calls = harm::calls(CALLS).next_multiple_of(7);
    let untraced = run(Command::new(&program).arg(calls.to_string()));
    let mut yaml = format!(
        "node_name: test\nattach: {attach}\ntargets:\n- name: entries\n  binary: {}\n  probes:\n",
        program.display()
    );
    for name in FUNCTIONS {
        writeln!(yaml, "  - function: {name}\n{}", more.replace("NAME", name)).unwrap();
    }
    let tracer = Tracer::start(&yaml);
    assert_eq!(run(Command::new(&program).arg(calls.to_string())), untraced, "{attach}");
    let accounting = tracer.accounting_at_rest();
    assert!(accounting.iter().all(|accounting| accounting.lost == 0), "{attach}: {accounting:#?}");
    let series = tracer.render();
    let value = |name: &str| series.get(name).map_or(0, |value| value.parse::<f64>().unwrap() as u64);
    for name in FUNCTIONS {
        check(&tracer, &value, name, made(name, calls));
    }
    assert_eq!(tracer.stray(), 0);
}

fn counts(attach: &str) {
    let metrics = "    args: { n: { index: 0, type: i32 } }\n    metrics:\n    - counter: NAME_total\n    - { counter: \
                   NAME_sum_total, value: n }";
    traced(attach, metrics, |_, value, name, (calls, sum)| {
        assert_eq!(value(&format!("{name}_total")), calls, "{attach}: {name}");
        assert_eq!(value(&format!("{name}_sum_total")), sum, "{attach}: {name}");
    });
}

/// Only counts, which takes the fast path.
fn only_counts(attach: &str) {
    traced(attach, "    metrics: [{ counter: NAME_total }]", |_, value, name, (calls, _)| {
        assert_eq!(value(&format!("{name}_total")), calls, "{attach}: {name}");
    });
}

fn durations(attach: &str) {
    let metrics = "    args: { n: { index: 0, type: i32 } }\n    metrics:\n    - { histogram: NAME_seconds, value: duration, \
                   buckets: [10] }\n    - { counter: NAME_sum_total, value: n }";
    traced(attach, metrics, |_, value, name, (calls, sum)| {
        assert_eq!(value(&format!("{name}_seconds_count")), calls, "{attach}: {name}");
        assert_eq!(value(&format!("{name}_sum_total")), sum, "{attach}: {name}");
    });
}

#[test]
fn unusual_entries_with_uprobe_multi() {
    counts("auto");
    only_counts("auto");
    durations("auto");
}

#[test]
fn unusual_entries_with_perf_events() {
    counts("perf");
    only_counts("perf");
    durations("perf");
}

/// The kernel's trampoline would replace a return address in each iteration.
#[test]
fn rejects_trampoline_at_a_loop_head() {
    let directory = directory();
    let program = program(directory.path());
    let yaml = format!(
        "node_name: test\ntargets:\n- name: entries\n  binary: {}\n  probes:\n  - function: turns\n    returns_by: trampoline\n    \
         metrics: [{{ histogram: turns_seconds, value: duration, buckets: [10] }}]\n",
        program.display()
    );
    let tracer = Tracer::start_unready(&yaml, false);
    let state = format!("{:?}", tracer.state(0).0);
    assert!(state.contains("begins with a loop"), "{state}");
}
