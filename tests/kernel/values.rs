//! The meaning of a value: exactly the bytes that belong to it, with the same result in the kernel and in user space.

use std::process::Command;

use crate::support::program::{compile, directory};
use crate::support::tracer::{Series, Tracer, assert_all};

/// Runs the program under these probes, once with everything computed in the kernel and once in user space.
fn both_ways(source: &str, probes: &str, held: impl Fn(&Tracer, &Series)) {
    let directory = directory();
    let binary = compile("cc", "values.c", source, &["-pthread"], directory.path());
    for all_to_ring in [false, true] {
        let yaml = format!(
            "node_name: test\ntargets:\n- name: values\n  binary: {}\n  probes:\n{probes}",
            binary.display()
        );
        let tracer = Tracer::start_by(&yaml, all_to_ring);
        assert!(Command::new(&binary).status().unwrap().success());
        let series = tracer.render();
        println!("all to the ring: {all_to_ring}: {series:#?}");
        held(&tracer, &series);
    }
}

/// Addresses in buffers followed by other data, and one at the end of mapped memory.
const ADDRESSES: &str = r#"
#include <arpa/inet.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sdt.h>
#include <sys/socket.h>
__attribute__((noinline)) int peer(const void *address) {
	DTRACE_PROBE1(test, peer, address);
	return 1;
}
int main(void) {
	struct sockaddr_storage buffer;
	struct sockaddr_in *in = (void *)&buffer;
	struct sockaddr_in6 *in6 = (void *)&buffer;
	char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (int i = 0; i < 20; i++) {
		memset(&buffer, i + 1, sizeof(buffer));
		in->sin_family = AF_INET;
		in->sin_port = htons(80);
		inet_pton(AF_INET, "10.0.0.7", &in->sin_addr);
		peer(in);
		memset(&buffer, i + 1, sizeof(buffer));
		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons(81);
		inet_pton(AF_INET6, "::ffff:10.0.0.8", &in6->sin6_addr);
		peer(in6);
		memset(&buffer, i + 1, sizeof(buffer));
		buffer.ss_family = AF_UNIX;
		peer(&buffer);
	}
	if (munmap(pages + 4096, 4096))
		return 1;
	in = (void *)(pages + 4096 - sizeof(*in));
	in->sin_family = AF_INET;
	in->sin_port = htons(80);
	inet_pton(AF_INET, "10.0.0.7", &in->sin_addr);
	peer(in);
	peer(NULL);
	return 0;
}
"#;

#[test]
fn socket_address_length_follows_its_family() {
    let probes = r#"
  - on: usdt:test:peer
    args: { peer: { index: 0, type: sockaddr } }
    metrics: [{ counter: hits_total, labels: { peer: { value: peer, limit: 4 } } }]
  - function: peer
    returns: i32
    args: { peer: { index: 0, type: sockaddr } }
    metrics: [{ counter: calls_total, value: retval, labels: { peer: { value: peer, limit: 4 } } }]
"#;
    both_ways(ADDRESSES, probes, |_, series| {
        for metric in ["hits_total", "calls_total"] {
            let rows = [
                ("{peer=\"10.0.0.7:80\"}", "21"),
                ("{peer=\"[::ffff:10.0.0.8]:81\"}", "20"),
                ("{peer=\"unix\"}", "20"),
                ("{peer=\"unreadable\"}", "1"),
            ];
            assert_all(series, metric, &rows);
        }
    });
}

/// Texts with lengths: some of -1, and some in a buffer that is longer than the text.
const LENGTHS: &str = r#"
#include <stdio.h>
#include <string.h>
#include <sys/sdt.h>
__attribute__((noinline)) int named(const char *text, long length) {
	DTRACE_PROBE2(test, named, text, length);
	return 1;
}
int main(void) {
	char name[64];

	for (int i = 0; i < 30; i++) {
		memset(name, 'x' - i % 2, sizeof(name));
		sprintf(name, "eth%d", i % 2);
		/* What an earlier and longer name has left. */
		sprintf(name + 8, "%d", i);
		named(name, sizeof(name));
		sprintf(name, "a name of more than eight");
		named(name, sizeof(name));
	}
	named(name, -1);
	named(name, 0);
	return 0;
}
"#;

