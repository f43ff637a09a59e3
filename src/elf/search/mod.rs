//! The code of one function: everything that direct jumps reach from its entry, and, in [`ways_out`], where it is left.

mod ways_out;

use std::collections::BTreeMap;
use std::ops::Range;

use super::body::{Body, IndirectJump, Jump, JumpCondition, JumpTable};
use super::code::Functions;
use super::exit::{NoExits, Passage, PassageKind};
use super::names::{is_callable_fragment, is_fragment};
use super::runtimes::Runtime;
use super::thunks::jumps_by;

/// Tail calls that are followed one after another.
const MAX_TAIL_CALLS: usize = 8;
/// Ranges of code of one function at most: some compilers emit each basic block as one.
const MAX_PARTS: usize = 512;
/// Of these, ranges that may be functions of their own.
const MAX_UNCLEAR: usize = 64;
/// The maximum number of exits of one function.
const MAX_EXITS: usize = 512;
/// The maximum number of a jump table's entries that are read.
const MAX_ENTRIES: u64 = 512;

struct Part {
    body: Body,
    /// The entry of the function to which the code belongs: the searched one, or one that it tail-calls.
    of: u64,
    /// For a function that others may call: the first probeable place that each of its callers passes.
    passed: Option<u64>,
    /// Whether it may be a separate function that others call: no symbol decides it.
    unclear: bool,
}

pub(in crate::elf) struct Search<'s, 'a> {
    code: &'s Functions<'a>,
    entry: u64,
    parts: Vec<Part>,
    /// Jumps that leave the function.
    left: Vec<Jump>,
    followed: Vec<u64>,
    passages: BTreeMap<u64, Passage>,
}

impl<'s, 'a> Search<'s, 'a> {
    pub fn new(code: &'s Functions<'a>, entry: u64) -> Self {
        let (parts, left, followed, passages) = Default::default();
        Search { code, entry, parts, left, followed, passages }
    }

    /// Returns the passages of a call found so far.
    pub fn passages(self) -> impl Iterator<Item = Passage> {
        self.passages.into_values()
    }

    /// Adds the function's own code, and the parts that belong to it by name.
    pub fn add(&mut self, range: Range<u64>) -> Result<(), NoExits> {
        let body = self.decode(range)?;
        let moved_out = self.moved_out_of(self.entry)?;
        for body in std::iter::once(body).chain(moved_out) {
            self.take(body, self.entry, None, false)?;
        }
        Ok(())
    }

    fn decode(&self, range: Range<u64>) -> Result<Body, NoExits> {
        let mut body = Body::decode(&self.code.image, range)?;
        if self.code.runtime() == Some(Runtime::OCaml) {
            body.drop_raises();
        }
        for jump in body.jumps.clone() {
            let Some(register) = jumps_by(&self.code.image, jump.target) else { continue };
            if jump.when != JumpCondition::Always {
                return Err(format!("it has a conditional jump through a retpoline at {:#x}", jump.at));
            }
            body.jumps_by_register(jump, register);
        }
        body.falls_through &= self.may_run_on(&body);
        self.check(&body).map(|()| body)
    }

    /// Whether the stack is in the same place at the end of the code as at the start of what follows. If it is not, control never
    /// runs on: the compiler left out what comes after `__builtin_unreachable()`.
    fn may_run_on(&self, body: &Body) -> bool {
        let end = self.code.past_padding(body.range.end);
        let next = self.code.unwind.covering(end).filter(|frame| frame.start == end);
        let above = body.before(body.range.end).and_then(|last| self.code.above(last)).flatten();
        match (above, next.and_then(|frame| frame.at_start)) {
            (Some(above), Some(expected)) if !body.ends_on_stack_change => above == expected,
            _ => true,
        }
    }

    fn moved_out_of(&self, entry: u64) -> Result<Vec<Body>, NoExits> {
        self.code.moved_out_of(entry).map(|part| self.decode(part)).collect()
    }

