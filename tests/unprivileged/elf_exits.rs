//! The exits of functions, in code written for the test: in `elf_exits.s`, each label `FUNCTION_rN` is a `ret` that the
//! search must find, `_tN` a tail call that it cannot follow, and `_dN` a jump whose target is only known at run time.
//! It must find no others.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use exporter::elf::{Exit, ExitKind, Functions, Image, PassageKind, function_sites, is_program};

use crate::assembly::{library, symbols};
use crate::support::program::run;

const CODE: &str = include_str!("elf_exits.s");

const REFUSED: [(&str, &str); 15] = [
    ("loses_stack", "switches stacks"),
    ("pops_target", "pops off the stack"),
    ("unseen", "a block in a place of its own"),
    ("maybe_callee", "control falls through"),
    ("data_inside", "data among its code"),
    ("data_aligned", "data among its code"),
    ("not_code", "cannot be decoded"),
    ("into_instruction", "middle of an instruction"),
    ("retpoline", "return as a jump"),
    ("pushes", "return as a jump"),
    ("other_stack", "switches stacks"),
    ("exchanged", "switches stacks"),
    ("masked", "switches stacks"),
    ("no_way_out", "never returns"),
    ("not_called", "not entered by a call"),
];

fn letter(exit: &Exit) -> char {
    match exit.kind {
        ExitKind::Return => 'r',
        ExitKind::TailCall => 't',
        ExitKind::Decided { .. } => 'd',
    }
}

#[test]
fn finds_exactly_the_exits() {
    let directory = tempfile::tempdir().unwrap();
    let library = library(directory.path(), CODE);
    let symbols = symbols(&library);
    let bytes = fs::read(&library).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let code = Functions::of(&image);
    let labels = |function: &str| -> BTreeSet<(u64, char)> {
        let labels = symbols.iter().filter_map(|(name, at)| {
            let kind = name.strip_prefix(function)?.strip_prefix('_')?;
            (kind.len() == 2 && kind.ends_with(|c: char| c.is_ascii_digit()))
                .then(|| (*at, kind.chars().next().unwrap()))
        });
        labels.collect()
    };
    let mut checked = 0;
    for function in function_sites(&image, "*").unwrap() {
        let name = function.name.as_str();
        let found = code.exits(symbols[name], function.size);
        if let Some((_, reason)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            let said = found.expect_err(name);
            assert!(said.contains(reason), "{name}: {said}");
        } else if name == "endless" {
            assert!(found.unwrap_err().contains("its size is unknown"));
        } else if !labels(name).is_empty() {
            let found = found.unwrap_or_else(|err| panic!("{name}: {err}"));
            let exits: BTreeSet<_> = found.exits.iter().map(|exit| (exit.vaddr, letter(exit))).collect();
            assert_eq!(exits, labels(name), "{name}: {found:#x?}");
            let shared = [
                "tail",
                "tail_locked",
                "tail_scattered",
                "scattered",
                "inner",
                "runs_on",
                "runs_far",
                "even",
            ]
            .contains(&name);
            let is_shared = found.exits.iter().any(|exit| exit.shared);
            assert_eq!(is_shared, shared, "{name}: {found:#x?}");
        } else {
            continue;
        }
        checked += 1;
    }
    assert_eq!(checked, 35 + REFUSED.len() + 1 + 1);
}

