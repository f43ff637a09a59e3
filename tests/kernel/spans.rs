//! Values are those at the beginning of the call or span, whatever has happened to the memory since; and each return
//! finds its own call.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::program::directory;
use crate::support::tracer::{Series, Tracer, eventually};

fn build(source: &str, directory: &Path) -> PathBuf {
    let (file, binary) = (directory.join("traced.c"), directory.join("traced"));
    std::fs::write(&file, source).unwrap();
    let options = ["-O1", "-fno-optimize-sibling-calls", "-pthread", "-o"];
    assert!(Command::new("cc").args(options).args([&binary, &file]).status().unwrap().success());
    binary
}

/// Runs the program under these probes in every way: attached by links and by perf events, computed in the kernel and
/// in user space.
fn by_every_way(source: &str, probes: &str, settings: &str, held: impl Fn(&Tracer, &Series)) {
    let directory = directory();
    let binary = build(source, directory.path());
    let ways = [("auto", false), ("auto", true), ("perf", false)];
    let returns = ["exits", "trampoline"];
    for ((attach, all_to_ring), returns_by) in ways.iter().flat_map(|way| returns.map(|by| (*way, by))) {
        let probes = probes.replace("trampoline", returns_by);
        let yaml = format!(
            "node_name: test\nattach: {attach}\n{settings}targets:\n- name: traced\n  binary: {}\n  probes:\n{probes}",
            binary.display()
        );
        let tracer = Tracer::start_by(&yaml, all_to_ring);
        assert!(Command::new(&binary).status().unwrap().success(), "{attach}");
        let series = tracer.render();
        println!("{attach}, all to the ring: {all_to_ring}: {series:#?}");
        held(&tracer, &series);
    }
}

fn nothing_lost(tracer: &Tracer) {
    for accounting in tracer.accounting_at_rest() {
        assert_eq!(accounting.lost, 0, "{accounting:?}");
    }
}

fn assert_series(series: &Series, expected: &[(&str, &str)]) {
    for (name, value) in expected {
        assert_eq!(series.get(*name).map(String::as_str), Some(*value), "{name} in {series:#?}");
    }
}

/// Every kind of argument, of a function that reuses its arguments' memory and moves their registers.
const CONSUMED: &str = r#"
#include <string.h>
#include <sys/sdt.h>
struct request { int id; short state; const char *path; };
__attribute__((noinline)) int handle(char *line, struct request *r, char *blob, unsigned len, unsigned char *ip) {
	DTRACE_PROBE2(test, start, line, 7);
	memset(line, 'Z', 3);
	memset(blob, 'Z', len);
	memset(ip, 255, 4);
	r->state = 9;
	r->path = "/other";
	DTRACE_PROBE2(test, end, "later", 7);
	__asm__ volatile("" ::: "memory");
	return len;
}
int main(void) {
	for (volatile int i = 0; i < 10; i++) {
		char line[16] = "get key", blob[8] = "set", path[8] = "/index", long_line[80] = "";
		unsigned char ip[4] = { 127, 0, 0, (unsigned char)i };
		struct request r = { 7, -2, path };
		/* Or the compiler would leave out what the function overwrites. */
		__asm__ volatile("" ::: "memory");
		if (handle(line, &r, blob, 3, ip) != 3)
			return 1;
		memset(long_line, 'a' + i % 2, 70);
		memset(path, 'Z', 3);
	}
	return 0;
}
"#;

#[test]
fn return_labels_come_from_the_call() {
    let probes = r#"
  - function: handle
    returns: i32
    returns_by: trampoline
    args:
      line: { index: 0, type: string, max: 16 }
      state: { index: 1, offset: 4, type: i16 }
      path: { index: 1, offset: 8, type: string }
      verb: { index: 2, type: string_len, length: 3, max: 8 }
      raw: { index: 2, type: hex, len: 4 }
      ip: { index: 4, type: ipv4 }
    metrics:
    - { counter: line_total, labels: { line: line, rc: retval } }
    - { counter: path_total, when: retval == 3, labels: { path: path, state: state } }
    - { counter: verb_total, when: 'retval == 3 and verb == "set"', labels: { verb: { value: verb, match: { "s*": store }, default: other } } }
    - { counter: raw_total, when: retval == 3, labels: { raw: raw } }
    - { counter: ip_total, when: 'retval == 3 and ip == "127.0.0.4"', labels: { ip: ip } }
    - { histogram: call_seconds, value: duration, buckets: [10], labels: { line: line } }
"#;
    by_every_way(CONSUMED, probes, "", |tracer, series| {
        nothing_lost(tracer);
        assert_series(
            series,
            &[
                ("line_total{line=\"get key\",rc=\"3\"}", "10"),
                ("path_total{path=\"/index\",state=\"-2\"}", "10"),
                ("verb_total{verb=\"store\"}", "10"),
                ("raw_total{raw=\"73657400\"}", "10"),
                ("ip_total{ip=\"127.0.0.4\"}", "1"),
                ("call_seconds_count{line=\"get key\"}", "10"),
            ],
        );
    });
}

#[test]
fn span_labels_come_from_its_start() {
    let probes = r#"
  - span: by_thread_seconds
    from: usdt:test:start
    to: usdt:test:end
    args: { line: { index: 0, type: string } }
    labels: { line: line }
    buckets: [10]
  - span: by_key_seconds
    from: usdt:test:start
    to: usdt:test:end
    by: key
    args: { key: { index: 1, type: i32 }, line: { index: 0, type: string }, late: { index: 0, to_index: 0, type: string } }
    labels: { line: line, late: late }
    buckets: [10]
"#;
    by_every_way(CONSUMED, probes, "", |tracer, series| {
        nothing_lost(tracer);
        assert_series(
            series,
            &[
                ("by_thread_seconds_count{line=\"get key\"}", "10"),
                ("by_key_seconds_count{line=\"get key\",late=\"later\"}", "10"),
            ],
        );
    });
}

