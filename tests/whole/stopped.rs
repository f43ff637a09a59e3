//! A stopped exporter (SIGSTOP, a debugger, CPU starvation) never blocks anything indefinitely: whatever waits for it
//! waits for a bounded time, as listed in docs/design/processes.md.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::hostile::{compiled, counting, is_exact, with_children};
use crate::support::exporter::{Exporter, Place, Setup, send_signal, wait_for, wait_for_end};
use crate::support::program::{compile, run};

/// A stopped exporter, which continues on drop.
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

/// Runs a command, which must succeed on its own.
#[track_caller]
fn ends(command: &mut Command) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("start it");
    let status = wait_for_end(&mut child);
    assert!(status.success(), "{command:?}: {status}");
}

/// An exporter that counts the calls of this program, and is ready.
fn tracing(place: &Place, program: &Path) -> Exporter {
    let exporter = Setup::new(place, counting(&format!("binary: {}", program.display()))).start();
    exporter.wait_until_ready();
    exporter
}

fn counted_from_now_on(exporter: &Exporter, program: &Path) {
    let calls = |exporter: &Exporter| exporter.scrape().value("calls_total", &[]);
    wait_for("calls to be counted", || {
        let before = calls(exporter);
        ends(Command::new(program).arg("100"));
        calls(exporter) >= before + 100.0
    });
    // The kernel counts a moment before the probe is known to be attached.
    exporter.wait_until_ready();
}

#[test]
fn recently_replaced_program_starts() {
    let place = Place::new();
    let program = compiled(&place);
    let binary = place.copy_of(&program, "replaced");
    let exporter = tracing(&place, &binary);
    for moment in [0, 5, 20, 100] {
        fs::rename(place.copy_of(&program, "elsewhere"), &binary).expect("replace it");
        sleep(Duration::from_millis(moment));
        let stopped = Stopped::new(&exporter);
        ends(Command::new(&binary).arg("100"));
        // Another replacement, which the stopped exporter does not notice.
        fs::rename(place.copy_of(&program, "elsewhere"), &binary).expect("replace it");
        ends(Command::new(&binary).arg("100"));
        drop(stopped);
        counted_from_now_on(&exporter, &binary);
    }
}

/// A new program that starts and ends meanwhile is not counted, which is said: whether its file is still there, so that it
/// is attached for the next start, or not.
#[test]
fn runs_that_nobody_examined_are_reported() {
    let place = Place::new();
    let program = compiled(&place);
    let unprobed =
        |exporter: &Exporter| exporter.scrape().value("fibre_exporter_unprobed_seconds_total", &[]);
    let name = format!("unseen{}", std::process::id());
    let path = place.path(&name);
    let by_name = format!("process: {name}");
    let by_path = format!("binary: {}", path.display());
    let by_line = format!("cmdline: '*/{name} 100'");
    let removed = [&by_name, &by_path, &by_line].map(|selector| (selector, true));
    for (selector, is_removed) in removed.into_iter().chain([(&by_name, false), (&by_path, false)]) {
        let exporter = Setup::new(&place, counting(selector)).start();
        let stopped = Stopped::new(&exporter);
        ends(Command::new(place.copy_of(&program, "other")).arg("100"));
        drop(stopped);
        ends(Command::new(place.copy_of(&program, "another")).arg("100"));
        assert_eq!(unprobed(&exporter), 0.0, "{selector}");
        let stopped = Stopped::new(&exporter);
        ends(Command::new(place.copy_of(&program, &name)).arg("100"));
        if is_removed {
            fs::remove_file(&path).expect("remove it");
        }
        drop(stopped);
        wait_for("the report", || unprobed(&exporter) > 0.0);
        assert_eq!(exporter.scrape().sum("calls_total", &[]), 0.0, "{selector}");
        if !is_removed {
            let before = unprobed(&exporter);
            counted_from_now_on(&exporter, &path);
            assert_eq!(unprobed(&exporter), before, "{selector}");
            fs::remove_file(&path).expect("remove it");
        }
    }
}

/// More processes than can be reported while the exporter is stopped: what is not known of a new file's runs is said.
#[test]
fn lost_process_events_are_reported() {
    let place = Place::new();
    let program = compiled(&place);
    let binary = place.copy_of(&program, "flooded");
    let exporter = tracing(&place, &binary);
    let stopped = Stopped::new(&exporter);
    ends(Command::new(&binary).args(["2000", "0", "each"]));
    fs::remove_file(&binary).expect("remove it");
    place.copy_of(&program, "flooded");
    ends(Command::new(&binary).arg("100"));
    let mut running = with_children(&binary, 1, 1000);
    drop(stopped);
    let lost = [("error_type", "process_event_lost")];
    wait_for("both to be reported", || {
        let scrape = exporter.scrape();
        scrape.sum("fibre_exporter_errors_total", &lost) > 0.0
            && scrape.value("fibre_exporter_unprobed_seconds_total", &[]) > 0.0
    });
    exporter.wait_for_log("Process events were lost");
    drop(running.stdin.take());
    assert!(wait_for_end(&mut running).success());
    wait_for("its calls to be counted", || exporter.scrape().value("calls_total", &[]) >= 1000.0);
    is_exact(&exporter.scrape(), 1000.0);
}

