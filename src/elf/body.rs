//! One stretch of code, decoded from end to end: where control leaves it.

use std::collections::BTreeSet;
use std::ops::Range;

use iced_x86::{
    Code, ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};

use super::{Form, Image, Reg};

/// The longest stretch that is looked at.
const LONGEST: u64 = 4 << 20;

/// A stretch of code, all of whose bytes are instructions.
#[derive(Debug)]
pub(super) struct Body {
    pub range: Range<u64>,
    /// Addresses of its instructions, ascending.
    starts: Vec<u64>,
    /// Addresses of its `ret`s, and of what pops a return address to jump to it.
    pub returns: Vec<u64>,
    /// The latter, each with all that it takes: up to and with the jump.
    pub popped: Vec<Range<u64>>,
    pub jumps: Vec<Jump>,
    pub indirect: Vec<IndirectJump>,
    /// Addresses that it calls.
    pub calls: Vec<u64>,
    /// Where it takes the address of code or data that lies within itself.
    pub own_addresses: Vec<u64>,
    /// Addresses within itself that it reads or writes: data.
    pub reads: Vec<u64>,
    /// Instructions after which control does not go on to the next one.
    stops: Vec<u64>,
    /// Instructions that put another value into the stack pointer than one near the old one or the frame pointer.
    pub stack_switches: Vec<u64>,
    /// Whether control can run over its end into what follows.
    pub falls_through: bool,
}

/// A jump to a fixed address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Jump {
    pub at: u64,
    pub target: u64,
    pub when: Condition,
}

/// When a jump is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    Always,
    /// Under this condition of the processor's flags: 0 overflow, 1 not, to 15 greater.
    If(u8),
    /// The flags do not tell.
    Untold,
}

/// A jump to an address that a register or memory holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IndirectJump {
    pub at: u64,
    pub target: Form,
    /// The table that it takes its target from, where the instructions before it tell.
    pub table: Option<JumpTable>,
}

/// Addresses of places in the code, one after the other, as the compiler makes one of a `switch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct JumpTable {
    pub vaddr: u64,
    /// Whether its entries are four bytes and relative to it, else eight and addresses.
    pub relative: bool,
    /// Where the instructions begin that look it up; control comes to the jump only through all of them.
    pub from: u64,
}

impl JumpTable {
    /// Where entry number `n` leads.
    pub fn entry(&self, image: &Image<'_>, n: u64) -> Option<u64> {
        let size = if self.relative { 4 } else { 8 };
        let at = self.vaddr.checked_add(n * size)?;
        match self.relative {
            true => {
                let offset = i32::from_le_bytes(image.bytes_at(at)?);
                Some(self.vaddr.wrapping_add_signed(i64::from(offset)))
            }
            false => image.bytes_at(at).map(u64::from_le_bytes),
        }
    }
}

/// How many instructions before a jump are looked at for its table.
const LOOKED_BACK: usize = 8;

impl Body {
    /// Decodes the range. Err says why it is not all code, to follow a colon.
    pub fn decode(image: &Image<'_>, range: Range<u64>) -> Result<Body, String> {
        let length = range.end.saturating_sub(range.start);
        if length == 0 || length > LONGEST {
            return Err(format!("its code is {length} bytes long"));
        }
        let code = image.code_at(range.start, length as usize).filter(|code| code.len() as u64 == length);
        let code = code.ok_or("its code is not in the file")?;
        let mut body = Body {
            range: range.clone(),
            starts: Vec::new(),
            returns: Vec::new(),
            popped: Vec::new(),
            jumps: Vec::new(),
            indirect: Vec::new(),
            calls: Vec::new(),
            own_addresses: Vec::new(),
            reads: Vec::new(),
            stops: Vec::new(),
            stack_switches: Vec::new(),
            falls_through: true,
        };
        let is_fixed = !image.is_pie();
        let mut decoder = Decoder::with_ip(64, code, range.start, DecoderOptions::NONE);
        let mut before: Vec<Instruction> = Vec::with_capacity(2 * LOOKED_BACK);
        while decoder.can_decode() {
            let instruction = decoder.decode();
            body.take(&instruction, &before, is_fixed)
                .map_err(|why| format!("{why} at +{:#x}", instruction.ip() - range.start))?;
            if before.len() == 2 * LOOKED_BACK {
                before.drain(..LOOKED_BACK);
            }
            before.push(instruction);
        }
        for indirect in &mut body.indirect {
            let around = |jump: &Jump| {
                indirect.table.is_some_and(|table| jump.target > table.from && jump.target <= indirect.at)
            };
            if body.jumps.iter().any(around) {
                indirect.table = None;
            }
        }
        Ok(body)
    }