/// A call that continues in another function passes a jump, with its condition, and the entry of that function.
#[test]
fn tail_jumps_and_callee_entries_are_passages() {
    use PassageKind::{CalleeEntry, LoopBack, TailJump};
    let directory = tempfile::tempdir().unwrap();
    let library = library(directory.path(), CODE);
    let symbols = symbols(&library);
    let bytes = fs::read(&library).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let code = Functions::of(&image);
    let exits = |name: &str| code.exits(symbols[name], 0).unwrap_or_else(|err| panic!("{name}: {err}"));
    let passed = |name: &str| -> Vec<_> {
        exits(name).passages.iter().map(|passage| (passage.vaddr, passage.kind, passage.when)).collect()
    };
    const NOT_SIGN: u8 = 9;
    const GREATER: u8 = 15;
    assert_eq!(passed("plain"), []);
    assert_eq!(passed("moved"), [], "what was moved out is called by nobody");
    assert_eq!(passed("loops"), [(symbols["back_to_loops"], LoopBack, Some(GREATER))]);
    assert_eq!(
        passed("tail"),
        [(symbols["tail"] + 2, TailJump, None), (symbols["callee"], CalleeEntry, None)]
    );
    assert_eq!(passed("tail_locked")[1], (symbols["locked_entry"], CalleeEntry, None));
    let into_odd = symbols["even"] + 2;
    assert_eq!(passed("even"), [(into_odd, TailJump, Some(NOT_SIGN)), (symbols["odd"], CalleeEntry, None)]);
    let when = |name: &str| exits(name).exits.iter().map(|exit| exit.when).collect::<Vec<_>>();
    assert_eq!(when("maybe_stub"), [Some(4), None]);
    assert_eq!(when("even"), [None, Some(NOT_SIGN), None]);
}

/// A program linked at a fixed address refers to its data by absolute addresses.
#[test]
fn data_in_code_at_absolute_addresses() {
    let directory = tempfile::tempdir().unwrap();
    let (source, program) = (directory.path().join("fixed.S"), directory.path().join("fixed"));
    let table = "1: .long 0x90c3c3c3\n ret";
    let function = |name: &str, code: &str| {
        format!(".globl {name}\n.type {name}, @function\n{name}:\n{code}\n.size {name}, . - {name}\n")
    };
    let code = [
        function("main", "ret"),
        function("reads", &format!("mov 1f(,%rdi,4), %eax\n ret\n{table}")),
        function("takes", &format!("mov $1f, %eax\n ret\n .byte 0xb8\n{table}")),
        function("adds", "add $100, %eax\n ret\n 1: ret"),
    ];
    fs::write(&source, code.concat() + ".section .note.GNU-stack, \"\", @progbits\n").unwrap();
    run(Command::new("gcc").args(["-no-pie", "-o"]).arg(&program).arg(&source));
    let symbols = symbols(&program);
    let bytes = fs::read(&program).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let code = Functions::of(&image);
    let size = |name| function_sites(&image, name).unwrap()[0].size;
    for name in ["reads", "takes"] {
        let said = code.exits(symbols[name], size(name)).expect_err(name);
        assert!(said.contains("data among its code"), "{name}: {said}");
    }
    assert_eq!(code.exits(symbols["adds"], size("adds")).unwrap().exits.len(), 1);
}

/// A stripped file has only its exports and its unwind table.
#[test]
fn stripped_file_yields_the_same_exits() {
    let directory = tempfile::tempdir().unwrap();
    let library = library(directory.path(), CODE);
    let symbols = symbols(&library);
    run(Command::new("strip").arg(&library));
    let bytes = fs::read(&library).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let code = Functions::of(&image);
    for (name, returns) in [("moved", 2), ("nameless", 2), ("cold_case", 3)] {
        let found = code.exits(symbols[name], 0).unwrap_or_else(|err| panic!("{name}: {err}"));
        let exits: BTreeSet<_> = found.exits.iter().map(|exit| exit.vaddr).collect();
        let expected: BTreeSet<_> = (1..=returns).map(|n| symbols[&format!("{name}_r{n}")]).collect();
        assert_eq!(exits, expected, "{found:#x?}");
    }
}

/// A stripped file does not show which function its separate blocks belong to.
#[test]
fn rejects_detached_blocks_of_a_stripped_file() {
    let directory = tempfile::tempdir().unwrap();
    let code = "begin blocks\n test %edi, %edi\n je 2f\n jmp 1f\n .cfi_endproc\n .size blocks, . - blocks\n \
                .cfi_startproc\n1: ret\n .cfi_endproc\n .cfi_startproc\n2: ret\n .cfi_endproc\n";
    let library = library(directory.path(), code);
    let entry = symbols(&library)["blocks"];
    let found = |file: &std::path::Path| {
        let bytes = fs::read(file).unwrap();
        let image = Image::parse(&bytes).unwrap();
        Functions::of(&image).exits(entry, 0).map(|exits| exits.exits.len())
    };
    assert_eq!(found(&library), Ok(2));
    run(Command::new("strip").arg(&library));
    assert!(found(&library).unwrap_err().contains("stripped of the symbols"));
}

