//! The implementations of an IFUNC. Its symbol is that of the code that chooses one, once, at program start.

use std::collections::BTreeSet;

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::copies::instructions;
use super::symbol_table::Symbol;
use super::unwind::frame_at;
use super::{Image, SymbolIndex};

/// Returns the addresses of the functions from which the code of an IFUNC chooses: those addresses it takes that are
/// the start of a function. A stripped file has only its unwind table to tell that, a static one only symbols: its
/// table has no index.
pub(super) fn implementations(index: &SymbolIndex<'_>, ifunc: &Symbol<'_>) -> BTreeSet<u64> {
    let image = index.image();
    let is_function = |vaddr: &u64| {
        index.functions_at(*vaddr).next().is_some()
            || frame_at(image, *vaddr).is_some_and(|frame| frame.start == *vaddr)
    };
    instructions(image, ifunc).filter_map(|one| address(image, &one)).filter(is_function).collect()
}

/// Returns the address of something elsewhere in the file that an instruction takes.
fn address(image: &Image<'_>, one: &Instruction) -> Option<u64> {
    match one.mnemonic() {
        Mnemonic::Lea if one.is_ip_rel_memory_operand() => Some(one.ip_rel_memory_address()),
        // Through a slot that the loader fills in.
        Mnemonic::Mov | Mnemonic::Cmove | Mnemonic::Cmovne if one.is_ip_rel_memory_operand() => {
            image.pointer_at(one.ip_rel_memory_address())
        }
        // In a program that is loaded where it was linked.
        Mnemonic::Mov if one.op1_kind() == OpKind::Immediate32 => Some(u64::from(one.immediate32())),
        Mnemonic::Mov if one.op1_kind() == OpKind::Immediate32to64 => Some(one.immediate32to64() as u64),
        _ => None,
    }
}
