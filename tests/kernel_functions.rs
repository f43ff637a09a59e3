//! Functions: entry, return, return value and duration, nested in themselves, in both ways to attach.

#[path = "common/tracer.rs"]
mod tracer;

use std::path::Path;
use std::process::Command;

use tracer::{Tracer, folder};

/// Calls of `fib(6)`, itself among them, and what they return in all.
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

fn program(folder: &Path) -> std::path::PathBuf {
    let (source, binary) = (folder.join("functions.c"), folder.join("functions"));
    std::fs::write(&source, SOURCE).unwrap();
    assert!(Command::new("cc").args(["-O1", "-o"]).args([&binary, &source]).status().unwrap().success());
    binary
}

#[test]
fn returns_durations_and_recursion() {
    for attach in ["auto", "perf"] {
        let folder = folder();
        let binary = program(folder.path());
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
        // Each call is one entry and one return, the inner ones among them: fib(6) is 25 calls, 8 of fib(1).
        assert_eq!(of("fib_seconds_count"), CALLS.to_string(), "{attach}");
        assert_eq!(of("fib_calls_total{f=\"fib\"}"), CALLS.to_string());
        let fibs: [u64; 7] = [0, 1, 1, 2, 3, 5, 8];
        let calls_of: [u64; 7] = [5, 8, 5, 3, 2, 1, 1];
        let returned: u64 = fibs.iter().zip(calls_of).map(|(fib, calls)| fib * calls).sum();
        assert_eq!(calls_of.iter().sum::<u64>(), CALLS);
        assert_eq!(of("fib_returned_total"), returned.to_string());
        // Entry arguments label what is known only at the return; none took less than its two milliseconds.
        for who in ["odd", "even"] {
            assert_eq!(of(&format!("give_seconds_count{{who=\"{who}\"}}")), "15");
            assert_eq!(of(&format!("give_seconds_bucket{{who=\"{who}\",le=\"0.001\"}}")), "0");
            assert_eq!(of(&format!("refused_total{{who=\"{who}\"}}")), "5");
        }
        let given: u64 = (1..=30).filter(|n| n % 3 != 0).sum();
        assert_eq!(of("given_total"), given.to_string());
        for books in tracer.books_at_rest() {
            assert_eq!(books.lost, 0, "{attach}: {books:?}");
        }
    }
}