    /// Rejects code whose frames cannot be determined from the stack pointer.
    fn check(&self, body: &Body) -> Result<(), NoExits> {
        if let Some(at) = body.stack_switches.iter().find(|at| self.code.leaves_stack(body, **at)) {
            return Err(format!("it switches stacks at +{:#x}", at - body.range.start));
        }
        let is_data = |own: &u64| body.reads.contains(own) || !body.has_instruction(*own);
        if body.own_addresses.iter().chain(&body.reads).any(is_data) {
            return Err("there is data among its code".to_string());
        }
        let jumps = body.jumps.iter().map(|jump| jump.target);
        if jumps.chain(body.calls.iter().copied()).any(|to| body.range.contains(&to) && !body.takes_jump(to))
        {
            return Err("it jumps into the middle of an instruction".to_string());
        }
        let is_split = |popped: &Range<u64>| {
            let inside = popped.start + 1..popped.end;
            body.jumps.iter().any(|jump| inside.contains(&jump.target))
        };
        let mut popped = body.popped.iter();
        if let Some(jump) =
            popped.find(|popped| self.code.above(popped.start) != Some(Some(8)) || is_split(popped))
        {
            let into = jump.start - body.range.start;
            return Err(format!("it jumps to what it pops off the stack at +{into:#x}, perhaps to return"));
        }
        if body.range.contains(&self.entry) && !body.has_instruction(self.entry) {
            return Err("its entry is inside an instruction".to_string());
        }
        Ok(())
    }

    /// Adds the targets of direct jumps, until none leads out.
    pub fn close(&mut self) -> Result<(), NoExits> {
        let mut next = 0;
        while next < self.parts.len() {
            let part = &self.parts[next];
            let (of, unclear) = (part.of, part.unclear);
            let mut jumps = part.body.jumps.clone();
            if part.body.falls_through {
                let end = self.code.past_padding(part.body.range.end);
                jumps.push(Jump { at: end, target: end, when: JumpCondition::Untold });
            }
            for jump in jumps {
                self.jump(jump, of, unclear)?;
            }
            self.switch(next)?;
            next += 1;
        }
        Ok(())
    }

    /// Adds code that only a jump table leads to: parts that were moved elsewhere, which are not entered by a call.
    fn switch(&mut self, number: usize) -> Result<(), NoExits> {
        let of = self.parts[number].of;
        let jumps: Vec<(IndirectJump, JumpTable)> = self.parts[number]
            .body
            .indirect
            .iter()
            .filter_map(|jump| Some((jump.clone(), jump.table?)))
            .collect();
        for (jump, table) in jumps {
            // The table ends at the first entry that does not lead to such code.
            let entries = (0..MAX_ENTRIES).map_while(|n| table.entry(&self.code.image, n));
            let (mut first, mut leads_inside) = (None, false);
            for to in entries.collect::<Vec<_>>() {
                if of == self.entry && self.code.is_first(to, self.entry) {
                    first = Some(to);
                    continue;
                }
                if let Some(part) = self.parts.iter().find(|part| part.body.range.contains(&to)) {
                    match part.of == of && part.body.has_instruction(to) {
                        true => {
                            leads_inside = true;
                            continue;
                        }
                        false => break,
                    }
                }
                let Some(frame) = self.code.unwind.covering(to) else { break };
                // A separately placed block without a frame looks like a function; but a function would have a name.
                let is_block = frame.start == to && self.code.is_nameless(frame);
                if frame.at_start == Some(8) && !is_block {
                    break;
                }
                match self.decode(frame.start..frame.end) {
                    Ok(body) if body.has_instruction(to) => self.take(body, of, None, is_block)?,
                    Err(err) if is_block => {
                        return Err(format!("one of its jump tables leads to {to:#x}: {err}"));
                    }
                    _ => break,
                }
            }
            // A table that leads nowhere else is a table of functions.
            if let Some(first) =
                first.filter(|first| leads_inside && *first <= self.code.probed_entry(self.entry))
            {
                let target = Some((jump.target, first));
                let passage = Passage { vaddr: jump.at, kind: PassageKind::LoopBack, when: None, target };
                self.passages.insert(jump.at, passage);
            }
        }
        Ok(())
    }

