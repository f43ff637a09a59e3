//! Programs that replace their code by a copy: the exporter reports what can be counted of them, and breakpoints in the
//! copy do not kill them again and again.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use super::support::*;
use crate::support::exporter::{Exporter, Place, Setup, wait_for};
use crate::support::program::compile;

#[test]
fn previously_moved_code_is_reported() {
    let place = Place::new();
    let path = place.path("moved");
    build(&path, &["-O1", "-DPAD=1"]);
    let (mut moved, mut other) = (Program::start(&path), Program::start(&path));
    moved.say("move");
    let selector = format!("binary: {}", path.display());
    let exporter = Setup::new(&place, config(&[("p", &selector)])).start();
    exporter.wait_until_ready();
    exporter.wait_for_log(&format!("process {} has replaced the code at 1 of 1 traced sites", moved.pid()));
    moved.fire(1000);
    other.fire(3);
    assert_eq!(exporter.scrape().value("p_total", &[]), 3.0);
    assert!(!exporter.log().contains(&format!("process {} has", other.pid())), "{}", exporter.log());
}

/// A program that writes the file's byte over the code of its function, as a live patch does, and calls it once per
/// line.
const PATCHES: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
__attribute__((noinline)) long patched(long n) { return n * 3; }
int main(void)
{
	char line[16], byte;
	long page = (long)patched & -4096L, n = 0;
	if (pread(open("/proc/self/exe", O_RDONLY), &byte, 1, (long)patched - 0x400000) != 1 ||
	    mprotect((void *)page, 4096, PROT_READ | PROT_WRITE | PROT_EXEC))
		return 1;
	*(volatile char *)patched = byte;
	if (mprotect((void *)page, 4096, PROT_READ | PROT_EXEC))
		return 1;
	while (fgets(line, sizeof(line), stdin)) {
		printf("%ld\n", patched(n++));
		fflush(stdout);
	}
	return 0;
}
"#;

#[test]
fn overwritten_breakpoint_is_reported() {
    let place = Place::new();
    let path = compile("gcc", "patches.c", PATCHES, &["-no-pie"], place.path("").as_path());
    let yaml = format!(
        "node_name: test\ntargets:\n- name: p\n  binary: {}\n  probes:\n  - {{ function: patched, metrics: [{{ counter: \
         patched_total }}] }}\n",
        path.display()
    );
    let exporter = Setup::new(&place, yaml).start();
    exporter.wait_until_ready();
    let mut program = Program::start(&path);
    assert_eq!(program.say("call"), "0");
    exporter.wait_for_log(&format!("process {} has no breakpoint at 1 of 1 traced sites", program.pid()));
}

/// A program that changes the number that a function returns: a byte after the first one of its instruction.
const CHANGES: &str = r#"
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
__attribute__((noinline, noipa)) int number(void) { return 5; }
int main(void)
{
	char line[16], *code = (char *)number;
	char *page = (char *)((long)code & -4096L);
	while (*code != '\xcc' && *code != '\xb8')
		code++;
	if (code[1] != 5 || mprotect(page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC))
		return 1;
	code[1] = 7;
	if (mprotect(page, 8192, PROT_READ | PROT_EXEC))
		return 1;
	while (fgets(line, sizeof(line), stdin)) {
		printf("%d\n", number());
		fflush(stdout);
	}
	return 0;
}
"#;

/// As if the program did so at the moment when the breakpoint is set, which no earlier comparison can detect.
#[test]
fn reports_code_changed_after_a_breakpoint() {
    let place = Place::new();
    let options = ["-O1", "-no-pie", "-fcf-protection=none"];
    let path = compile("gcc", "changes.c", CHANGES, &options, place.path("").as_path());
    let yaml = format!(
        "node_name: test\ntargets:\n- name: p\n  binary: {}\n  probes:\n  - {{ function: number, metrics: [{{ counter: \
         number_total }}] }}\n",
        path.display()
    );
    let exporter = Setup::new(&place, yaml).start();
    exporter.wait_until_ready();
    let mut program = Program::start(&path);
    assert_eq!(
        program.say("call"),
        "5",
        "what this test is about: the kernel executes the file's instruction"
    );
    exporter.wait_for_log(&format!(
        "process {} has changed its code behind the breakpoints at 1 of 1 traced sites",
        program.pid()
    ));
}

