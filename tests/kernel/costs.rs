//! What tracing takes of programs, as the exporter tells it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::exporter::Exporter;
use crate::support::exposition::Metrics;
use crate::support::program::{compile, folder, run};

/// Calls `cheap`, whose first instruction the kernel emulates, `dear`, whose first one it single-steps, and `interpret`, which
/// jumps 1,000 times within itself by addresses in a table before it returns; each as often as is asked for, or for ever.
const SOURCE: &str = r#"
#include <stdlib.h>
asm(".text\n.globl cheap\n.type cheap,@function\ncheap: nop\n ret\n.size cheap,.-cheap\n"
    ".globl dear\n.type dear,@function\ndear: xorl %eax,%eax\n ret\n.size dear,.-dear\n");
void cheap(void);
void dear(void);
__attribute__((noinline)) long interpret(const unsigned char *code, long n)
{
    static void *const next[] = { &&up, &&down, &&end };
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

fn program(folder: &Path) -> PathBuf {
    compile("gcc", "hot.c", SOURCE, &["-O2"], folder)
}

fn cost_of(metrics: &Metrics, probe: &str) -> f64 {
    metrics.value("fibre_exporter_probe_cost_seconds_total", &[("probe", probe)])
}

/// Ends the program when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn every_stop_of_a_program_is_charged_by_what_it_costs() {
    let folder = folder();
    let program = program(folder.path());
    let exporter = Exporter::tracing(&format!("  - name: hot\n    binary: {}\n{PROBES}", program.display()));
    run(Command::new(&program).args(["2000", "500", "3"]));
    let metrics = exporter.scrape();
    let price =
        |form| metrics.value("fibre_exporter_hit_cost_seconds", &[("form", form), ("source", "measured")]);
    let (cheap, stepped) = (price("emulated"), price("single_stepped"));
    assert!(0.0 < cheap && cheap < stepped, "{cheap} {stepped}");
    assert!((cost_of(&metrics, "cheap") / (2000.0 * cheap) - 1.0).abs() < 0.01);
    assert!((cost_of(&metrics, "dear") / (500.0 * stepped) - 1.0).abs() < 0.01);
    // Three hits, and three thousand jumps that stay.
    assert_eq!(metrics.sum("interpret_total", &[]), 3.0);
    assert!(
        cost_of(&metrics, "interpret:return") > 2990.0 * stepped,
        "{}",
        cost_of(&metrics, "interpret:return")
    );
}

#[test]
fn hits_of_other_processes_are_charged_too() {
    let folder = folder();
    let program = program(folder.path());
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
fn tracings_share_of_a_targets_time_is_told_and_ends_with_its_hits() {
    let folder = folder();
    let program = program(folder.path());
    let exporter = Exporter::tracing(&format!("  - name: hot\n    binary: {}\n{PROBES}", program.display()));
    let share = "fibre_exporter_target_tracing_ratio";
    // It does nothing but hit its probes.
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
