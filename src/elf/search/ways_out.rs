//! Which of a function's instructions leave it, once all of its code is known.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::{MAX_ENTRIES, MAX_EXITS, Part, Search};
use crate::elf::Form;
use crate::elf::approach::Code;
use crate::elf::body::{Body, IndirectJump, Jump, JumpCondition};
use crate::elf::exit::{Exit, ExitKind, Exits, NoExits};
use crate::elf::names::is_fragment;

/// Jumps of one function that are evaluated at run time: each hit costs the program a trap.
const MAX_CONDITIONAL_EXITS: usize = 16;

impl Search<'_, '_> {
    pub fn exits(mut self) -> Result<Exits, NoExits> {
        self.parts.sort_by_key(|part| part.body.range.start);
        let mut exits = BTreeMap::new();
        let entered_from = self.entered_from();
        for part in &self.parts {
            let body = &part.body;
            let calls_itself = body.calls.iter().any(|to| body.range.contains(to) && *to != body.range.start);
            let shared = part.of != self.entry
                || part.unclear
                || self.other_entries(body).next().is_some()
                || calls_itself
                || self.grows_stack(body)
                || self.entered_part(part).is_some();
            for vaddr in self.returns(part) {
                exits.insert(vaddr, exit(vaddr, ExitKind::Return, shared));
            }
            for jump in body.jumps.iter().filter(|jump| self.left.contains(jump)) {
                let when = if let JumpCondition::If(code) = jump.when { Some(code) } else { None };
                exits.insert(jump.at, Exit { when, ..exit(jump.at, ExitKind::TailCall, shared) });
            }
            for jump in self.indirect(part) {
                let kind = ExitKind::Decided { target: jump.target, inside: self.inside(part.of) };
                exits.insert(jump.at, exit(jump.at, kind, shared));
            }
        }
        let decided = exits.values().filter(|exit| exit.is_costly()).count();
        let functions = || std::iter::once(&self.entry).chain(&self.followed);
        if functions().any(|of| self.has_jump_without_table(*of) && self.may_have_unseen_blocks(*of)) {
            return Err(
                "an indirect jump may lead to a block in a place of its own, and nothing shows which \
                        of them are this function's"
                    .to_string(),
            );
        }
        if self.code.runs_old_code() && functions().any(|of| self.has_jump_without_table(*of)) {
            return Err(
                "an indirect jump may lead to where its code was before BOLT moved it, which is still executed"
                    .to_string(),
            );
        }
        if self.code.is_stripped() && functions().any(|of| self.is_in_blocks(*of)) {
            return Err("its basic blocks are in separate places, and the file is stripped of the symbols \
                        that show which of them belong to it"
                .to_string());
        }
        if decided > MAX_CONDITIONAL_EXITS {
            return Err(format!("it has {decided} indirect jumps with unknown targets"));
        }
        if exits.len() > MAX_EXITS {
            return Err(format!("it has {} exits; the limit is {MAX_EXITS}", exits.len()));
        }
        if exits.is_empty() {
            return Err("it never returns".to_string());
        }
        self.approach(&mut exits);
        let has_handler = self.of(self.entry).any(|part| self.code.has_handler(part.body.range.start));
        Ok(Exits {
            exits: exits.into_values().collect(),
            passages: self.passages.into_values().collect(),
            followed: self.followed,
            entered_from,
            has_handler,
        })
    }

    /// Returns the entry of another function that jumps into the middle of this one.
    pub fn entered_from(&self) -> Option<u64> {
        self.of(self.entry).filter(|part| !part.unclear).find_map(|part| self.entered_part(part))
    }

    fn entered_part(&self, part: &Part) -> Option<u64> {
        let is_part = |start| self.parts.iter().any(|part| part.body.range.contains(&start));
        self.code.entered_from(&part.body.range, is_part)
    }

