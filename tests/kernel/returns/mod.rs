//! Functions that are left in every possible way, with their returns traced: the program behaves as without the tracer,
//! every return is seen with its result, and calls that did not return are not counted. With both ways to attach.
//! `HARM_CALLS=1000000` in the environment makes a million calls of each scenario.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::harm;
use crate::support::program::{compile, directory};
use crate::support::tracer::{Series, Tracer};
use exporter::elf::{Functions, Image, function_sites};
use exporter::kernel::Accounting;
use exporter::targets::ProbeState;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernel/returns");

/// The number of traced calls per scenario.
const CALLS: u64 = 30_000;

/// A scenario of `leaps.cc`: its name, how many traced calls it makes in 100 rounds, and its functions, each with
/// whether its results are seen.
type Scenario = (&'static str, u64, &'static [(&'static str, bool)]);

const SCENARIOS: [Scenario; 7] = [
    ("exceptions", 600, &[("deep", true), ("guarded", true)]),
    ("jumps", 300, &[("jumps_down", true), ("signalled", true)]),
    ("contexts", 100, &[("yields", true)]),
    ("stacks", 100, &[("leaves_stack", true)]),
    ("threads", 100, &[("ends_thread", true), ("is_cancelled", true)]),
    (
        "recursion",
        141,
        &[("recursive", true), ("last_call", true), ("through_pointer", false), ("nothing", false)],
    ),
    ("processes", 100, &[("forks", true)]),
];

fn build(compiler: &str, source: &str, flags: &[&str], directory: &Path) -> PathBuf {
    let built = directory.join(source.split('.').next().unwrap());
    let output = Command::new(compiler)
        .args(flags)
        .arg("-o")
        .arg(&built)
        .arg(Path::new(SOURCES).join(source))
        .output();
    let output = output.unwrap_or_else(|err| panic!("{compiler}: {err}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    built
}

fn rounds(calls: u64, calls_of_100: u64) -> u64 {
    (calls * 100).div_ceil(calls_of_100).next_multiple_of(100)
}

fn run(program: &Path, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap()
}

/// Parses the program's own counts: for each function the number of calls and of returns, and the sum of the results.
fn said(output: &Output) -> BTreeMap<String, [u64; 3]> {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = |line: &str| {
        let mut words = line.split(' ');
        let name = words.next()?.to_string();
        let numbers: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
        Some((name, numbers.try_into().ok()?))
    };
    text.lines().map(|text| line(text).unwrap_or_else(|| panic!("{text}"))).collect()
}

struct Seen<'a> {
    tracer: &'a Tracer,
    accounting: Vec<Accounting>,
    series: Series,
}

impl<'a> Seen<'a> {
    fn of(tracer: &'a Tracer) -> Self {
        Self { accounting: tracer.accounting_at_rest(), series: tracer.render(), tracer }
    }

    fn accounting(&self, probe: &str) -> Accounting {
        let at = self.tracer.plan.probes.iter().position(|known| known.name == probe);
        self.accounting[at.unwrap_or_else(|| panic!("{probe}"))]
    }

    fn number(&self, series: &str) -> u64 {
        self.series.get(series).map_or(0, |value| value.parse::<f64>().unwrap() as u64)
    }

    /// Asserts that every call and every return of the function was seen, with the right result, and nothing else.
    fn assert_exact(&self, function: &str, said: [u64; 3], sees_result: bool) {
        let [entered, returned, sum] = said;
        let at_entry = self.accounting(function);
        let at_exit = self.accounting(&format!("{function}:return"));
        assert_eq!((at_entry.hits, at_entry.lost), (entered, 0), "{function}: {at_entry:?}");
        assert_eq!((at_exit.aggregated, at_exit.lost), (returned, 0), "{function}: {at_exit:?}");
        assert_eq!(self.number(&format!("{function}_seconds_count")), returned, "{function}");
        if sees_result {
            assert_eq!(self.number(&format!("{function}_total")), sum, "{function}: {:#?}", self.series);
        }
    }
}

fn configuration(attach: &str, binary: &Path, functions: &[(&str, bool)]) -> String {
    let mut yaml = format!(
        "node_name: test\nattach: {attach}\ntargets:\n- name: leaps\n  binary: {}\n  probes:\n",
        binary.display()
    );
    for (name, sees_result) in functions {
        writeln!(yaml, "  - function: {name}\n    returns: u64\n    metrics:").unwrap();
        writeln!(yaml, "    - histogram: {name}_seconds\n      value: duration\n      buckets: [10]")
            .unwrap();
        if *sees_result {
            writeln!(yaml, "    - counter: {name}_total\n      value: retval").unwrap();
        }
    }
    yaml
}

/// With this flag, functions end with a stack check, whose jump is probed instead of the `ret`.
const GUARDED: &str = "-fstack-protector-all";

fn leaps(attach: &str, more: &[&str]) {
    let directory = directory();
    let flags = [&["-O2", "-pthread"], more].concat();
    let binary = build("g++", "leaps.cc", &flags, directory.path());
    for (scenario, calls_of_100, functions) in SCENARIOS {
        let wanted = harm::calls(CALLS);
        let rounds = rounds(wanted, calls_of_100);
        let tracer = Tracer::start(&configuration(attach, &binary, functions));
        let output = run(&binary, &[scenario, &rounds.to_string()]);
        assert!(output.status.success(), "{attach}, {scenario}: {output:?}");
        let (said, seen) = (said(&output), Seen::of(&tracer));
        let made: u64 = said.values().map(|[entered, ..]| entered).sum();
        assert!(made >= wanted, "{scenario}: only {made} calls");
        for (function, sees_result) in functions {
            seen.assert_exact(function, said[*function], *sees_result);
        }
        if scenario == "processes" {
            // A child's return belongs to a call that its parent has made.
            assert_eq!(seen.accounting("forks:return").filtered, rounds.div_ceil(50), "{attach}");
        }
        assert_eq!(tracer.stray(), 0);
    }
}

#[test]
fn every_exit_with_uprobe_multi() {
    leaps("auto", &[]);
}

#[test]
fn every_exit_with_perf_events() {
    leaps("perf", &[]);
}

#[test]
fn every_exit_of_guarded_functions_with_uprobe_multi() {
    leaps("auto", &[GUARDED]);
}

#[test]
fn every_exit_of_guarded_functions_with_perf_events() {
    leaps("perf", &[GUARDED]);
}

/// With this flag, every function ends with a stack check, except for those written in assembly.
#[test]
fn guarded_functions_need_no_single_stepping() {
    let directory = directory();
    let binary = build("g++", "leaps.cc", &["-O2", "-pthread", GUARDED], directory.path());
    let bytes = std::fs::read(binary).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let code = Functions::of(&image);
    for name in
        ["deep", "guarded", "jumps_down", "yields", "leaves_stack", "is_cancelled", "recursive", "forks"]
    {
        let site = &function_sites(&image, name).unwrap()[0];
        let exits = code.exits(site.entry, site.size).unwrap();
        assert!(exits.exits.iter().all(|exit| !exit.approaches.is_empty()), "{name}: {exits:#x?}");
    }
}

/// The scenarios of `handovers.cc`.
const HANDOVERS: [Scenario; 3] = [
    ("handlers", 100, &[("first", true), ("second", true), ("finishes", true)]),
    ("loops", 300, &[("drains", true)]),
    ("turns", 300, &[("pings", false), ("prints", false)]),
];

/// A call that ends in another function is not mistaken for an earlier one at the same place of the stack that an
/// exception ended, and the iterations of a loop that begins where the function does are one call.
#[test]
fn tail_calls_and_loop_heads() {
    let directory = directory();
    let binary = build("g++", "handovers.cc", &["-O1"], directory.path());
    for attach in ["auto", "perf"] {
        for (scenario, calls_of_100, functions) in HANDOVERS {
            // Its loops cause many hits per call.
            let rounds = rounds(harm::calls(CALLS / 10), calls_of_100);
            let tracer = Tracer::start(&configuration(attach, &binary, functions));
            let output = run(&binary, &[scenario, &rounds.to_string()]);
            assert!(output.status.success(), "{attach}, {scenario}: {output:?}");
            let (said, seen) = (said(&output), Seen::of(&tracer));
            for (function, sees_result) in functions {
                seen.assert_exact(function, said[*function], *sees_result);
            }
            assert_eq!(tracer.stray(), 0);
        }
    }
}

#[test]
fn rust_panics() {
    let directory = directory();
    let binary = build("rustc", "panics.rs", &["-O", "--edition=2024"], directory.path());
    // A round makes one to four calls.
    let rounds = harm::calls(CALLS) / 2;
    for attach in ["auto", "perf"] {
        let tracer = Tracer::start(&configuration(attach, &binary, &[("may_panic", true)]));
        let output = run(&binary, &[&rounds.to_string()]);
        assert!(output.status.success(), "{attach}: {output:?}");
        let [entered, returned, _] = said(&output)["may_panic"];
        let seen = Seen::of(&tracer);
        // A function of depth d returns d if it returns; each depth is a fourth of the calls, and two out of three
        // return.
        let sum = seen.number("may_panic_total");
        seen.assert_exact("may_panic", [entered, returned, sum], true);
        // An uncaught panic ends the program as it does untraced.
        let output = run(&binary, &["3", "uncaught"]);
        assert_eq!(output.status.code(), Some(101), "{attach}: {output:?}");
    }
}

/// A program that forks inside calls from which the children return, too.
const FORKING: &str = r#"
#include <sys/wait.h>
#include <unistd.h>
__attribute__((noinline)) int inner(volatile int n) { return n; }
__attribute__((noinline)) int outer(int n) {
    pid_t child = fork();
    if (child) {
        int status;
        waitpid(child, &status, 0);
        return status ? 1 : 0;
    }
    return inner(n) == n ? 2 : 3;
}
int main(void) {
    for (int i = 0; i < 50; i++) {
        int told = outer(i);
        if (told) _exit(told == 2 ? 0 : told);
    }
    return 0;
}
"#;

/// Each call has one return, that of the process that made it; with and without storage in the kernel for its time.
#[test]
fn call_returning_in_parent_and_child_counts_once() {
    let directory = directory();
    let binary = compile("gcc", "forking.c", FORKING, &["-O2"], directory.path());
    for (attach, by) in [("auto", "trampoline"), ("perf", "trampoline"), ("auto", "exits"), ("perf", "exits")]
    {
        let yaml = configuration(attach, &binary, &[("outer", false), ("inner", false)]);
        let tracer = Tracer::start(&yaml.replace("returns: u64", &format!("returns_by: {by}")));
        let output = run(&binary, &[]);
        assert!(output.status.success(), "{attach}, {by}: {output:?}");
        let seen = Seen::of(&tracer);
        for function in ["outer", "inner"] {
            seen.assert_exact(function, [50, 50, 0], false);
        }
        assert_eq!(seen.accounting("outer:return").filtered, 50, "{attach}, {by}");
    }
}

/// The kernel's trampoline is refused where it could kill the program.
#[test]
fn rejects_trampoline_where_the_stack_is_unwound() {
    let directory = directory();
    let binary = build("g++", "leaps.cc", &["-O2", "-pthread"], directory.path());
    let yaml = configuration("auto", &binary, &[("deep", true), ("recursive", true)]);
    let tracer = Tracer::start_unready(&yaml.replace("returns: u64", "returns_by: trampoline"), false);
    for probe in 0..tracer.plan.probes.len() {
        let ProbeState::Refused(reason) = tracer.state(probe).0 else { panic!("{:?}", tracer.state(probe)) };
        assert!(reason.contains("returns_by: trampoline"), "{reason}");
    }
    let output = run(&binary, &["exceptions", "1000"]);
    assert!(output.status.success(), "{output:?}");
}
