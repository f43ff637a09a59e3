//! An exporter that is stopped (SIGSTOP, a debugger, no processor time) holds nobody up for ever: what waits for it waits for a bounded
//! time, which ARCHITECTURE.md lists.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::hostile::{compiled, counting, is_exact};
use crate::support::exporter::{Exporter, Place, Setup, send_signal, wait_for, wait_for_end};
use crate::support::program::run;

/// Goes on when dropped.
struct Stopped(u32);

impl Stopped {
    fn new(exporter: &Exporter) -> Self {
        send_signal(exporter.pid(), "STOP");
        let state = || fs::read_to_string(format!("/proc/{}/stat", exporter.pid())).expect("its state");
        wait_for("it to be stopped", || {
            state().rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        });
        Self(exporter.pid())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        send_signal(self.0, "CONT");
    }
}

/// Ends well, though nobody else does anything for it.
#[track_caller]
fn ends(command: &mut Command) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("start it");
    let status = wait_for_end(&mut child);
    assert!(status.success(), "{command:?}: {status}");
}

fn counted_from_now_on(exporter: &Exporter, program: &Path) {
    let calls = |exporter: &Exporter| exporter.scrape().value("calls_total", &[]);
    wait_for("calls to be counted", || {
        let before = calls(exporter);
        ends(Command::new(program).arg("100"));
        calls(exporter) >= before + 100.0
    });
    assert_eq!(exporter.health("/ready").0, 200);
}

#[test]
fn a_program_starts_that_was_replaced_a_moment_before() {
    let place = Place::new();
    let program = compiled(&place);
    let binary = place.copy_of(&program, "replaced");
    let exporter = Setup::new(&place, counting(&format!("binary: {}", binary.display()))).start();
    exporter.wait_until_ready();
    for moment in [0, 5, 20, 100] {
        fs::rename(place.copy_of(&program, "elsewhere"), &binary).expect("replace it");
        sleep(Duration::from_millis(moment));
        let stopped = Stopped::new(&exporter);
        ends(Command::new(&binary).arg("100"));
        // Another file, of which it is not told any more.
        fs::rename(place.copy_of(&program, "elsewhere"), &binary).expect("replace it");
        ends(Command::new(&binary).arg("100"));
        drop(stopped);
        counted_from_now_on(&exporter, &binary);
    }
}

#[test]
fn a_traced_file_is_read_and_run() {
    const READ: &str = "import mmap, sys\nwith open(sys.argv[1], 'rb') as file:\n    mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)[:]";
    let place = Place::new();
    let program = compiled(&place);
    let exporter = Setup::new(&place, counting(&format!("binary: {}", program.display()))).start();
    exporter.wait_until_ready();
    let stopped = Stopped::new(&exporter);
    for _ in 0..4 {
        ends(Command::new("python3").args(["-c", READ]).arg(&program));
        ends(Command::new(&program).arg("1000"));
    }
    drop(stopped);
    wait_for("all of it to be counted", || exporter.scrape().value("calls_total", &[]) >= 4000.0);
    is_exact(&exporter.scrape(), 4000.0);
}

/// The kernel takes the lease away after /proc/sys/fs/lease-break-time, 45 seconds by default.
#[test]
fn a_traced_file_is_written_over() {
    let place = Place::new();
    let program = compiled(&place);
    let binary = place.copy_of(&program, "written");
    let exporter = Setup::new(&place, counting(&format!("binary: {}", binary.display()))).start();
    exporter.wait_until_ready();
    let stopped = Stopped::new(&exporter);
    ends(Command::new("cp").args([&program, &binary]));
    drop(stopped);
    counted_from_now_on(&exporter, &binary);
}

/// Who asks it itself gives up, or does not need it.
#[test]
fn commands_end() {
    let place = Place::new();
    let program = compiled(&place);
    let events = place.path("slow.sqlite");
    let yaml = counting(&format!("binary: {}", program.display()));
    let slow = "    - { histogram: numbers, value: n, buckets: [1], slow: 0 }\n";
    let yaml = format!("{yaml}{slow}slow_events: {{ file: {} }}\n", events.display());
    let exporter = Setup::new(&place, yaml).start();
    exporter.wait_until_ready();
    run(Command::new(&program).arg("1000"));
    is_exact(&exporter.scrape(), 1000.0);
    let stopped = Stopped::new(&exporter);
    assert!(!exporter.fetch("/metrics", &["--max-time", "1"]).status.success());
    ends(Command::new(env!("CARGO_BIN_EXE_exporter")).args(["events", "--file"]).arg(&events));
    drop(stopped);
    run(Command::new(&program).arg("1000"));
    is_exact(&exporter.scrape(), 2000.0);
}
