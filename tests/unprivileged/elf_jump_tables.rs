//! Jumps through tables whose address a register holds for the whole function: they stay in it. If they were taken for
//! tail calls, a probe on each would make an interpreter a thousand times slower.
//!
//! Needs `cc` and `clang-14`.

use std::fs;

use exporter::elf::{ExitKind, Functions, Image, function_sites};

use crate::support::program::compile_kept as compile;

const INTERPRETERS: &str = r#"
#define KEPT __attribute__((noinline, used))
#ifdef __cplusplus
#define AT(label) ((char *)&&label)
#else
#define AT(label) (&&label)
#endif
KEPT int labels(const unsigned char *at)
{
	static void *all[] = { &&more, &&less, &&end };
	int sum = 0;
	goto *all[*at++];
more:
	sum++;
	goto *all[*at++];
less:
	sum--;
	goto *all[*at++];
end:
	return sum;
}
KEPT int offsets(const unsigned char *at)
{
	static const int all[] = { AT(more) - AT(more), AT(less) - AT(more), AT(end) - AT(more) };
	int sum = 0;
	goto *((char *)&&more + all[*at++]);
more:
	sum++;
	goto *((char *)&&more + all[*at++]);
less:
	if (sum > 1000)
		at -= *at;
	sum--;
	goto *((char *)&&more + all[*at++]);
end:
	return sum;
}
KEPT int cases(const unsigned char *at)
{
	int sum = 0;
	for (;;)
		switch (*at++) {
		case 0: sum++; break;
		case 1: sum--; break;
		case 2: return sum;
		case 3: sum *= 2; break;
		case 4: sum ^= 3; break;
		case 5: sum += 7; break;
		case 6: sum |= 1; break;
		default: __builtin_unreachable();
		}
}
static int one(int x) { return x + 1; }
static int two(int x) { return x + 2; }
int (*const functions[])(int) = { one, two };
KEPT int tail_call(int n) { return functions[n & 1](n); }
int main(int argc, char **argv)
{
	const unsigned char *text = (const unsigned char *)argv[0];
	return labels(text) + offsets(text) + cases(text) + tail_call(argc);
}
"#;

#[test]
fn tables_whose_address_is_loaded_once() {
    for (name, compiler, flags) in [
        ("jump-tables-pie", "cc", &["-O2", "-fPIE", "-pie", "-fcf-protection"][..]),
        ("jump-tables-fixed", "cc", &["-O2", "-no-pie", "-fno-pie"]),
        // All ways share one jump.
        ("jump-tables-small", "cc", &["-Os", "-static-pie"]),
        ("jump-tables-plain", "cc", &["-O1", "-foptimize-sibling-calls", "-no-pie", "-fno-pie"]),
        // The functions of the other table have no names then.
        ("jump-tables-stripped", "cc", &["-O2", "-fPIE", "-pie", "-rdynamic", "-s"]),
        ("jump-tables-clang", "clang-14", &["-O2", "-fPIE", "-pie", "-Wno-c++11-narrowing"]),
        ("jump-tables-clang-fixed", "clang-14", &["-O2", "-no-pie", "-fno-pie", "-Wno-c++11-narrowing"]),
        ("jump-tables-clang-small", "clang-14", &["-Os", "-fPIE", "-pie", "-Wno-c++11-narrowing"]),
    ] {
        let bytes = fs::read(compile(name, compiler, INTERPRETERS, flags)).unwrap();
        let image = Image::parse(&bytes).unwrap();
        let code = Functions::of(&image);
        let functions = [("labels", false), ("offsets", false), ("cases", false), ("tail_call", true)];
        for (function, leaves) in functions {
            let site = &function_sites(&image, function).unwrap()[0];
            let found =
                code.exits(site.entry, site.size).unwrap_or_else(|err| panic!("{name} {function}: {err}"));
            let is_undecided = found.exits.iter().any(|exit| matches!(exit.kind, ExitKind::Decided { .. }));
            assert_eq!(is_undecided, leaves, "{name} {function}: {found:#x?}");
        }
    }
}
