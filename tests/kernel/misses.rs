//! Hits that the kernel reports as kept from a BPF program, and those that it never reports: returns of calls nested
//! too deep.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

use crate::support::program::directory;
use crate::support::tracer::Tracer;
use exporter::kernel::misses;
use libbpf_rs::query::ProgInfoIter;
use libbpf_rs::{ObjectBuilder, ProgramInput};

/// A program that triggers itself: the kernel keeps the second, inner hit from it. A uprobe program cannot do that, as
/// it runs no user space code, and the kernel checks for recursion at tracepoints, kprobes and trampolines, but not at
/// uprobes. So this stands in for the exporter's own programs, whose counter no kernel increments yet.
const RECURSIVE: &str = r#"
#define SEC(name) __attribute__((section(name), used))
static long (*print)(const char *text, unsigned size, ...) = (void *)6;
char LICENSE[] SEC("license") = "GPL";
SEC("raw_tp/bpf_trace_printk") int INNER(void *ctx) { char text[] = "again"; print(text, sizeof(text)); return 0; }
SEC("syscall") int outer(void *ctx) { char text[] = "first"; print(text, sizeof(text)); return 0; }
"#;

#[test]
fn missed_program_runs_are_reported() {
    let directory = directory();
    let (source, object) = (directory.path().join("recursive.c"), directory.path().join("recursive.o"));
    // Another run of this test may be in progress; its program has another name.
    let name = format!("inner{}", std::process::id());
    std::fs::write(&source, RECURSIVE.replace("INNER", &name)).unwrap();
    run(Command::new(env!("BPF_CLANG")).args(["-O2", "-target", "bpf", "-c", "-o"]).args([&object, &source]));
    let object = ObjectBuilder::default().open_file(object).unwrap().load().unwrap();
    let programs: Vec<_> = object.progs_mut().collect();
    let [inner, outer] =
        [&*name, "outer"].map(|name| programs.iter().position(|p| p.name() == name).unwrap());
    let _link = programs[inner].attach().unwrap();
    for _ in 0..7 {
        programs[outer].test_run(ProgramInput::default()).unwrap();
    }
    // Any other print on this machine is counted too, so read the kernel's other counter before and after.
    let told = || ProgInfoIter::default().find(|info| info.name == *name).unwrap();
    let (before, ours, after) = (told(), misses(programs[inner].as_fd()).unwrap(), told());
    assert!(before.recursion_misses >= 7, "{}", before.recursion_misses);
    assert!((before.recursion_misses..=after.recursion_misses).contains(&ours), "{ours}");
    assert_eq!(misses(programs[outer].as_fd()).unwrap(), 0);
}

/// The maximum number of nested returns that the kernel follows per thread (MAX_URETPROBE_DEPTH); for further ones it
/// only logs "omit uretprobe due to nestedness limit".
const FOLLOWED: u64 = 64;

const DEEP: &str = r#"
#include <stdlib.h>
__attribute__((noinline)) int deep(volatile int n) { int below = n > 1 ? deep(n - 1) : 0; return below + 1; }
int main(int argc, char **argv) { return deep(atoi(argv[1])) != atoi(argv[1]); }
"#;

#[test]
fn returns_beyond_the_depth_limit_are_not_counted() {
    let directory = directory();
    let (source, binary) = (directory.path().join("deep.c"), directory.path().join("deep"));
    std::fs::write(&source, DEEP).unwrap();
    run(Command::new("cc").args(["-O1", "-fno-optimize-sibling-calls", "-o"]).args([&binary, &source]));
    for attach in ["auto", "perf"] {
        for depth in [FOLLOWED, FOLLOWED + 36] {
            let tracer = Tracer::start(&deep(&binary, attach));
            run(Command::new(&binary).arg(depth.to_string()));
            let accounting = tracer.accounting_at_rest();
            let [calls, returns] = [0, 1].map(|n| accounting[n].aggregated);
            assert_eq!((calls, returns), (depth, FOLLOWED), "{attach}: {accounting:#?}");
            assert_eq!(tracer.misses(), 0, "{attach}: the kernel has begun to count these");
        }
    }
}

fn deep(binary: &Path, attach: &str) -> String {
    format!(
        "node_name: test\nattach: {attach}\ntargets:\n- name: deep\n  binary: {}\n  probes:\n  - function: deep\n    metrics:\n    \
         - counter: calls_total\n  - function: deep\n    returns: i32\n    returns_by: trampoline\n    metrics:\n    \
         - {{ counter: returned_total, value: retval }}\n",
        binary.display()
    )
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