#[test]
fn text_ends_at_nul_and_needs_a_valid_length() {
    let probes = r#"
  - on: usdt:test:named
    args: { text: { index: 0, type: string_len, length: 1 } }
    metrics:
    - { counter: hits_total, labels: { text: { value: text, limit: 4 } } }
    - { counter: matched_total, labels: { text: { value: text, match: { eth0: first }, limit: 4 } } }
  - function: named
    returns: i32
    args: { text: { index: 0, type: string_len, length: 1 } }
    metrics: [{ counter: calls_total, value: retval, labels: { text: { value: text, limit: 4 } } }]
"#;
    both_ways(LENGTHS, probes, |_, series| {
        for (metric, first) in [("hits_total", "eth0"), ("matched_total", "first"), ("calls_total", "eth0")] {
            let first = format!("{{text=\"{first}\"}}");
            let mut rows = vec![
                ("{text=\"\"}", "1"),
                ("{text=\"a name of more than eight\"}", "30"),
                (first.as_str(), "15"),
                ("{text=\"eth1\"}", "15"),
                ("{text=\"unreadable\"}", "1"),
            ];
            rows.sort_unstable();
            assert_all(series, metric, &rows);
        }
    });
}

/// Functions that return the address of a text or of a structure, or the length of what they have read.
const RESULTS: &str = r#"
#include <string.h>
struct peer { int id; short port; const char *name; char tag[8]; };
__attribute__((noinline)) const char *name_of(int n) {
	static char text[16];
	if (n % 5 == 4)
		return 0;
	strcpy(text, n % 2 ? "odd" : "even");
	__asm__ volatile("" ::: "memory");
	return text;
}
__attribute__((noinline)) struct peer *find(int n) {
	static struct peer peer;
	peer = (struct peer){ .id = -7, .port = (short)(n % 2 ? 65535 : 80), .name = n % 2 ? "bob" : "alice" };
	memcpy(peer.tag, "\x01\x02", 2);
	__asm__ volatile("" ::: "memory");
	return &peer;
}
__attribute__((noinline)) int receive(char *to, int room) {
	static int calls;
	if (++calls % 5 == 0)
		return -1;
	memcpy(to, "GET /index", 10);
	__asm__ volatile("" ::: "memory");
	return calls % 2 ? 3 : 10;
}
int main(void) {
	char buffer[64] = "old";
	for (volatile int i = 0; i < 10; i++) {
		name_of(i);
		find(i);
		receive(buffer, 64);
	}
	return 0;
}
"#;

