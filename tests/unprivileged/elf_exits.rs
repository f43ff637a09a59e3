//! Where functions are left, in code made for it: each label `FUNCTION_rN` in the assembly below is a `ret` that the search
//! must find, `_tN` a tail call that it cannot follow, `_dN` a jump that is decided when it is taken. It must find no others.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use exporter::elf::{Exit, ExitKind, Functions, Image, PassageKind, function_sites, is_program, leaps};

use crate::assembly::{library, symbols};
use crate::support::program::run;

const CODE: &str = r#"
begin plain
	test %edi, %edi
	je 1f
	mov $1, %eax
plain_r1: ret
1:	mov $2, %eax
plain_r2: ret
end plain

begin forms
	test %edi, %edi
	je 1f
	js 2f
forms_r1: repz ret
1:
forms_r2: bnd ret
2:
forms_r3: ret $16
end forms

# Only the unwinder comes to what stands behind the call.
begin pad
	.cfi_personality 0x1b, local_callee
	.cfi_lsda 0x1b, end_table
	push %rbx
	.cfi_def_cfa_offset 16
	call plain
	ud2
	pop %rbx
	.cfi_def_cfa_offset 8
pad_r1: ret
end pad

begin moved
	push %rbx
	.cfi_def_cfa_offset 16
	test %edi, %edi
	jne moved.cold
1:	pop %rbx
	.cfi_def_cfa_offset 8
moved_r1: ret
	.cfi_endproc
	.size moved, . - moved
	.section .text.unlikely, "ax"
	.type moved.cold, @function
moved.cold:
	.cfi_startproc
	.cfi_def_cfa_offset 16
	cmp $2, %edi
	je 2f
	jmp 1b
2:	pop %rbx
	.cfi_def_cfa_offset 8
moved_r2: ret
	.cfi_endproc
	.size moved.cold, . - moved.cold

# The same with no name, as in a stripped file, and before anything is on the stack.
begin nameless
	test %edi, %edi
	jne 3f
1:
nameless_r1: ret
	.cfi_endproc
	.size nameless, . - nameless
	.section .text.unlikely, "ax"
3:
	.cfi_startproc
	cmp $2, %edi
	jne 1b
nameless_r2: ret
	.cfi_endproc

begin tail
	inc %edi
	jmp callee
end tail
begin callee
	test %edi, %edi
	je 1f
callee_r1:
tail_r1:
	ret
1:
callee_r2:
tail_r2:
	ret
end callee

# No probe can be set at the first instruction of what it goes on in.
begin tail_locked
	inc %edi
	jmp locked
end tail_locked
begin locked
	lock decl (%rsi)
locked_entry: test %edi, %edi
	je 1f
locked_r1:
tail_locked_r1:
	ret
1:
locked_r2:
tail_locked_r2:
	ret
end locked
begin tail_looping
tail_looping_t1: jmp looping
end tail_looping
begin looping
	lock decl (%rsi)
1:	dec %edi
	jne 1b
looping_r1: ret
end looping

begin tail_stub
	test %edi, %edi
	je 1f
tail_stub_t1: jmp puts@PLT
1:
tail_stub_r1: ret
end tail_stub

begin maybe_stub
	test %edi, %edi
maybe_stub_t1: je puts@PLT
maybe_stub_r1: ret
end maybe_stub

# Its first instruction is a loop's head.
begin loops
	decl (%rdi)
back_to_loops: jg loops
loops_r1: ret
end loops

# A call of itself anew, by way of another function.
begin even
	dec %edi
	jns odd
even_r1: ret
end even
begin odd
	dec %edi
even_t1: jns even
even_r2: ret
end odd

# What nothing leads to is not known to be code.
begin data_behind
	jmp 1f
	.long 0xc3c3c3c3
1:
data_behind_r1: ret
	.long 0xc3c3c3c3
end data_behind

begin virtual
	mov (%rdi), %rax
virtual_d1: jmp *16(%rax)
end virtual

begin pointer
	push %rbx
	.cfi_def_cfa_offset 16
	mov %rdi, %rbx
	call plain
	mov %rbx, %rax
	pop %rbx
	.cfi_def_cfa_offset 8
	test %eax, %eax
	je 1f
