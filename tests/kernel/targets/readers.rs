//! Processes that read a traced file as memory, to copy it or to translate its code, find none of the kernel's
//! breakpoints there.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::support::*;
use crate::support::exporter::{Exporter, Place, Setup};
use crate::support::program::run as output_of;
use crate::support::tracer::eventually;

/// A script that copies a mapped file, once for each line that it reads.
const COPIES: &str = "import mmap, sys
file = open(sys.argv[1], 'rb')
kept = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
for line in sys.stdin:
    mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) if line == 'anew\\n' else kept
    with open(sys.argv[2], 'wb') as copy:
        copy.write(mapped)
    print('done', flush=True)
";

fn copies(from: &Path, to: &Path) -> Program {
    Program::of(Command::new("python3").args(["-c", COPIES]).args([from, to]))
}

/// Checks what a program has copied, unless the exporter did not get the processor for longer than the program is held.
fn is_plain(text: &[u8], copied: &Path, copy: impl FnOnce()) {
    let began = Instant::now();
    copy();
    let is_late = began.elapsed() >= MAX_HOLD;
    assert!(!can_make_wait() || is_late || fs::read(copied).unwrap() == text, "{}", copied.display());
}

fn foreign(exporter: &Exporter, kind: &str) -> f64 {
    exporter.scrape().value("fibre_exporter_foreign_mappings_total", &[("target", "p"), ("kind", kind)])
}

#[test]
fn copy_through_a_mapping_has_no_breakpoints() {
    let place = Place::new();
    let [path, plain, copy] = ["copied", "plain", "copy"].map(|name| place.path(name));
    // Git maps files larger than 32 KiB.
    build(&path, &["-O1", "-DPAD=1", "-static"]);
    super::support::copy(&path, &plain);
    let text = fs::read(&plain).unwrap();
    let mut earlier = copies(&path, &copy);
    earlier.say("kept");
    let selector = format!("binary: {}", path.display());
    let exporter = Setup::new(&place, config(&[("p", &selector)])).start();
    exporter.wait_until_ready();
    eventually("no breakpoint in a mapping from before", || {
        earlier.say("kept");
        fs::read(&copy).unwrap() == text
    });
    let mut later = copies(&path, &copy);
    for _ in 0..10 {
        is_plain(&text, &copy, || drop(later.say("anew")));
    }
    // One per copy, and one at the start.
    eventually("all to be counted", || foreign(&exporter, "read") >= 11.0);
    exporter.wait_for_log(&format!("(python3) has mapped {} to read it", path.display()));
    let hash = |path: &Path| output_of(Command::new("git").arg("hash-object").arg(path));
    assert!(!can_make_wait() || hash(&path) == hash(&plain));
    fire_at_once(&path, 7);
    assert_eq!(exporter.scrape().value("p_total", &[]), 7.0);
}

/// What is mapped of a file on overlayfs is the lower file, especially in containers.
#[test]
fn copy_through_an_overlay_mapping_has_no_breakpoints() {
    let place = Place::new();
    let [lower, copy] = ["lower", "copy"].map(|name| place.path(name));
    fs::create_dir(&lower).unwrap();
    build(&lower.join("copied"), &["-O1", "-DPAD=1", "-static"]);
    let text = fs::read(lower.join("copied")).unwrap();
    let plain = Mounted::overlay(&lower, &place.path("plain"));
    // A nested overlay needs an upper directory of its own.
    let memory = Mounted::at(&place.path("memory"), &["mount", "-t", "tmpfs", "none"]);
    let nested = Mounted::overlay(&plain.at, &memory.at);
    let selector = format!("binary: {}", lower.join("copied").display());
    let exporter = Setup::new(&place, config(&[("p", &selector)])).start();
    exporter.wait_until_ready();
    for (at, mappings) in [(&plain.at, 6.0), (&nested.at, 12.0)] {
        let mut reader = copies(&at.join("copied"), &copy);
        for _ in 0..5 {
            is_plain(&text, &copy, || drop(reader.say("anew")));
        }
        eventually("all to be counted", || foreign(&exporter, "read") >= mappings);
        fire_at_once(&at.join("copied"), 7);
    }
    assert_eq!(exporter.scrape().value("p_total", &[]), 14.0);
}

#[test]
fn self_copy_has_no_breakpoints() {
    copies_itself("-fuse-ld=bfd");
}

/// With lld, the first code is probed too, which tells when the semaphore can be raised.
#[test]
fn self_copy_linked_by_lld_has_no_breakpoints() {
    copies_itself("-fuse-ld=lld");
}

