//! Registers, by their position in the structure in which the kernel passes them to a probe.

/// An integer register. The size of the form, not the register's name, determines how many of its low bytes count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reg {
    index: u8,
}

/// `struct pt_regs` of the kernel's arch/x86/include/asm/ptrace.h, in order.
const X86_64: [&str; 21] = [
    "r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di",
    "orig_ax", "ip", "cs", "flags", "sp", "ss",
];

/// The position of `sp`, which follows x0 to x30 in `struct user_pt_regs` of arch/arm64/include/uapi/asm/ptrace.h; `pc`
/// is next.
const AARCH64_SP: u8 = 31;
const AARCH64_PC: u8 = 32;

impl Reg {
    /// The instruction pointer of x86_64.
    pub const X86_64_IP: Reg = Reg { index: 16 };

    /// Returns the index of the register's 64-bit word in the kernel's register structure: `struct pt_regs` on x86_64
    /// (r15 is 0, sp 19), `struct user_pt_regs` on aarch64 (x0 is 0, sp 31, pc 32).
    pub fn pt_regs_index(self) -> u8 {
        self.index
    }

    /// Looks up a register of x86_64 or its low part by its assembler name without `%`. `None` for any other name,
    /// including the high bytes `ah` to `dh`.
    pub(in crate::elf) fn x86_64(name: &str) -> Option<Reg> {
        let canonical = match name {
            "al" | "bl" | "cl" | "dl" => return Reg::x86_64(&format!("{}x", &name[..1])),
            "sil" | "dil" | "bpl" | "spl" => &name[..2],
            "ax" | "bx" | "cx" | "dx" | "si" | "di" | "bp" | "sp" => name,
            _ => match name.as_bytes() {
                [b'e' | b'r', b'a' | b'b' | b'c' | b'd', b'x']
                | [b'e' | b'r', b's' | b'd', b'i']
                | [b'e' | b'r', b'b' | b's', b'p']
                | [b'r', b'i', b'p'] => &name[1..],
                [b'r', b'8' | b'9'] | [b'r', b'8' | b'9', b'b' | b'w' | b'd'] => &name[..2],
                [b'r', b'1', b'0'..=b'5'] | [b'r', b'1', b'0'..=b'5', b'b' | b'w' | b'd'] => &name[..3],
                _ => return None,
            },
        };
        let index = X86_64.iter().position(|&r| r == canonical)?;
        Some(Reg { index: index as u8 })
    }

    /// Returns how many bytes a register's name stands for: 4 for `%eax`.
    pub(super) fn x86_64_bytes(name: &str) -> u8 {
        let name = name.trim_start_matches('%');
        match name.as_bytes() {
            [b'r', b'0'..=b'9', .., b'd'] | [b'e', ..] => 4,
            [b'r', b'0'..=b'9', .., b'w'] => 2,
            [b'r', b'0'..=b'9', .., b'b'] | [.., b'l'] => 1,
            [b'r', ..] => 8,
            _ => 2,
        }
    }

    /// Looks up a register of aarch64 by its assembler name: x0 to x30, w0 to w30, sp, wsp, fp, lr, pc. `None` for any
    /// other name; the zero registers do not count as registers here.
    pub(super) fn aarch64(name: &str) -> Option<Reg> {
        let index = match name {
            "sp" | "wsp" => AARCH64_SP,
            "pc" => AARCH64_PC,
            "fp" => 29,
            "lr" => 30,
            _ => {
                let digits = name.strip_prefix(['x', 'w'])?;
                let plain = digits == "0" || !digits.starts_with(['0', '+']);
                digits.parse().ok().filter(|&n: &u8| n <= 30 && plain)?
            }
        };
        Some(Reg { index })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x86_subregisters_share_one_index() {
        for (names, index) in [
            (&["rax", "eax", "ax", "al"][..], 10),
            (&["rbx", "ebx", "bx", "bl"], 5),
            (&["rcx", "ecx", "cx", "cl"], 11),
            (&["rdx", "edx", "dx", "dl"], 12),
            (&["rsi", "esi", "si", "sil"], 13),
            (&["rdi", "edi", "di", "dil"], 14),
            (&["rbp", "ebp", "bp", "bpl"], 4),
            (&["rsp", "esp", "sp", "spl"], 19),
            (&["r8", "r8d", "r8w", "r8b"], 9),
            (&["r9", "r9d", "r9w", "r9b"], 8),
            (&["r10", "r10d", "r10w", "r10b"], 7),
            (&["r11", "r11d", "r11w", "r11b"], 6),
            (&["r12", "r12d", "r12w", "r12b"], 3),
            (&["r13", "r13d", "r13w", "r13b"], 2),
            (&["r14", "r14d", "r14w", "r14b"], 1),
            (&["r15", "r15d", "r15w", "r15b"], 0),
            (&["rip"], 16),
        ] {
            for name in names {
                assert_eq!(Reg::x86_64(name).map(Reg::pt_regs_index), Some(index), "{name}");
            }
        }
        assert_eq!(Reg::x86_64("rip"), Some(Reg::X86_64_IP));
        for (names, bytes) in [
            (&["rax", "rsi", "rsp", "r8", "r15"][..], 8),
            (&["eax", "esi", "ebp", "r8d", "r15d"], 4),
            (&["ax", "si", "bp", "r8w", "r15w"], 2),
            (&["al", "sil", "bpl", "r8b", "r15b"], 1),
        ] {
            names.iter().for_each(|name| assert_eq!(Reg::x86_64_bytes(name), bytes, "{name}"));
        }
    }

    #[test]
    fn rejects_other_names_as_x86_registers() {
        for name in
            ["", "r", "r7", "r16", "r1", "r8x", "r15bb", "ah", "xmm0", "eip", "fs", "cs", "orig_ax", "é"]
        {
            assert_eq!(Reg::x86_64(name), None, "{name}");
        }
    }

    #[test]
    fn aarch64_registers() {
        for (name, index) in
            [("x0", 0), ("w0", 0), ("x30", 30), ("lr", 30), ("fp", 29), ("sp", 31), ("pc", 32)]
        {
            assert_eq!(Reg::aarch64(name).map(Reg::pt_regs_index), Some(index), "{name}");
        }
        for name in ["", "x", "x31", "x256", "x+1", "x01", "xzr", "v0", "r0"] {
            assert_eq!(Reg::aarch64(name), None, "{name}");
        }
    }
}