    /// Adds what the jump leads to. `unclear`: so is the part that it is in.
    fn jump(&mut self, jump: Jump, from: u64, unclear: bool) -> Result<(), NoExits> {
        let target = jump.target;
        if self.code.is_first(target, self.entry) {
            return match from == self.entry {
                true => self.pass(jump, PassageKind::LoopBack, self.code.probed_entry(self.entry)),
                // A new call of the function, at the same stack position.
                false => self.leave(jump),
            };
        }
        if let Some(part) = self.parts.iter().find(|part| part.body.range.contains(&target)) {
            if !part.body.takes_jump(target) {
                return Err("it jumps into the middle of an instruction".to_string());
            }
            return match part.passed {
                Some(passed) if self.code.is_first(target, part.body.range.start) => {
                    self.pass(jump, PassageKind::TailJump, passed)
                }
                _ => Ok(()),
            };
        }
        let code = self.code;
        let range = code.around(target).filter(|_| !code.is_stub(target));
        let Some(range) = range else { return self.leave(jump) };
        let initial = code.unwind.covering(target).filter(|frame| frame.start == target).map(|f| f.at_start);
        let runs_on = jump.at == target;
        // A part that was moved out of a function is entered from nowhere else. One that others call too does not
        // count.
        let name = code.name(target);
        let moved = range.start != target
            || is_fragment(name) && !is_callable_fragment(name)
            || initial.is_some_and(|above| above != Some(8))
            || runs_on;
        let body = match self.decode(range) {
            Ok(body) => body,
            Err(err) if moved || is_fragment(name) => {
                return Err(format!("it jumps to {target:#x}: {err}"));
            }
            Err(_) => return self.leave(jump),
        };
        let comes_back = body.jumps.iter().any(|back| {
            let is_middle =
                |part: &Part| part.body.range.contains(&back.target) && part.body.range.start != back.target;
            back.target != self.entry && self.parts.iter().any(is_middle)
        });
        // A part without a name cannot be distinguished from a function, and jumps through a table reach it unseen.
        // So cannot one that control runs into from the code before it, if it ever does.
        let is_unclear = name.is_empty()
            && (runs_on
                || self.parts.iter().any(|part| !part.body.indirect.is_empty())
                || self.is_in_blocks(from));
        let inherits = moved || comes_back || is_unclear;
        let of = if inherits { from } else { target };
        let passed = if inherits { None } else { self.code.passed_by_all(&body) };
        if !inherits && passed.is_none() {
            return self.leave(jump);
        }
        if !inherits && !is_fragment(name) {
            let exits = self.parts.iter().map(|part| part.body.returns.len()).sum::<usize>();
            if self.followed.len() >= MAX_TAIL_CALLS || exits + body.returns.len() > MAX_EXITS / 4 {
                return self.leave(jump);
            }
        }
        let Some(vaddr) = passed else {
            return self.take(body, of, None, unclear || is_unclear && (!moved || runs_on));
        };
        let Ok(moved_out) = self.moved_out_of(target) else { return self.leave(jump) };
        self.take(body, of, passed, false)?;
        for body in moved_out {
            self.take(body, of, None, false)?;
        }
        self.followed.push(target);
        self.passages
            .insert(vaddr, Passage { vaddr, kind: PassageKind::CalleeEntry, when: None, target: None });
        self.pass(jump, PassageKind::TailJump, vaddr)
    }

    fn take(&mut self, body: Body, of: u64, passed: Option<u64>, unclear: bool) -> Result<(), NoExits> {
        let alike = self.parts.iter().filter(|part| part.unclear == unclear).count();
        let most = if unclear { MAX_UNCLEAR } else { MAX_PARTS };
        if alike >= most {
            return Err(format!("its code is split into more than {most} parts"));
        }
        self.parts.push(Part { body, of, passed, unclear });
        Ok(())
    }

    /// Records a jump by which the same call continues; the code that it leads to is probed at `passed`.
    fn pass(&mut self, jump: Jump, kind: PassageKind, passed: u64) -> Result<(), NoExits> {
        // A jump to an instruction after the probe does not hit it.
        if jump.target > passed {
            return Ok(());
        }
        let when = match jump.when {
            JumpCondition::Always => None,
            JumpCondition::If(code) => Some(code),
            JumpCondition::Untold => {
                return Err(format!(
                    "control falls through to {:#x}, the entry of another function",
                    jump.target
                ));
            }
        };
        self.passages.insert(jump.at, Passage { vaddr: jump.at, kind, when, target: None });
        Ok(())
    }

    /// Records the jump as an exit.
    fn leave(&mut self, jump: Jump) -> Result<(), NoExits> {
        if jump.when == JumpCondition::Untold {
            return Err(format!(
                "control falls through to {:#x}, a function that cannot be followed",
                jump.target
            ));
        }
        self.left.push(jump);
        Ok(())
    }
}
