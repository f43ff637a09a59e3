use super::*;

fn x86(name: &str) -> Reg {
    Reg::x86_64(name).unwrap()
}

fn arm(name: &str) -> Reg {
    Reg::aarch64(name).unwrap()
}

fn one(arch: Arch, text: &str) -> Result<ArgForm, FormError> {
    let mut all = parse_args(arch, text);
    assert_eq!(all.len(), 1, "{text} is one argument");
    all.remove(0)
}

/// Checks that the form of `text` has this size, sign and place.
#[track_caller]
fn is(arch: Arch, text: &str, size: u8, signed: bool, form: Form) {
    let expected = ArgForm { size, signed, float: false, form, text: text.to_owned() };
    assert_eq!(one(arch, text), Ok(expected));
}

/// Checks that `text` is rejected with a reason that contains `reason`.
#[track_caller]
fn refused(arch: Arch, text: &str, reason: &str) {
    let error = one(arch, text).expect_err(text);
    assert_eq!(error.text, text);
    assert!(error.reason.contains(reason), "{error} should say `{reason}`");
}

use Arch::{Aarch64, X86_64};
use Form::{Const, Indexed, Mem};

#[test]
fn x86_registers_of_every_size() {
    for (text, size, signed, reg) in [
        ("8@%rax", 8, false, "rax"),
        ("-4@%eax", 4, true, "rax"),
        ("1@%cl", 1, false, "rcx"),
        ("1@%dil", 1, false, "rdi"),
        ("-1@%r13b", 1, true, "r13"),
        ("-2@%r13w", 2, true, "r13"),
        ("-8@%r13", 8, true, "r13"),
        ("4@%r9d", 4, false, "r9"),
        ("8@%rsp", 8, false, "rsp"),
        ("8@%rip", 8, false, "rip"),
    ] {
        is(X86_64, text, size, signed, Form::Reg(x86(reg)));
    }
}

#[test]
fn x86_memory() {
    is(X86_64, "8@-1744(%rbp)", 8, false, Mem { base: x86("rbp"), offset: -1744 });
    is(X86_64, "-4@24(%rcx)", 4, true, Mem { base: x86("rcx"), offset: 24 });
    is(X86_64, "4@128(%rsp)", 4, false, Mem { base: x86("rsp"), offset: 128 });
    is(X86_64, "2@12(%r12)", 2, false, Mem { base: x86("r12"), offset: 12 });
    is(X86_64, "8@(%rdi)", 8, false, Mem { base: x86("rdi"), offset: 0 });
    is(X86_64, "8@0x10(%rdi)", 8, false, Mem { base: x86("rdi"), offset: 16 });
    is(X86_64, "8@8+40(%rsp)", 8, false, Mem { base: x86("rsp"), offset: 48 });
}

#[test]
fn x86_scaled_index() {
    let indexed = |base: Option<&str>, index, scale, offset| Indexed {
        base: base.map(x86),
        index: x86(index),
        scale,
        offset,
    };
    is(X86_64, "-4@(%rax,%rbx,4)", 4, true, indexed(Some("rax"), "rbx", 4, 0));
    is(X86_64, "-4@(%rax, %rbx, 4)", 4, true, indexed(Some("rax"), "rbx", 4, 0));
    is(X86_64, "8@-16(%rax,%r14)", 8, false, indexed(Some("rax"), "r14", 1, -16));
    is(X86_64, "8@8(,%rdx,8)", 8, false, indexed(None, "rdx", 8, 8));
}

#[test]
fn constants_are_truncated_to_their_size() {
    is(X86_64, "-4@$0", 4, true, Const(0));
    is(X86_64, "8@$1", 8, false, Const(1));
    is(X86_64, "-4@$-1", 4, true, Const(-1));
    is(X86_64, "4@$-1", 4, false, Const(0xffff_ffff));
    is(X86_64, "-4@$4294967295", 4, true, Const(-1));
    is(X86_64, "-1@$0xff", 1, true, Const(-1));
    is(X86_64, "2@$65536", 2, false, Const(0));
    is(X86_64, "8@$18446744073709551615", 8, false, Const(-1));
    is(X86_64, "-8@$-9223372036854775808", 8, true, Const(i64::MIN));
}

