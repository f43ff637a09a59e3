//! A program that the kernel kills for any forbidden system call survives probes of every kind. Newer kernels deliver
//! the hit of a traced return through a system call of their own.

use super::support::*;
use crate::support::program::directory;
use crate::support::tracer::Tracer;

const PROBES: &str = "  - function: hit
    metrics: [{ histogram: hits_seconds, value: duration, buckets: [10] }]
  - function: padded
    metrics: [{ counter: calls_total }]
  - function: padded
    returns_by: trampoline
    metrics: [{ histogram: calls_seconds, value: duration, buckets: [10] }]
";

fn confined(attach: &str, mode: &str) {
    let directory = directory();
    let path = directory.path().join("program");
    build(&path, &["-O1", "-DPAD=1", "-DSEMAPHORE", "-DNO_THREADS"]);
    let mut program = Program::start(&path);
    let text = config(&[("p", &format!("pid: {}", program.pid()))]);
    let tracer = Tracer::start(&format!("attach: {attach}\n{text}{PROBES}"));
    // The first hits may be what changes the code.
    program.fire(10);
    program.say(&format!("confine {mode}"));
    program.fire(1000);
    for series in ["p_total", "hits_seconds_count", "calls_total", "calls_seconds_count"] {
        assert_eq!(count(&tracer, series), 1010, "{series}");
    }
    drop(tracer);
    program.fire(10);
    // Confined before it is probed.
    let tracer = Tracer::start(&format!("attach: {attach}\n{text}{PROBES}"));
    program.fire(1000);
    for series in ["p_total", "hits_seconds_count", "calls_total", "calls_seconds_count"] {
        assert_eq!(count(&tracer, series), 1000, "{series}");
    }
}

#[test]
fn with_uprobe_multi() {
    confined("multi", "strict");
    confined("multi", "filter");
}

#[test]
fn with_perf_events() {
    confined("perf", "strict");
    confined("perf", "filter");
}
