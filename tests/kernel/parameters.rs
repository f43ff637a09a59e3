//! Arguments of functions, read as wide and with the sign that debug information tells, in copies of functions too.

use std::process::Command;

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
fn arguments_are_as_wide_as_debug_information_says() {
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
        // Whether or not the compiler leaves out what is the same at each call.
        for n in ["-1", "-2", "-3"] {
            is(&format!(r#"copied_total{{mode="3",n="{n}"}}"#), "2");
        }
    }
}
