//! One stretch of code, decoded from end to end, and where control leaves it.

mod dispatch;
mod instruction;
mod stack;
mod tables;

use std::collections::BTreeSet;
use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, Register};

use super::{Form, Image, Reg};
use dispatch::Dispatch;
use instruction::{
    address_read, address_taken, condition_of, is_data, is_ocaml_raise, near_target, poisons_stack,
    popped_by, returns_to_caller, switches_stack, target_of, touches_null,
};
pub(super) use instruction::{is_write, register, writes};
use tables::table_of;

/// Bytes of one range that are decoded at most.
const MAX_CODE: u64 = 4 << 20;

/// A stretch of code that consists entirely of instructions.
#[derive(Debug)]
pub(in crate::elf) struct Body {
    pub range: Range<u64>,
    /// Addresses of its instructions, in ascending order.
    starts: Vec<u64>,
    /// Addresses of its `ret`s, and of instructions that pop a return address to jump to it.
    pub returns: Vec<u64>,
    /// The latter, each as the whole sequence up to and including the jump.
    pub popped: Vec<Range<u64>>,
    pub jumps: Vec<Jump>,
    pub indirect: Vec<IndirectJump>,
    /// Addresses that it calls.
    pub calls: Vec<u64>,
    /// Addresses of code or data within itself that it takes.
    pub own_addresses: Vec<u64>,
    /// Addresses within itself that it reads or writes: data.
    pub reads: Vec<u64>,
    /// Instructions after which control does not continue with the next one.
    stops: Vec<u64>,
    /// Instructions that load the stack pointer with a value not derived from its old one or the frame pointer.
    pub stack_switches: Vec<u64>,
    /// Instructions with a lock prefix: single-threaded programs jump past the prefix, to the byte after it.
    locked: Vec<u64>,
    /// Those of the `returns` that may raise an exception the way OCaml does: they jump to its handler.
    pub raises: Vec<u64>,
    /// Whether control can run past its end into the code that follows.
    pub falls_through: bool,
    /// Whether the last instruction changes the stack pointer.
    pub ends_on_stack_change: bool,
}

/// A jump to a fixed address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::elf) struct Jump {
    pub at: u64,
    pub target: u64,
    pub when: JumpCondition,
}

/// When a jump is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::elf) enum JumpCondition {
    Always,
    /// Under this condition of the processor's flags: 0 overflow, 1 no overflow, to 15 greater.
    If(u8),
    /// Does not depend on the flags alone.
    Untold,
}

/// A jump to an address that a register or memory holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::elf) struct IndirectJump {
    pub at: u64,
    pub target: Form,
    /// The table that it takes its target from, if the code shows it.
    pub table: Option<JumpTable>,
}

/// Consecutive addresses of places in the code, as a compiler generates for a `switch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::elf) struct JumpTable {
    pub vaddr: u64,
    /// Its entries are four bytes each and relative to this address; otherwise they are eight bytes and absolute.
    pub relative_to: Option<u64>,
    /// Where the instructions that index the table begin; control reaches the jump only through all of them.
    pub from: u64,
}

impl JumpTable {
    /// Returns the target of entry `n`.
    pub fn entry(&self, image: &Image<'_>, n: u64) -> Option<u64> {
        let size = if self.relative_to.is_some() { 4 } else { 8 };
        let at = self.vaddr.checked_add(n * size)?;
        match self.relative_to {
            Some(base) => {
                let offset = i32::from_le_bytes(image.bytes_at(at)?);
                Some(base.wrapping_add_signed(i64::from(offset)))
            }
            None => image.pointer_at(at),
        }
    }
}

/// The lock prefix, which makes an instruction's memory access atomic.
const LOCK: u8 = 0xf0;

/// Instructions before a jump that are searched for its table.
const MAX_LOOKBACK: usize = 8;

impl Body {
    /// Decodes the range. `Err` is the reason why it is not all code, phrased to follow a colon.
    pub fn decode(image: &Image<'_>, range: Range<u64>) -> Result<Body, String> {
        let length = range.end.saturating_sub(range.start);
        if length == 0 || length > MAX_CODE {
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
            locked: Vec::new(),
            raises: Vec::new(),
            falls_through: true,
            ends_on_stack_change: false,
        };
        let is_fixed = !image.is_pie();
        let mut decoder = Decoder::with_ip(64, code, range.start, DecoderOptions::NONE);
        let mut before: Vec<Instruction> = Vec::with_capacity(2 * MAX_LOOKBACK);
        while decoder.can_decode() {
            let instruction = decoder.decode();
            let from = (instruction.ip() - range.start) as usize;
            body.take(&instruction, &code[from..], &before, is_fixed)
                .map_err(|err| format!("{err} at +{:#x}", instruction.ip() - range.start))?;
            if before.len() == 2 * MAX_LOOKBACK {
                before.drain(..MAX_LOOKBACK);
            }
            before.push(instruction);
        }
        let last = before.iter().rev().find(|now| now.mnemonic() != Mnemonic::Nop);
        body.ends_on_stack_change = last.is_some_and(|last| writes(last, |to| to == Register::RSP));
        let mut dispatch = None;
        let mut indirect = std::mem::take(&mut body.indirect);
        for indirect in &mut indirect {
            let is_straight = |table: &JumpTable| {
                !body.jumps.iter().any(|jump| jump.target > table.from && jump.target <= indirect.at)
            };
            // A function may also jump to one of several functions, whose addresses are in a table.
            let leads_inside = |table: &JumpTable| {
                let first = table.entry(image, 0);
                first.is_some_and(|to| to != range.start && body.starts.binary_search(&to).is_ok())
            };
            let found = indirect.table.filter(is_straight).or_else(|| {
                let dispatch = dispatch.get_or_insert_with(|| Dispatch::of(code, &body, is_fixed));
                dispatch.table_of(indirect.at).filter(leads_inside)
            });
            indirect.table = found;
        }
        body.indirect = indirect;
        Ok(body)
    }

