//! The callers of a function, by name.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::program::{Running, compile, directory, run};
use crate::support::tracer::{Tracer, assert_all};

/// A program that reports when it is done and then stays, because names are looked up in the process.
const CALLERS: &str = r#"
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
__attribute__((noinline)) int work(int n) { __asm__ volatile("" ::: "memory"); return n; }
__attribute__((noinline)) int handle_get(int n) { return work(n) + 1; }
__attribute__((noinline)) int handle_put(int n) { return work(n) + 2; }
/* Code that no file tells the name of: sub $8,%rsp; mov $work,%rax; call *%rax; add $8,%rsp; ret. */
static int (*nameless(int file, long offset))(int) {
	unsigned char code[] = "\x48\x83\xec\x08\x48\xb8........\xff\xd0\x48\x83\xc4\x08\xc3";
	int (*called)(int) = work;
	char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
			  MAP_PRIVATE | (file < 0 ? MAP_ANONYMOUS : 0), file, offset & -4096L);

	memcpy(code + 6, &called, 8);
	return memcpy(page + (offset & 4095), code, sizeof(code));
}
extern char __executable_start;
int main(void) {
	long offset = (char *)handle_get - &__executable_start;
	int (*by_nobody)(int) = nameless(-1, 0), sum = 0;
	/* Written over handle_get in a copy of its page. */
	int (*by_other)(int) = nameless(open("/proc/self/exe", O_RDONLY), offset);

	for (volatile int i = 0; i < 10; i++)
		sum += handle_get(i) + handle_put(i) + handle_put(i) + work(i) + (i < 5 ? by_nobody(i) : by_other(i));
	if (write(1, "done\n", 5) != 5 || !sum)
		return 1;
	pause();
}
"#;

/// Starts the program and waits until it has done its work.
fn until_done(binary: &Path) -> Running {
    let mut program = Command::new(binary).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 5];
    program.stdout.take().unwrap().read_exact(&mut line).unwrap();
    Running(program)
}

#[test]
fn callers_are_compared_by_name() {
    let probes = r#"
  - function: work
    metrics:
    - { counter: all_total, labels: { by: { value: caller, match: { main: direct, "handle_*": handler } } } }
    - { counter: handlers_total, when: caller starts_with "handle_", labels: { by: caller } }
    - { counter: others_total, when: caller != "handle_put" }
"#;
    let directory = directory();
    let binary = compile("cc", "callers.c", CALLERS, &[], directory.path());
    let yaml =
        format!("node_name: test\ntargets:\n- name: t\n  binary: {}\n  probes:\n{probes}", binary.display());
    let tracer = Tracer::start(&yaml);
    let program = until_done(&binary);
    let series = tracer.render();
    drop(program);
    let rows = [("{by=\"direct\"}", "10"), ("{by=\"handler\"}", "30"), ("{by=\"unknown\"}", "10")];
    assert_all(&series, "all_total", &rows);
    assert_all(&series, "handlers_total", &[("{by=\"handle_get\"}", "10"), ("{by=\"handle_put\"}", "20")]);
    assert_all(&series, "others_total", &[("", "20")]);
    assert_eq!(tracer.refused_in_user_space(), (20, 0), "what has no name can be compared with none");
}

/// The last instruction of `first` and `third` is a call that never returns, so that its return address is the
/// beginning of `second` and `fourth`.
const FAILING: &str = r#"
#include <setjmp.h>
#include <unistd.h>
jmp_buf start;
volatile int sum;
__attribute__((noinline, noreturn)) void fail(int n) { sum += n; longjmp(start, 1); }
__attribute__((noinline)) int first(int n) { if (n > 1) return 1; fail(n); }
__attribute__((noinline)) int second(int n) { sum++; return n + 2; }
__attribute__((noinline)) static int third(int n) { fail(n); }
__attribute__((noinline)) int fourth(int n) { sum--; return n + 5; }
int main(void) {
	for (volatile int i = 0; i < 5; i++) {
		if (!setjmp(start))
			first(1);
		if (!setjmp(start))
			third(2);
		sum += second(1) + fourth(2);
	}
	if (write(1, "done\n", 5) != 5)
		return 1;
	pause();
}
"#;

/// Also for programs with compressed debug information, and for those whose symbols are in a separate file.
#[test]
fn noreturn_call_is_attributed_to_its_function() {
    let directory = directory();
    let flags = ["-O2", "-fno-reorder-functions", "-falign-functions=1"];
    let built =
        compile("cc", "failing.c", FAILING, &[&flags[..], &["-g", "-gz=zlib"]].concat(), directory.path());
    let stripped = directory.path().join("stripped");
    let debug = directory.path().join("program.debug");
    run(Command::new("objcopy").arg("--only-keep-debug").args([&built, &debug]));
    let link = format!("--add-gnu-debuglink={}", debug.display());
    run(Command::new("objcopy").args(["--strip-all", &link]).args([&built, &stripped]));
    for binary in [built, stripped] {
        let yaml = format!(
            "node_name: test\ntargets:\n- name: t\n  binary: {}\n  probes:\n  - function: fail\n    metrics: [{{ counter: \
             failures_total, labels: {{ by: caller }} }}]\n",
            binary.display()
        );
        let tracer = Tracer::start(&yaml);
        let program = until_done(&binary);
        let series = tracer.render();
        drop(program);
        assert_all(&series, "failures_total", &[("{by=\"first\"}", "5"), ("{by=\"third\"}", "5")]);
    }
}
