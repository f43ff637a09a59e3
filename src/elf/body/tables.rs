//! Tables of addresses that an indirect jump takes its target from, as compilers generate them for a `switch` and for
//! labels as values.

use std::collections::BTreeMap;

use iced_x86::{
    Code, Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register,
};

use super::instruction::{address_taken, is_write};
use super::{JumpTable, MAX_LOOKBACK};

/// Recognizes the table of `movslq (base,index,4),r; add base,r; jmp *r` with `lea table(%rip),base` before it, and of
/// `jmp *table(,index,8)`.
pub(super) fn table_of(jump: &Instruction, before: &[Instruction]) -> Option<JumpTable> {
    if jump.op0_kind() == OpKind::Memory {
        let is_table = jump.memory_base() == Register::None && jump.memory_index_scale() == 8;
        let vaddr = jump.memory_displacement64();
        return is_table.then_some(JumpTable { vaddr, relative: false, from: jump.ip() });
    }
    let mut before = before.iter().rev().take(MAX_LOOKBACK);
    let mut last_write = |register: Register| before.find(|now| full_register(now) == Some(register));
    let target = jump.op0_register();
    let add = last_write(target)?;
    if add.code() == Code::Mov_r64_rm64 && add.op1_kind() == OpKind::Memory {
        let is_table = add.memory_base() == Register::None && add.memory_index_scale() == 8;
        let vaddr = add.memory_displacement64();
        return is_table.then_some(JumpTable { vaddr, relative: false, from: add.ip() });
    }
    if !matches!(add.code(), Code::Add_r64_rm64 | Code::Add_rm64_r64) || add.op1_kind() != OpKind::Register {
        return None;
    }
    let load = last_write(target)
        .filter(|now| now.code() == Code::Movsxd_r64_rm32 && now.memory_index_scale() == 4)?;
    let base = add.op1_register();
    let lea =
        last_write(base).filter(|now| now.mnemonic() == Mnemonic::Lea && now.is_ip_rel_memory_operand())?;
    let is_table = load.op1_kind() == OpKind::Memory && load.memory_base() == base;
    is_table.then(|| JumpTable { vaddr: lea.ip_rel_memory_address(), relative: true, from: lea.ip() })
}

/// A table whose address is in a register that was loaded further up: before a loop, or at the function's entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeldTable {
    base: Register,
    offset: u64,
    relative: bool,
    from: u64,
}

impl HeldTable {
    /// Recognizes `jmp *(base,index,8)`, `mov (base,index,8),r; jmp *r` and `movslq (base,index,4),r; add base,r; jmp
    /// *r`.
    pub fn of(jump: &Instruction, before: &[Instruction]) -> Option<HeldTable> {
        let indexed = |now: &Instruction, relative: bool| {
            let scale = if relative { 4 } else { 8 };
            let is_table = now.memory_base().is_gpr64()
                && now.memory_index() != Register::None
                && now.memory_index_scale() == scale;
            let (base, offset) = (now.memory_base(), now.memory_displacement64());
            is_table.then(|| HeldTable { base, offset, relative, from: now.ip() })
        };
        if jump.op0_kind() == OpKind::Memory {
            return indexed(jump, false);
        }
        let target = jump.op0_register();
        let mut before = before.iter().rev().take(MAX_LOOKBACK);
        let mut last_write = || before.find(|now| full_register(now) == Some(target));
        let now = last_write()?;
        match now.code() {
            Code::Mov_r64_rm64 if now.op1_kind() == OpKind::Memory => indexed(now, false),
            Code::Add_r64_rm64 | Code::Add_rm64_r64 if now.op1_kind() == OpKind::Register => {
                let load = last_write().filter(|load| load.code() == Code::Movsxd_r64_rm32)?;
                indexed(load, true).filter(|table| table.base == now.op1_register() && table.offset == 0)
            }
            _ => None,
        }
    }

    /// Returns the table, if the code gives its register only this address.
    pub fn located(self, held: &BTreeMap<Register, Option<u64>>) -> Option<JumpTable> {
        let vaddr = held.get(&self.base).copied().flatten()?.wrapping_add(self.offset);
        Some(JumpTable { vaddr, relative: self.relative, from: self.from })
    }
}

/// Returns the registers that the code writes, each with the address that it gets, or `None` if that is not always the
/// same.
pub(super) fn held_addresses(code: &[u8], start: u64, is_fixed: bool) -> BTreeMap<Register, Option<u64>> {
    let mut held: BTreeMap<Register, Option<u64>> = BTreeMap::new();
    let mut factory = InstructionInfoFactory::new();
    for now in Decoder::with_ip(64, code, start, DecoderOptions::NONE).iter() {
        let written = factory.info(&now).used_registers().iter().filter(|used| is_write(used.access()));
        for register in written.map(|used| used.register().full_register()) {
            let taken = address_taken(&now, is_fixed).filter(|_| full_register(&now) == Some(register));
            held.entry(register)
                .and_modify(|known| *known = known.filter(|_| *known == taken))
                .or_insert(taken);
        }
    }
    held
}

/// Returns the register that an instruction writes as its first operand.
fn full_register(now: &Instruction) -> Option<Register> {
    let is_register = now.op_count() > 0 && now.op0_kind() == OpKind::Register;
    is_register.then(|| now.op0_register().full_register())
}