/// An unreadable text is shown as such, and the other values are right.
#[test]
fn unreadable_text_does_not_affect_other_values() {
    let source = r#"
__attribute__((noinline)) int handle(const char *text, int n) { __asm__ volatile(""); return n; }
int main(void) {
	for (volatile int i = 0; i < 10; i++) handle(i % 2 ? "here" : (const char *)8, i % 2);
	return 0;
}
"#;
    let probes = r#"
  - function: handle
    returns: i32
    returns_by: trampoline
    args: { text: { index: 0, type: string }, n: { index: 1, type: i32 } }
    metrics: [{ counter: text_total, when: retval >= 0, labels: { text: text, n: n } }]
"#;
    by_every_way(source, probes, "", |_, series| {
        assert_series(
            series,
            &[("text_total{text=\"here\",n=\"1\"}", "5"), ("text_total{text=\"unreadable\",n=\"0\"}", "5")],
        );
    });
}

/// Values that a call returns through its arguments.
#[test]
fn at_return_reads_output_arguments() {
    let source = r#"
#include <string.h>
struct answer { long id; const char *text; };
__attribute__((noinline)) int take(char *buffer, unsigned long *len, struct answer *answer, unsigned char *flag) {
	strcpy(buffer, "reply");
	*len = 3;
	answer->text = "ok";
	*flag = 1;
	__asm__ volatile("" : "+r"(buffer), "+r"(len), "+r"(answer), "+r"(flag) :: "memory");
	return 0;
}
int main(void) {
	for (volatile int i = 0; i < 10; i++) {
		char buffer[16] = "asked";
		unsigned long len = 16;
		unsigned char flags[2] = { 0, 1 };
		struct answer answer = { 1, "none" };
		if (take(buffer, &len, &answer, flags)) return 1;
	}
	return 0;
}
"#;
    let probes = r#"
  - function: take
    returns: i32
    returns_by: trampoline
    args:
      asked: { index: 0, type: string, max: 16 }
      reply: { index: 0, type: string_len, length: 1, max: 16, at: return }
      len: { index: 1, type: u64, at: return }
      room: { index: 1, offset: 0, type: u64 }
      text: { index: 2, offset: 8, type: string, at: return }
      flag: { index: 3, type: bool, at: return }
    metrics:
    - { counter: read_total, value: len }
    - { counter: replies_total, labels: { asked: asked, reply: reply, text: text, flag: flag } }
    - { counter: rooms_total, when: retval == 0, labels: { room: room } }
"#;
    by_every_way(source, probes, "", |tracer, series| {
        nothing_lost(tracer);
        assert_series(
            series,
            &[
                ("read_total", "30"),
                ("replies_total{asked=\"asked\",reply=\"rep\",text=\"ok\",flag=\"true\"}", "10"),
                ("rooms_total{room=\"16\"}", "10"),
            ],
        );
    });
}

/// Abandoned calls that never return to their place in the stack fill the map; it must not stay full.
#[test]
fn map_full_of_abandoned_calls_recovers() {
    let source = r#"
#include <setjmp.h>
#include <stdio.h>
static jmp_buf out;
__attribute__((noinline)) int call(volatile int leave) { if (leave) longjmp(out, 1); return 1; }
__attribute__((noinline)) int deeper(volatile int n) {
	volatile char room[32] = { 0 };
	return n ? deeper(n - 1) + room[0] : call(1);
}
int main(void) {
	for (volatile int i = 0; i < 500; i++)
		if (!setjmp(out)) deeper(i);
	puts("left");
	fflush(stdout);
	while (getchar() != EOF) {
		call(0);
		puts("called");
		fflush(stdout);
	}
	return 0;
}
"#;
    let probes = r#"
  - function: call
    returns: i32
    args: { leave: { index: 0, type: i32 } }
    metrics: [{ counter: call_total, labels: { rc: retval, leave: leave } }]
"#;
    let directory = directory();
    let binary = build(source, directory.path());
    let tracer = Tracer::start(&format!(
        "node_name: test\nlimits: {{ starts: 64 }}\ntargets:\n- name: traced\n  binary: {}\n  probes:\n{probes}",
        binary.display()
    ));
    let mut program = Command::new(&binary).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut ask, mut answers) =
        (program.stdin.take().unwrap(), BufReader::new(program.stdout.take().unwrap()).lines());
    assert_eq!(answers.next().unwrap().unwrap(), "left");
    let lost = || tracer.accounting_at_rest().iter().map(|accounting| accounting.lost).collect::<Vec<_>>();
    assert!(lost()[0] > 0, "the map was never full");
    let mut call = || {
        ask.write_all(b"\n").unwrap();
        assert_eq!(answers.next().unwrap().unwrap(), "called");
        tracer.render().get("call_total{rc=\"1\",leave=\"0\"}").map_or(0, |count| count.parse().unwrap())
    };
    // A start that finds no room is reported as lost, and a sweep of the map frees some.
    let mut counted = 0;
    eventually("a call that there is room for", || {
        counted = call();
        counted > 0
    });
    let before = lost();
    for further in 1..=100 {
        assert_eq!(call(), counted + further);
    }
    assert_eq!(lost(), before);
    drop(ask);
    assert!(program.wait().unwrap().success());
}