fn copies_itself(linker: &str) {
    let place = Place::new();
    let [path, plain, copied] = ["itself", "plain", "copied"].map(|name| place.path(name));
    build(&path, &["-O1", "-DSEMAPHORE", "-DPAD=1", linker]);
    copy(&path, &plain);
    let text = fs::read(&plain).unwrap();
    let selector = format!("binary: {}", path.display());
    let exporter = Setup::new(&place, config(&[("p", &selector)])).start();
    exporter.wait_until_ready();
    let mut program = Program::start(&path);
    let before = program.say("raised");
    assert_ne!(before, "0");
    for _ in 0..5 {
        is_plain(&text, &copied, || drop(program.say(&format!("copy {}", copied.display()))));
        program.fire(20);
    }
    eventually("all to be counted", || foreign(&exporter, "read") >= 5.0);
    assert_eq!((exporter.scrape().value("p_total", &[]), program.say("raised")), (100.0, before));
    drop(exporter);
    assert_eq!(program.say("raised"), "0", "no mapping that is gone keeps it raised");
}

/// musl's loader maps the whole library before its segments, which does not count as reading it.
#[test]
fn musl_loader_is_not_a_reader() {
    let place = Place::new();
    let [source, library, program] = ["work.c", "libwork.so", "main"].map(|name| place.path(name));
    fs::write(&source, "int v; __attribute__((noinline)) int work(int n) { return v += n; }").unwrap();
    run("musl-gcc", &["-O1", "-shared", "-fPIC", "-o", library.to_str().unwrap(), source.to_str().unwrap()]);
    fs::write(&source, "int work(int); int main(void) { for (int i = 0; i < 50; i++) work(i); return 0; }")
        .unwrap();
    run(
        "musl-gcc",
        &["-O1", "-o", program.to_str().unwrap(), source.to_str().unwrap(), library.to_str().unwrap()],
    );
    let yaml = format!(
        "node_name: test\ntargets:\n- name: p\n  binary: {}\n  probes:\n  - function: work\n    metrics: [{{ counter: p_total }}]\n",
        library.display()
    );
    let exporter = Setup::new(&place, yaml).start();
    exporter.wait_until_ready();
    for _ in 0..3 {
        run(program.to_str().unwrap(), &[]);
    }
    assert_eq!((exporter.scrape().value("p_total", &[]), foreign(&exporter, "read")), (150.0, 0.0));
}

/// The kernel lowers a semaphore only where it finds the breakpoint for which it has raised the semaphore.
#[test]
fn semaphores_are_lowered_in_a_translated_program() {
    let place = Place::new();
    let path = place.path("raised");
    build(&path, &["-O1", "-DSEMAPHORE", "-DPAD=1"]);
    let translated = || Program::of(Command::new("valgrind").arg("-q").arg(&path));
    let raised = |program: &mut Program| program.say("raised").parse::<u32>().unwrap();
    let mut earlier = translated();
    assert_eq!(raised(&mut earlier), 0);
    let selector = format!("binary: {}", path.display());
    let exporter = Setup::new(&place, config(&[("p", &selector)])).start();
    exporter.wait_until_ready();
    let (mut later, mut plain) = (translated(), Program::start(&path));
    for program in [&mut earlier, &mut later] {
        eventually("the semaphore to be lowered", || raised(program) == 0);
        program.fire(5);
    }
    assert!(raised(&mut plain) > 0);
    plain.fire(3);
    eventually("both to be counted", || foreign(&exporter, "translated") >= 2.0);
    assert_eq!(exporter.scrape().value("p_total", &[]), 3.0);
    drop(exporter);
    assert_eq!([&mut earlier, &mut later, &mut plain].map(raised), [0; 3]);
}

#[test]
fn program_runs_to_completion_in_a_translator() {
    let place = Place::new();
    let path = place.path("translated");
    build(&path, &["-O1", "-DPAD=1"]);
    let selector = format!("binary: {}", path.display());
    let exporter = Setup::new(&place, config(&[("p", &selector)])).start();
    exporter.wait_until_ready();
    for command in
        [&["valgrind", "-q"][..], &["valgrind", "-q", "--tool=none"], &["qemu-x86_64"], &["qemu-x86_64"]]
    {
        let (translator, options) = (command[0], &command[1..]);
        run(translator, &[options, &[path.to_str().unwrap(), "5"]].concat());
    }
    fire_at_once(&path, 3);
    eventually("all to be counted", || foreign(&exporter, "translated") >= 4.0);
    assert_eq!(exporter.scrape().value("p_total", &[]), 3.0);
    exporter.wait_for_log(&format!("translates the code of {}", path.display()));
    // A program that is already running when the probes are attached.
    drop(exporter);
    let mut running = Program::of(Command::new("valgrind").arg("-q").arg(&path));
    running.say("0");
    let exporter = Setup::new(&place, config(&[("p", &selector)])).start();
    exporter.wait_until_ready();
    eventually("it to be counted", || foreign(&exporter, "translated") >= 1.0);
    running.fire(5);
    drop(running);
    assert_eq!(exporter.scrape().value("p_total", &[]), 0.0);
}
