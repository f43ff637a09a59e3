//! The effect of a single instruction, where necessary judged with the instructions before it.

use iced_x86::{
    Code, ConditionCode, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};

use super::JumpCondition;
use crate::elf::{Form, Reg};

pub(super) fn condition_of(jump: &Instruction) -> JumpCondition {
    match jump.condition_code() {
        ConditionCode::None => JumpCondition::Untold,
        _ if !jump.is_jcc_short_or_near() => JumpCondition::Untold,
        code => JumpCondition::If(code as u8 - ConditionCode::o as u8),
    }
}

/// Returns whether this is an instruction for which the kernel would kill a program, or zeros.
pub(super) fn is_data(now: &Instruction) -> bool {
    let zeros = now.code() == Code::Add_rm8_r8
        && now.op0_kind() == OpKind::Memory
        && now.op1_register() == Register::AL
        && now.memory_base() == Register::RAX
        && now.len() == 2;
    zeros || (now.is_privileged() && now.mnemonic() != Mnemonic::Hlt)
}

/// Returns whether the instruction accesses the first page of memory at a fixed address, which programs do to crash on purpose
/// (`*(volatile int *)1 = 0; __builtin_unreachable();`).
pub(super) fn touches_null(now: &Instruction) -> bool {
    const PAGE: u64 = 4096;
    (0..now.op_count()).any(|operand| now.op_kind(operand) == OpKind::Memory)
        && !matches!(now.mnemonic(), Mnemonic::Lea | Mnemonic::Nop)
        && !matches!(now.memory_segment(), Register::FS | Register::GS)
        && now.memory_base() == Register::None
        && now.memory_index() == Register::None
        && now.memory_displacement64() < PAGE
}

pub(super) fn near_target(now: &Instruction) -> Option<u64> {
    (now.op0_kind() == OpKind::NearBranch64).then(|| now.near_branch64())
}

/// Returns whether a `ret` returns to the caller. A `ret` right after the address on top of the stack was written is a
/// jump: after a `push`, or in a guard against speculation (a retpoline).
pub(super) fn returns_to_caller(now: &Instruction, before: Option<&Instruction>) -> bool {
    let Some(before) = before else { return matches!(now.code(), Code::Retnq | Code::Retnq_imm16) };
    let writes_top = before.op0_kind() == OpKind::Memory
        && before.memory_base() == Register::RSP
        && before.memory_index() == Register::None
        && before.memory_displacement64() == 0
        && before.mnemonic() == Mnemonic::Mov;
    matches!(now.code(), Code::Retnq | Code::Retnq_imm16)
        && before.mnemonic() != Mnemonic::Push
        && !writes_top
}

/// Returns whether the stack is now that of an exception handler, to which OCaml's code then jumps: after `mov
/// %r14,%rsp; pop %r14`, or since OCaml 4.10 `mov N(%r14),%rsp; pop N(%r14)`.
pub(super) fn is_ocaml_raise(before: &[Instruction]) -> bool {
    let [.., switch, pop] = before else { return false };
    let handler = |now: &Instruction, operand: u32| match now.op_kind(operand) {
        OpKind::Register => (now.op_register(operand) == Register::R14).then_some(None),
        OpKind::Memory => {
            let is_field = now.memory_base() == Register::R14 && now.memory_index() == Register::None;
            is_field.then(|| Some(now.memory_displacement64()))
        }
        _ => None,
    };
    let is_switch = switch.mnemonic() == Mnemonic::Mov
        && switch.op0_kind() == OpKind::Register
        && switch.op0_register() == Register::RSP;
    is_switch
        && pop.mnemonic() == Mnemonic::Pop
        && handler(switch, 1).is_some()
        && handler(switch, 1) == handler(pop, 0)
}

/// Returns the `pop` that loaded the jump's target. The guard against load value injection (`-mlvi-cfi`) has a fence in
/// between.
pub(super) fn popped_by(jump: &Instruction, before: &[Instruction]) -> Option<u64> {
    let pop = before.iter().rev().find(|now| now.mnemonic() != Mnemonic::Lfence)?;
    let register = jump.op0_register();
    let is_popped = jump.op0_kind() == OpKind::Register
        && pop.mnemonic() == Mnemonic::Pop
        && pop.op0_kind() == OpKind::Register
        && pop.op0_register() == register;
    is_popped.then(|| pop.ip())
}

/// Returns an address that an instruction computes, or holds as an immediate, as is possible in a program that is
/// loaded at a fixed address.
pub(super) fn address_taken(now: &Instruction, is_fixed: bool) -> Option<u64> {
    if now.mnemonic() == Mnemonic::Lea {
        return known_address(now, is_fixed);
    }
    let is_number =
        |kind| matches!(kind, OpKind::Immediate32 | OpKind::Immediate64 | OpKind::Immediate32to64);
    let operand = (0..now.op_count()).find(|operand| is_fixed && is_number(now.op_kind(*operand)))?;
    matches!(now.mnemonic(), Mnemonic::Mov | Mnemonic::Push).then(|| now.immediate(operand))
}

