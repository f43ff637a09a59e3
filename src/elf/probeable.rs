//! Whether Linux accepts a probe on an instruction, how it then executes the instruction, and whether it does so
//! correctly.
//!
//! The kernel checks an instruction against tables of opcodes (arch/x86/kernel/uprobes.c) when it inserts the
//! breakpoint into the memory of a process: without a process, it accepts any place and later drops the probe silently.
//! The rules here are those of Linux 6.1 to 6.18; `tests/kernel/attach/` verifies them against the running kernel, form
//! by form.
//!
//! The kernel also accepts instructions that it then handles incorrectly. Its checks consider one opcode byte,
//! whichever opcode map that belongs to, so a vector instruction whose byte is that of a jump is "emulated" as that
//! jump: skipped. A traced program computes wrong results, or crashes. No probe is set on these.

use iced_x86::{Decoder, DecoderOptions};

/// The length in bytes of the longest instruction.
pub const LONGEST_INSTRUCTION: usize = 15;

/// The outcome of a probe on an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It fires, and the kernel emulates the instruction within the trap.
    Emulated,
    /// It fires, and the processor executes a copy of the instruction, with a second trap.
    SingleStepped,
    /// The kernel accepts no probe there.
    Refused(&'static str),
    /// The kernel accepts it, but the program then computes wrong results, or crashes.
    Harmful(&'static str),
}

/// Opcodes that must not be probed, by the first opcode byte after prefixes. All that begin with 0x0f are allowed.
#[rustfmt::skip]
const BAD_OPCODES: [u8; 40] = [
    0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61, 0x62, 0x6c, 0x6d, 0x6e, 0x6f,
    0x82, 0x9a, 0xcc, 0xcd, 0xce, 0xcf, 0xd4, 0xd5, 0xd6, 0xe4, 0xe5, 0xe6, 0xe7, 0xea, 0xec, 0xed, 0xee, 0xef,
    0xf1, 0xf4, 0xfa, 0xfb,
];

/// The parts of an instruction that the kernel examines.
#[derive(Debug, Default)]
struct Parts<'a> {
    prefixes: &'a [u8],
    rex: Option<u8>,
    encoding: Encoding,
    /// The bytes from the opcode on.
    opcode: &'a [u8],
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    #[default]
    Legacy,
    /// VEX or EVEX: the opcode byte belongs to a map that the prefix selects.
    Vector,
    Xop,
    Rex2,
}

/// Judges the instruction at the start of `code`.
pub fn verdict(code: &[u8]) -> Verdict {
    let instruction = Decoder::new(64, code, DecoderOptions::NONE).decode();
    let Some(bytes) = code.get(..instruction.len()).filter(|_| !instruction.is_invalid()) else {
        return Verdict::Refused("it cannot be decoded");
    };
    let parts = parts(bytes);
    if parts.prefixes.contains(&0xf0) {
        return Verdict::Refused("it has a lock prefix");
    }
    if parts.prefixes.iter().any(|prefix| matches!(prefix, 0x26 | 0x2e | 0x36 | 0x3e)) {
        return Verdict::Refused("it has a segment prefix (%es, %cs, %ss or %ds)");
    }
    if is_amd_only(bytes, &parts) {
        return Verdict::Refused("it is an AMD extension that the kernel cannot decode");
    }
    let [opcode, rest @ ..] = parts.opcode else { return Verdict::Refused("it cannot be decoded") };
    match parts.encoding {
        Encoding::Legacy => legacy(&parts, *opcode, rest),
        Encoding::Vector => vector(*opcode, rest),
        Encoding::Xop => Verdict::Refused("it is an XOP instruction, some of which kernels misinterpret"),
        Encoding::Rex2 => Verdict::Refused("it is an APX instruction, some of which kernels misinterpret"),
    }
}

/// Returns whether the instruction is FMA4, an XOP permutation in VEX encoding, or SSE4a.
fn is_amd_only(bytes: &[u8], parts: &Parts<'_>) -> bool {
    let vex3 = bytes.starts_with(&[0xc4]) && bytes.get(1).is_some_and(|map| map & 0x1f == 3);
    match parts.opcode {
        [0x48 | 0x49 | 0x5c..=0x5f | 0x68..=0x6b | 0x78..=0x7f, ..] => vex3,
        [0x0f, 0x78 | 0x79, ..] => parts.prefixes.iter().any(|prefix| matches!(prefix, 0x66 | 0xf2)),
        _ => false,
    }
}

