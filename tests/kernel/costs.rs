//! The cost of tracing to programs, as the exporter reports it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::exporter::{Exporter, Place, Setup, send_signal, wait_for};
use crate::support::exposition::Metrics;
use crate::support::program::{Running, compile, directory, run};

/// A program that calls `cheap`, whose first instruction the kernel emulates, `dear`, whose first one it single-steps,
/// and `interpret`, which jumps 1,000 times within itself through a table of addresses that the file does not contain,
/// before it returns; each as often as requested, or forever.
const SOURCE: &str = r#"
#include <stdlib.h>
asm(".text\n.globl cheap\n.type cheap,@function\ncheap: nop\n ret\n.size cheap,.-cheap\n"
    ".globl dear\n.type dear,@function\ndear: xorl %eax,%eax\n ret\n.size dear,.-dear\n");
void cheap(void);
void dear(void);
__attribute__((noinline)) long interpret(const unsigned char *code, long n)
{
    static void *volatile next[3];
    next[0] = &&up;
    next[1] = &&down;
    next[2] = &&end;
    goto *next[*code++];
up:
    n += 3;
    goto *next[*code++];
down:
    n ^= 5;
    goto *next[*code++];
end:
    return n;
}
int main(int argc, char **argv)
{
    unsigned char code[1000];
    volatile long sum = 0;
    for (int i = 0; i < 999; i++)
        code[i] = i & 1;
    code[999] = 2;
    do {
        for (long i = atol(argv[1]); i > 0; i--)
            cheap();
        for (long i = atol(argv[2]); i > 0; i--)
            dear();
        for (long i = atol(argv[3]); i > 0; i--)
            sum += interpret(code, i);
    } while (argc > 4);
    return 0;
}
"#;

const PROBES: &str = "    probes:\n    - function: cheap\n      metrics: [counter: cheap_total]\n    \
    - function: dear\n      metrics: [counter: dear_total]\n    \
    - function: interpret\n      metrics: [{ counter: interpret_total, at: return }]\n";

fn program(directory: &Path) -> PathBuf {
    compile("gcc", "hot.c", SOURCE, &["-O2"], directory)
}

fn cost_of(metrics: &Metrics, probe: &str) -> f64 {
    metrics.value("fibre_exporter_probe_cost_seconds_total", &[("probe", probe)])
}

#[test]
fn every_stop_is_charged_by_its_cost() {
    let directory = directory();
    let program = program(directory.path());
    let exporter = Exporter::tracing(&format!("  - name: hot\n    binary: {}\n{PROBES}", program.display()));
    run(Command::new(&program).args(["2000", "500", "3"]));
    let metrics = exporter.scrape();
    let price =
        |form| metrics.value("fibre_exporter_hit_cost_seconds", &[("form", form), ("source", "measured")]);
    let (cheap, stepped) = (price("emulated"), price("single_stepped"));
    assert!(0.0 < cheap && cheap < stepped, "{cheap} {stepped}");
    assert!((cost_of(&metrics, "cheap") / (2000.0 * cheap) - 1.0).abs() < 0.01);
    assert!((cost_of(&metrics, "dear") / (500.0 * stepped) - 1.0).abs() < 0.01);
    // Three hits, and three thousand jumps that stay within the function.
    assert_eq!(metrics.sum("interpret_total", &[]), 3.0);
    assert!(
        cost_of(&metrics, "interpret:return") > 2990.0 * stepped,
        "{}",
        cost_of(&metrics, "interpret:return")
    );
}

#[test]
fn hits_of_other_processes_are_charged_too() {
    let directory = directory();
    let program = program(directory.path());
    let exporter = Exporter::tracing(&format!(
        "  - name: hot\n    binary: {}\n    process: somebody-else\n{PROBES}",
        program.display()
    ));
    run(Command::new(&program).args(["1000", "0", "0"]));
    let metrics = exporter.scrape();
    assert_eq!(metrics.value("fibre_exporter_probe_filtered_total", &[("probe", "cheap")]), 1000.0);
    assert!(cost_of(&metrics, "cheap") > 0.0);
}

#[test]
fn tracing_ratio_is_reported_and_falls_with_the_hits() {
    let directory = directory();
    let program = program(directory.path());
    let exporter = Exporter::tracing(&format!("  - name: hot\n    binary: {}\n{PROBES}", program.display()));
    let share = "fibre_exporter_target_tracing_ratio";
    // The program does nothing but hit its probes.
    let hot = Command::new(&program).args(["1000", "0", "0", "on"]).stdout(Stdio::null()).spawn().unwrap();
    let hot = Running(hot);
    let metrics = exporter
        .scrape_until("most of its time is told to be tracing's", |metrics| metrics.sum(share, &[]) > 0.3);
    assert!(metrics.sum(share, &[]) <= 1.0);
    let seconds = |of: &str| metrics.sum(&format!("fibre_exporter_target_{of}_seconds_total"), &[]);
    assert!(seconds("cpu") > 0.0 && seconds("tracing") > 0.0);
    drop(hot);
    exporter.scrape_until("it is over", |metrics| metrics.select(share, &[]).is_empty());
}

/// A program that calls `cheap` either a few times per second or all the time; SIGUSR1 toggles between the two. It
/// calls `called` once per 1,000 calls of `cheap`, and counts both in the given file.
const MOODY: &str = r#"
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>
static volatile sig_atomic_t busy;
static void change(int signal) { busy = !busy; }
asm(".text\n.globl cheap\n.type cheap,@function\ncheap: nop\n ret\n.size cheap,.-cheap\n"
    ".globl called\n.type called,@function\ncalled: nop\n ret\n.size called,.-called\n");
