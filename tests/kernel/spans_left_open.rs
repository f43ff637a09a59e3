//! Spans whose starts have no end, as errors cause them, and spans of forked processes with the same key.

use std::process::Command;

use crate::support::exporter::Exporter;
use crate::support::exposition::Metrics;
use crate::support::program::{compile, directory, run};

/// Runs a C program with the probes of provider `test` and these spans; returns the metrics once `forgotten` starts are
/// known to have ended without their end.
fn trace(source: &str, spans: &str, forgotten: f64) -> Metrics {
    let directory = directory();
    let program = compile("gcc", "spans.c", source, &[], directory.path());
    let exporter = Exporter::tracing(&format!(
        "  - name: spans\n    binary: {}\n    probes:\n{spans}",
        program.display()
    ));
    run(&mut Command::new(program));
    let expired = |samples: &Metrics| samples.sum("fibre_exporter_spans_expired_total", &[]);
    let samples = exporter.scrape_until("the starts without an end", |samples| expired(samples) >= forgotten);
    assert_eq!(expired(&samples), forgotten);
    samples
}

#[test]
fn calls_abandoned_by_longjmp_do_not_interfere() {
    // Every second call is left without its end; the last ones nest four deep, each with its end.
    let source = r#"
#include <setjmp.h>
#include <sys/sdt.h>
static jmp_buf out;
__attribute__((noinline)) static void call(volatile int n) {
    DTRACE_PROBE(test, start);
    if (n % 2) longjmp(out, 1);
    DTRACE_PROBE(test, end);
}
__attribute__((noinline)) static int nest(volatile int depth) {
    DTRACE_PROBE(test, start);
    int below = depth ? nest(depth - 1) : 0;
    DTRACE_PROBE(test, end);
    return below + 1;
}
int main(void) {
    for (volatile int i = 0; i < 100; i++)
        if (!setjmp(out)) call(i);
    for (int i = 0; i < 5; i++)
        if (nest(3) != 4) return 1;
    return 0;
}
"#;
    let spans = "      - span: call_seconds\n        from: usdt:test:start\n        to: usdt:test:end\n";
    // Some make room for others; the rest are forgotten when their thread is found to have ended.
    let samples = trace(source, spans, 50.0);
    assert_eq!(samples.sum("call_seconds_count", &[]), 50.0 + 5.0 * 4.0);
    samples.assert_nothing_lost();
}

/// Begin and end are functions of their own, so that nested starts have the same position on the stack; the inner span
/// takes 1 ms, the outer one 30 ms. An outer span that is abandoned must not shift the pairs that follow.
#[test]
fn spans_ended_in_helper_functions_nest() {
    let source = r#"
#include <sys/sdt.h>
#include <unistd.h>
__attribute__((noinline)) static void begin(void) { DTRACE_PROBE(test, start); }
__attribute__((noinline)) static void end(void) { DTRACE_PROBE(test, end); }
int main(void) {
    for (volatile int i = 0; i < 10; i++) {
        begin();
        usleep(29000);
        if (i == 5) continue;
        for (volatile int n = 0; n < 2; n++) { begin(); usleep(500); end(); }
        end();
    }
    return 0;
}
"#;
    let spans = "      - span: call_seconds\n        from: usdt:test:start\n        to: usdt:test:end\n\
                 \x20       buckets: [25ms, 10]\n";
    let samples = trace(source, spans, 1.0);
    assert_eq!(samples.sum("call_seconds_count", &[]), 27.0);
    assert_eq!(samples.sum("call_seconds_bucket", &[("le", "0.025")]), 18.0);
    samples.assert_nothing_lost();
}

#[test]
fn same_key_in_two_processes_stays_separate() {
    // Both processes begin with key 7 before either ends.
    let source = r#"
#include <sys/sdt.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
    int there[2], back[2];
    char byte = 0;
    if (pipe(there) || pipe(back)) return 1;
    if (!fork()) {
        if (read(there[0], &byte, 1) != 1) _exit(1);
        DTRACE_PROBE1(test, start, 7);
        if (write(back[1], &byte, 1) != 1) _exit(1);
        if (read(there[0], &byte, 1) != 1) _exit(1);
        DTRACE_PROBE1(test, end, 7);
        _exit(0);
    }
    DTRACE_PROBE1(test, start, 7);
    if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1) return 1;
    DTRACE_PROBE1(test, end, 7);
    if (write(there[1], &byte, 1) != 1) return 1;
    int status = 1;
    wait(&status);
    return status;
}
"#;
    let spans = "      - span: call_seconds\n        from: usdt:test:start\n        to: usdt:test:end\n\
                 \x20       by: id\n        args: { id: 0 }\n";
    let samples = trace(source, spans, 0.0);
    assert_eq!(samples.sum("call_seconds_count", &[]), 2.0);
    samples.assert_nothing_lost();
}

/// After execve(2) the process and its thread and argument numbers stay the same, but the new program cannot end what
/// the previous one has begun.
#[test]
fn exec_discards_open_spans() {
    let source = r#"
#include <stdlib.h>
#include <sys/sdt.h>
#include <unistd.h>
int main(int argc, char **argv) {
    int left = argc > 1 ? atoi(argv[1]) : 20;
    if (left % 2) {
        DTRACE_PROBE1(test, end, 7);
        DTRACE_PROBE1(test, start, 8);
        DTRACE_PROBE1(test, end, 8);
    } else
        DTRACE_PROBE1(test, start, 7);
    if (!left) return 0;
    char next[] = { '0' + (left - 1) / 10, '0' + (left - 1) % 10, 0 };
    execl("/proc/self/exe", argv[0], next, NULL);
    return 1;
}
"#;
    for by in ["", "        by: id\n        args: { id: 0 }\n"] {
        let spans = format!(
            "      - span: call_seconds\n        from: usdt:test:start\n        to: usdt:test:end\n{by}"
        );
        // The last one is forgotten when its process is found to have ended.
        let samples = trace(source, &spans, 11.0);
        assert_eq!(samples.sum("call_seconds_count", &[]), 10.0, "{by}");
        assert_eq!(samples.sum("fibre_exporter_probe_lost_total", &[("reason", "no_start")]), 10.0, "{by}");
    }
}
