//! Functions: entry, return, return value and duration, with recursion, and with both ways to attach.

use std::path::Path;
use std::process::Command;

use crate::support::program::directory;
use crate::support::tracer::Tracer;

/// The number of calls that `fib(6)` makes, including itself.
const CALLS: u64 = 25;

const SOURCE: &str = r#"
#include <unistd.h>
__attribute__((noinline)) int fib(int n) { __asm__ volatile(""); return n < 2 ? n : fib(n - 1) + fib(n - 2); }
__attribute__((noinline)) int give(const char *who, int n) { usleep(2000); return n % 3 ? n : -1; }
int main(void) {
	fib(6);
	for (int n = 1; n <= 30; n++)
		give(n % 2 ? "odd" : "even", n);
	return 0;
}
"#;

fn program(directory: &Path) -> std::path::PathBuf {
    let (source, binary) = (directory.join("functions.c"), directory.join("functions"));
    std::fs::write(&source, SOURCE).unwrap();
    assert!(Command::new("cc").args(["-O1", "-o"]).args([&binary, &source]).status().unwrap().success());
    binary
}

#[test]
fn returns_durations_and_recursion() {
    for attach in ["auto", "perf"] {
        let directory = directory();
        let binary = program(directory.path());
        let tracer = Tracer::start(&format!(
            r#"
node_name: test
attach: {attach}
targets:
- name: functions
  binary: {}
  probes:
  - function: fib
    returns: i32
    metrics:
    - {{ histogram: fib_seconds, value: duration, buckets: [10] }}
    - {{ counter: fib_returned_total, value: retval }}
    - {{ counter: fib_calls_total, labels: {{ f: function }} }}
  - function: give
    returns: i32
    args: {{ who: {{ index: 0, type: string }} }}
    metrics:
    - {{ histogram: give_seconds, value: duration, labels: {{ who: who }}, buckets: [1ms, 10] }}
    - {{ counter: given_total, value: retval, when: retval > 0 }}
    - {{ counter: refused_total, when: retval < 0, labels: {{ who: who }} }}
"#,
            binary.display()
        ));
        assert!(Command::new(&binary).status().unwrap().success());
        let series = tracer.render();
        let of = |name: &str| series.get(name).unwrap_or_else(|| panic!("{name} in {series:#?}")).as_str();
        // Each call, including the inner ones, is one entry and one return: fib(6) makes 25 calls, 8 of them of fib(1).
        assert_eq!(of("fib_seconds_count"), CALLS.to_string(), "{attach}");
        assert_eq!(of("fib_calls_total{f=\"fib\"}"), CALLS.to_string());
        let fibs: [u64; 7] = [0, 1, 1, 2, 3, 5, 8];
        let calls_of: [u64; 7] = [5, 8, 5, 3, 2, 1, 1];
        let returned: u64 = fibs.iter().zip(calls_of).map(|(fib, calls)| fib * calls).sum();
        assert_eq!(calls_of.iter().sum::<u64>(), CALLS);
        assert_eq!(of("fib_returned_total"), returned.to_string());
        // Entry arguments label values that are only known at the return; no call took less than its two milliseconds.
        for who in ["odd", "even"] {
            assert_eq!(of(&format!("give_seconds_count{{who=\"{who}\"}}")), "15");
            assert_eq!(of(&format!("give_seconds_bucket{{who=\"{who}\",le=\"0.001\"}}")), "0");
            assert_eq!(of(&format!("refused_total{{who=\"{who}\"}}")), "5");
        }
        let given: u64 = (1..=30).filter(|n| n % 3 != 0).sum();
        assert_eq!(of("given_total"), given.to_string());
        for accounting in tracer.accounting_at_rest() {
            assert_eq!(accounting.lost, 0, "{attach}: {accounting:?}");
        }
    }
}

