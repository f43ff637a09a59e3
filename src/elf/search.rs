//! The code of one function: from its entry through all that direct jumps lead to.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Form;
use super::body::{Body, IndirectJump, Jump};
use super::exits::{Exit, ExitKind, Exits, Functions, NoExits};
use super::names::is_fragment;

/// The most functions that are followed into because a function ends by calling them.
const FOLLOWED_MAX: usize = 8;
/// The most stretches of code that one function can consist of.
const PARTS_MAX: usize = 64;
/// The most exits of one function.
const EXITS_MAX: usize = 512;
/// The most jumps of one function that are decided when they are hit: each costs the program a trap.
const DECIDED_MAX: usize = 16;

/// What a part is to the function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The function, and what was moved out of it.
    Own,
    /// A function that it ends in.
    Followed,
}

struct Part {
    body: Body,
    kind: Kind,
}

pub(super) struct Search<'s, 'a> {
    code: &'s Functions<'a>,
    entry: u64,
    parts: Vec<Part>,
    /// Jumps that leave for good.
    left: Vec<Jump>,
    followed: Vec<u64>,
}

impl<'s, 'a> Search<'s, 'a> {
    pub fn new(code: &'s Functions<'a>, entry: u64) -> Self {
        Search { code, entry, parts: Vec::new(), left: Vec::new(), followed: Vec::new() }
    }

    pub fn add(&mut self, range: Range<u64>, kind: Kind) -> Result<(), NoExits> {
        let body = Body::decode(&self.code.image, range)?;
        self.check(&body)?;
        self.parts.push(Part { body, kind });
        Ok(())
    }

    /// Refuses code whose frames cannot be told by the stack pointer.
    fn check(&self, body: &Body) -> Result<(), NoExits> {
        for &at in &body.stack_switches {
            // A function with a frame pointer finds back by it, whatever it does in between; and where the compiler says by
            // how much the stack has moved, it has gone back to an older place.
            let [before, after] = [at, body.after(at)].map(|at| self.code.above(at));
            if before != Some(None) && !(before.is_some() && before != after) {
                return Err(format!("it switches stacks at +{:#x}", at - body.range.start));
            }
        }
        if body.own_addresses.iter().any(|own| !body.has_instruction(*own)) {
            return Err("there is data among its code".to_string());
        }
        let jumps = body.jumps.iter().map(|jump| jump.target);
        if jumps
            .chain(body.calls.iter().copied())
            .any(|to| body.range.contains(&to) && !body.has_instruction(to))
        {
            return Err("it jumps into the middle of an instruction".to_string());
        }
        if body.range.contains(&self.entry) && !body.has_instruction(self.entry) {
            return Err("its entry is inside an instruction".to_string());
        }
        Ok(())
    }

    /// Takes in what direct jumps lead to, until none leads out.
    pub fn close(&mut self) -> Result<(), NoExits> {
        let mut next = 0;
        while next < self.parts.len() {
            let (jumps, kind) = {
                let part = &self.parts[next];
                if part.body.falls_through {
                    let end = part.body.range.end;
                    let jump = Jump { at: end, target: end, conditional: true };
                    (part.body.jumps.iter().copied().chain([jump]).collect::<Vec<_>>(), part.kind)
                } else {
                    (part.body.jumps.clone(), part.kind)
                }
            };
            for jump in jumps {
                self.jump(jump, kind)?;
            }
            next += 1;
        }
        Ok(())
    }

    fn jump(&mut self, jump: Jump, from: Kind) -> Result<(), NoExits> {
        let target = jump.target;
        if let Some(part) = self.parts.iter().find(|part| part.body.range.contains(&target)) {
            return match part.body.has_instruction(target) {
                true => Ok(()),
                false => Err("it jumps into the middle of an instruction".to_string()),
            };
        }
        let code = self.code;
        let range = code.around(target).filter(|_| !code.is_stub(target));
        let Some(range) = range else { return self.leave(jump) };
        let initial = code.unwind.covering(target).filter(|frame| frame.start == target).map(|f| f.at_start);
        let moved = range.start != target
            || is_fragment(code.name(target))
            || initial.is_some_and(|above| above != Some(8))
            || jump.at == target;
        let body = Body::decode(&code.image, range).and_then(|body| self.check(&body).map(|()| body));
        let body = match body {
            Ok(body) => body,
            Err(why) if moved => return Err(format!("it jumps to {target:#x}, of which {why}")),
            Err(_) => return self.leave(jump),
        };
        let comes_back = body.jumps.iter().any(|back| {
            back.target != self.entry
                && self.parts.iter().any(|part| {
                    part.body.range.contains(&back.target) && part.body.range.start != back.target
                })
        });
        let kind = match from {
            Kind::Own if moved || comes_back => Kind::Own,
            _ => Kind::Followed,
        };
        if kind == Kind::Followed && !(moved || comes_back) {
            let exits = self.parts.iter().map(|part| part.body.returns.len()).sum::<usize>();
            if self.followed.len() >= FOLLOWED_MAX || exits + body.returns.len() > EXITS_MAX / 4 {
                return self.leave(jump);
            }
            self.followed.push(target);
        }
        if self.parts.len() >= PARTS_MAX {
            return Err(format!("its code is in more than {PARTS_MAX} places"));
        }
        self.parts.push(Part { body, kind });
        Ok(())
    }