/// A program that redirects a function to another one with a jump, as a hot patch does, and calls it once per line.
const HOT_PATCHED: &str = r#"
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
__attribute__((noinline, noipa)) long replacement(long n) { return n + 1000; }
__attribute__((noinline, noipa)) long patched(long n) { return n * 3; }
__attribute__((noinline, noipa)) long untouched(long n) { return n + 1; }
int main(int count, char **arguments)
{
	char line[16], *code = (char *)patched;
	char *page = (char *)((long)code & -4096L);
	int distance = (char *)replacement - (code + 5);
	(void)arguments;
	if (count > 1) {
		if (mprotect(page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC))
			return 1;
		*code = '\xe9';
		memcpy(code + 1, &distance, 4);
		if (mprotect(page, 8192, PROT_READ | PROT_EXEC))
			return 1;
	}
	for (long n = 0; fgets(line, sizeof(line), stdin); n++) {
		printf("%ld %ld\n", patched(n), untouched(n));
		fflush(stdout);
	}
	return 0;
}
"#;

#[test]
fn patched_function_is_skipped_until_the_process_ends() {
    for attach in ["multi", "perf"] {
        let place = Place::new();
        let options = ["-O1", "-no-pie", "-falign-functions=32"];
        let path = compile("gcc", "hot.c", HOT_PATCHED, &options, place.path("").as_path());
        let yaml = format!(
            "attach: {attach}\nnode_name: test\ntargets:\n- name: p\n  binary: {}\n  probes:\n  - {{ function: patched, \
             metrics: [{{ counter: patched_total }}, {{ histogram: patched_seconds, value: duration }}] }}\n  - {{ \
             function: untouched, metrics: [{{ counter: untouched_total }}] }}\n",
            path.display()
        );
        let mut patched = Program::of(Command::new(&path).arg("patched"));
        assert_eq!(patched.say("call"), "1000 1");
        let exporter = Setup::new(&place, yaml).start();
        exporter.wait_for_log("Attached 1/3 probes");
        let named = format!("process {} has other code there than the file", patched.pid());
        exporter.wait_for_log(&named);
        let mut other = Program::start(&path);
        assert_eq!(patched.say("call"), "1001 2");
        assert_eq!(other.say("call"), "0 1");
        assert_eq!(exporter.scrape().value("untouched_total", &[]), 2.0);
        drop(patched);
        exporter.wait_until_ready();
        assert_eq!(other.say("call"), "3 2");
        assert_eq!(exporter.scrape().value("patched_total", &[]), 1.0);
        // Code with this exporter's breakpoints must not look like a patch to the next exporter.
        let mut again = Program::of(Command::new(&path).arg("patched"));
        assert_eq!(again.say("call"), "1000 1");
        drop(exporter);
        assert_eq!((again.say("call"), other.say("call")), ("1001 2".into(), "6 3".into()));
    }
}

/// The kernel believes that the breakpoints are still there.
#[test]
fn discarded_breakpoints_are_restored() {
    for (attach, options) in [("multi", "-DPAD=1"), ("perf", "-DSEMAPHORE")] {
        let place = Place::new();
        let path = place.path("forgets");
        build(&path, &["-O1", "-DPAD=1", options]);
        let yaml = config(&[("p", &format!("binary: {}", path.display()))]);
        let exporter = Setup::new(&place, format!("attach: {attach}\n{yaml}")).start();
        exporter.wait_until_ready();
        let (mut program, mut other) = (Program::start(&path), Program::start(&path));
        let counted = |exporter: &Exporter| exporter.scrape().value("p_total", &[]);
        let mut expected = 0.0;
        for _ in 0..2 {
            program.fire(3);
            expected += 3.0;
            assert_eq!(counted(&exporter), expected);
            // Both lines are sent at once, so that no check comes in between.
            program.tell("forget\n100");
            (0..2).for_each(|_| drop(program.answer()));
            assert_eq!(counted(&exporter), expected, "what this test is about");
            wait_for("breakpoints to be set again", || {
                program.fire(1);
                counted(&exporter) > expected
            });
            expected = counted(&exporter);
        }
        let told = format!("process {} has discarded the breakpoints at 1 of 1 traced sites", program.pid());
        exporter.wait_for_log(&told);
        assert_eq!(exporter.log().matches(&told).count(), 1, "{}", exporter.log());
        other.fire(10);
        program.fire(10);
        let scrape = exporter.scrape();
        assert_eq!(scrape.value("p_total", &[]), expected + 20.0);
        assert_eq!(scrape.value("fibre_exporter_breakpoints_thrown_away_total", &[("target", "p")]), 2.0);
        assert_eq!(scrape.value("fibre_exporter_errors_total", &[("error_type", "stray_hit")]), 0.0);
        assert!(!exporter.log().contains(&format!("process {} has", other.pid())), "{}", exporter.log());
    }
}

