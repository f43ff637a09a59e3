//! Function arguments, read with the width and sign that the debug information gives, in copies of functions too.

use std::process::Command;

use exporter::elf::{Image, SymbolIndex};
use exporter::resolve::resolve;

use crate::support::program::{compile, directory};
use crate::support::tracer::Tracer;

const SOURCE: &str = r#"
#include <stddef.h>
#define KEPT __attribute__((noinline))
struct pair { double d; long n; };
volatile long sink;
KEPT void narrow(int a, unsigned b, signed char c, unsigned short d, unsigned long e, int f, int g, unsigned char h)
{ sink += a + b + c + d + (long)e + f + g + h; }
KEPT void mixed(double x, int a, struct pair p, short b) { sink += (long)x + a + p.n + b; }
static KEPT long copied(int mode, int n) { sink += n; return sink * mode + n * mode + (sink >> mode); }
/* Registers with rubbish above what is passed. */
static void dirty(void) {
	__asm__ volatile("mov $-1, %%rdi; mov $-1, %%rsi; mov $-1, %%rdx; mov $-1, %%rcx; mov $-1, %%r8; mov $-1, %%r9"
		::: "rdi", "rsi", "rdx", "rcx", "r8", "r9");
}
int main(void) {
	volatile long far = 1L << 40, low = -8;
	for (volatile int i = 0; i < 3; i++) {
		dirty();
		narrow(-5, 4000000000u, -3, 65000, 18446744073709551615ul, -6, -7, 200);
		struct pair p = { 1, far };
		mixed((double)low, (int)low, p, (short)(low - 1));
		sink += copied(3, -1 - i) + copied(3, -1 - i);
	}
	return 0;
}
"#;

