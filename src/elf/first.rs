//! Where to probe a function so that each call passes exactly once, with its arguments where the caller left them.
//!
//! This is its first instruction if the kernel accepts a probe there. On some it does not (a lock prefix, some vector
//! instructions), or must not have one (a five-byte nop); a later instruction then serves as well, if it can be reached
//! only by running from the first instruction on.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Register};

use super::body::{Body, writes};
use super::code::Functions;
use super::probeable::LONGEST_INSTRUCTION;
use super::shape::ENDBR64;
use super::{Arch, Image, Site, SiteShape};

impl Functions<'_> {
    /// Returns where a function that begins at `entry` is probed: on the push of `endbr64; push`, and otherwise after
    /// any leading instructions that cannot be probed. The entry itself if there is no better place.
    pub(super) fn probed_entry(&self, entry: u64) -> u64 {
        let first = self.behind_landing_pad(entry);
        let is_unfit = Site::at(&self.image, first).is_some_and(|site| !site.shape.takes_probe());
        if !is_unfit || self.image.arch() != Arch::X86_64 {
            return first;
        }
        let body = self.around(entry).and_then(|range| Body::decode(&self.image, range).ok());
        let body = body.filter(|body| body.has_instruction(first));
        body.and_then(|body| self.first_probeable(&body, first)).unwrap_or(first)
    }

    /// Returns where every call of a function passes exactly once, with the return address on top of the stack.
    pub(super) fn passed_by_all(&self, body: &Body) -> Option<u64> {
        self.first_probeable(body, self.behind_landing_pad(body.range.start))
    }

    /// Returns the address of the push of `endbr64; push`, where a probe costs less; otherwise `entry`.
    fn behind_landing_pad(&self, entry: u64) -> u64 {
        let next = entry.wrapping_add(ENDBR64.len() as u64);
        let is_push = || Site::at(&self.image, next).is_some_and(|site| site.shape == SiteShape::Push);
        if self.is_first(next, entry) && is_push() { next } else { entry }
    }

    /// Returns the first instruction from `entry` on that can be probed, and that is reached only once and only from
    /// the entry.
    fn first_probeable(&self, body: &Body, entry: u64) -> Option<u64> {
        const MAX_INSTRUCTIONS: usize = 4;
        let mut at = entry;
        for _ in 0..MAX_INSTRUCTIONS {
            if Site::at(&self.image, at).is_some_and(|site| site.shape.takes_probe()) {
                return Some(at);
            }
            let next = body.after(at);
            let mut targets = body.jumps.iter().map(|jump| jump.target).chain(body.calls.iter().copied());
            if !keeps_arguments(&self.image, at)
                || next == body.range.end
                || targets.any(|to| (at + 1..=next).contains(&to))
            {
                return None;
            }
            at = next;
        }
        None
    }
}

/// Returns whether control continues only with the next instruction, the stack and the arguments being unchanged.
fn keeps_arguments(image: &Image<'_>, vaddr: u64) -> bool {
    let code = image.code_at(vaddr, LONGEST_INSTRUCTION).unwrap_or(&[]);
    let now = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE).decode();
    now.flow_control() == FlowControl::Next && !now.is_stack_instruction() && !writes_argument(&now)
}

fn writes_argument(now: &Instruction) -> bool {
    const OTHERS: [Register; 3] = [Register::RAX, Register::R10, Register::R11];
    writes(now, |register| register.is_gpr64() && !OTHERS.contains(&register))
}