/// Returns an address in memory that an instruction reads or writes, or the start of a table that it indexes.
pub(super) fn address_read(now: &Instruction, is_fixed: bool) -> Option<u64> {
    let touches = !matches!(now.mnemonic(), Mnemonic::Lea | Mnemonic::Nop);
    known_address(now, is_fixed).filter(|_| touches)
}

/// Returns the address of a memory operand that involves no register except an index.
fn known_address(now: &Instruction, is_fixed: bool) -> Option<u64> {
    if now.is_ip_rel_memory_operand() {
        return Some(now.ip_rel_memory_address());
    }
    let has_memory = (0..now.op_count()).any(|operand| now.op_kind(operand) == OpKind::Memory);
    let is_flat = !matches!(now.memory_segment(), Register::FS | Register::GS);
    (is_fixed && has_memory && is_flat && now.memory_base() == Register::None)
        .then(|| now.memory_displacement64())
}

/// Returns whether the stack pointer gets a value that is derived neither from its old one nor from the frame pointer.
pub(super) fn switches_stack(now: &Instruction) -> bool {
    let writes =
        now.op_count() > 0 && now.op0_kind() == OpKind::Register && now.op0_register() == Register::RSP;
    let exchanges = now.mnemonic() == Mnemonic::Xchg && now.op_count() > 1 && {
        let second = now.op1_kind() == OpKind::Register && now.op1_register() == Register::RSP;
        second || writes
    };
    if exchanges {
        return true;
    }
    if !writes {
        return false;
    }
    match now.mnemonic() {
        Mnemonic::Add | Mnemonic::Sub | Mnemonic::And | Mnemonic::Push | Mnemonic::Cmp | Mnemonic::Test => {
            false
        }
        Mnemonic::Or => !matches!(now.op1_kind(), OpKind::Immediate8to64 | OpKind::Immediate32to64),
        Mnemonic::Lea => !matches!(now.memory_base(), Register::RSP | Register::RBP),
        Mnemonic::Mov => {
            let from = if now.op1_kind() == OpKind::Memory { now.memory_base() } else { now.op1_register() };
            from != Register::RBP
        }
        _ => true,
    }
}

/// Returns whether the stack pointer is merely part of a guard against speculation (Clang's
/// `-mspeculative-load-hardening`): a mask that is 0 on every path that is architecturally taken is moved into its
/// highest bits, `shl $47,%REG; or %REG,%rsp`.
pub(super) fn poisons_stack(now: &Instruction, before: &[Instruction]) -> bool {
    if now.mnemonic() != Mnemonic::Or || now.op1_kind() != OpKind::Register {
        return false;
    }
    let mask = now.op1_register();
    let made_by = before.iter().rev().find(|before| writes(before, |register| register == mask));
    made_by.is_some_and(|by| {
        by.code() == Code::Shl_rm64_imm8 && by.op0_register() == mask && by.immediate8() == POISON_SHIFT
    })
}

/// Moves the mask's 17 lowest bits to where the bits of an address are all alike.
const POISON_SHIFT: u8 = 47;

/// Returns where an indirect jump takes its target from.
pub(super) fn target_of(now: &Instruction) -> Option<Form> {
    if now.code() == Code::Jmp_rm64 && now.op0_kind() == OpKind::Register {
        return register(now.op0_register()).map(Form::Reg);
    }
    let plain_segment = !matches!(now.memory_segment(), Register::FS | Register::GS);
    if now.code() != Code::Jmp_rm64 || now.op0_kind() != OpKind::Memory || !plain_segment {
        return None;
    }
    if now.is_ip_rel_memory_operand() {
        return Some(Form::Static { vaddr: now.ip_rel_memory_address() });
    }
    let offset = now.memory_displacement64() as i64;
    let base = match now.memory_base() {
        Register::None => None,
        base => Some(register(base)?),
    };
    match (base, now.memory_index()) {
        (Some(base), Register::None) => Some(Form::Mem { base, offset }),
        (None, Register::None) => Some(Form::Static { vaddr: offset as u64 }),
        (base, index) => {
            let (index, scale) = (register(index)?, now.memory_index_scale() as u8);
            Some(Form::Indexed { base, index, scale, offset })
        }
    }
}

/// Returns whether an instruction may write to any part of a register that `is_meant` accepts.
pub(in crate::elf) fn writes(now: &Instruction, is_meant: impl Fn(Register) -> bool) -> bool {
    let mut factory = InstructionInfoFactory::new();
    let mut used = factory.info(now).used_registers().iter();
    used.any(|used| is_write(used.access()) && is_meant(used.register().full_register()))
}

pub(in crate::elf) fn is_write(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

/// Converts a 64-bit general-purpose register.
pub(in crate::elf) fn register(register: Register) -> Option<Reg> {
    register.is_gpr64().then(|| Reg::x86_64(&format!("{register:?}").to_lowercase())).flatten()
}