#[test]
fn argument_widths_follow_debug_info() {
    for (compiler, flags) in
        [("gcc", &["-O0"][..]), ("gcc", &["-O3"]), ("clang-14", &["-O0"]), ("clang-14", &["-O2"])]
    {
        let directory = directory();
        let binary = compile(compiler, "wide.c", SOURCE, &[flags, &["-g"]].concat(), directory.path());
        let tracer = Tracer::start(&format!(
            "node_name: test\ntargets:\n- name: wide\n  binary: {}\n  probes:\n  - function: narrow\n    args: {{ a: 0, b: 1, c: \
             2, d: 3, e: 4, f: 5, g: 6, h: 7 }}\n    metrics:\n    - {{ counter: first_total, labels: {{ a: a, b: b, c: c, d: \
             d }} }}\n    - {{ counter: last_total, labels: {{ e: e, f: f, g: g, h: h }} }}\n  - function: mixed\n    args: {{ \
             a: 0, n: 1, b: 2 }}\n    metrics: [{{ counter: mixed_total, labels: {{ a: a, n: n, b: b }} }}]\n  - function: \
             copied\n    args: {{ mode: 0, n: 1 }}\n    metrics: [{{ counter: copied_total, labels: {{ mode: mode, n: n }} \
             }}]\n",
            binary.display()
        ));
        assert!(Command::new(&binary).status().unwrap().success());
        let series = tracer.render();
        let is = |name: &str, count: &str| {
            assert_eq!(
                series.get(name).map(String::as_str),
                Some(count),
                "{compiler} {flags:?}: {series:#?}"
            );
        };
        is(r#"first_total{a="-5",b="4000000000",c="-3",d="65000"}"#, "3");
        is(r#"last_total{e="18446744073709551615",f="-6",g="-7",h="200"}"#, "3");
        is(r#"mixed_total{a="-8",n="1099511627776",b="-9"}"#, "3");
        // Whether or not the compiler removes a parameter that is the same in each call.
        for n in ["-1", "-2", "-3"] {
            is(&format!(r#"copied_total{{mode="3",n="{n}"}}"#), "2");
        }
    }
}

const DROPPED: &str = r#"
struct Held { int v; Held(int n) : v(n) {} Held(const Held &other) : v(other.v) {} ~Held() {} };
struct Pair { long a, b; };
volatile long sink;
extern "C" {
#define KEPT __attribute__((noinline))
KEPT void drops(bool a, Held, long b, unsigned char c, Pair p, int d) { sink += a + b + c + p.b + d; }
KEPT void takes(Held h, short a, long b) { sink += h.v + a + b; }
}
int main(int argc, char **) {
	volatile long far = 1L << 40;
	for (volatile int i = 0; i < 3; i++) {
		drops(true, Held(argc), far + 1, 200, Pair{far, far}, -3);
		takes(Held(argc), -2, far + 2);
	}
}
"#;

/// Without optimization, Clang does not describe an unused parameter that is passed by address. Whatever else is at its
/// position must not be taken for it.
#[test]
fn undescribed_parameter_does_not_shift_the_others() {
    for (compiler, flags) in [("clang++-14", ["-O0", "-std=c++17"]), ("clang++-14", ["-O2", "-std=c++17"])] {
        let directory = directory();
        let flags = [&flags[..], &["-g"]].concat();
        let binary = compile(compiler, "drops.cc", DROPPED, &flags, directory.path());
        let tracer = Tracer::start(&format!(
            "node_name: test\ntargets:\n- name: drops\n  binary: {}\n  probes:\n  - function: drops\n    args: {{ a: 0, b: 2, \
             c: 3, d: 6 }}\n    metrics: [{{ counter: drops_total, labels: {{ a: a, b: b, c: c, d: d }} }}]\n  - function: \
             takes\n    args: {{ a: 1, b: 2 }}\n    metrics: [{{ counter: takes_total, labels: {{ a: a, b: b }} }}]\n",
            binary.display()
        ));
        assert!(Command::new(&binary).status().unwrap().success());
        let series = tracer.render();
        for name in [
            r#"drops_total{a="1",b="1099511627777",c="200",d="-3"}"#,
            r#"takes_total{a="-2",b="1099511627778"}"#,
        ] {
            assert_eq!(series.get(name).map(String::as_str), Some("3"), "{flags:?}: {series:#?}");
        }
    }
}

const RETURNING: &str = r#"
#include <stdlib.h>
#define KEPT __attribute__((noinline))
volatile long sink;
KEPT int negates(int n) { sink++; return -n; }
KEPT signed char cuts(int n) { sink++; return n; }
KEPT unsigned long adds(long n) { sink++; return n - 1; }
KEPT const char *names(int n) { sink++; return n ? "" : 0; }
KEPT void gives_nothing(int n) { sink += n; }
KEPT double gives_double(int n) { sink += n; return n; }
struct pair { int first, second; };
struct large { long all[4]; };
KEPT struct pair gives_pair(int n) { sink += n; return (struct pair){ n, 7 }; }
KEPT struct large gives_large(int n) { sink += n; return (struct large){ { n } }; }
int main(void) {
	for (volatile int i = 0; i < 3; i++) {
		negates(5);
		cuts(0x1ff);
		adds(0);
		names(0);
		gives_nothing(1);
		gives_double(2);
		gives_pair(3);
		gives_large(4);
	}
	return 0;
}
"#;

/// A result is as wide as the debug information says; if it is nowhere, that is reported.
#[test]
fn result_widths_follow_debug_info() {
    for (compiler, flags) in [("gcc", "-O0"), ("gcc", "-O2"), ("clang-14", "-O2")] {
        let directory = directory();
        let binary = compile(compiler, "returning.c", RETURNING, &[flags, "-g"], directory.path());
        let mut yaml = format!(
            "node_name: test\ntargets:\n- name: returning\n  binary: {}\n  probes:\n",
            binary.display()
        );
        for name in
            ["negates", "cuts", "adds", "names", "gives_nothing", "gives_double", "gives_pair", "gives_large"]
        {
            yaml += &format!(
                "  - function: {name}\n    metrics: [{{ counter: {name}_total, labels: {{ result: retval }} }}]\n"
            );
        }
        let tracer = Tracer::start(&yaml);
        assert!(Command::new(&binary).status().unwrap().success());
        let series = tracer.render();
        for name in [
            r#"negates_total{result="-5"}"#,
            r#"cuts_total{result="-1"}"#,
            r#"adds_total{result="18446744073709551615"}"#,
            r#"names_total{result="0"}"#,
        ] {
            assert_eq!(series.get(name).map(String::as_str), Some("3"), "{compiler} {flags}: {series:#?}");
        }
        let bytes = std::fs::read(&binary).unwrap();
        let index = SymbolIndex::of(&Image::parse(&bytes).unwrap());
        let warnings = |name: &str| {
            let name = format!("{name}:return");
            let probe = tracer.plan.probes.iter().position(|probe| probe.name == name).unwrap();
            resolve(&index, probe as u32, &tracer.plan, &mut |_| 0).unwrap().warnings
        };
        for name in ["negates", "cuts", "adds", "names"] {
            assert_eq!(warnings(name), [""; 0], "{compiler} {flags}: {name}");
        }
        for name in ["gives_nothing", "gives_double"] {
            let warnings = warnings(name);
            assert!(warnings.iter().any(|text| text.starts_with("retval is not valid here")), "{warnings:?}");
        }
        for name in ["gives_pair", "gives_large"] {
            let warnings = warnings(name);
            assert!(warnings.iter().any(|text| text.starts_with("retval is the first word")), "{warnings:?}");
        }
    }
}