/// If each call's start is stored, a return finds that of its own call, even if deeper calls never return, because the
/// kernel follows no more than 64 or because of longjmp.
#[test]
fn return_matches_its_call_despite_abandoned_calls() {
    let source = r#"
#include <setjmp.h>
#include <stdlib.h>
static jmp_buf out;
__attribute__((noinline)) int deep(volatile int n) { int below = n > 1 ? deep(n - 1) : 0; return below + 1; }
__attribute__((noinline)) int leave(volatile int n) {
	if (n == 4 && !setjmp(out)) leave(3);
	else if (n == 1) longjmp(out, 1);
	else if (n < 4) leave(n - 1);
	else return n;
	return n == 4 ? n : 0;
}
int main(int argc, char **argv) { return deep(atoi(argv[1])) != atoi(argv[1]) || leave(4) != 4; }
"#;
    let directory = directory();
    let (file, binary) = (directory.path().join("deep.c"), directory.path().join("deep"));
    std::fs::write(&file, source).unwrap();
    let cc = ["-O1", "-fno-optimize-sibling-calls", "-o"];
    assert!(Command::new("cc").args(cc).args([&binary, &file]).status().unwrap().success());
    for attach in ["auto", "perf"] {
        for depth in [8, 9, 20, 64, 66, 68, 72, 100] {
            let tracer = Tracer::start(&format!(
                "node_name: test\nattach: {attach}\ntargets:\n- name: deep\n  binary: {}\n  probes:\n{}",
                binary.display(),
                ["deep", "leave"].map(probe).concat()
            ));
            assert!(Command::new(&binary).arg(depth.to_string()).status().unwrap().success());
            let series = tracer.render();
            let found = |name: &str| {
                let of = |(series, count): (&String, &String)| {
                    series
                        .strip_prefix(&format!("{name}_total{{n=\""))
                        .map(|rest| (rest.to_string(), count.clone()))
                };
                series.iter().filter_map(of).collect::<Vec<_>>()
            };
            // Each call returns its argument.
            let deep: Vec<_> = (1..=depth).map(|n| (format!("{n}\",r=\"{n}\"}}"), "1".to_string())).collect();
            let sorted = |mut rows: Vec<(String, String)>| {
                rows.sort();
                rows
            };
            assert_eq!(sorted(found("deep")), sorted(deep), "{attach}, {depth}: {series:#?}");
            assert_eq!(
                found("leave"),
                [("4\",r=\"4\"}".to_string(), "1".to_string())],
                "{attach}: {series:#?}"
            );
        }
    }
}

/// A boolean is the low byte of its register: compilers may leave anything above it.
#[test]
fn booleans_are_one_byte() {
    let source = r#"
#include <stdbool.h>
__attribute__((noinline)) void seen(bool on) { __asm__ volatile("" ::"r"(on)); }
int main(void) {
	for (unsigned long value = 0; value < 4; value++)
		__asm__ volatile("call seen" ::"D"(0xabcd00 | (value == 3)) : "rax", "rcx", "memory");
	return 0;
}
"#;
    let directory = directory();
    let (file, binary) = (directory.path().join("truth.c"), directory.path().join("truth"));
    std::fs::write(&file, source).unwrap();
    assert!(Command::new("cc").args(["-O1", "-o"]).args([&binary, &file]).status().unwrap().success());
    let tracer = Tracer::start(&format!(
        "node_name: test\ntargets:\n- name: truth\n  binary: {}\n  probes:\n  - function: seen\n    args: {{ on: {{ \
         index: 0, type: bool }} }}\n    metrics: [{{ counter: seen_total, labels: {{ on: on }} }}]\n",
        binary.display()
    ));
    assert!(Command::new(&binary).status().unwrap().success());
    let series = tracer.render();
    let of = |on: &str| series.get(&format!("seen_total{{on=\"{on}\"}}")).map(String::as_str);
    assert_eq!((of("true"), of("false")), (Some("1"), Some("3")), "{series:#?}");
}

/// Returns a probe of a function whose entry argument is needed at its return.
fn probe(name: &str) -> String {
    format!(
        "  - function: {name}\n    returns: i32\n    args: {{ n: {{ index: 0, type: i32 }} }}\n    metrics:\n    \
         - {{ counter: {name}_total, labels: {{ n: n, r: retval }} }}\n"
    )
}