    /// Whether an instruction begins there.
    pub fn has_instruction(&self, vaddr: u64) -> bool {
        self.starts.binary_search(&vaddr).is_ok()
    }

    /// The instructions that control comes to from these.
    pub fn reached(&self, roots: impl Iterator<Item = u64>) -> BTreeSet<u64> {
        let mut left: Vec<u64> = roots.filter(|root| self.range.contains(root)).collect();
        let mut reached = BTreeSet::new();
        while let Some(root) = left.pop() {
            let from = self.starts.partition_point(|start| *start < root);
            for at in self.starts[from..].iter().copied() {
                if !reached.insert(at) {
                    break;
                }
                let first = self.jumps.partition_point(|jump| jump.at < at);
                let jump = self.jumps.get(first).filter(|jump| jump.at == at);
                left.extend(jump.map(|jump| jump.target).filter(|target| self.range.contains(target)));
                if self.stops(at) {
                    break;
                }
            }
        }
        reached
    }

    /// Whether control goes from this instruction only to the next, with the stack where it was.
    pub fn runs_on_plainly(&self, image: &Image<'_>, vaddr: u64) -> bool {
        let code = image.code_at(vaddr, 15).unwrap_or(&[]);
        let now = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE).decode();
        let writes_stack = now.op_count() > 0 && now.op0_register() == Register::RSP;
        now.flow_control() == FlowControl::Next && !now.is_stack_instruction() && !writes_stack
    }

    /// The address of the instruction behind this one.
    pub fn after(&self, vaddr: u64) -> u64 {
        let next = self.starts.partition_point(|start| *start <= vaddr);
        self.starts.get(next).copied().unwrap_or(self.range.end)
    }

    /// The address of the instruction that ends there.
    pub fn before(&self, vaddr: u64) -> Option<u64> {
        let next = self.starts.partition_point(|start| *start < vaddr);
        next.checked_sub(1).map(|at| self.starts[at])
    }

    /// Whether control does not go on behind the instruction.
    pub fn stops(&self, vaddr: u64) -> bool {
        self.stops.binary_search(&vaddr).is_ok()
    }

    fn take(&mut self, now: &Instruction, before: &[Instruction], is_fixed: bool) -> Result<(), String> {
        let at = now.ip();
        if now.is_invalid() {
            return Err("its code cannot be decoded".to_string());
        }
        if is_data(now) {
            return Err("an instruction that cannot occur in a program (data among its code?) is".to_string());
        }
        self.starts.push(at);
        let range = self.range.clone();
        let is_own = |named: &u64| range.contains(named) && *named != range.start;
        self.own_addresses.extend(address_taken(now, is_fixed).filter(is_own));
        self.reads.extend(address_read(now, is_fixed).filter(is_own));
        if switches_stack(now) {
            self.stack_switches.push(at);
        }
        if now.mnemonic() == Mnemonic::Nop {
            return Ok(());
        }
        self.falls_through = false;
        if matches!(
            now.flow_control(),
            FlowControl::Return
                | FlowControl::UnconditionalBranch
                | FlowControl::IndirectBranch
                | FlowControl::Exception
        ) {
            self.stops.push(at);
        }
        match now.flow_control() {
            FlowControl::Return if returns_to_caller(now, before.last()) => self.returns.push(at),
            FlowControl::Return => return Err("it uses a return as a jump,".to_string()),
            FlowControl::UnconditionalBranch => {
                let target = near_target(now).ok_or("it jumps to another segment,")?;
                self.jumps.push(Jump { at, target, when: Condition::Always });
            }
            FlowControl::ConditionalBranch => {
                let target = near_target(now).ok_or("it jumps to another segment,")?;
                self.jumps.push(Jump { at, target, when: condition_of(now) });
                self.falls_through = true;
            }
            FlowControl::IndirectBranch => match popped_by(now, before) {
                Some(pop) => {
                    self.returns.push(pop);
                    self.popped.push(pop..now.next_ip());
                }
                None => {
                    let target = target_of(now).ok_or("a jump cannot be followed")?;
                    self.indirect.push(IndirectJump { at, target, table: table_of(now, before) });
                }
            },
            FlowControl::Call => self.calls.extend(near_target(now)),
            FlowControl::XbeginXabortXend => {
                self.own_addresses.extend(near_target(now));
                self.falls_through = true;
            }
            // What stands at the end is a call of a function that does not return.
            FlowControl::IndirectCall | FlowControl::Interrupt | FlowControl::Exception => {}
            FlowControl::Next => self.falls_through = now.mnemonic() != Mnemonic::Hlt,
        }
        Ok(())
    }
}

