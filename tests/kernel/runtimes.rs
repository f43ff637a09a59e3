//! Code that does not use C's calling convention: its arguments are read where its compiler passes them, or the probe
//! is refused.

use std::process::Command;

use exporter::elf::{Image, SymbolIndex};
use exporter::resolve::resolve;

use crate::support::program::{compile, directory};
use crate::support::tracer::{Tracer, plan_of};

/// A program as such a compiler generates it: a function of the given name, which is called 1,000 times with 1, 2, 3 in
/// the registers, preceded by the symbol that identifies the compiler.
fn program(function: &str, told_by: &str, registers: [&str; 3]) -> String {
    let [a, b, c] = registers;
    format!(
        r#"
void called(void);
__asm__(".text\n.globl {told_by}\n.type {told_by}, @function\n{told_by}: ret\n.size {told_by}, . - {told_by}\n"
	".globl {function}\n.type {function}, @function\n{function}: lea (%rax,%rbx), %rax\n ret\n"
	".size {function}, . - {function}\n"
	".type called, @function\ncalled: push %rbx\n push %r12\n mov $-1, %edi\n mov $-1, %esi\n mov $-1, %edx\n"
	" mov $-1, %eax\n mov $-1, %ebx\n mov $1, %{a}\n mov $2, %{b}\n mov $3, %{c}\n call {function}\n"
	" pop %r12\n pop %rbx\n ret\n.size called, . - called\n");
int main(void) {{ for (volatile int i = 0; i < 1000; i++) called(); return 0; }}
"#
    )
}

#[test]
fn reads_ocaml_arguments_from_its_own_registers() {
    let directory = directory();
    let source = program("camlPeer__add_81", "caml_raise_exn", ["rax", "rbx", "rdi"]);
    let binary = compile("gcc", "ocaml.c", &source, &["-O1"], directory.path());
    let tracer = Tracer::start(&format!(
        "node_name: test\ntargets:\n- name: ocaml\n  binary: {}\n  probes:\n  - function: camlPeer__add_81\n    args: {{ a: 0, b: \
         1, c: 2 }}\n    metrics: [{{ counter: added_total, labels: {{ a: a, b: b, c: c, result: retval }} }}]\n",
        binary.display()
    ));
    assert!(Command::new(&binary).status().unwrap().success());
    let series = tracer.render();
    let name = r#"added_total{a="1",b="2",c="3",result="3"}"#;
    assert_eq!(series.get(name).map(String::as_str), Some("1000"), "{series:#?}");
}

#[test]
fn arguments_outside_of_c_registers_are_refused() {
    for (function, told_by, reason) in [
        ("Main_add_info", "stg_upd_frame_info", "GHC"),
        ("Builtins_MathMax", "Builtins_InterpreterEntryTrampoline", "V8"),
        ("X0_add__a3", "Pl_Start_Prolog", "Prolog"),
    ] {
        let directory = directory();
        let source = program(function, told_by, ["rax", "rbx", "rdi"]);
        let binary = compile("gcc", "own.c", &source, &["-O1"], directory.path());
        let bytes = std::fs::read(&binary).unwrap();
        let image = Image::parse(&bytes).unwrap();
        let index = SymbolIndex::of(&image);
        let resolved = |metric: &str, returns: &str| {
            let plan = plan_of(
                &format!(
                    "node_name: test\ntargets:\n- name: own\n  binary: {}\n  probes:\n  - function: {function}\n    args: {{ a: 0 }}\n\
                     {returns}    metrics: [{{ {metric} }}]\n",
                    binary.display()
                ),
                false,
            )
            .unwrap();
            resolve(&index, 0, &plan, &mut |_| 0).map(|_| ()).map_err(|err| err.to_string())
        };
        assert_eq!(resolved("counter: calls_total", ""), Ok(()), "{function}");
        let refused = resolved("counter: calls_total, labels: { a: a }", "").unwrap_err();
        assert!(refused.contains(reason), "{function}: {refused}");
        let trampoline =
            resolved("histogram: calls_seconds, value: duration", "    returns_by: trampoline\n");
        let refused = trampoline.unwrap_err();
        assert!(refused.contains("return addresses"), "{function}: {refused}");
    }
}

const DECLARED: &str = r#"
#define KEPT __attribute__((noinline))
volatile long sink;
KEPT __attribute__((ms_abi)) void windows(int a, int b, int c) { sink += a + b + c; }
static KEPT __attribute__((ms_abi)) void local(int a, int b, int c) { sink += a - b - c; }
#ifdef __clang__
KEPT __attribute__((regcall)) void intel(int a, int b, int c) { sink += a * b * c; }
KEPT __attribute__((preserve_all)) void saving(int a, int b, int c) { sink -= a + b + c; }
#endif
/* What is left of another call above the return address. */
static KEPT void rubbish(void) { volatile long all[64]; for (int i = 0; i < 64; i++) all[i] = -1; }
int main(void) {
	for (volatile int i = 0; i < 10; i++) {
		volatile int a = 1, b = 2, c = 3;
		rubbish();
		windows(a, b, c);
		rubbish();
		local(a, b, c);
#ifdef __clang__
		intel(a, b, c);
		saving(a, b, c);
#endif
	}
	return 0;
}
"#;

