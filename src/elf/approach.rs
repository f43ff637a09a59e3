//! Instructions that lead to a `ret` and are cheaper to probe than the `ret` itself.
//!
//! The kernel must single-step a `ret`, which takes up to twenty times as long as a jump, which it emulates. Where
//! every path to a `ret` begins with a jump, taken or not, followed by straight-line code that only releases the stack
//! and restores registers, the jumps mark the return just as well: most functions that check their stack for an
//! overflow end like this, as do many that return early. The return address is then at a known distance above the stack
//! pointer. Nothing is guessed: the code in between must not be reachable in any other way, by an indirect jump, an
//! exception handler, or from a call.

use std::collections::BTreeSet;

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register,
};

use super::Image;
use super::body::{Body, Jump, JumpCondition, is_write, writes};
use super::probeable::LONGEST_INSTRUCTION;

/// Instructions between such a jump and the `ret` at most.
const MAX_INSTRUCTIONS: usize = 24;
/// The maximum number of jumps that stand for one `ret`: a call may pass all of them.
const JUMPS_MAX: usize = 2;
/// The offset of the stack protector's guard value in a thread's own segment, as the C library lays it out.
const GUARD: u64 = 0x28;

/// A jump after which control is certain to reach a `ret`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Approach {
    pub vaddr: u64,
    /// The processor's condition code (0 overflow to 15 greater) under which control leads to the `ret`; `None` if it
    /// always does.
    pub when: Option<u8>,
    /// The distance of the return address above the stack pointer.
    pub above: i32,
    /// Whether the result, and all memory that the caller sees, is already the same as at the `ret`.
    pub is_final: bool,
}

/// All of a function's code, and the places in it that control can reach.
pub(super) struct Code<'c, 'a> {
    pub image: &'c Image<'a>,
    /// All direct jumps. There must be no others.
    pub jumps: &'c [Jump],
    /// Addresses that control may reach by other means.
    pub landings: &'c BTreeSet<u64>,
    /// Instructions that control is known to reach: everything else may be data.
    pub reached: &'c BTreeSet<u64>,
}

impl Code<'_, '_> {
    /// Returns what to probe in place of a `ret` of this stretch; `None` if the `ret` itself must be probed.
    pub fn approaches(&self, body: &Body, ret: u64) -> Option<Vec<Approach>> {
        let (mut at, mut above, mut is_final) = (ret, 0, true);
        let mut found = Vec::new();
        for _ in 0..MAX_INSTRUCTIONS {
            // A jump past an instruction's prefix leads here as well.
            let inside = at + 1..body.after(at);
            if self.landings.contains(&at) || self.jumps.iter().any(|jump| inside.contains(&jump.target)) {
                return None;
            }
            for jump in self.jumps.iter().filter(|jump| jump.target == at) {
                found.push(self.approach(body, jump.at, jump.when, above, is_final)?);
            }
            let before = body.before(at)?;
            if body.stops(before) {
                break;
            }
            if let Some(jump) = self.jumps.iter().find(|jump| jump.at == before) {
                let JumpCondition::If(code) = jump.when else { return None };
                found.push(self.approach(body, before, JumpCondition::If(code ^ 1), above, is_final)?);
                break;
            }
            let effect = effect_of(&self.decode(before)?)?;
            above += effect.rise;
            is_final &= effect.keeps_result;
            if found.len() > JUMPS_MAX {
                return None;
            }
            at = before;
        }
        let is_told = body.before(at).is_some_and(|before| {
            body.stops(before) || found.iter().any(|approach| approach.vaddr == before)
        });
        (is_told && (1..=JUMPS_MAX).contains(&found.len())).then_some(found)
    }

    fn approach(
        &self,
        body: &Body,
        vaddr: u64,
        when: JumpCondition,
        above: i32,
        is_final: bool,
    ) -> Option<Approach> {
        let when = match when {
            JumpCondition::Always => None,
            JumpCondition::If(code) => Some(code),
            JumpCondition::Untold => return None,
        };
        // In a loop, it may be hit many times per return.
        let turns = |jump: &Jump| jump.at >= vaddr && jump.target <= vaddr;
        let is_hit_often = self.jumps.iter().any(turns) && !self.checks_stack(body, vaddr);
        if is_hit_often || !self.reached.contains(&vaddr) {
            return None;
        }
        Some(Approach { vaddr, when, above, is_final })
    }

    /// Returns whether the jump belongs to the stack protector's check, which is the last thing that a function does.
    fn checks_stack(&self, body: &Body, jump: u64) -> bool {
        let before = std::iter::successors(body.before(jump), |at| body.before(*at)).take(2);
        before.filter_map(|at| self.decode(at)).any(|now| {
            now.memory_segment() == Register::FS
                && now.memory_displacement64() == GUARD
                && matches!(now.mnemonic(), Mnemonic::Sub | Mnemonic::Xor | Mnemonic::Cmp | Mnemonic::Mov)
        })
    }

    fn decode(&self, vaddr: u64) -> Option<Instruction> {
        let mut decoder = Decoder::with_ip(
            64,
            self.image.code_at(vaddr, LONGEST_INSTRUCTION)?,
            vaddr,
            DecoderOptions::NONE,
        );
        Some(decoder.decode()).filter(|now| !now.is_invalid())
    }
}

struct Effect {
    /// How much the instruction raises the stack pointer.
    rise: i32,
    keeps_result: bool,
}

/// Returns the effect of an instruction on the way to a `ret`; `None` if it is not known for certain, or if the
/// instruction may call something.
fn effect_of(now: &Instruction) -> Option<Effect> {
    if now.flow_control() != FlowControl::Next || now.is_privileged() || now.mnemonic() == Mnemonic::Hlt {
        return None;
    }
    let writes_to = |meant| writes(now, |register| register == meant);
    let mut factory = InstructionInfoFactory::new();
    let mut memory = factory.info(now).used_memory().iter();
    let keeps_result = !writes_to(Register::RAX) && !memory.any(|memory| is_write(memory.access()));
    let rise = match now.mnemonic() {
        _ if !writes_to(Register::RSP) => 0,
        Mnemonic::Pop if now.op0_kind() == OpKind::Register && now.op0_register().is_gpr64() => {
            (now.op0_register() != Register::RSP).then_some(8)?
        }
        Mnemonic::Add | Mnemonic::Sub if now.op0_register() == Register::RSP => {
            let by = match now.op1_kind() {
                OpKind::Immediate8to64 | OpKind::Immediate32to64 => i32::try_from(now.immediate(1) as i64),
                _ => return None,
            };
            if now.mnemonic() == Mnemonic::Add { by.ok()? } else { -by.ok()? }
        }
        Mnemonic::Lea
            if now.op0_register() == Register::RSP
                && now.memory_base() == Register::RSP
                && now.memory_index() == Register::None =>
        {
            i32::try_from(now.memory_displacement64() as i64).ok()?
        }
        _ => return None,
    };
    Some(Effect { rise, keeps_result })
}