    /// Returns whether the function may run on a stack that is allocated for this call (`-fsplit-stack`): it then
    /// returns on the new stack, to code that switches back to the old one and returns again.
    fn grows_stack(&self, body: &Body) -> bool {
        body.calls.iter().any(|to| self.code.name(*to).starts_with("__morestack"))
    }

    /// Finds places to probe instead of `ret`s. A jump stands for only one of them, and for nothing else.
    fn approach(&self, exits: &mut BTreeMap<u64, Exit>) {
        let bodies = self.parts.iter().map(|part| &part.body);
        if bodies.clone().any(|body| !body.indirect.is_empty()) {
            return;
        }
        let mut landings: BTreeSet<u64> = [self.entry].into();
        let mut reached = BTreeSet::new();
        for body in bodies.clone() {
            landings.extend(body.calls.iter().chain(&body.own_addresses));
            landings.extend(self.other_entries(body));
            landings.extend([body.range.start, body.range.end]);
            let Some(pads) = self.code.unwind.landing_pads(&self.code.image, &body.range) else { return };
            reached.append(&mut self.reached(body, &pads));
            landings.extend(pads);
        }
        let jumps: Vec<Jump> = bodies.clone().flat_map(|body| body.jumps.iter().copied()).collect();
        let code = Code { image: &self.code.image, jumps: &jumps, landings: &landings, reached: &reached };
        let entries = [self.entry, self.code.probed_entry(self.entry)];
        let taken = exits.keys().chain(self.passages.keys()).chain(&entries);
        let mut used: BTreeSet<u64> = taken.copied().collect();
        for body in bodies {
            for (&ret, exit) in exits.range_mut(body.range.clone()) {
                if exit.kind != ExitKind::Return {
                    continue;
                }
                let found = code.approaches(body, ret).unwrap_or_default();
                if found.iter().all(|approach| used.insert(approach.vaddr)) {
                    exit.approaches = found;
                }
            }
        }
    }