#[test]
fn result_pointer_is_dereferenced() {
    let probes = r#"  - function: name_of
    args: { name: { index: retval, type: string }, n: { index: 0, type: i32 } }
    metrics:
    - { counter: names_total, labels: { name: name } }
    - { counter: known_total, when: retval != 0, labels: { name: name, n: n } }
    - { counter: odd_total, when: name starts_with "od" }
  - function: find
    args:
      id: { index: retval, offset: 0, type: i32 }
      port: { index: retval, offset: 4, type: u16 }
      name: { index: retval, offset: 8, type: string }
    metrics:
    - { counter: peers_total, labels: { id: id, port: port, name: name } }
  - function: receive
    returns: i32
    args: { text: { index: 0, type: string_len, length: retval, at: return } }
    metrics: [{ counter: received_total, labels: { text: text } }]
"#;
    both_ways(RESULTS, probes, |_, series| {
        let names = [("{name=\"\"}", "2"), ("{name=\"even\"}", "4"), ("{name=\"odd\"}", "4")];
        assert_all(series, "names_total", &names);
        let known = [
            ("{name=\"even\",n=\"0\"}", "1"),
            ("{name=\"even\",n=\"2\"}", "1"),
            ("{name=\"even\",n=\"6\"}", "1"),
            ("{name=\"even\",n=\"8\"}", "1"),
            ("{name=\"odd\",n=\"1\"}", "1"),
            ("{name=\"odd\",n=\"3\"}", "1"),
            ("{name=\"odd\",n=\"5\"}", "1"),
            ("{name=\"odd\",n=\"7\"}", "1"),
        ];
        assert_all(series, "known_total", &known);
        assert_eq!(series.get("odd_total").map(String::as_str), Some("4"));
        let peers = [
            ("{id=\"-7\",port=\"65535\",name=\"bob\"}", "5"),
            ("{id=\"-7\",port=\"80\",name=\"alice\"}", "5"),
        ];
        assert_all(series, "peers_total", &peers);
        let texts = [("{text=\"GET /index\"}", "4"), ("{text=\"GET\"}", "4"), ("{text=\"unreadable\"}", "2")];
        assert_all(series, "received_total", &texts);
    });
}

/// `(size_t)-1`, as an argument whose note says unsigned, as a function's argument, and as its return value.
const LARGE: &str = r#"
#include <stddef.h>
#include <sys/sdt.h>
__attribute__((noinline)) size_t copied(size_t bytes) {
	DTRACE_PROBE1(test, copied, bytes);
	__asm__ volatile("" ::: "memory");
	return bytes;
}
int main(void) {
	for (volatile int i = 0; i < 10; i++) {
		copied(5);
		copied((size_t)-1);
	}
	return 0;
}
"#;

#[test]
fn unsigned_64_bit_numbers_are_never_negative() {
    let metrics = |prefix: &str, value: &str| {
        format!(
            "    - {{ gauge: {prefix}_last, value: {value} }}
    - {{ gauge: {prefix}_least, value: {value}, mode: min }}
    - {{ gauge: {prefix}_most, value: {value}, mode: max }}
    - {{ histogram: {prefix}_sizes, value: {value}, buckets: [0, 10] }}
    - {{ counter: {prefix}_bytes_total, value: {value} }}
    - {{ counter: {prefix}_above_total, when: {value} > 10 }}
    - {{ counter: {prefix}_below_total, when: {value} < 10 }}
    - {{ counter: {prefix}_negative_total, when: {value} < 0 }}
    - {{ counter: {prefix}_by_total, labels: {{ size: {value} }} }}
"
        )
    };
    let matched = "    - { counter: PREFIX_matched_total, labels: { size: { value: VALUE, match: { 18446744073709551615: error }, default: fine } } }
    - { counter: PREFIX_same_total, when: VALUE == 18446744073709551615 }\n";
    let also_matched = |prefix: &str, value: &str| {
        metrics(prefix, value) + &matched.replace("PREFIX", prefix).replace("VALUE", value)
    };
    let probes = [
        format!("  - on: usdt:test:copied\n    args: {{ size: 0 }}\n    metrics:\n{}", metrics("int", "size")),
        format!(
            "  - on: usdt:test:copied\n    args: {{ size: {{ index: 0, type: u64 }} }}\n    metrics:\n{}",
            also_matched("word", "size")
        ),
        format!("  - function: copied\n    returns: u64\n    metrics:\n{}", also_matched("returned", "retval")),
        format!(
            "  - function: copied\n    returns: u64\n    args: {{ size: {{ index: 0, type: u64 }} }}\n    metrics:\n{}",
            also_matched("carried", "size").replace("value: size, mode", "value: size, at: return, mode")
                .replace("labels:", "at: return, labels:")
                .replace("when: size", "at: return, when: size")
                .replace("value: size }", "value: size, at: return }")
                .replace("value: size, buckets", "value: size, at: return, buckets")
        ),
    ]
    .concat();
    both_ways(LARGE, &probes, |_, series| {
        for (prefix, is_word) in [("int", false), ("word", true), ("returned", true), ("carried", true)] {
            let get = |name: &str| series.get(&format!("{prefix}_{name}")).map(String::as_str);
            assert_eq!(get("last"), Some("18446744073709551615"), "{prefix}");
            assert_eq!((get("least"), get("most")), (Some("5"), Some("5")), "{prefix}");
            assert_eq!((get("sizes_count"), get("sizes_sum")), (Some("10"), Some("50")), "{prefix}");
            assert_eq!(get("sizes_bucket{le=\"0\"}"), Some("0"), "{prefix}");
            assert_eq!(get("bytes_total"), Some("50"), "{prefix}");
            assert_eq!((get("above_total"), get("below_total")), (Some("10"), Some("10")), "{prefix}");
            assert_eq!(get("negative_total"), Some("0"), "{prefix}");
            assert_eq!(get("by_total{size=\"5\"}"), Some("10"), "{prefix}");
            assert_eq!(get("by_total{size=\"18446744073709551615\"}"), Some("10"), "{prefix}");
            if is_word {
                assert_eq!(get("matched_total{size=\"error\"}"), Some("10"), "{prefix}");
                assert_eq!(get("same_total"), Some("10"), "{prefix}");
            }
        }
    });
}