/// Without a name, a function directly after the one that tail-calls it looks like a block of that function, unless it
/// is also called.
#[test]
fn called_code_in_a_stripped_file_is_a_function() {
    let directory = tempfile::tempdir().unwrap();
    let code = "begin hands_on\n test %edi, %edi\n je 1f\n ret\n .cfi_endproc\n .size hands_on, . - hands_on\n \
                .cfi_startproc\n1: ret\n .cfi_endproc\nbegin calls\n call 1b\n ret\nend calls\n";
    for (code, is_known) in [(code, true), (&*code.replace("call 1b", "nop"), false)] {
        let library = library(directory.path(), code);
        let entry = symbols(&library)["hands_on"];
        run(Command::new("strip").arg(&library));
        let bytes = fs::read(&library).unwrap();
        let image = Image::parse(&bytes).unwrap();
        let exits = Functions::of(&image).exits(entry, 0).map(|exits| exits.exits.len());
        assert_eq!(exits.is_ok(), is_known, "{exits:?}");
        assert!(!is_known || exits == Ok(2), "{exits:?}");
    }
}

/// Code compiled by GHC does not return through the machine stack; OCaml raises exceptions with `ret`.
#[test]
fn detects_ghc_and_ocaml_code() {
    let directory = tempfile::tempdir().unwrap();
    let code = "begin raises\n test %edi, %edi\n jne 1f\nraises_r1: ret\n1: mov %r14, %rsp\n pop %r14\n ret\nend raises\n\
                begin raises_by_state\n test %edi, %edi\n jne 1f\n ret\n1: mov 0x10(%r14), %rsp\n pop 0x10(%r14)\n pop %r11\n \
                jmp *%r11\nend raises_by_state\n\
                begin plain\n ret\nend plain\n.globl twice_info\n.type twice_info, @function\ntwice_info: jmp *(%rbp)\n\
                .size twice_info, . - twice_info\nbegin c_info\n ret\nend c_info\n.quad 0\n.long 15, 0\n\
                begin described_info\n ret\nend described_info\n";
    for (runtime, raises, haskell) in [
        ("begin other\n ret\nend other\n", Err("switches stacks"), Ok(1)),
        ("begin caml_raise_exn\n ret\nend caml_raise_exn\n", Ok(1), Ok(1)),
        ("begin stg_upd_frame_info\n ret\nend stg_upd_frame_info\n", Err("switches stacks"), Err("GHC")),
    ] {
        let library = library(directory.path(), &[code, runtime].concat());
        let symbols = symbols(&library);
        let bytes = fs::read(&library).unwrap();
        let image = Image::parse(&bytes).unwrap();
        let code = Functions::of(&image);
        for (name, expected) in [
            ("raises", raises),
            ("raises_by_state", raises),
            ("twice_info", haskell),
            ("described_info", haskell),
            ("c_info", Ok(1)),
            ("plain", Ok(1)),
        ] {
            let found = code
                .exits(symbols[name], function_sites(&image, name).unwrap()[0].size)
                .map(|exits| exits.exits.len());
            match expected {
                Ok(exits) => assert_eq!(found, Ok(exits), "{runtime}: {name}"),
                Err(reason) => assert!(found.clone().unwrap_err().contains(reason), "{name}: {found:?}"),
            }
        }
    }
}

