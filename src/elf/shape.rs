//! What a probe costs at a place, judged from the instruction there.
//!
//! The kernel puts a breakpoint on the instruction. It then emulates a few kinds of instructions; any other is executed
//! out of line with a second trap, which costs about ten times as much. Measured on x86_64, Linux 6.18.

use std::fmt;

use super::Arch;
use super::probeable::{Verdict, verdict};

/// The kind of code at a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SiteShape {
    /// A nop of one byte (or two, or aarch64's), which `sys/sdt.h` emits for a USDT probe.
    Nop,
    /// The one-byte nop before a five-byte nop. The probe belongs on the first: on the second, Linux 6.18 replaces the
    /// breakpoint with a call, which overwrites the red zone of a leaf function.
    NopNop5,
    /// The one-byte nop before a ten-byte nop. The probe belongs on the first: on the second, the kernel rejects it.
    NopNop10,
    /// A five-byte nop on its own.
    Nop5,
    /// A push of a register, as at the start of many functions.
    Push,
    /// A landing pad of control-flow enforcement that is not followed by a push.
    Endbr64,
    /// Anything else; `cheap` if the kernel emulates it (jumps and calls).
    Other { cheap: bool },
    /// The kernel accepts no probe here, for this reason.
    Refused(&'static str),
    /// The kernel accepts a probe here, but the program then computes wrong results, or crashes, for this reason.
    Harmful(&'static str),
    /// In a segment that is writable for the program. The kernel accepts a probe here, but inserts it into no process.
    Writable,
}

/// The cost of a hit for the traced program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// One trap, about 0.6 microseconds.
    Cheap,
    /// Two traps, 5 to 10 microseconds.
    SingleStepped,
    /// Nothing: no probe can be set here.
    NeverFires,
}

const NOP5: &[u8] = &[0x0f, 0x1f, 0x44, 0x00, 0x00];
const NOP10: &[u8] = &[0x66, 0x2e, 0x0f, 0x1f, 0x84, 0x00];
pub(super) const ENDBR64: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];

/// Bytes from a site that [`SiteShape::of`] reads at most.
pub(super) const MAX_SITE_BYTES: usize = 16;

impl SiteShape {
    /// Judges the code at a site, given the bytes from there on.
    pub fn of(arch: Arch, code: &[u8]) -> SiteShape {
        match arch {
            Arch::X86_64 => x86_64(code),
            Arch::Aarch64 if code.starts_with(&[0x1f, 0x20, 0x03, 0xd5]) => SiteShape::Nop,
            Arch::Aarch64 => SiteShape::Other { cheap: false },
        }
    }

    pub fn cost(self) -> Cost {
        match self {
            SiteShape::Nop | SiteShape::NopNop5 | SiteShape::NopNop10 | SiteShape::Push => Cost::Cheap,
            SiteShape::Other { cheap: true } => Cost::Cheap,
            SiteShape::Nop5 | SiteShape::Endbr64 | SiteShape::Other { cheap: false } => Cost::SingleStepped,
            SiteShape::Refused(_) | SiteShape::Harmful(_) | SiteShape::Writable => Cost::NeverFires,
        }
    }

    /// Returns why no probe can be set here, regardless of the place; `None` if one can be.
    pub fn unprobeable(self) -> Option<String> {
        match self {
            SiteShape::Refused(reason) => Some(format!("the kernel cannot probe its instruction: {reason}")),
            SiteShape::Harmful(reason) => {
                Some(format!("a probe on its instruction would change what the program does: {reason}"))
            }
            SiteShape::Writable => Some(
                "its code is in a segment that is writable, too, where the kernel sets no probes: link the program without \
                 -N or whatever else makes code writable"
                    .to_string(),
            ),
            _ => None,
        }
    }

    /// Returns whether a probe can be set here without harm.
    pub fn takes_probe(self) -> bool {
        self.unprobeable().is_none() && !self.is_replaced_by_call()
    }