/// A process leaves a span open, and another process with the same number ends one.
const SAME_NUMBER: &str = r#"
#define _GNU_SOURCE
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/sdt.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
/* A child, with this number if it is not 0. */
static pid_t child(pid_t number) {
	struct clone_args args = { .exit_signal = SIGCHLD };
	if (number) {
		args.set_tid = (uintptr_t)&number;
		args.set_tid_size = 1;
	}
	return syscall(SYS_clone3, &args, sizeof(args));
}
int main(void) {
	pid_t first = child(0), second;
	int status;

	if (!first) {
		DTRACE_PROBE1(test, begin, 7);
		_exit(0);
	}
	if (first < 0 || waitpid(first, &status, 0) != first || status)
		return 1;
	second = child(first);
	if (!second) {
		DTRACE_PROBE1(test, end, 7);
		DTRACE_PROBE1(test, begin, 7);
		DTRACE_PROBE1(test, end, 7);
		_exit(0);
	}
	if (second != first || waitpid(second, &status, 0) != second || status)
		return 2;
	return 0;
}
"#;

#[test]
fn span_does_not_continue_after_pid_reuse() {
    let span = |by: &str| {
        format!(
            "  - span: {by}_seconds\n    from: usdt:test:begin\n    to: usdt:test:end\n    by: {by}\n    args: {{ key: {{ index: 0 }} }}\n    buckets: [10]\n"
        )
    };
    both_ways(SAME_NUMBER, &(span("thread") + &span("key")), |tracer, series| {
        for by in ["thread", "key"] {
            assert_eq!(series[&format!("{by}_seconds_count")], "1");
        }
        let lost: Vec<_> = tracer.accounting_at_rest().iter().map(|accounting| accounting.lost).collect();
        assert_eq!(lost, [0, 1, 0, 1], "the first end has no start");
    });
}