/// OCaml 5 copies a stack that grows, while the program's C code runs on one that does not move.
#[test]
fn functions_on_moving_stacks_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let code = "begin camlPeer.add_292\n ret\nend camlPeer.add_292\nbegin caml_alloc\n ret\nend caml_alloc\n\
                begin caml_raise_exn\n ret\nend caml_raise_exn\ncamlPeer.code_begin:\ncamlPeer.code_end:\n\
                begin camlSDL.init\n ret\nend camlSDL.init\n";
    let grows = "begin caml_call_realloc_stack\n ret\nend caml_call_realloc_stack\n";
    for (code, is_moved) in [(code.to_string(), false), ([code, grows].concat(), true)] {
        let library = library(directory.path(), &code);
        let symbols = symbols(&library);
        let bytes = fs::read(&library).unwrap();
        let image = Image::parse(&bytes).unwrap();
        let functions = Functions::of(&image);
        let found = functions.exits(symbols["camlPeer.add_292"], 0);
        assert_eq!(
            found.as_ref().is_err_and(|reason| reason.contains("moves a stack")),
            is_moved,
            "{found:?}"
        );
        assert_eq!(found.is_err(), is_moved, "{found:?}");
        assert!(functions.exits(symbols["caml_alloc"], 0).is_ok());
        assert!(functions.exits(symbols["camlSDL.init"], 0).is_ok(), "a C function: no module has this name");
    }
}

/// No input makes the search panic or run for long: every function of a library with randomly changed code.
#[test]
fn rejects_damaged_code_and_tables() {
    let directory = tempfile::tempdir().unwrap();
    let library = library(directory.path(), CODE);
    let bytes = fs::read(&library).unwrap();
    let mut state = 88172645463325252u64;
    for _ in 0..300 {
        let mut damaged = bytes.clone();
        for _ in 0..20 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let at = 0x40 + (state as usize >> 8) % (damaged.len() - 0x40);
            damaged[at] = state as u8;
        }
        let Ok(image) = Image::parse(&damaged) else { continue };
        let code = Functions::of(&image);
        for function in function_sites(&image, "*").unwrap_or_default() {
            let _ = code.exits(function.entry, function.size);
        }
    }
}

#[test]
fn detects_programs_with_non_local_exits() {
    let directory = tempfile::tempdir().unwrap();
    let build = |name: &str, compiler: &str, source: &str, flags: &[&str]| {
        let (file, made) = (directory.path().join(name), directory.path().join(name.replace('.', "_")));
        fs::write(&file, source).unwrap();
        run(Command::new(compiler).args(flags).arg("-o").arg(&made).arg(&file));
        let bytes = fs::read(&made).unwrap();
        let image = Image::parse(&bytes).unwrap();
        let found = Functions::of(&image).non_local_exit().map(|found| found.symbol.clone());
        (found, is_program(&image))
    };
    let some = |symbol: &str| Some(symbol.to_string());
    let plain = "int main(void) { return 0; }";
    assert_eq!(build("plain.c", "gcc", plain, &[]), (None, true));
    assert_eq!(build("fixed.c", "gcc", plain, &["-no-pie"]), (None, true));
    assert_eq!(build("library.c", "gcc", plain, &["-shared", "-fPIC"]), (None, false));
    let throws = "int main() { try { throw 1; } catch (int) { return 0; } }";
    assert_eq!(build("throws.cc", "g++", throws, &[]), (some("_Unwind_Resume"), true));
    let jumps = "#include <setjmp.h>\njmp_buf b; int main(void) { if (!setjmp(b)) longjmp(b, 1); return 0; }";
    assert_eq!(build("jumps.c", "gcc", jumps, &[]), (some("longjmp"), true));
    let switches = "#include <ucontext.h>\nucontext_t a; int main(void) { return swapcontext(&a, &a); }";
    assert_eq!(build("switches.c", "gcc", switches, &[]), (some("swapcontext"), true));
    assert!(build("still.c", "gcc", plain, &["-static"]).0.is_some(), "the C library is in it");
    let own = "__asm__(\".type go_on, @function\\ngo_on: push %rbp\\n mov %rsp, (%rdi)\\n mov %rsi, %rsp\\n pop %rbp\\n ret\\n\" \
               \".size go_on, . - go_on\"); void go_on(void **from, void *to); \
               int main(void) { void *here[1]; go_on(here, here[0]); return 0; }";
    assert_eq!(build("own.c", "gcc", own, &["-O1"]), (some("go_on"), true));
    assert_eq!(
        build("own.c", "gcc", own, &["-O1", "-fno-asynchronous-unwind-tables"]),
        (some("go_on"), true)
    );
    let inline =
        "int main(int n, char **to) { __asm__ volatile(\"mov 8(%0), %%rsp\" : : \"r\"(to)); return n; }";
    assert_eq!(build("inline.c", "gcc", inline, &["-O1"]), (some("main"), true));
    // Arrays whose length is known at run time, and aligned ones, move the stack pointer and restore it.
    let array = "void use(void *); void use(void *p) { __asm__ volatile(\"\" : : \"r\"(p)); } \
                 int main(int n, char **to) { for (int i = 1; i < n; i++) { char some[i]; use(some); } \
                 char wide[99] __attribute__((aligned(64))); use(wide); return 0; }";
    for flags in ["-O0", "-O1", "-O3"] {
        assert_eq!(build("array.c", "gcc", array, &[flags]), (None, true));
        assert_eq!(build("array.c", "clang-14", array, &[flags]), (None, true));
    }
}