pointer_d1: jmp *%rax
1:
pointer_r1: ret
end pointer

begin through_table
	cmp $1, %edi
	ja 3f
	lea table(%rip), %rdx
	mov %edi, %edi
	movslq (%rdx,%rdi,4), %rax
	add %rdx, %rax
	jmp *%rax
1:	mov $1, %eax
through_table_r1: ret
2:	mov $2, %eax
through_table_r2: ret
3:
through_table_r3: ret
	.section .rodata
table:	.long 1b - table
	.long 2b - table
end_table:
	.text
end through_table

# A part that only its table leads to, with a name and without.
begin cold_case
	push %rbx
	.cfi_def_cfa_offset 16
	cmp $2, %edi
	ja 3f
	lea cold_table(%rip), %rdx
	mov %edi, %edi
	movslq (%rdx,%rdi,4), %rax
	add %rdx, %rax
	jmp *%rax
1:	pop %rbx
	.cfi_def_cfa_offset 8
cold_case_r1: ret
	.cfi_def_cfa_offset 16
3:	pop %rbx
	.cfi_def_cfa_offset 8
cold_case_r2: ret
	.cfi_endproc
	.size cold_case, . - cold_case
	.section .text.unlikely, "ax"
	.type cold_case.cold, @function
cold_case.cold:
	.cfi_startproc
	.cfi_def_cfa_offset 16
	nop
2:	pop %rbx
	.cfi_def_cfa_offset 8
cold_case_r3: ret
	.cfi_endproc
	.size cold_case.cold, . - cold_case.cold
	.section .rodata
cold_table: .long 1b - cold_table
	.long 2b - cold_table
	.long 1b - cold_table
	.long 0
	.text

# Basic blocks in places of their own, to which a table leads, and no symbol.
begin scattered
	cmp $1, %edi
	ja 3f
	lea scattered_table(%rip), %rdx
	mov %edi, %edi
	movslq (%rdx,%rdi,4), %rax
	add %rdx, %rax
	jmp *%rax
3:
scattered_r1: ret
	.cfi_endproc
	.size scattered, . - scattered
	.section .text.blocks, "ax"
	.cfi_startproc
1:	mov $1, %eax
scattered_r2: ret
	.cfi_endproc
	.cfi_startproc
2:	mov $2, %eax
scattered_r3: ret
	.cfi_endproc
	.section .rodata
scattered_table: .long 1b - scattered_table
	.long 2b - scattered_table
	.long 0
	.text

# Such blocks by name, without a type, of a function that another ends in.
begin tail_scattered
	inc %edi
	jmp named_blocks
end tail_scattered
begin named_blocks
	push %rbx
	.cfi_def_cfa_offset 16
	jmp *(%rdi)
	.cfi_endproc
	.size named_blocks, . - named_blocks
	.section .text.blocks, "ax"
named_blocks.__part.1:
	.cfi_startproc
	.cfi_def_cfa_offset 16
	pop %rbx
	.cfi_def_cfa_offset 8
named_blocks_r1:
tail_scattered_r1:
	ret
	.cfi_endproc
	.text

# A return that loads its address first, as a guard against the injection of loaded values.
begin fenced
	pop %rbx
	.cfi_def_cfa_offset 0
	push %rbx
	.cfi_def_cfa_offset 8
fenced_r1: pop %rcx
	lfence
	jmp *%rcx
end fenced

# What has a frame when it jumps does not leave.
begin framed
	push %rbx
	.cfi_def_cfa_offset 16
	jmp *%rdi
	nop
1:	pop %rbx
	.cfi_def_cfa_offset 8
framed_r1: ret
end framed

# A compiler that describes no epilogue: the table does not tell.
begin undescribed
	push %rbx
	.cfi_def_cfa_offset 16
	test %edi, %edi
	je 1f
	pop %rbx
undescribed_d1: jmp *%rax
1:	pop %rbx
undescribed_r1: ret
end undescribed

# A subroutine of its own returns here too.
begin inner
	call 1f
inner_r1: ret
1:	inc %eax
inner_r2: ret
end inner

begin runs_on
	test %edi, %edi
	je 1f