#[test]
fn traced_file_can_be_read_and_run() {
    const READ: &str = "import mmap, sys\nwith open(sys.argv[1], 'rb') as file:\n    mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)[:]";
    let place = Place::new();
    let program = compiled(&place);
    let exporter = tracing(&place, &program);
    let stopped = Stopped::new(&exporter);
    for _ in 0..4 {
        ends(Command::new("python3").args(["-c", READ]).arg(&program));
        ends(Command::new(&program).arg("1000"));
    }
    drop(stopped);
    wait_for("all of it to be counted", || exporter.scrape().value("calls_total", &[]) >= 4000.0);
    is_exact(&exporter.scrape(), 4000.0);
}

/// `touch` opens the file without waiting for the exporter, which fails, and then sets its times by its path.
#[test]
fn touched_file_is_not_reported_as_overwritten() {
    let place = Place::new();
    let program = compiled(&place);
    let binary = place.copy_of(&program, "touched");
    let exporter = tracing(&place, &binary);
    ends(Command::new("touch").arg(&binary));
    exporter.wait_for_log("is about to be written");
    counted_from_now_on(&exporter, &binary);
    assert!(!exporter.log().contains("was written over"), "{}", exporter.log());
}

/// The kernel revokes the lease after /proc/sys/fs/lease-break-time, 45 seconds by default.
#[test]
fn traced_file_can_be_overwritten() {
    let place = Place::new();
    let program = compiled(&place);
    let binary = place.copy_of(&program, "written");
    let exporter = tracing(&place, &binary);
    let stopped = Stopped::new(&exporter);
    ends(Command::new("cp").args([&program, &binary]));
    drop(stopped);
    counted_from_now_on(&exporter, &binary);
}

/// Two builds: the function `traced` of each begins with a different instruction than the code at the same place in the
/// other.
const BUILDS: &str = r#"
#include <stdio.h>
int first(int n), second(int n);
__asm__(".text\n.p2align 4\n"
	".globl " FIRST "\n.type " FIRST ", @function\n" FIRST ":\nfirst: " CODE "\nret\n.size " FIRST ", .-first\n"
	".p2align 4\n"
	".globl " SECOND "\n.type " SECOND ", @function\n" SECOND ":\nsecond: mov %edi, %eax\nret\n.size " SECOND ", .-second");
int main(void) {
	char line[16];
	for (int n = 1; fgets(line, sizeof(line), stdin); n++) {
		printf("%d\n", first(n) + second(n));
		fflush(stdout);
	}
	return 0;
}
"#;

/// The breakpoints for the old code are then in the new code. A process that was started in the meantime and has not
/// reached them is no longer harmed.
#[test]
fn processes_of_an_overwritten_file_are_reported_and_repaired() {
    let place = Place::new();
    let build = |name: &str, functions: [&str; 2], code: &str| {
        let [first, second] = functions.map(|function| format!("\"{function}\""));
        let defines =
            [format!("-DFIRST={first}"), format!("-DSECOND={second}"), format!("-DCODE=\"{code}\"")];
        let flags: Vec<&str> = defines.iter().map(String::as_str).chain(["-O1"]).collect();
        compile("gcc", &format!("{name}.c"), BUILDS, &flags, &place.path("."))
    };
    let binary = place.copy_of(&build("old", ["traced", "other"], "lea (%rdi,%rdi,2), %eax"), "written");
    let new = build("new", ["other", "traced"], "imul $5, %edi, %eax");
    let yaml = format!(
        "node_name: test\ntargets:\n- name: t\n  binary: {}\n  probes:\n  - {{ function: traced, metrics: [{{ counter: \
         traced_total }}] }}\n",
        binary.display()
    );
    let exporter = Setup::new(&place, yaml).start();
    exporter.wait_until_ready();
    let stopped = Stopped::new(&exporter);
    ends(Command::new("cp").args([&new, &binary]));
    let mut running =
        Command::new(&binary).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start it");
    let is_mended = || exporter.log().contains("the probes are detached, and 1 bytes were repaired");
    let mapped = || fs::read_to_string(format!("/proc/{}/maps", running.id())).unwrap_or_default();
    wait_for("it to run", || mapped().contains("libc.so.6"));
    drop(stopped);
    exporter
        .wait_for_log(&format!("may have executed wrong instructions: restart processes {};", running.id()));
    assert!(is_mended(), "{}", exporter.log());
    exporter.wait_until_ready();
    let mut input = running.stdin.take().expect("its input");
    input.write_all(b"\n\n\n").expect("tell it");
    drop(input);
    let mut said = String::new();
    running.stdout.take().expect("its output").read_to_string(&mut said).expect("its answers");
    let status = wait_for_end(&mut running);
    assert!(status.success() && said == "6\n12\n18\n", "{status}: {said}\n{}", exporter.log());
    assert_eq!(exporter.scrape().value("traced_total", &[]), 3.0);
}

/// A command that queries the exporter times out; the others do not need it.
#[test]
fn commands_do_not_hang() {
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