    /// Returns whether a probe at exactly this place makes Linux 6.18 replace the instruction with a call. That call
    /// writes below the stack pointer, where a leaf function stores its data, and leads to a mapping that child
    /// processes do not inherit: they crash there.
    pub fn is_replaced_by_call(self) -> bool {
        self == SiteShape::Nop5
    }
}

impl fmt::Display for Cost {
    /// Formats as a sentence for humans.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cost::Cheap => "the kernel emulates the probed instruction: a hit costs less than 1 us",
            Cost::SingleStepped => "the kernel single-steps the probed instruction: a hit costs 5 to 15 us",
            Cost::NeverFires => "the instruction cannot be probed",
        })
    }
}

fn x86_64(code: &[u8]) -> SiteShape {
    let cheap = match verdict(code) {
        Verdict::Refused(reason) => return SiteShape::Refused(reason),
        Verdict::Harmful(reason) => return SiteShape::Harmful(reason),
        Verdict::Emulated => true,
        Verdict::SingleStepped => false,
    };
    match code {
        [0x90, rest @ ..] if rest.starts_with(NOP5) => SiteShape::NopNop5,
        [0x90, rest @ ..] if rest.starts_with(NOP10) => SiteShape::NopNop10,
        [0x90, ..] | [0x66, 0x90, ..] => SiteShape::Nop,
        _ if code.starts_with(NOP5) => SiteShape::Nop5,
        _ if code.starts_with(ENDBR64) => SiteShape::Endbr64,
        [0x50..=0x57, ..] | [0x41, 0x50..=0x57, ..] => SiteShape::Push,
        _ => SiteShape::Other { cheap },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinguishes_nops() {
        let nop5 = [0x0f, 0x1f, 0x44, 0, 0];
        let nop10 = [0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0];
        let of = |code: &[&[u8]]| x86_64(&code.concat());
        assert_eq!(of(&[&[0x90, 0xc3]]), SiteShape::Nop);
        assert_eq!(of(&[&[0x66, 0x90]]), SiteShape::Nop);
        assert_eq!(of(&[&[0x90], &nop5]), SiteShape::NopNop5);
        assert_eq!(of(&[&[0x90], &nop10]), SiteShape::NopNop10);
        assert_eq!(of(&[&nop5]), SiteShape::Nop5);
        assert!(matches!(of(&[&nop10]), SiteShape::Refused(reason) if reason.contains("segment prefix")));
        assert_eq!(of(&[&[0x90], &nop5[..4]]), SiteShape::Nop, "cut off by the end of the segment");
        assert_eq!(of(&[&nop10]).cost(), Cost::NeverFires);
        assert_eq!(SiteShape::NopNop10.cost(), Cost::Cheap);
        assert!(SiteShape::Nop5.is_replaced_by_call() && !SiteShape::NopNop5.is_replaced_by_call());
    }

    #[test]
    fn classifies_first_instructions() {
        for (code, shape) in [
            (&[0x55, 0x48][..], SiteShape::Push),
            (&[0x41, 0x57], SiteShape::Push),
            (&[0x41, 0x89, 0xc0], SiteShape::Other { cheap: false }),
            (&[0xf3, 0x0f, 0x1e, 0xfa], SiteShape::Endbr64),
            (&[0xf3, 0x0f, 0x1e], SiteShape::Refused("it cannot be decoded")),
            (&[0xe9, 1, 2, 3, 4], SiteShape::Other { cheap: true }),
            (&[0x0f, 0x84, 1, 2, 3, 4], SiteShape::Other { cheap: true }),
            (&[0x48, 0x83, 0xec, 0x08], SiteShape::Other { cheap: false }),
            (
                &[0x9c],
                SiteShape::Harmful(
                    "it saves the flags (pushf) including the single-step flag, which crashes the program",
                ),
            ),
        ] {
            assert_eq!(x86_64(code), shape, "{code:x?}");
        }
        assert_eq!(SiteShape::of(Arch::Aarch64, &[0x1f, 0x20, 0x03, 0xd5]), SiteShape::Nop);
        assert_eq!(SiteShape::of(Arch::Aarch64, &[0x90, 0, 0, 0]), SiteShape::Other { cheap: false });
    }
}