    /// Iterates over the code of one function: the searched one, or one that it tail-calls.
    fn of(&self, entry: u64) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(move |part| part.of == entry)
    }

    fn has_jump_without_table(&self, of: u64) -> bool {
        let mut jumps = self.of(of).flat_map(|part| &part.body.indirect);
        jumps.any(|jump| !matches!(jump.target, Form::Static { .. }) && !self.is_switch(jump, of))
    }

    /// Returns whether the function may have separately placed blocks that only an indirect jump leads to. Normally,
    /// symbols name such blocks; without symbols, one that a branch leads to shows that there are some.
    fn may_have_unseen_blocks(&self, of: u64) -> bool {
        if self.code.moved_out_of(of).next().is_some() {
            return false;
        }
        self.code.has_nameless_blocks() || self.is_in_blocks(of)
    }

    /// Returns whether a function consists of separately placed basic blocks that no symbol names: they follow each
    /// other without any padding, and are entered from one another.
    pub(super) fn is_in_blocks(&self, of: u64) -> bool {
        let jumps = || self.of(of).flat_map(|part| &part.body.jumps);
        let is_block = |to: u64| {
            let is_frame = self.code.unwind.covering(to).is_some_and(|frame| frame.start == to);
            is_frame
                && !self.code.is_function(to)
                && jumps().any(|jump| jump.target == to)
                && !self.code.is_called(to)
        };
        self.of(of).any(|part| is_block(part.body.range.end))
    }

    /// Iterates over the entries of other functions in the stretch.
    fn other_entries(&self, body: &Body) -> impl Iterator<Item = u64> {
        let symbols = self.code.symbols.range(body.range.clone());
        symbols.filter(|(at, (_, name))| **at != self.entry && !is_fragment(name)).map(|(at, _)| *at)
    }

    /// Returns the `ret`s that control reaches, and which are therefore certain to be code. Unreached bytes may be
    /// data. If there are indirect jumps or a table of exception handlers, it is unknown where control may arrive, so
    /// all `ret`s are returned.
    fn returns(&self, part: &Part) -> Vec<u64> {
        let body = &part.body;
        let is_entered_unseen = |part: &Part| {
            let frame = self.code.unwind.covering(part.body.range.start);
            !part.body.indirect.is_empty() || frame.is_some_and(|frame| frame.has_handler)
        };
        if self.of(part.of).any(is_entered_unseen) {
            return body.returns.clone();
        }
        let reached = self.reached(body, &[]);
        body.returns.iter().copied().filter(|at| reached.contains(at)).collect()
    }

    /// Returns the instructions of the stretch that control reaches, including from these landing pads.
    fn reached(&self, body: &Body, pads: &[u64]) -> BTreeSet<u64> {
        let others = self.parts.iter().map(|part| &part.body);
        let jumps = others.clone().flat_map(|body| body.jumps.iter().map(|jump| jump.target));
        let ends = others.clone().filter(|body| body.falls_through).map(|body| body.range.end);
        let named = others.flat_map(|body| body.calls.iter().chain(&body.own_addresses)).copied();
        let roots = jumps
            .chain(ends)
            .chain(named)
            .chain(self.other_entries(body))
            .chain([self.entry, body.range.start])
            .chain(pads.iter().copied());
        body.reached(roots)
    }

    /// Returns the code within which a jump stays in the function: all of its parts, except where it is entered.
    fn inside(&self, of: u64) -> Vec<Range<u64>> {
        let mut inside: Vec<Range<u64>> = Vec::new();
        for part in self.of(of) {
            let Range { mut start, end } = part.body.range;
            for entry in [part.passed.map(|_| start), Some(self.entry)].into_iter().flatten() {
                if (start..end).contains(&entry) {
                    inside.push(start..entry);
                    start = entry + 1;
                }
            }
            match inside.last_mut() {
                Some(last) if last.start < last.end && self.code.past_padding(last.end) == start => {
                    last.end = end
                }
                _ => inside.push(start..end),
            }
        }
        inside.retain(|range| !range.is_empty());
        inside
    }

    /// Returns the indirect jumps that may leave the function: those at which the return address may be on top of the
    /// stack. A jump with the function's own data on the stack stays inside: it uses a jump table.
    fn indirect(&self, part: &Part) -> Vec<IndirectJump> {
        let body = &part.body;
        // Some compilers do not describe the stack in a function's epilogue, and then the unwind table is inconclusive
        // there.
        let told = |body: &Body| body.returns.iter().all(|at| self.code.above(*at) == Some(Some(8)));
        let exact = match body.returns.is_empty() {
            false => told(body),
            true => {
                let mut others =
                    self.parts.iter().map(|part| &part.body).filter(|body| !body.returns.is_empty());
                others.clone().next().is_some() && others.all(told)
            }
        };
        let stays = |jump: &&IndirectJump| {
            self.is_switch(jump, part.of)
                || exact && self.code.above(jump.at).is_some_and(|above| above != Some(8))
        };
        body.indirect.iter().filter(|jump| !stays(jump)).cloned().collect()
    }

    /// Returns whether the jump's table leads into the function itself, decided by the first entry that does not lead
    /// back to the function's first instruction (a loop).
    fn is_switch(&self, jump: &IndirectJump, of: u64) -> bool {
        let Some(table) = jump.table else { return false };
        let mut entries = (0..MAX_ENTRIES).map_while(|n| table.entry(&self.code.image, n));
        let first = entries.find(|to| !self.code.is_first(*to, self.entry));
        let holds = |to: u64| {
            self.of(of).any(|part| {
                part.body.has_instruction(to) && !(part.passed.is_some() && part.body.range.start == to)
            })
        };
        first.is_some_and(holds)
    }
}

fn exit(vaddr: u64, kind: ExitKind, shared: bool) -> Exit {
    Exit { vaddr, kind, shared, when: None, approaches: Vec::new() }
}