fn condition_of(jump: &Instruction) -> Condition {
    match jump.condition_code() {
        ConditionCode::None => Condition::Untold,
        _ if !jump.is_jcc_short_or_near() => Condition::Untold,
        code => Condition::If(code as u8 - ConditionCode::o as u8),
    }
}

/// What the kernel would end a program for, and zeros.
fn is_data(now: &Instruction) -> bool {
    let zeros = now.code() == Code::Add_rm8_r8
        && now.op0_kind() == OpKind::Memory
        && now.op1_register() == Register::AL
        && now.memory_base() == Register::RAX
        && now.len() == 2;
    zeros || (now.is_privileged() && now.mnemonic() != Mnemonic::Hlt)
}

fn near_target(now: &Instruction) -> Option<u64> {
    (now.op0_kind() == OpKind::NearBranch64).then(|| now.near_branch64())
}

/// A `ret` before which the address on top of the stack was put there is a jump: `push`, or what guards against
/// speculation (a retpoline).
fn returns_to_caller(now: &Instruction, before: Option<&Instruction>) -> bool {
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

/// The `pop` of an address that the jump goes to: what guards against the injection of loaded values (`-mlvi-cfi`) has a fence in
/// between.
fn popped_by(jump: &Instruction, before: &[Instruction]) -> Option<u64> {
    let pop = before.iter().rev().find(|now| now.mnemonic() != Mnemonic::Lfence)?;
    let register = jump.op0_register();
    let is_popped = jump.op0_kind() == OpKind::Register
        && pop.mnemonic() == Mnemonic::Pop
        && pop.op0_kind() == OpKind::Register
        && pop.op0_register() == register;
    is_popped.then(|| pop.ip())
}

/// An address that an instruction computes, or has as a number, as one may in a program that is loaded at one address.
fn address_taken(now: &Instruction, is_fixed: bool) -> Option<u64> {
    if now.mnemonic() == Mnemonic::Lea {
        return known_address(now, is_fixed);
    }
    let is_number =
        |kind| matches!(kind, OpKind::Immediate32 | OpKind::Immediate64 | OpKind::Immediate32to64);
    let operand = (0..now.op_count()).find(|operand| is_fixed && is_number(now.op_kind(*operand)))?;
    matches!(now.mnemonic(), Mnemonic::Mov | Mnemonic::Push).then(|| now.immediate(operand))
}

/// An address in memory that an instruction reads or writes, or where a table begins that it looks up.
fn address_read(now: &Instruction, is_fixed: bool) -> Option<u64> {
    let touches = !matches!(now.mnemonic(), Mnemonic::Lea | Mnemonic::Nop);
    known_address(now, is_fixed).filter(|_| touches)
}

/// The address of a memory operand that no register but an index is part of.
fn known_address(now: &Instruction, is_fixed: bool) -> Option<u64> {
    if now.is_ip_rel_memory_operand() {
        return Some(now.ip_rel_memory_address());
    }
    let has_memory = (0..now.op_count()).any(|operand| now.op_kind(operand) == OpKind::Memory);
    let is_flat = !matches!(now.memory_segment(), Register::FS | Register::GS);
    (is_fixed && has_memory && is_flat && now.memory_base() == Register::None)
        .then(|| now.memory_displacement64())
}

/// Whether the stack pointer gets a value that is told neither from its old one nor from the frame pointer.
fn switches_stack(now: &Instruction) -> bool {
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

/// Where an indirect jump finds its target.
fn target_of(now: &Instruction) -> Option<Form> {
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

/// The table of `movslq (base,index,4),r; add base,r; jmp *r` with `lea table(%rip),base` before it, and of
/// `jmp *table(,index,8)`.
fn table_of(jump: &Instruction, before: &[Instruction]) -> Option<JumpTable> {
    if jump.op0_kind() == OpKind::Memory {
        let is_table = jump.memory_base() == Register::None && jump.memory_index_scale() == 8;
        let vaddr = jump.memory_displacement64();
        return is_table.then_some(JumpTable { vaddr, relative: false, from: jump.ip() });
    }
    let mut before = before.iter().rev().take(LOOKED_BACK);
    let is_register = |now: &Instruction, register| {
        now.op_count() > 0
            && now.op0_kind() == OpKind::Register
            && now.op0_register().full_register() == register
    };
    let mut last_write = |register: Register| before.find(|now| is_register(now, register));
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

fn register(register: Register) -> Option<Reg> {
    register.is_gpr64().then(|| Reg::x86_64(&format!("{register:?}").to_lowercase())).flatten()
}