/// Conventions other than C's are recognized from debug information: by its name for them, or by the location of a
/// parameter.
#[test]
fn other_conventions_are_read_as_in_debug_information() {
    for (compiler, flag) in [("gcc", "-O0"), ("gcc", "-O2"), ("clang-14", "-O0"), ("clang-14", "-O2")] {
        let directory = directory();
        let binary = compile(compiler, "other.c", DECLARED, &[flag, "-g"], directory.path());
        let config = |probes: &[(&str, [u32; 3])]| {
            let probes = probes.iter().map(|(function, [a, b, c])| {
                format!(
                    "  - function: {function}\n    args: {{ a: {a}, b: {b}, c: {c} }}\n    metrics: [{{ counter: \
                     {function}_total, labels: {{ a: a, b: b, c: c }} }}]\n"
                )
            });
            format!(
                "node_name: test\ntargets:\n- name: other\n  binary: {}\n  probes:\n{}",
                binary.display(),
                probes.collect::<String>()
            )
        };
        // GCC does not record conventions, so positions are those of C's registers.
        let by_gcc = [("windows", [3, 2, 4]), ("local", [0, 1, 2])];
        let by_clang = [("windows", [0, 1, 2]), ("local", [0, 1, 2]), ("saving", [0, 1, 2])];
        let probes = if compiler == "gcc" { &by_gcc[..] } else { &by_clang[..] };
        let tracer = Tracer::start(&config(probes));
        assert!(Command::new(&binary).status().unwrap().success());
        let series = tracer.render();
        for (function, _) in probes {
            let name = format!(r#"{function}_total{{a="1",b="2",c="3"}}"#);
            let count = series.get(&name).map(String::as_str);
            assert_eq!(count, Some("10"), "{compiler} {flag}: {name} in {series:#?}");
        }
        let bytes = std::fs::read(&binary).unwrap();
        let image = Image::parse(&bytes).unwrap();
        let function = if compiler == "gcc" { "windows" } else { "__regcall3__intel" };
        let plan = plan_of(&config(&[(function, [0, 1, 2])]), false).unwrap();
        let refused = resolve(&SymbolIndex::of(&image), 0, &plan, &mut |_| 0).unwrap_err().to_string();
        assert!(refused.contains("argument \"a\" cannot be read"), "{compiler} {flag}: {refused}");
    }
}

/// Zig has a calling convention of its own, and Rust guarantees none: only what debug information locates is certain.
#[test]
fn positions_without_parameter_warn_or_fail_by_language() {
    let directory = directory();
    let source = "volatile long sink;\nstatic __attribute__((noinline)) void takes(long a) { sink += a; }\n\
                  int main(void) { takes(1); takes(sink); return 0; }\n";
    let assembly = compile("gcc", "language.c", source, &["-O1", "-g", "-S", "-dA"], directory.path());
    let assembly = std::fs::read_to_string(assembly).unwrap();
    for (language, number) in [("C", "0x1d"), ("Rust", "0x1c"), ("Zig", "0x27")] {
        let line = |line: &str| match line.split_once("# DW_AT_language") {
            Some(_) => format!("\t.byte\t{number}\n"),
            None => format!("{line}\n"),
        };
        let changed: String = assembly.lines().map(line).collect();
        let binary = compile("gcc", "language.s", &changed, &[], directory.path());
        let bytes = std::fs::read(&binary).unwrap();
        let image = Image::parse(&bytes).unwrap();
        let resolved = |position: u32| {
            let plan = plan_of(
                &format!(
                    "node_name: test\ntargets:\n- name: own\n  binary: {}\n  probes:\n  - function: takes\n    args: {{ a: {position} \
                     }}\n    metrics: [{{ counter: calls_total, value: a }}]\n",
                    binary.display()
                ),
                false,
            )
            .unwrap();
            let resolved = resolve(&SymbolIndex::of(&image), 0, &plan, &mut |_| 0);
            resolved.map(|resolved| resolved.warnings.join("\n")).map_err(|err| err.to_string())
        };
        assert_eq!(resolved(0), Ok(String::new()), "{language}");
        match (language, resolved(3)) {
            ("C", Ok(warning)) => assert!(warning.contains("takes 1 word"), "{warning}"),
            ("Rust", Ok(warning)) => assert!(warning.contains("promises no convention"), "{warning}"),
            ("Zig", Err(refused)) => assert!(refused.contains("no parameter is there"), "{refused}"),
            other => panic!("{other:?}"),
        }
    }
}