fn parts(bytes: &[u8]) -> Parts<'_> {
    let is_prefix = |byte: &u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
    let (prefixes, rest) = bytes.split_at(bytes.iter().take_while(|byte| is_prefix(byte)).count());
    let (rex, encoding, skip) = match rest {
        [0xc5, ..] => (None, Encoding::Vector, 2),
        [0xc4, ..] => (None, Encoding::Vector, 3),
        [0x62, ..] => (None, Encoding::Vector, 4),
        // `pop` has a register field of 0 where XOP has its map, which is at least 8.
        [0x8f, map, ..] if map & 0x1f >= 8 => (None, Encoding::Xop, 3),
        [0xd5, ..] => (None, Encoding::Rex2, 2),
        [rex @ 0x40..=0x4f, ..] => (Some(*rex), Encoding::Legacy, 1),
        _ => (None, Encoding::Legacy, 0),
    };
    Parts { prefixes, rex, encoding, opcode: rest.get(skip..).unwrap_or_default() }
}

/// Mirrors `uprobe_init_insn`, `branch_setup_xol_ops` and `push_setup_xol_ops`.
fn legacy(parts: &Parts<'_>, opcode: u8, rest: &[u8]) -> Verdict {
    if BAD_OPCODES.contains(&opcode) {
        return Verdict::Refused(reason(opcode));
    }
    let register = rest.first().map(|modrm| modrm >> 3 & 7);
    match (opcode, rest) {
        (0x8e, _) if register == Some(2) => Verdict::Refused("it loads %ss"),
        (0x9c, _) => Verdict::Harmful(
            "it saves the flags (pushf) including the single-step flag, which crashes the program",
        ),
        (0xa4..=0xa7 | 0xaa..=0xaf, _)
            if parts.prefixes.iter().any(|prefix| matches!(prefix, 0xf2 | 0xf3)) =>
        {
            Verdict::Harmful("it is repeated (rep), and each repetition traps and counts as a hit")
        }
        (0xc7, [0xf8, ..]) => {
            Verdict::Harmful("it begins a transaction (xbegin), which single-stepping aborts")
        }
        (0x90, _) if parts.rex.is_some_and(|rex| rex & 1 != 0) => {
            Verdict::Harmful("it exchanges %r8 and %rax, which the kernel skips as a nop")
        }
        (0x90, _) => Verdict::Emulated,
        (0xe8 | 0xe9 | 0xeb | 0x70..=0x7f, _) | (0x0f, [0x80..=0x8f, ..]) => {
            if parts.prefixes.contains(&0x66) {
                Verdict::Refused("it is a jump or call with an operand-size prefix")
            } else {
                Verdict::Emulated
            }
        }
        (0x50..=0x57, []) if parts.prefixes.is_empty() && parts.rex.is_none_or(|rex| rex == 0x41) => {
            Verdict::Emulated
        }
        _ => Verdict::SingleStepped,
    }
}

/// Judges a vector instruction by its opcode byte, which means something else in the opcode map of the kernel's tables.
fn vector(opcode: u8, rest: &[u8]) -> Verdict {
    if BAD_OPCODES.contains(&opcode) {
        return Verdict::Refused(
            "it is a vector instruction whose opcode byte the kernel takes for an instruction that it cannot \
             probe",
        );
    }
    match opcode {
        0x8e if rest.first().is_some_and(|modrm| modrm >> 3 & 7 == 2) => {
            Verdict::Refused("it is a vector instruction that the kernel mistakes for a load of %ss")
        }
        0x70..=0x7f | 0x90 | 0xe8 | 0xe9 | 0xeb => Verdict::Harmful(
            "it is a vector instruction that the kernel mistakes for a jump or a nop, and skips",
        ),
        0x9d => Verdict::Harmful(
            "it is a vector instruction that the kernel mistakes for popf, which crashes the program",
        ),
        0xc2 | 0xc3 | 0xca | 0xcb | 0xff => {
            Verdict::Harmful("it is a vector instruction that the kernel mistakes for a return or a jump")
        }
        _ => Verdict::SingleStepped,
    }
}

