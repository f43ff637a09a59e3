//! Jumps that stand in for a `ret`, in code written for the test.

use std::fs;
use std::process::Command;

use exporter::elf::{Functions, Image, function_sites};

use crate::assembly::{library, symbols};
use crate::support::program::run;

/// A label `FUNCTION_jN` is a jump that stands in for a `ret`.
const CODE: &str = r#"
# As compilers check the stack.
begin guarded
	push %rbx
	sub $24, %rsp
	call other
	mov %fs:0x28, %rdx
	sub 8(%rsp), %rdx
guarded_j1: jne 1f
	add $16, %rsp
	lea 8(%rsp), %rsp
	pop %rbx
	ret
1:	call other
end guarded

# The same around a loop, and with the result in the end.
begin guarded_loop
	push %rbx
	sub $8, %rsp
	jmp 2f
1:	dec %edi
	call other
	mov (%rsp), %rdx
	xor %fs:0x28, %rdx
guarded_loop_j1: jne 3f
	mov %ebx, %eax
	add $8, %rsp
	pop %rbx
	ret
2:	test %edi, %edi
	jne 1b
	ud2
3:	call other
end guarded_loop

# One jump leads to it, the other one past itself.
begin two_ways
	push %rbx
	test %edi, %edi
two_ways_j1: je 1f
	call other
	cmp $7, %eax
two_ways_j2: jg 2f
	call other
	ud2
1:	nop
	mov %rax, (%rsi)
2:	pop %rbx
	ret
end two_ways

begin always
	push %rbx
	call other
always_j1: jmp 1f
	nopl 0(%rax)
1:	pop %rbx
	ret
end always

# In all others it must be the ret. A loop:
begin in_loop
1:	dec %edi
	jne 1b
	ret
end in_loop
# something is called:
begin calls
	test %edi, %edi
	je 1f
	ud2
1:	call other
	ret
end calls
# another way leads there, by going straight on:
begin straight
	test %edi, %edi
	je 1f
	call other
1:	ret
end straight
# the stack pointer comes from elsewhere:
begin leaves
	push %rbp
	mov %rsp, %rbp
	test %edi, %edi
	jne 1f
	leave
	ret
1:	ud2
end leaves
# more jumps than the ret is worth:
begin three_ways
	test %edi, %edi
	je 1f
	js 1f
	cmp $3, %edi
	je 1f
	ud2
1:	ret
end three_ways
# an indirect jump, which may lead anywhere in the function:
begin indirect
	test %edi, %edi
	je 1f
	jmp *%rax
1:	ret
end indirect
# one jump that would stand for two:
begin either
	test %edi, %edi
either_j1: je 1f
	ret
1:	ret
end either
# the flags do not tell:
begin counted
	jrcxz 1f
	ud2
1:	ret
end counted
# its address is known to others:
begin named
	test %edi, %edi
	je 1f
	lea 1f(%rip), %rax
	ud2
1:	ret
end named
# another function begins there:
begin entered
	test %edi, %edi
	je 1f
	ud2
	.globl entered_too
	.type entered_too, @function
entered_too:
1:	ret
	.size entered_too, . - entered_too
end entered
# nothing leads to the jump, which may be data:
begin unreached
	test %edi, %edi
	jmp 2f
	je 1f
2:	call other
	ud2
1:	ret
end unreached
	.section .note.GNU-stack, "", @progbits
"#;

#[test]
fn finds_jumps_to_a_return() {
    let directory = tempfile::tempdir().unwrap();
    let library = library(directory.path(), CODE);
    let symbols = symbols(&library);
    let bytes = fs::read(&library).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let code = Functions::of(&image);
    const EQUAL: u8 = 4;
    const NOT_EQUAL: u8 = 5;
    const GREATER: u8 = 15;
    let expected = |name: &str| -> Vec<(&str, Option<u8>, i32, bool)> {
        match name {
            "guarded" => vec![("guarded_j1", Some(EQUAL), 32, true)],
            "guarded_loop" => vec![("guarded_loop_j1", Some(EQUAL), 16, false)],
            "two_ways" => {
                vec![("two_ways_j1", Some(EQUAL), 8, false), ("two_ways_j2", Some(GREATER), 8, true)]
            }
            "always" => vec![("always_j1", None, 8, true)],
            "either" => vec![("either_j1", Some(NOT_EQUAL), 0, true)],
            _ => vec![],
        }
    };
    let mut checked = 0;
    for function in function_sites(&image, "*").unwrap() {
        let name = function.name.as_str();
        if !CODE.contains(&format!("begin {name}\n")) {
            continue;
        }
        let exits = code.exits(symbols[name], function.size).unwrap_or_else(|err| panic!("{name}: {err}"));
        let approaches = exits.exits.iter().flat_map(|exit| &exit.approaches);
        let mut found: Vec<_> =
            approaches.map(|found| (found.vaddr, found.when, found.above, found.is_final)).collect();
        found.sort();
        let expected = expected(name).into_iter();
        let expected: Vec<_> =
            expected.map(|(label, when, above, is_final)| (symbols[label], when, above, is_final)).collect();
        assert_eq!(found, expected, "{name}");
        checked += 1;
    }
    assert_eq!(checked, CODE.matches("\nbegin ").count());
}

/// If an exception handler were entered between such a jump and the `ret`, others might get there, too; the compiler's
/// tables show where the handlers are.
#[test]
fn exception_handlers_elsewhere_are_no_obstacle() {
    let source = r#"
extern "C" void touch(char *);
extern "C" int catches(int n) {
    char room[64];
    try { touch(room); } catch (...) { return n + 1; }
    touch(room);
    return room[n];
}
"#;
    let directory = tempfile::tempdir().unwrap();
    let (file, library) = (directory.path().join("code.cc"), directory.path().join("libcode.so"));
    fs::write(&file, source).unwrap();
    let mut compiler = Command::new("g++");
    compiler.args(["-O2", "-fPIC", "-shared", "-fstack-protector-all", "-Wl,-z,undefs", "-o"]);
    run(compiler.arg(&library).arg(&file));
    let bytes = fs::read(&library).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let code = Functions::of(&image);
    let function = &function_sites(&image, "catches").unwrap()[0];
    let exits = code.exits(symbols(&library)["catches"], function.size).unwrap();
    assert!(exits.has_handler);
    assert!(exits.exits.iter().all(|exit| exit.approaches.len() == 1), "{exits:#x?}");
}
