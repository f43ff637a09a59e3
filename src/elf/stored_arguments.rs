//! Where a function that was compiled without optimization stores its arguments: its debug information describes only
//! the stored copies, not the registers that they came from.

use std::collections::HashMap;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::Image;
use super::body::writes;

/// Instructions that store arguments before the function's own code, at most.
const MAX_INSTRUCTIONS: usize = 128;
/// Their length in bytes, at most.
const MAX_BYTES: usize = 1024;

/// Registers that hold argument words.
const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// Returns the argument words that the function beginning at `entry` stores before it does anything else, by their
/// offset from the frame pointer.
pub(super) fn stored_arguments(image: &Image<'_>, entry: u64) -> HashMap<i64, usize> {
    let code = image.code_at(entry, MAX_BYTES).unwrap_or(&[]);
    let all = Decoder::with_ip(64, code, entry, DecoderOptions::NONE).into_iter();
    let mut held: HashMap<Register, usize> = ARGUMENTS.into_iter().zip(0..).collect();
    let mut stored: HashMap<i64, Option<usize>> = HashMap::new();
    for now in all.take(MAX_INSTRUCTIONS).take_while(|now| now.flow_control() == FlowControl::Next) {
        let source = source_register(&now);
        if let Some(offset) = stored_at(&now) {
            stored.entry(offset).or_insert_with(|| held.get(&source?).copied());
        } else if is_cut(&now) {
            // The remaining bits are still the same argument.
        } else if let (Some(word), true) = (source.and_then(|from| held.get(&from).copied()), is_copy(&now)) {
            held.insert(now.op0_register().full_register(), word);
        } else {
            held.retain(|register, _| !writes(&now, |written| written == *register));
        }
    }
    stored.into_iter().filter_map(|(offset, word)| Some((offset, word?))).collect()
}

/// Returns the general-purpose register that an instruction reads as its second operand.
fn source_register(now: &Instruction) -> Option<Register> {
    let is_register = now.op_count() == 2 && now.op1_kind() == OpKind::Register;
    is_register.then(|| now.op1_register().full_register()).filter(|register| register.is_gpr64())
}

/// Returns the destination of a `mov` to the stack, as an offset from the frame pointer.
fn stored_at(now: &Instruction) -> Option<i64> {
    let is_store = now.mnemonic() == Mnemonic::Mov
        && now.op0_kind() == OpKind::Memory
        && now.memory_base() == Register::RBP
        && now.memory_index() == Register::None;
    is_store.then(|| now.memory_displacement64() as i64)
}

/// Returns whether the first operand is a register that receives the value of the second one, a register.
fn is_copy(now: &Instruction) -> bool {
    now.op0_kind() == OpKind::Register
        && matches!(now.mnemonic(), Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd)
}

/// Returns whether the instruction clears some bits of a register: for a boolean, all but one.
fn is_cut(now: &Instruction) -> bool {
    now.mnemonic() == Mnemonic::And
        && now.op0_kind() == OpKind::Register
        && now.op0_register().full_register() != Register::RSP
        && now.op1_kind() != OpKind::Register
        && now.op1_kind() != OpKind::Memory
}