    /// Returns whether an instruction begins at this address.
    pub fn has_instruction(&self, vaddr: u64) -> bool {
        self.starts.binary_search(&vaddr).is_ok()
    }

    /// Returns whether a jump to this address leads to an instruction, or just past an instruction's lock prefix.
    pub fn takes_jump(&self, vaddr: u64) -> bool {
        self.has_instruction(vaddr) || self.locked.binary_search(&vaddr.wrapping_sub(1)).is_ok()
    }

    /// Returns the instructions that control can reach from these.
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

    /// Reclassifies a jump to a fixed address as one to the address in a register.
    pub fn jumps_by_register(&mut self, jump: Jump, register: Reg) {
        self.jumps.retain(|known| *known != jump);
        self.indirect.push(IndirectJump { at: jump.at, target: Form::Reg(register), table: None });
    }

    /// Removes the returns that raise an exception, together with their stack switches.
    pub fn drop_raises(&mut self) {
        for ret in std::mem::take(&mut self.raises) {
            self.returns.retain(|at| *at != ret);
            self.popped.retain(|popped| popped.start != ret);
            let switch = self.before(ret).and_then(|pop| self.before(pop));
            self.stack_switches.retain(|at| Some(*at) != switch);
        }
    }

    /// Returns the address of the instruction after this one.
    pub fn after(&self, vaddr: u64) -> u64 {
        let next = self.starts.partition_point(|start| *start <= vaddr);
        self.starts.get(next).copied().unwrap_or(self.range.end)
    }

    /// Returns the address of the instruction before this address.
    pub fn before(&self, vaddr: u64) -> Option<u64> {
        let next = self.starts.partition_point(|start| *start < vaddr);
        next.checked_sub(1).map(|at| self.starts[at])
    }

    /// Returns whether control does not continue after the instruction.
    pub fn stops(&self, vaddr: u64) -> bool {
        self.stops.binary_search(&vaddr).is_ok()
    }

    fn take(
        &mut self,
        now: &Instruction,
        code: &[u8],
        before: &[Instruction],
        is_fixed: bool,
    ) -> Result<(), String> {
        let at = now.ip();
        if now.is_invalid() {
            return Err("its code cannot be decoded".to_string());
        }
        if is_data(now) {
            return Err(
                "it has an instruction that cannot occur in a program (data among its code?)".to_string()
            );
        }
        self.starts.push(at);
        if now.has_lock_prefix() && code.first() == Some(&LOCK) {
            self.locked.push(at);
        }
        let range = self.range.clone();
        let is_own = |named: &u64| range.contains(named) && *named != range.start;
        self.own_addresses.extend(address_taken(now, is_fixed).filter(is_own));
        self.reads.extend(address_read(now, is_fixed).filter(is_own));
        if switches_stack(now) && !poisons_stack(now, before) {
            self.stack_switches.push(at);
        }
        if now.mnemonic() == Mnemonic::Nop {
            return Ok(());
        }
        self.falls_through = false;
        let faults = touches_null(now);
        if faults
            || matches!(
                now.flow_control(),
                FlowControl::Return
                    | FlowControl::UnconditionalBranch
                    | FlowControl::IndirectBranch
                    | FlowControl::Exception
            )
        {
            self.stops.push(at);
        }
        match now.flow_control() {
            FlowControl::Return if returns_to_caller(now, before.last()) => {
                self.returns.push(at);
                if is_ocaml_raise(before) {
                    self.raises.push(at);
                }
            }
            FlowControl::Return => return Err("it uses a return as a jump,".to_string()),
            FlowControl::UnconditionalBranch => {
                let target = near_target(now).ok_or("it jumps to another segment,")?;
                self.jumps.push(Jump { at, target, when: JumpCondition::Always });
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
                    if is_ocaml_raise(before.split_last().map_or(&[], |(_, before)| before)) {
                        self.raises.push(pop);
                    }
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
            // At the end of a function, this is a call to a function that does not return.
            FlowControl::IndirectCall | FlowControl::Interrupt | FlowControl::Exception => {}
            FlowControl::Next => self.falls_through = now.mnemonic() != Mnemonic::Hlt && !faults,
        }
        Ok(())
    }
}