/// Of two functions in assembly, one begins with its own code and continues in the middle of the other.
#[test]
fn exits_behind_a_shared_jump_target_are_shared() {
    let directory = tempfile::tempdir().unwrap();
    let function = |name: &str, code: &str| {
        format!(".globl {name}\n.type {name}, @function\n{name}:\n{code}\n.size {name}, . - {name}\n")
    };
    let code = [
        function("with_carry", "mov %r8, %rax\n jmp 1f"),
        function("joined", "xor %eax, %eax\n 1: add %rdi, %rax\n ret"),
        function("alone", "mov %rdi, %rax\n ret"),
        function("calls", "jmp alone"),
    ];
    // Also with an unwind table; and a function that runs on another stack for the duration of a call, and returns on
    // both stacks.
    let described = "begin from_middle\n jmp 1f\nend from_middle\nbegin has_middle\n xor %eax, %eax\n1: ret\nend has_middle\n\
                     begin has_frame\n push %rbx\n .cfi_def_cfa_offset 16\n1: pop %rbx\n .cfi_def_cfa_offset 8\n ret\nend has_frame\n\
                     begin into_frame\n push %rcx\n .cfi_def_cfa_offset 16\n jmp 1b\nend into_frame\n\
                     .hidden __morestack\nbegin __morestack\n ret\nend __morestack\n\
                     begin grows\n cmp %fs:0x70, %rsp\n jb 2f\n1: ret\n2: call __morestack\n ret\n jmp 1b\nend grows\n";
    // One that keeps the stack pointer in a register, as the functions that jump there do (bn_sqr8x_mont).
    let saved = "begin saves\n mov %rsp, %rax\n .cfi_def_cfa_register %rax\n1: push %rbx\n sub $64, %rsp\n\
                 mov -8(%rax), %rbx\n lea (%rax), %rsp\n .cfi_def_cfa_register %rsp\n ret\nend saves\n\
                 begin into_saves\n mov %rsp, %rax\n .cfi_def_cfa_register %rax\n jmp 1b\nend into_saves\n";
    let library = library(directory.path(), &[&code.concat(), described, saved].concat());
    let symbols = symbols(&library);
    let bytes = fs::read(&library).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let code = Functions::of(&image);
    let shared = |name: &str| {
        let size = function_sites(&image, name).unwrap()[0].size;
        let exits = code.exits(symbols[name], size).unwrap_or_else(|err| panic!("{name}: {err}"));
        exits.exits.iter().map(|exit| exit.shared).collect::<Vec<_>>()
    };
    assert_eq!([shared("joined"), shared("with_carry"), shared("alone")], [[true], [true], [false]]);
    assert_eq!([shared("has_middle"), shared("has_frame")], [[true], [false]]);
    assert_eq!(shared("grows"), [true, true]);
    assert_eq!(shared("saves"), [true]);
    let entered_from = |name: &str| code.exits(symbols[name], 0).unwrap().entered_from;
    assert_eq!(entered_from("saves"), Some(symbols["into_saves"]));
    assert_eq!(entered_from("has_frame"), None);
}

