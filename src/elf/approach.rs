//! Where a `ret` is seen coming: places that are cheaper to probe than the `ret` itself.
//!
//! The kernel must single-step a `ret`, which takes up to twenty times as long as a jump, which it emulates. Where every way to
//! a `ret` begins with a jump, taken or not, after which straight code follows that only gives back the stack and registers,
//! the jumps tell of the return as well: most functions that check their stack for an overflow end so, and many that leave
//! early. The return address is then a known number of bytes above the stack pointer. It is not guessed at: nothing may come to
//! the code in between in another way, by an indirect jump, a handler for exceptions, or from a call.

use std::collections::BTreeSet;

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register,
};

use super::Image;
use super::body::{Body, Condition, Jump, is_write, writes};

/// The most instructions between such a jump and the `ret`.
const LONGEST: usize = 24;
/// The most jumps that stand for one `ret`: a call may pass all of them.
const JUMPS_MAX: usize = 2;
/// Where the C library keeps what functions check their stacks by, in the segment of a thread's own.
const GUARD: u64 = 0x28;

/// A jump after which control surely comes to a `ret`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Approach {
    pub vaddr: u64,
    /// The processor's condition (0 overflow to 15 greater) under which it leads there; None if it always does.
    pub when: Option<u8>,
    /// How far above the stack pointer the return address is.
    pub above: i32,
    /// Whether the result, and all memory that the caller sees, is as it is at the `ret`.
    pub is_final: bool,
}

/// All of a function's code, and where control comes to in it.
pub(super) struct Code<'c, 'a> {
    pub image: &'c Image<'a>,
    /// All direct jumps. There must be no others.
    pub jumps: &'c [Jump],
    /// Addresses that control may come to otherwise.
    pub landings: &'c BTreeSet<u64>,
    /// Instructions that control is known to come to: all else may be data.
    pub reached: &'c BTreeSet<u64>,
}

impl Code<'_, '_> {
    /// What to probe in the place of a `ret` of this stretch; None if it must be the `ret`.
    pub fn approaches(&self, body: &Body, ret: u64) -> Option<Vec<Approach>> {
        let (mut at, mut above, mut is_final) = (ret, 0, true);
        let mut found = Vec::new();
        for _ in 0..LONGEST {
            // A jump over the prefix of an instruction comes there as well.
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
                let Condition::If(code) = jump.when else { return None };
                found.push(self.approach(body, before, Condition::If(code ^ 1), above, is_final)?);
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
        when: Condition,
        above: i32,
        is_final: bool,
    ) -> Option<Approach> {
        let when = match when {
            Condition::Always => None,
            Condition::If(code) => Some(code),
            Condition::Untold => return None,
        };
        // In a loop it may be hit many times for one return.
        let turns = |jump: &Jump| jump.at >= vaddr && jump.target <= vaddr;
        let is_hit_often = self.jumps.iter().any(turns) && !self.checks_stack(body, vaddr);
        if is_hit_often || !self.reached.contains(&vaddr) {
            return None;
        }
        Some(Approach { vaddr, when, above, is_final })
    }

    /// Whether the jump is that of a check for an overflow of the stack, which is the last thing that a function does.
    fn checks_stack(&self, body: &Body, jump: u64) -> bool {
        let before = std::iter::successors(body.before(jump), |at| body.before(*at)).take(2);
        before.filter_map(|at| self.decode(at)).any(|now| {
            now.memory_segment() == Register::FS
                && now.memory_displacement64() == GUARD
                && matches!(now.mnemonic(), Mnemonic::Sub | Mnemonic::Xor | Mnemonic::Cmp | Mnemonic::Mov)
        })
    }

    fn decode(&self, vaddr: u64) -> Option<Instruction> {
        let mut decoder = Decoder::with_ip(64, self.image.code_at(vaddr, 15)?, vaddr, DecoderOptions::NONE);
        Some(decoder.decode()).filter(|now| !now.is_invalid())
    }
}

struct Effect {
    /// How far the stack pointer rises.
    rise: i32,
    keeps_result: bool,
}

/// What an instruction does on the way to a `ret`; None if that is not known for certain, or it may call something.
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