#[test]
fn program_killed_by_breakpoints_is_no_longer_traced() {
    let place = Place::new();
    let path = place.path("moves");
    build(&path, &["-O1", "-DPAD=1"]);
    let selector = format!("binary: {}", path.display());
    let exporter = Setup::new(&place, config(&[("p", &selector)])).start();
    exporter.wait_until_ready();
    let mut program = Program::start(&path);
    program.fire(1);
    program.say("move");
    program.tell("1");
    assert_eq!(program.end().signal(), Some(libc::SIGTRAP));
    exporter.wait_for_log("not traced any more");
    let mut program = Program::start(&path);
    program.say("move");
    program.fire(10_000);
    assert_eq!(exporter.scrape().value("p_total", &[]), 1.0);
    let (status, reason) = exporter.health("/ready");
    assert!(status == 503 && reason.contains("reached a copy of a breakpoint"), "{reason}");
    // Another version may no longer do that.
    let new = place.path("moves.new");
    build(&new, &["-O3", "-DPAD=40"]);
    std::fs::rename(new, &path).unwrap();
    exporter.wait_until_ready();
    Program::start(&path).fire(5);
    assert_eq!(exporter.scrape().value("p_total", &[]), 6.0);
}

/// No target selects the program: it only loads the library, as programs load one that moves itself to huge pages.
#[test]
fn library_that_copies_its_code_is_no_longer_traced() {
    const LIBRARY: &str = r#"
#include <string.h>
#include <sys/mman.h>
__attribute__((aligned(4096))) long copied(long n) { return n * 3; }
__attribute__((aligned(4096))) int copy_code(void)
{
	void *copy = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memcpy(copy, copied, 4096);
	return mprotect(copy, 4096, PROT_READ | PROT_EXEC) ||
	       mremap(copy, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, copied) != copied;
}
"#;
    const PROGRAM: &str =
        "long copied(long); int copy_code(void); int main(void) { return copy_code() || copied(1) != 3; }";
    for attach in ["multi", "perf"] {
        let place = Place::new();
        let options = ["-O1", "-D_GNU_SOURCE", "-shared", "-fPIC"];
        let beside = place.path("beside");
        std::fs::create_dir(&beside).unwrap();
        let library = compile("gcc", "copies.c", LIBRARY, &options, &beside);
        let program =
            compile("gcc", "loads.c", PROGRAM, &["-O1", library.to_str().unwrap()], &place.path(""));
        let yaml = format!(
            "attach: {attach}\nnode_name: test\ntargets:\n- name: p\n  binary: {}\n  probes:\n  - {{ function: copied, metrics: \
             [{{ counter: copied_total }}] }}\n  - {{ function: copy_code, metrics: [{{ counter: copies_total }}] }}\n",
            library.display()
        );
        let exporter = Setup::new(&place, yaml).start();
        exporter.wait_until_ready();
        let run = || Command::new(&program).status().unwrap();
        assert_eq!(run().signal(), Some(libc::SIGTRAP), "what this test is about");
        exporter.wait_for_log("not traced any more");
        assert_eq!(run().code(), Some(0));
    }
}

/// A runtime that handles `SIGTRAP`, such as those of .NET and Go, ends in its own way, whichever thread is hit.
#[test]
fn detaches_from_program_that_handles_sigtrap() {
    let source = r#"
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
__attribute__((noinline, aligned(64))) long copied(long n) { return n * 3; }
static int how;
static void trapped(int signal) { (void)signal; how ? abort() : _exit(2); }
static void *calls(void *copy) { return (void *)((long (*)(long))copy)(1); }
int main(int argc, char **argv)
{
	pthread_t thread;
	char *copy = mmap(NULL, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	how = argc > 1 && argv[1][0] == 'a';
	signal(SIGTRAP, trapped);
	/* So little code at the end of what is mapped does not tell what it is a copy of. */
	munmap(copy + 4096, 4096);
	copy += 4096 - 8;
	memcpy(copy, (void *)copied, 8);
	pthread_create(&thread, NULL, calls, copy);
	pthread_join(thread, NULL);
	return 0;
}
"#;
    let place = Place::new();
    let path =
        compile("gcc", "copies.c", source, &["-O1", "-pthread", "-fcf-protection=none"], &place.path(""));
    let yaml = format!(
        "node_name: test\ntargets:\n- name: p\n  binary: {}\n  probes:\n  - {{ function: copied, metrics: [{{ counter: \
         copied_total }}] }}\n",
        path.display()
    );
    let exporter = Setup::new(&place, yaml).start();
    exporter.wait_until_ready();
    let run = |how: &str| Command::new(&path).arg(how).status().unwrap();
    assert_eq!(run("abort").signal(), Some(libc::SIGABRT));
    assert_eq!(run("exit").code(), Some(2));
    exporter.wait_for_log("not traced any more");
    assert_eq!(run("exit").code(), Some(0));
}
