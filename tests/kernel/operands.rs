//! Operands of USDT notes that a compiler need not generate for the demo program, each with the value that a debugger
//! reads there.

use std::fmt::Write;
use std::process::Command;

use crate::support::program::{compile, directory};
use crate::support::tracer::Tracer;

/// Registers and memory that the operands refer to. RDI is an eighth of the address in RBX.
const VALUES: &str = r#"
	.data
	.globl buffer, greeting
	.balign 64
	.quad	77
buffer:	.quad	0x0102030405060708, 0xf1f2f3f4f5f6f7f8, -3, 400, -5
apart:	.quad	-66
greeting: .asciz "a text that the note names"
	.text
	.globl	main
main:	endbr64
	push	%rbx
	push	%rbp
	push	%r12
	push	%r13
	mov	$0x8182838485868788, %rax
	mov	$0x7172737475767778, %r13
	mov	$0x9192939495969798, %rsi
	mov	$0xa1a2a3a4a5a6a7a8, %rbp
	mov	$0xb1b2b3b4b5b6b7b8, %r9
	lea	buffer(%rip), %rbx
	mov	%rbx, %rdi
	shr	$3, %rdi
	mov	$2, %rcx
	mov	$8, %rdx
	movq	$-99, -8(%rsp)
"#;
const END: &str = "
	pop	%r13
	pop	%r12
	pop	%rbp
	pop	%rbx
	xor	%eax, %eax
	ret
	.section .note.GNU-stack,\"\",@progbits
";

/// Operands and their values.
const OPERANDS: [(&str, &str); 49] = [
    ("8@%rax", "9332165983064197000"),
    ("-8@%rax", "-9114578090645354616"),
    ("%rax", "9332165983064197000"),
    ("4@%eax", "2240186248"),
    ("-4@%eax", "-2054781048"),
    ("2@%ax", "34696"),
    ("-2@%ax", "-30840"),
    ("1@%al", "136"),
    ("-1@%al", "-120"),
    // Bits above the named part of the register do not belong to the argument.
    ("8@%eax", "2240186248"),
    ("-8@%eax", "-2054781048"),
    ("4@%al", "136"),
    ("-4@%ax", "-30840"),
    ("8@%r13", "8174723217654970232"),
    ("4@%r13d", "1970698104"),
    ("-2@%r13w", "30584"),
    ("1@%r13b", "120"),
    ("1@%sil", "152"),
    ("-1@%bpl", "-88"),
    ("-1@%r9b", "-72"),
    ("8@%r9d", "3048650680"),
    ("8@(%rbx)", "72623859790382856"),
    ("8@-8(%rbx)", "77"),
    ("8@8(%rbx)", "17434265340928784376"),
    ("-8@8(%rbx)", "-1012478732780767240"),
    ("4@8(%rbx)", "4126603256"),
    ("-4@8(%rbx)", "-168364040"),
    ("2@8(%rbx)", "63480"),
    ("-2@0x8(%rbx)", "-2056"),
    ("1@8(%rbx)", "248"),
    ("-1@8(%rbx)", "-8"),
    ("-8@8+8(%rbx)", "-3"),
    ("-8@-8(%rsp)", "-99"),
    ("-8@(%rbx,%rcx,8)", "-3"),
    ("-4@8(%rbx,%rcx,4)", "-3"),
    ("8@(%rbx, %rdx)", "17434265340928784376"),
    ("8@-16(%rbx,%rcx,8)", "72623859790382856"),
    ("8@24(,%rdi,8)", "400"),
    ("-8@16(%rdx,%rdi,8)", "400"),
    ("-8@buffer+16(%rip)", "-3"),
    ("-8@16+buffer(%rip)", "-3"),
    ("8@-8+buffer(%rip)", "77"),
    ("-8@apart(%rip)", "-66"),
    ("-8@apart", "-66"),
    ("-4@$-1", "-1"),
    ("4@$-1", "4294967295"),
    ("8@$-1", "18446744073709551615"),
    ("-1@$255", "-1"),
    ("2@$0x12345", "9029"),
];

/// Operands of programs that are loaded where they were linked.
const ABSOLUTE: [(&str, &str); 4] = [
    ("-8@buffer(,%rcx,8)", "-3"),
    ("8@buffer-8(%rdx)", "72623859790382856"),
    ("-4@buffer+8(%rdx,%rcx,4)", "400"),
    ("1@apart(,%rcx,4)", "97"),
];

fn source(operands: &[&str]) -> String {
    let mut source = VALUES.to_owned();
    for (number, operand) in operands.iter().enumerate() {
        writeln!(
            source,
            "990:\tnop\n\t.pushsection .note.stapsdt,\"\",\"note\"\n\t.balign 4\n\t.4byte 992f-991f, 994f-993f, 3\n991:\t.asciz \
             \"stapsdt\"\n992:\t.balign 4\n993:\t.8byte 990b, 0, 0\n\t.asciz \"test\"\n\t.asciz \"p{number}\"\n\t.asciz \
             \"{operand}\"\n994:\t.balign 4\n\t.popsection"
        )
        .unwrap();
    }
    source + END
}

#[test]
fn every_operand_matches_a_debugger() {
    let directory = directory();
    for (name, flags) in [("pie", &["-pie"][..]), ("fixed", &["-no-pie"])] {
        let mut operands: Vec<(&str, &str)> = OPERANDS.to_vec();
        if name == "fixed" {
            operands.extend(ABSOLUTE);
        }
        let texts: Vec<&str> = operands.iter().map(|(operand, _)| *operand).collect();
        let texts = [&texts[..], if name == "fixed" { &["8@$greeting+2"][..] } else { &[] }].concat();
        let binary = compile("cc", &format!("{name}.s"), &source(&texts), flags, directory.path());
        let mut yaml =
            format!("node_name: test\ntargets:\n- name: t\n  binary: {}\n  probes:\n", binary.display());
        for number in 0..texts.len() {
            let kind = if number < operands.len() { "" } else { ", type: string" };
            writeln!(
                yaml,
                "  - {{ on: 'usdt:test:p{number}', args: {{ v: {{ index: 0{kind} }} }}, metrics: [{{ counter: p{number}_total, \
                 labels: {{ v: v }} }}] }}"
            )
            .unwrap();
        }
        let tracer = Tracer::start(&yaml);
        assert!(Command::new(&binary).status().unwrap().success());
        let series = tracer.render();
        if name == "fixed" {
            operands.push(("8@$greeting+2", "text that the note names"));
        }
        for (number, (operand, value)) in operands.iter().enumerate() {
            let found: Vec<_> =
                series.keys().filter(|name| name.starts_with(&format!("p{number}_total{{"))).collect();
            assert_eq!(found, [&format!("p{number}_total{{v=\"{value}\"}}")], "{name}: {operand}");
        }
    }
}