#[test]
fn x86_symbols() {
    let symbol = |name: &str, offset| Form::Symbol { name: name.to_owned(), offset };
    is(X86_64, "-4@40+CheckpointStats(%rip)", 4, true, symbol("CheckpointStats", 40));
    is(X86_64, "-4@CheckpointStats+40(%rip)", 4, true, symbol("CheckpointStats", 40));
    is(X86_64, "8@sym-8(%rip)", 8, false, symbol("sym", -8));
    is(X86_64, "8@-8+sym(%rip)", 8, false, symbol("sym", -8));
    is(X86_64, "-4@NBuffers(%rip)", 4, true, symbol("NBuffers", 0));
    is(X86_64, "-4@NBuffers", 4, true, symbol("NBuffers", 0));
    let absolute = |name: &str, form| Form::Absolute { name: name.to_owned(), form: Box::new(form) };
    is(X86_64, "8@$sym+8", 8, false, absolute("sym", Const(8)));
    is(X86_64, "8@sym-8(%rax)", 8, false, absolute("sym", Mem { base: x86("rax"), offset: -8 }));
    let indexed = Indexed { base: None, index: x86("rdx"), scale: 4, offset: 4 };
    is(X86_64, "-4@sym+4(,%rdx,4)", 4, true, absolute("sym", indexed));
    is(X86_64, "8@_ZL3foo.lto_priv.0(%rip)", 8, false, symbol("_ZL3foo.lto_priv.0", 0));
}

/// Bits above a register's named part do not belong to the argument.
#[test]
fn register_name_limits_the_width() {
    for (text, size, signed, name) in [
        ("8@%eax", 4, false, "rax"),
        ("-8@%r9d", 4, true, "r9"),
        ("4@%cl", 1, false, "rcx"),
        ("-8@%ax", 2, true, "rax"),
    ] {
        is(X86_64, text, size, signed, Form::Reg(x86(name)));
    }
}

#[test]
fn argument_without_size_is_a_word() {
    is(X86_64, "%rax", 8, false, Form::Reg(x86("rax")));
    is(X86_64, "-8(%rbp)", 8, false, Mem { base: x86("rbp"), offset: -8 });
    is(X86_64, "$7", 8, false, Const(7));
    is(Aarch64, "x3", 8, false, Form::Reg(arm("x3")));
}

#[test]
fn floating_point_is_readable_only_in_memory() {
    let in_memory = one(X86_64, "8f@-16(%rbp)").unwrap();
    assert!(in_memory.float && in_memory.size == 8);
    assert_eq!(in_memory.form, Mem { base: x86("rbp"), offset: -16 });
    let signed = one(X86_64, "-8f@%xmm0").unwrap();
    assert!(signed.float && signed.signed);
    assert_eq!(signed.form, Form::Float { register: "xmm0".to_owned() });
    assert_eq!(one(X86_64, "8@%ymm15").unwrap().form, Form::Float { register: "ymm15".to_owned() });
    assert_eq!(one(X86_64, "8f@%st(1)").unwrap().form, Form::Float { register: "st(1)".to_owned() });
    assert_eq!(one(Aarch64, "8f@d0").unwrap().form, Form::Float { register: "d0".to_owned() });
}

#[test]
fn unreadable_x86_forms_state_the_reason() {
    for (text, reason) in [
        ("1@%ah", "second byte"),
        ("8@%fs:0x28", "segment register"),
        ("8@%fs:(%rax)", "segment register"),
        ("16@%rax", "its size is 16 bytes"),
        ("3@%rax", "its size is 3 bytes"),
        ("8@", "nothing follows the size"),
        ("8@%r16", "`%r16` is not an x86_64 register"),
        ("8@(%eax)", "`%eax` is not a 64-bit register"),
        ("8@(%r8d)", "`%r8d` is not a 64-bit register"),
        ("8@(%rax", "is not closed"),
        ("8@(%rax)x", "is not closed"),
        ("8@()", "no register"),
        ("8@(%rax,%rbx,3)", "its scale is `3`"),
        ("8@(%rax,%rbx,2,1)", "more than three parts"),
        ("8@16(%rip)", "not in the note"),
        ("8@sym(%rip,%rax)", "not in the note"),
        ("8@sym@GOTPCREL(%rip)", "GOTPCREL entry of `sym`"),
        ("8@$.LC0", "address of `.LC0`"),
        ("8@$", "no number"),
        ("8@$010", "octal"),
        ("8@$99999999999999999999", "64-bit number"),
        ("8@$18446744073709551615+1", "does not fit 64 bits"),
        ("8@1234", "absolute address"),
        ("8@a+b(%rip)", "not a number or a symbol"),
        ("8@-a(%rip)", "not a number or a symbol"),
        ("8@{%rax}", "neither a number nor a symbol"),
    ] {
        refused(X86_64, text, reason);
    }
    let long = format!("8@{}", "a".repeat(5000));
    refused(X86_64, &long, "5002 bytes long");
}