void cheap(void);
void called(void);
int main(int argc, char **argv)
{
    int file = open(argv[1], O_RDWR | O_CREAT, 0644);
    if (ftruncate(file, 4096))
        return 1;
    volatile long *calls = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    signal(SIGUSR1, change);
    for (;;) {
        for (int i = 0; i < 1000; i++) {
            cheap();
            calls[0]++;
            if (!busy)
                usleep(2000);
            /* What it is for. */
            for (volatile int n = 0; n < 20000 && !busy; n++)
                ;
        }
        called();
        calls[1]++;
    }
}
"#;

fn calls(file: &Path, of: usize) -> u64 {
    let bytes = std::fs::read(file).unwrap();
    u64::from_le_bytes(*bytes[8 * of..].first_chunk().unwrap())
}

#[test]
fn expensive_probe_is_shed_and_restored() {
    let directory = directory();
    let program = compile("gcc", "moody.c", MOODY, &["-O2"], directory.path());
    let place = Place::new();
    let exporter = Setup::new(
        &place,
        format!(
            "limits: {{ overhead: 10% }}\ntargets:\n  - name: moody\n    binary: {}\n    probes:\n    \
             - function: cheap\n      metrics: [counter: cheap_total]\n    \
             - function: cheap\n      keep: true\n      metrics: [{{ counter: kept_total, labels: {{ pid: pid }} }}]\n    \
             - function: called\n      metrics: [counter: called_total]\n",
            program.display()
        ),
    )
    .start();
    exporter.wait_until_ready();
    let file = directory.path().join("calls");
    let moody = Running(Command::new(&program).arg(&file).spawn().unwrap());
    let state = |metrics: &Metrics, probe: &str| {
        let of = metrics.select("fibre_exporter_probe_state", &[("probe", probe)]);
        of[0].0["state"].clone()
    };
    exporter.scrape_until("it is counted", |metrics| metrics.sum("cheap_total", &[]) > 0.0);
    send_signal(moody.0.id(), "USR1");
    let shed = exporter.scrape_until("the dearest is detached", |metrics| state(metrics, "cheap") == "shed");
    // `cheap#2` is just as expensive but has `keep`, and `called` costs nearly nothing as it is rarely called.
    assert_eq!([state(&shed, "cheap#2"), state(&shed, "called")], ["attached", "attached"]);
    exporter.wait_for_log("cheap is detached for 10 s");
    let (ready, text) = exporter.health("/ready");
    assert!(ready == 200 && text.contains("cheap is shed: tracing took more than 10%"), "{text}");
    let before = exporter.scrape();
    let grows = |name: &str, than: &Metrics| {
        let than = than.sum(name, &[]);
        exporter.scrape_until(name, |metrics| metrics.sum(name, &[]) > than)
    };
    let after = grows("kept_total", &before);
    assert_eq!(after.sum("cheap_total", &[]), before.sum("cheap_total", &[]), "it stands still");
    grows("called_total", &before);
    grows("fibre_exporter_probe_shed_seconds_total", &before);
    send_signal(moody.0.id(), "USR1");
    exporter.scrape_until("it is attached again", |metrics| state(metrics, "cheap") == "attached");
    // Counts are exact again: between two stops of the program, the exporter counts what the program has called.
    let at_rest = || {
        send_signal(moody.0.id(), "STOP");
        let stat = format!("/proc/{}/stat", moody.0.id());
        wait_for("the program to stop", || {
            std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "))
        });
        let metrics = exporter.scrape();
        ([0, 1].map(|of| calls(&file, of)), metrics)
    };
    let ([before, _], first) = at_rest();
    send_signal(moody.0.id(), "CONT");
    wait_for("a thousand calls", || calls(&file, 0) > before + 1000);
    let ([after, called], second) = at_rest();
    let counted = second.sum("cheap_total", &[]) - first.sum("cheap_total", &[]);
    // The program may be stopped between a call and its count.
    assert!((counted - (after - before) as f64).abs() <= 1.0, "{counted} of {}", after - before);
    let all = [("kept_total", after), ("called_total", called)];
    for (name, calls) in all {
        let counted = second.sum(name, &[]);
        assert!((counted - calls as f64).abs() <= 1.0, "{name}: {counted} of {calls}");
    }
    second.assert_nothing_lost();
}

#[test]
fn default_sheds_only_sustained_load_after_a_warning() {
    let directory = directory();
    let program = compile("gcc", "moody.c", MOODY, &["-O2"], directory.path());
    let exporter = Exporter::tracing(&format!(
        "  - name: moody\n    binary: {}\n    probes:\n    - function: cheap\n      metrics: [counter: cheap_total]\n",
        program.display()
    ));
    let file = directory.path().join("calls");
    // On a busy machine the program would otherwise get too little CPU time to matter.
    let moody = Running(Command::new("nice").args(["-n", "-15"]).arg(&program).arg(&file).spawn().unwrap());
    exporter.scrape_until("it is counted", |metrics| metrics.sum("cheap_total", &[]) > 0.0);
    send_signal(moody.0.id(), "USR1");
    let shed = "fibre_exporter_probe_shed_seconds_total";
    exporter.wait_for_log("if that continues, the most expensive probes are detached for a while");
    assert_eq!(exporter.scrape().sum(shed, &[]), 0.0);
    exporter.wait_for_log("more than limits.overhead (2%): cheap is detached for 10 s");
    exporter.scrape_until("that is told", |metrics| metrics.sum(shed, &[]) > 0.0);
}
