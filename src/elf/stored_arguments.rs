//! Where a function that was compiled without optimisation stores its arguments: its debug information only tells of what it has
//! stored, not of the registers that it took them from.

use std::collections::HashMap;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::Image;
use super::body::writes;

/// The most instructions before a function's own code: some for each argument.
const LONGEST: usize = 128;
/// The most bytes of these.
const BYTES: usize = 1024;

/// Registers with words of arguments.
const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// The words of arguments that the function which begins at `entry` stores before it does anything else, by their distance from the
/// frame pointer.
pub(super) fn stored_arguments(image: &Image<'_>, entry: u64) -> HashMap<i64, usize> {
    let code = image.code_at(entry, BYTES).unwrap_or(&[]);
    let all = Decoder::with_ip(64, code, entry, DecoderOptions::NONE).into_iter();
    let mut held: HashMap<Register, usize> = ARGUMENTS.into_iter().zip(0..).collect();
    let mut stored: HashMap<i64, Option<usize>> = HashMap::new();
    for now in all.take(LONGEST).take_while(|now| now.flow_control() == FlowControl::Next) {
        let source = source_register(&now);
        if let Some(offset) = stored_at(&now) {
            stored.entry(offset).or_insert_with(|| held.get(&source?).copied());
        } else if is_cut(&now) {
            // What is left of it is the same argument.
        } else if let (Some(word), true) = (source.and_then(|from| held.get(&from).copied()), is_copy(&now)) {
            held.insert(now.op0_register().full_register(), word);
        } else {
            held.retain(|register, _| !writes(&now, |written| written == *register));
        }
    }
    stored.into_iter().filter_map(|(offset, word)| Some((offset, word?))).collect()
}

/// The general register that an instruction reads as its second operand.
fn source_register(now: &Instruction) -> Option<Register> {
    let is_register = now.op_count() == 2 && now.op1_kind() == OpKind::Register;
    is_register.then(|| now.op1_register().full_register()).filter(|register| register.is_gpr64())
}

/// Where a `mov` puts something, by its distance from the frame pointer.
fn stored_at(now: &Instruction) -> Option<i64> {
    let is_store = now.mnemonic() == Mnemonic::Mov
        && now.op0_kind() == OpKind::Memory
        && now.memory_base() == Register::RBP
        && now.memory_index() == Register::None;
    is_store.then(|| now.memory_displacement64() as i64)
}

/// Whether the first operand is a register that gets what the second one, a register, holds.
fn is_copy(now: &Instruction) -> bool {
    now.op0_kind() == OpKind::Register
        && matches!(now.mnemonic(), Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd)
}

/// Whether bits are taken from what a register holds, as of a truth value all but one.
fn is_cut(now: &Instruction) -> bool {
    now.mnemonic() == Mnemonic::And
        && now.op0_kind() == OpKind::Register
        && now.op0_register().full_register() != Register::RSP
        && now.op1_kind() != OpKind::Register
        && now.op1_kind() != OpKind::Memory
}