/// Code that ends without a jump, as behind `__builtin_unreachable()`, is followed by that of another function, whose name was
/// stripped. If control could run into it, so can calls of that other function.
#[test]
fn code_that_ends_without_a_jump_does_not_continue_in_the_next_function() {
    let directory = tempfile::tempdir().unwrap();
    // A function with a part that was moved out, and what stands behind that part.
    let function = |name: &str, moved_out: &str, behind: &str| {
        format!(
            "begin {name}\n push %rbx\n .cfi_def_cfa_offset 16\n test %edi, %edi\n js 9f\n pop %rbx\n \
             .cfi_def_cfa_offset 8\n{name}_r1: ret\nend {name}\n.section .text.unlikely.{name}, \"ax\"\n9:\n .cfi_startproc\n \
             {moved_out}\n .cfi_endproc\n .p2align 4\n.hidden {name}_next\n.globl {name}_next\n{name}_next:\n .cfi_startproc\n \
             {behind}\n .cfi_endproc\n"
        )
    };
    let other = "xor %eax, %eax\n ret";
    let deep = ".cfi_def_cfa_offset 16\n mov $7, %edi\n mov %edi, (%rbx)";
    let code = [
        function("unreachable", deep, other),
        function("crashes", ".cfi_def_cfa_offset 8\n movb $0, 1", other),
        function("runs_on", ".cfi_def_cfa_offset 16\n pop %rbx", other),
        // The same stack as a part of another function that was moved out.
        function("same_stack", deep, ".cfi_def_cfa_offset 16\n pop %rbx\n .cfi_def_cfa_offset 8\n ret"),
        "begin saves\n mov %rsp, %rax\n .cfi_def_cfa_register %rax\n1: push %rbx\n mov -8(%rax), %rbx\n lea (%rax), %rsp\n \
         .cfi_def_cfa_register %rsp\n ret\nend saves\n.hidden into_saves\nbegin into_saves\n mov %rsp, %rax\n \
         .cfi_def_cfa_register %rax\n jmp 1b\nend into_saves\n"
            .to_string(),
    ];
    let library = library(directory.path(), &code.concat());
    let symbols = symbols(&library);
    run(Command::new("strip").arg(&library));
    let bytes = fs::read(&library).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let code = Functions::of(&image);
    let exits = |name: &str| code.exits(symbols[name], 0).unwrap_or_else(|err| panic!("{name}: {err}"));
    let shared = |name: &str| exits(name).exits.iter().map(|exit| exit.shared).collect::<Vec<_>>();
    assert_eq!([shared("unreachable"), shared("crashes")], [[false], [false]]);
    // Sorted by address: `.text.unlikely` comes first.
    assert_eq!([shared("runs_on"), shared("same_stack")], [[true, false], [true, false]]);
    assert_eq!((shared("saves"), exits("saves").entered_from), (vec![true], Some(symbols["into_saves"])));
}

/// BOLT keeps the original of the code that it moved, without names; if a table of labels points there, it still runs.
#[test]
fn detects_bolt_code_run_at_its_original_address() {
    let directory = tempfile::tempdir().unwrap();
    let code = |labels: &str| {
        format!(
            "begin interprets\n jmp *%rdi\n ret\nend interprets\nbegin plain\n ret\nend plain\n\
             .section .bolt.org.text, \"ax\", @progbits\n nop\n1: ret\n.data\n.quad {labels}\n"
        )
    };
    for (labels, is_run) in [("1b", true), ("plain", false), ("1b - .", false)] {
        let library = library(directory.path(), &code(labels));
        let symbols = symbols(&library);
        let bytes = fs::read(&library).unwrap();
        let image = Image::parse(&bytes).unwrap();
        let code = Functions::of(&image);
        assert_eq!(code.runs_old_code(), is_run, "{labels}");
        assert!(code.exits(symbols["plain"], 0).is_ok());
        match code.exits(symbols["interprets"], 0) {
            Err(err) => assert!(is_run && err.contains("BOLT"), "{labels}: {err}"),
            Ok(_) => assert!(!is_run, "{labels}"),
        }
    }
}