    /// The jump is an exit.
    fn leave(&mut self, jump: Jump) -> Result<(), NoExits> {
        if jump.conditional {
            return Err(format!(
                "a conditional jump leads to {:#x}, a function that cannot be followed",
                jump.target
            ));
        }
        self.left.push(jump);
        Ok(())
    }

    pub fn exits(mut self) -> Result<Exits, NoExits> {
        self.parts.sort_by_key(|part| part.body.range.start);
        let entries = |range: &Range<u64>| {
            let mut symbols = self.code.symbols.range(range.clone());
            symbols.any(|(&at, (_, name))| at != self.entry && !is_fragment(name))
        };
        let mut exits = BTreeMap::new();
        for part in &self.parts {
            let body = &part.body;
            let calls_itself = body.calls.iter().any(|to| body.range.contains(to) && *to != body.range.start);
            let shared = part.kind == Kind::Followed || entries(&body.range) || calls_itself;
            for &vaddr in &body.returns {
                exits.insert(vaddr, Exit { vaddr, kind: ExitKind::Return, shared });
            }
            for jump in body.jumps.iter().filter(|jump| self.left.contains(jump)) {
                exits.insert(jump.at, Exit { vaddr: jump.at, kind: ExitKind::TailCall, shared });
            }
            for jump in self.indirect(body) {
                let IndirectJump { at, target, .. } = jump;
                exits.insert(at, Exit { vaddr: at, kind: ExitKind::Decided(target), shared });
            }
        }
        // What jumps to where one fixed pointer says is rarely anything but a call of another file's function.
        let is_costly = |exit: &&Exit| matches!(&exit.kind, ExitKind::Decided(target) if !matches!(target, Form::Static { .. }));
        let decided = exits.values().filter(is_costly).count();
        if decided > DECIDED_MAX {
            return Err(format!(
                "it has {decided} indirect jumps of which nothing tells whether they leave it"
            ));
        }
        if exits.len() > EXITS_MAX {
            return Err(format!("it has {} exits, and at most {EXITS_MAX} are watched", exits.len()));
        }
        if exits.is_empty() {
            return Err("it never returns".to_string());
        }
        let own = self.parts.iter().filter(|part| part.kind == Kind::Own);
        let has_handler = own
            .filter_map(|part| self.code.unwind.covering(part.body.range.start))
            .any(|frame| frame.has_handler);
        Ok(Exits {
            parts: self.parts.iter().map(|part| part.body.range.clone()).collect(),
            exits: exits.into_values().collect(),
            followed: self.followed,
            has_handler,
        })
    }

    /// The indirect jumps that may leave: those before which the return address may be on top of the stack. What jumps with
    /// something of its own on the stack stays inside: a jump table.
    fn indirect(&self, body: &Body) -> Vec<IndirectJump> {
        // Some compilers do not describe what a function does on its way out, and then the table tells nothing there.
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
            self.is_switch(jump) || exact && self.code.above(jump.at).is_some_and(|above| above != Some(8))
        };
        body.indirect.iter().filter(|jump| !stays(jump)).cloned().collect()
    }

    /// Whether the jump's table leads into the function itself, as its first entry tells.
    fn is_switch(&self, jump: &IndirectJump) -> bool {
        let Some(table) = jump.table else { return false };
        let first =
            match table.relative {
                true => self.code.image.bytes_at(table.vaddr).map(|bytes: [u8; 4]| {
                    table.vaddr.wrapping_add_signed(i64::from(i32::from_le_bytes(bytes)))
                }),
                false => self.code.image.bytes_at(table.vaddr).map(u64::from_le_bytes),
            };
        first
            .is_some_and(|to| to != self.entry && self.parts.iter().any(|part| part.body.has_instruction(to)))
    }
}
