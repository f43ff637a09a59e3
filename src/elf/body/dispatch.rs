//! Jump tables of jumps whose instructions are not next to each other: the table's address is in a register that was
//! loaded further up, the entries are relative to another label (`goto *(&&base + offsets[*pc++])`), or several places
//! load the target and share the jump.

use std::cell::Cell;
use std::collections::BTreeMap;

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpKind, Register,
};

use super::instruction::{address_taken, is_write, near_target};
use super::{Body, JumpTable};

/// Instructions of one stretch of code that are looked at, at most, each as often as it is.
const MAX_STEPS: usize = 10_000_000;

/// A call keeps these.
const KEPT: u16 = 1 << 3 | 1 << 4 | 1 << 5 | 0xf000;

/// All instructions of a stretch of code, and on which ways control reaches them.
pub(super) struct Dispatch {
    all: Vec<Instruction>,
    /// The general registers that each writes, as a set of bits.
    written: Vec<u16>,
    /// Whether control does not continue after it.
    stops: Vec<bool>,
    /// The jumps to each address, by their positions.
    jumps: BTreeMap<u64, Vec<usize>>,
    /// The jumps that may lead to any place that nothing else leads to.
    indirect: Vec<usize>,
    is_fixed: bool,
    left: Cell<usize>,
}

impl Dispatch {
    pub fn of(code: &[u8], body: &Body, is_fixed: bool) -> Self {
        let start = body.range.start;
        let all: Vec<Instruction> = Decoder::with_ip(64, code, start, DecoderOptions::NONE).iter().collect();
        let mut factory = InstructionInfoFactory::new();
        let written = all.iter().map(|now| {
            let used = factory.info(now).used_registers().iter().filter(|used| is_write(used.access()));
            let of_calls = match now.flow_control() {
                FlowControl::Call | FlowControl::IndirectCall => !KEPT,
                _ => 0,
            };
            used.fold(of_calls, |set, used| set | bit(used.register()))
        });
        let mut jumps: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (at, now) in all.iter().enumerate() {
            if let Some(target) = near_target(now).filter(|_| now.flow_control() != FlowControl::Call) {
                jumps.entry(target).or_default().push(at);
            }
        }
        let is_indirect = |at: &usize| all[*at].flow_control() == FlowControl::IndirectBranch;
        Self {
            written: written.collect(),
            stops: all.iter().map(|now| body.stops(now.ip())).collect(),
            indirect: (0..all.len()).filter(is_indirect).collect(),
            all,
            jumps,
            is_fixed,
            left: Cell::new(MAX_STEPS),
        }
    }

    /// The table from which a jump takes its target on every way to it.
    pub fn table_of(&self, jump: u64) -> Option<JumpTable> {
        let at = self.all.binary_search_by_key(&jump, Instruction::ip).ok()?;
        let now = &self.all[at];
        let (vaddr, relative_to) = match now.op0_kind() {
            OpKind::Memory => (self.table(at, 8)?, None),
            _ => self.same(at, now.op0_register(), |writer| self.loaded(writer))?,
        };
        Some(JumpTable { vaddr, relative_to, from: jump })
    }

    /// The table from which the instruction takes an address, or takes the offset that it adds to an address.
    fn loaded(&self, at: usize) -> Option<(u64, Option<u64>)> {
        let now = &self.all[at];
        let sum = |base: Option<u64>, offset: Register| Some((self.offsets(at, offset)?, Some(base?)));
        let sum_of = |one: Register, other: Register| {
            let base = |register| self.address_in(register, at);
            sum(base(other), one).or_else(|| sum(base(one), other))
        };
        match now.code() {
            Code::Mov_r64_rm64 => Some((self.table(at, 8)?, None)),
            Code::Add_r64_rm64 | Code::Add_rm64_r64 if now.op1_kind() == OpKind::Register => {
                sum_of(now.op0_register(), now.op1_register())
            }
            Code::Add_rm64_imm32 | Code::Add_RAX_imm32 if self.is_fixed => {
                sum(Some(now.immediate(1)), now.op0_register())
            }
            Code::Lea_r64_m if self.is_fixed && now.memory_index() == Register::None => {
                sum(Some(now.memory_displacement64()), now.memory_base())
            }
            Code::Lea_r64_m if now.memory_index_scale() == 1 && now.memory_displacement64() == 0 => {
                sum_of(now.memory_base(), now.memory_index())
            }
            _ => None,
        }
    }

    /// The table from which the register got its offset on every way to this position.
    fn offsets(&self, at: usize, register: Register) -> Option<u64> {
        self.same(at, register, |writer| {
            let is_offset = self.all[writer].code() == Code::Movsxd_r64_rm32;
            is_offset.then(|| self.table(writer, 4)).flatten()
        })
    }

    /// The address of the table that the instruction's memory operand indexes.
    fn table(&self, at: usize, entry_bytes: u32) -> Option<u64> {
        let now = &self.all[at];
        if now.memory_index() == Register::None || now.memory_index_scale() != entry_bytes {
            return None;
        }
        let base = match now.memory_base() {
            Register::None => 0,
            base => self.address_in(base, at)?,
        };
        Some(base.wrapping_add(now.memory_displacement64()))
    }

    fn address_in(&self, register: Register, at: usize) -> Option<u64> {
        self.same(at, register, |writer| address_taken(&self.all[writer], self.is_fixed))
    }

    /// What all instructions mean that may have written the register last when control reaches this position; `None` if
    /// they differ, or if there is a way on which none wrote it.
    fn same<T: PartialEq>(
        &self,
        at: usize,
        register: Register,
        meaning: impl Fn(usize) -> Option<T>,
    ) -> Option<T> {
        let wanted = bit(register);
        let mut found = None;
        let mut seen = vec![false; self.all.len()];
        let mut ways = vec![at];
        while let Some(mut at) = ways.pop() {
            while !std::mem::replace(&mut seen[at], true) {
                self.left.set(self.left.get().checked_sub(1)?);
                let jumps = self.jumps.get(&self.all[at].ip());
                ways.extend(jumps.into_iter().flatten());
                let before = at.checked_sub(1)?;
                if self.stops[before] {
                    if jumps.is_none() {
                        ways.extend(&self.indirect);
                    }
                    break;
                }
                if self.written[before] & wanted != 0 {
                    let meant = meaning(before)?;
                    if found.as_ref().is_some_and(|found| *found != meant) {
                        return None;
                    }
                    found = Some(meant);
                    break;
                }
                at = before;
            }
        }
        found
    }
}

fn bit(register: Register) -> u16 {
    let full = register.full_register();
    if full.is_gpr64() { 1 << full.number() } else { 0 }
}