runs_on_r1: ret
1:	inc %eax
	.cfi_endproc
	.size runs_on, . - runs_on
	.globl after
	.type after, @function
after:
	.cfi_startproc
after_r1:
runs_on_r2:
	ret
end after

# The same over the fill between them.
begin runs_far
	test %edi, %edi
	je 1f
runs_far_r1: ret
1:	inc %eax
	.cfi_endproc
	.size runs_far, . - runs_far
	.p2align 6
	.globl behind
	.type behind, @function
behind:
	.cfi_startproc
behind_r1:
runs_far_r2:
	ret
end behind

# Refused, and why.
begin data_inside
	mov 1f(%rip), %eax
	ret
	.byte 0xb8
1:	.long 0x90c3c3c3
	ret
end data_inside
begin data_aligned
	mov 1f(%rip), %eax
	ret
1:	.long 0x90c3c3c3
	ret
end data_aligned
begin maybe_callee
	dec %rcx
	loop local_callee
	ret
end maybe_callee
	.type local_callee, @function
local_callee:
	.cfi_startproc
	ret
	.cfi_endproc
	.size local_callee, . - local_callee
begin not_code
	jmp 1f
	.byte 0xea, 0xea
1:	ret
end not_code
begin pops_target
	push %rdi
	.cfi_def_cfa_offset 16
	pop %rcx
	jmp *%rcx
end pops_target
begin unseen
	test %edi, %edi
	je 9f
	push %rbx
	.cfi_def_cfa_offset 16
	jmp *(%rdi)
	.cfi_endproc
	.size unseen, . - unseen
	.cfi_startproc
9:	ret
	.cfi_endproc
begin into_instruction
	test %edi, %edi
	je 1f + 1
1:	mov $0xc3c3c3c3, %eax
	ret
end into_instruction
begin retpoline
	call 2f
1:	pause
	jmp 1b
2:	mov %rax, (%rsp)
	ret
end retpoline
# By way of a thunk it jumps to the address in a register.
begin by_thunk
	mov (%rdi), %rcx
by_thunk_d1: jmp thunk
end by_thunk
begin by_fence
	mov (%rdi), %rcx
by_fence_d1: jmp fence
end by_fence
thunk:
	.cfi_startproc
	call 2f
1:	pause
	lfence
	jmp 1b
2:	mov %rcx, (%rsp)
	ret
	.cfi_endproc
fence:
	.cfi_startproc
	lfence
	jmp *%rcx
	.cfi_endproc
begin over_lock
	test %edi, %edi
	je 1f + 1
1:	lock incl (%rsi)
over_lock_r1: ret
end over_lock
# Without an unwind table, which would tell.
	.globl keeps_stack
	.type keeps_stack, @function
keeps_stack:
	push %r12
	mov %rsp, %r12
	and $-64, %rsp
	call plain
	mov %r12, %rsp
	pop %r12
keeps_stack_r1: ret
	.size keeps_stack, . - keeps_stack
	.globl loses_stack
	.type loses_stack, @function
loses_stack:
	push %r12
	mov %rsp, %r12
	mov (%rdi), %r12
	mov %r12, %rsp
	pop %r12
	ret
	.size loses_stack, . - loses_stack
begin pushes
	push %rax
	.cfi_def_cfa_offset 16
	ret
end pushes
begin other_stack
	mov (%rsi), %rsp
	ret
end other_stack
begin exchanged
	xchg %rsp, (%rsi)
	ret
end exchanged
begin no_way_out
	call abort@PLT
end no_way_out
begin not_called
	.cfi_def_cfa_offset 24
	ret
end not_called
	.globl endless
	.type endless, @function
endless:
	ret
	.section .note.GNU-stack, "", @progbits
"#;