fn reason(opcode: u8) -> &'static str {
    match opcode {
        0xcc | 0xcd | 0xce | 0xf1 => "it is a breakpoint or an interrupt",
        0x6c..=0x6f | 0xe4..=0xe7 | 0xec..=0xef | 0xf4 | 0xfa | 0xfb => "it is privileged",
        _ => "the kernel's instruction tables exclude it",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiler_output_is_probeable() {
        use Verdict::{Emulated, SingleStepped};
        for (code, expected) in [
            (&[0x90, 0xc3][..], Emulated),
            (&[0xf3, 0x90], Emulated),
            (&[0x55], Emulated),
            (&[0x41, 0x57], Emulated),
            (&[0x40, 0x55], SingleStepped),
            (&[0xff, 0xf5], SingleStepped),
            (&[0xe9, 1, 2, 3, 4], Emulated),
            (&[0xf2, 0xe8, 1, 2, 3, 4], Emulated),
            (&[0x0f, 0x84, 1, 2, 3, 4], Emulated),
            (&[0x0f, 0x05], SingleStepped),
            (&[0xf3, 0x0f, 0x1e, 0xfa], SingleStepped),
            (&[0x48, 0x83, 0xec, 0x08], SingleStepped),
            (&[0x0f, 0x1f, 0x44, 0, 0], SingleStepped),
            (&[0xc3], SingleStepped),
            (&[0xf3, 0xc3], SingleStepped),
            (&[0xaa], SingleStepped),
            (&[0x64, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0], SingleStepped),
            // vpaddb; unlike the vmovdqa load (6f)
            (&[0xc5, 0xe9, 0xfc, 0xc1], SingleStepped),
        ] {
            assert_eq!(verdict(code), expected, "{code:02x?}");
        }
    }

    #[test]
    fn rejects_unprobeable_and_harmful_instructions() {
        let refused = |code: &[u8]| matches!(verdict(code), Verdict::Refused(_));
        let harmful = |code: &[u8]| matches!(verdict(code), Verdict::Harmful(_));
        // lock addq, notrack jmp *%rax, the ten-byte nop with %cs, hlt, int3, int $0x80, in, jmp with prefix 66, and
        // vpxor, whose byte is that of out; also invalid and truncated instructions.
        for code in [
            &[0xf0, 0x48, 0x83, 0x05, 1, 2, 3, 0, 1][..],
            &[0x3e, 0xff, 0xe0],
            &[0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
            &[0xf4],
            &[0xcc],
            &[0xcd, 0x80],
            &[0xec],
            &[0x66, 0xe9, 0, 0, 0, 0],
            &[0xc5, 0xe9, 0xef, 0xc1],
            &[0xc5, 0xfe, 0x6f, 0x07],
            &[0x8e, 0xd0],
            &[0x06],
            &[0x48, 0x8b],
            &[],
        ] {
            assert!(refused(code), "{code:02x?}: {:?}", verdict(code));
        }
        // vpcmpeqb, vzeroupper, kmovw, vpor, vfnmadd132ss, vcmpps; EVEX vpcmpeqb; pushf, xchg %r8,%rax,
        // rep stosb, rep movsq, repne scasq
        for code in [
            &[0xc5, 0xe9, 0x74, 0xc1][..],
            &[0xc5, 0xf8, 0x77],
            &[0xc5, 0xf8, 0x90, 0xd1],
            &[0xc5, 0xe9, 0xeb, 0xc1],
            &[0xc4, 0xe2, 0x69, 0x9d, 0xc1],
            &[0xc5, 0xe8, 0xc2, 0xc1, 0],
            &[0x62, 0xf1, 0x7d, 0x48, 0x74, 0xc8],
            &[0x9c],
            &[0x49, 0x90],
            &[0xf3, 0xaa],
            &[0xf3, 0x48, 0xa5],
            &[0xf2, 0x48, 0xaf],
        ] {
            assert!(harmful(code), "{code:02x?}: {:?}", verdict(code));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic() {
        for first in 0..=u16::MAX {
            let [a, b] = first.to_le_bytes();
            for rest in [&[][..], &[0xff; 14], &[0; 14], &[0xc0, 0x62, 0xc5, 0x90]] {
                let _ = verdict(&[&[a, b], rest].concat());
            }
        }
    }
}