#[test]
fn aarch64_forms() {
    is(Aarch64, "-4@[sp, 60]", 4, true, Mem { base: arm("sp"), offset: 60 });
    is(Aarch64, "8@[x0]", 8, false, Mem { base: arm("x0"), offset: 0 });
    is(Aarch64, "8@[x29,-24]", 8, false, Mem { base: arm("fp"), offset: -24 });
    is(Aarch64, "8@[x0, #16]", 8, false, Mem { base: arm("x0"), offset: 16 });
    is(Aarch64, "8@x1", 8, false, Form::Reg(arm("x1")));
    is(Aarch64, "-4@w20", 4, true, Form::Reg(arm("x20")));
    is(Aarch64, "-4@5", 4, true, Const(5));
    is(Aarch64, "4@-1", 4, false, Const(0xffff_ffff));
    is(Aarch64, "8@xzr", 8, false, Const(0));
    let indexed = |scale| Indexed { base: Some(arm("x0")), index: arm("x1"), scale, offset: 0 };
    is(Aarch64, "8@[x0, x1]", 8, false, indexed(1));
    is(Aarch64, "8@[x0, x1, lsl 3]", 8, false, indexed(8));
    is(Aarch64, "4@[x0,x1,lsl #2]", 4, false, indexed(4));
}

#[test]
fn unreadable_aarch64_forms_state_the_reason() {
    for (text, reason) in [
        ("8@[x0, w1, sxtw 3]", "`w1` is not a 64-bit register"),
        ("8@[x0, x1, sxtx]", "`sxtx`"),
        ("8@[x0, x1, lsl 4]", "`lsl 4`"),
        ("8@[x0], 8", "is not closed"),
        ("8@[w0]", "`w0` is not a 64-bit register"),
        ("8@[]", "`` is not a 64-bit register"),
        ("8@[x0,]", "no offset"),
        ("8@[x0, 8, 8]", "`8` is not expected"),
        ("8@[x0, :lo12:sym]", "neither a number nor a symbol"),
        ("8@[x0, sym]", "combines `sym`"),
        ("8@x31", "`x31` is not an aarch64 register"),
    ] {
        // A comma and a space outside brackets split an argument in two; the first part is the invalid one.
        let error = parse_args(Aarch64, text).remove(0).expect_err(text);
        assert!(error.reason.contains(reason), "{error} should say `{reason}`");
    }
}

#[test]
fn bad_argument_does_not_affect_the_others() {
    let args = parse_args(X86_64, "8@%rax  16@%xmm0 -4@(%rax, %rbx, 4)\t1@$0 ");
    let texts: Vec<_> =
        args.iter().map(|a| a.as_ref().map_or_else(|e| &e.text, |f| &f.text).as_str()).collect();
    assert_eq!(texts, ["8@%rax", "16@%xmm0", "-4@(%rax, %rbx, 4)", "1@$0"]);
    assert_eq!(args.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true, true]);

    let unclosed = parse_args(X86_64, "8@(%rax, 8@%rbx -4@[ (( -4@%ecx");
    assert_eq!(unclosed.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, false, true]);
}

#[test]
fn argument_count_is_limited() {
    assert!(parse_args(X86_64, "").is_empty());
    assert!(parse_args(X86_64, "  ").is_empty());
    assert_eq!(parse_args(X86_64, &"8@%rax ".repeat(1000)).len(), ARGS_MAX);
}