const REFUSED: [(&str, &str); 14] = [
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
fn every_exit_is_found_and_nothing_else() {
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
    assert_eq!(checked, 34 + REFUSED.len() + 1 + 1);
}

/// A call that goes on elsewhere passes a jump, with its condition, and the entry of what it goes on in.
#[test]
fn what_a_call_passes_on_its_way() {
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

/// A program that is loaded at one address names its data by numbers.
#[test]
fn data_among_code_that_is_named_by_a_number() {
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

/// A stripped file has only what it exports and its unwind table.
#[test]
fn a_stripped_file_tells_as_much() {
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

/// Of blocks in places of their own a stripped file does not tell whose they are.
#[test]
fn blocks_of_a_stripped_file_are_refused() {
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

/// Without a name, a function that another one ends in and that lies right behind it looks like a block of it, but that it is called.
#[test]
fn what_is_called_in_a_stripped_file_is_no_block() {
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

/// What GHC compiles returns to nobody by the machine's stack; OCaml raises an exception by `ret`.
#[test]
fn code_of_other_runtimes_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let code = "begin raises\n test %edi, %edi\n jne 1f\nraises_r1: ret\n1: mov %r14, %rsp\n pop %r14\n ret\nend raises\n\
                begin plain\n ret\nend plain\n.globl twice_info\n.type twice_info, @function\ntwice_info: jmp *(%rbp)\n\
                .size twice_info, . - twice_info\n";
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
        for (name, expected) in [("raises", raises), ("twice_info", haskell), ("plain", Ok(1))] {
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

/// No input makes the search panic or go on for long: every function of a library whose code is changed at random.
#[test]
fn damaged_code_and_tables_are_refused() {
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
fn programs_that_leap_are_told_from_those_that_do_not() {
    let directory = tempfile::tempdir().unwrap();
    let build = |name: &str, compiler: &str, source: &str, flags: &[&str]| {
        let (file, made) = (directory.path().join(name), directory.path().join(name.replace('.', "_")));
        fs::write(&file, source).unwrap();
        run(Command::new(compiler).args(flags).arg("-o").arg(&made).arg(&file));
        let bytes = fs::read(&made).unwrap();
        let image = Image::parse(&bytes).unwrap();
        (leaps(&image).map(|leap| leap.symbol), is_program(&image))
    };
    let plain = "int main(void) { return 0; }";
    assert_eq!(build("plain.c", "gcc", plain, &[]), (None, true));
    assert_eq!(build("fixed.c", "gcc", plain, &["-no-pie"]), (None, true));
    assert_eq!(build("library.c", "gcc", plain, &["-shared", "-fPIC"]), (None, false));
    let throws = "int main() { try { throw 1; } catch (int) { return 0; } }";
    assert_eq!(build("throws.cc", "g++", throws, &[]), (Some("_Unwind_Resume"), true));
    let jumps = "#include <setjmp.h>\njmp_buf b; int main(void) { if (!setjmp(b)) longjmp(b, 1); return 0; }";
    assert_eq!(build("jumps.c", "gcc", jumps, &[]), (Some("longjmp"), true));
    let switches = "#include <ucontext.h>\nucontext_t a; int main(void) { return swapcontext(&a, &a); }";
    assert_eq!(build("switches.c", "gcc", switches, &[]), (Some("swapcontext"), true));
    assert!(build("still.c", "gcc", plain, &["-static"]).0.is_some(), "the C library is in it");
}

/// Of two functions that are written in assembly, one begins with code of its own and goes on in the middle of the other.
#[test]
fn exits_behind_the_place_that_a_neighbour_jumps_to_are_shared() {
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
    // With an unwind table, too; and what gets another stack for the time of a call, and returns on both.
    let described = "begin from_middle\n jmp 1f\nend from_middle\nbegin has_middle\n xor %eax, %eax\n1: ret\nend has_middle\n\
                     begin has_frame\n push %rbx\n .cfi_def_cfa_offset 16\n1: pop %rbx\n .cfi_def_cfa_offset 8\n ret\nend has_frame\n\
                     begin into_frame\n push %rcx\n .cfi_def_cfa_offset 16\n jmp 1b\nend into_frame\n\
                     .hidden __morestack\nbegin __morestack\n ret\nend __morestack\n\
                     begin grows\n cmp %fs:0x70, %rsp\n jb 2f\n1: ret\n2: call __morestack\n ret\n jmp 1b\nend grows\n";
    let library = library(directory.path(), &[&code.concat(), described].concat());
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
}

/// BOLT keeps the code that it has moved, without names; where a table of labels leads there, it is run.
#[test]
fn code_that_is_run_where_it_lay_before_is_told() {
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