/// Text in memory that is not yet mapped, no longer mapped or not readable; and bytes that are not UTF-8.
const TEXTS: &str = r#"
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sdt.h>
#include <unistd.h>
__attribute__((noinline)) int text(const char *s, int kind) {
	DTRACE_PROBE2(test, text, s, kind);
	return kind;
}
#define MAP(flags, fd) mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | flags, fd, 0)
int main(int argc, char **argv) {
	int fd = open(argv[0], O_RDONLY | O_CLOEXEC), sum = 0;
	char name[] = "/tmp/values-XXXXXX";

	(void)argc;
	close(fd);
	fd = mkstemp(name);
	if (fd < 0 || unlink(name) || ftruncate(fd, 8192) || pwrite(fd, "over the edge", 14, 4090) != 14)
		return 1;
	for (int i = 0; i < 10; i++) {
		char *file = MAP(0, fd), *page = MAP(MAP_ANONYMOUS, -1);

		sum += text(file + 4090, 1); /* on two pages of a file that no one has touched */
		strcpy(page, "gone");
		if (madvise(page, 4096, MADV_DONTNEED))
			return 1;
		sum += text(page, 2);
		memset(page, 'x', 4096);
		if (munmap(page + 4096, 4096))
			return 1;
		sum += text(page + 4090, 3); /* does not end before its page */
		memcpy(page + 4092, "end", 4);
		sum += text(page + 4092, 4);
		if (mprotect(page, 4096, PROT_NONE))
			return 1;
		sum += text(page, 5);
		munmap(page, 4096);
		sum += text(page, 6) + text(NULL, 7) + text((char *)(1UL << 63), 8) + text((char *)-1L, 9);
		sum += text("a\xff\xfe|\xe2\x82\xbf", 10);
		munmap(file, 8192);
	}
	return sum != 550;
}
"#;

/// Each hit with an unreadable text counts as one, whatever the text is used for: labels, conditions, events, or values
/// stored for the return.
#[test]
fn unreadable_text_is_reported_and_counted() {
    let probes = r#"
  - on: usdt:test:text
    args: { s: { index: 0, type: string, max: 32 }, kind: 1 }
    metrics:
    - { counter: text_total, labels: { s: s, kind: kind } }
    - { counter: again_total, labels: { s: { value: s, match: { "e*": e }, default: other } } }
  - function: text
    args: { s: { index: 0, type: string, max: 32 }, kind: { index: 1, type: i32 } }
    metrics: [{ counter: ends_total, when: s == "end", labels: { kind: kind } }]
  - function: text
    args: { s: { index: 0, type: string, max: 32 }, kind: { index: 1, type: i32 } }
    metrics: [{ histogram: text_seconds, value: duration, buckets: [1000], labels: { s: s } }]
"#;
    let source = TEXTS.replace("#include <string.h>", "#include <stdlib.h>\n#include <string.h>");
    both_ways(&source, probes, |tracer, series| {
        let unreadable = |kind: &str| format!("{{s=\"unreadable\",kind=\"{kind}\"}}");
        let rows = ["3", "5", "6", "8", "9"].map(unreadable);
        let mut expected: Vec<(&str, &str)> = rows.iter().map(|row| (row.as_str(), "10")).collect();
        expected.extend([
            ("{s=\"over the edge\",kind=\"1\"}", "10"),
            ("{s=\"\",kind=\"2\"}", "10"),
            ("{s=\"\",kind=\"7\"}", "10"),
            ("{s=\"end\",kind=\"4\"}", "10"),
            ("{s=\"a\u{fffd}\u{fffd}|₿\",kind=\"10\"}", "10"),
        ]);
        expected.sort_unstable();
        assert_all(series, "text_total", &expected);
        let rows = [("{s=\"e\"}", "10"), ("{s=\"other\"}", "40"), ("{s=\"unreadable\"}", "50")];
        assert_all(series, "again_total", &rows);
        assert_all(series, "ends_total", &[("{kind=\"4\"}", "10")]);
        assert_eq!(series["text_seconds_count{s=\"unreadable\"}"], "50");
        assert_eq!(series["text_seconds_count{s=\"\"}"], "20");
        let accounting = tracer.accounting_at_rest();
        let of = |name: &str| {
            let number = tracer.plan.probes.iter().position(|probe| probe.name == name);
            &accounting[number.unwrap_or_else(|| panic!("{name}"))]
        };
        for probe in ["test:text", "text", "text:return"] {
            assert_eq!(of(probe).read_faults, 50, "{probe}: {accounting:#?}");
        }
    });
}
