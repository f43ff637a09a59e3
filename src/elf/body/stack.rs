//! Functions written in assembly that save the stack pointer in a register while they use a different stack, and
//! restore it at their end.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::{Body, writes};
use crate::elf::Image;

/// Callee-saved registers, except the frame pointer.
const KEPT: [Register; 5] = [Register::RBX, Register::R12, Register::R13, Register::R14, Register::R15];

impl Body {
    /// Returns whether the instruction at `at` restores the stack pointer: from a register that nothing else was
    /// written to since it was saved there, until the caller's value is restored right before the function returns.
    pub fn restores_stack(&self, image: &Image<'_>, at: u64) -> bool {
        let length = (self.range.end - self.range.start) as usize;
        let code = image.code_at(self.range.start, length).unwrap_or(&[]);
        let decoder = Decoder::with_ip(64, code, self.range.start, DecoderOptions::NONE);
        let all: Vec<Instruction> = decoder.into_iter().collect();
        let Some(from) = all.iter().find(|now| now.ip() == at).and_then(restored_from) else { return false };
        let mut is_saved = false;
        for (n, now) in all.iter().enumerate() {
            if !writes(now, |register| register == from) {
                continue;
            }
            if saves(now, from) {
                is_saved = true;
            } else if !leaves(&all[n..]) {
                return false;
            }
        }
        is_saved
    }
}

/// Returns the register of `mov %REG,%rsp`.
fn restored_from(now: &Instruction) -> Option<Register> {
    let is_copy = now.mnemonic() == Mnemonic::Mov
        && now.op1_kind() == OpKind::Register
        && now.op0_kind() == OpKind::Register
        && now.op0_register() == Register::RSP;
    is_copy.then(|| now.op1_register()).filter(|register| KEPT.contains(register))
}

fn saves(now: &Instruction, to: Register) -> bool {
    now.mnemonic() == Mnemonic::Mov
        && now.op0_kind() == OpKind::Register
        && now.op0_register() == to
        && now.op1_kind() == OpKind::Register
        && now.op1_register() == Register::RSP
}

/// Returns whether a `ret` follows, with nothing on the way there but code that releases the stack and restores
/// registers.
fn leaves(code: &[Instruction]) -> bool {
    let end = code.iter().find(|now| now.flow_control() != FlowControl::Next || restored_from(now).is_some());
    end.is_some_and(|end| end.flow_control() == FlowControl::Return)
}
