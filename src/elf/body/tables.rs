//! Tables of addresses that an indirect jump takes its target from, as compilers generate them for a `switch` and for
//! labels as values.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::{JumpTable, MAX_LOOKBACK};

/// Recognizes the table of `movslq (base,index,4),r; add base,r; jmp *r` with `lea table(%rip),base` before it, and of
/// `jmp *table(,index,8)`.
pub(super) fn table_of(jump: &Instruction, before: &[Instruction]) -> Option<JumpTable> {
    if jump.op0_kind() == OpKind::Memory {
        let is_table = jump.memory_base() == Register::None && jump.memory_index_scale() == 8;
        let vaddr = jump.memory_displacement64();
        return is_table.then_some(JumpTable { vaddr, relative_to: None, from: jump.ip() });
    }
    let mut before = before.iter().rev().take(MAX_LOOKBACK);
    let mut last_write = |register: Register| before.find(|now| full_register(now) == Some(register));
    let target = jump.op0_register();
    let add = last_write(target)?;
    if add.code() == Code::Mov_r64_rm64 && add.op1_kind() == OpKind::Memory {
        let is_table = add.memory_base() == Register::None && add.memory_index_scale() == 8;
        let vaddr = add.memory_displacement64();
        return is_table.then_some(JumpTable { vaddr, relative_to: None, from: add.ip() });
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
    let vaddr = lea.ip_rel_memory_address();
    is_table.then(|| JumpTable { vaddr, relative_to: Some(vaddr), from: lea.ip() })
}

/// Returns the register that an instruction writes as its first operand.
fn full_register(now: &Instruction) -> Option<Register> {
    let is_register = now.op_count() > 0 && now.op0_kind() == OpKind::Register;
    is_register.then(|| now.op0_register().full_register())
}
