//! Where a function is left: every `ret`, and every jump to code that is not its own.
//!
//! A function is more than one stretch of code. What the compiler thought unlikely lies elsewhere (`f.cold`), and a call at the
//! very end is a jump (a tail call): the callee then returns in the function's stead, from the same place on the stack. So code
//! that a direct jump leads to is taken in, whatever it is, until no direct jump leads out; a `ret` anywhere in it that finds
//! the stack where the function was entered is the function's return. Nothing is guessed: code that does not decode to its
//! end, or a jump that cannot be told, is a reason to refuse.

use std::collections::BTreeMap;
use std::ops::Range;

use super::body::{Body, IndirectJump, Jump};
use super::image::LE;
use super::names::is_fragment;
use super::select::functions;
use super::unwind::Unwind;
use super::{Arch, Form, Image, golang};
use object::read::elf::SectionHeader;

/// The most functions that are followed into because a function ends by calling them.
const FOLLOWED_MAX: usize = 8;
/// The most stretches of code that one function can consist of.
const PARTS_MAX: usize = 64;
/// The most exits of one function.
const EXITS_MAX: usize = 512;
/// The most jumps of one function that are decided when they are hit: each costs the program a trap.
const DECIDED_MAX: usize = 16;

/// How a function is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exits {
    /// Its code, in order of address.
    pub parts: Vec<Range<u64>>,
    /// In order of address.
    pub exits: Vec<Exit>,
    /// Functions that it ends in, whose exits are its own.
    pub followed: Vec<u64>,
    /// Whether its unwind table names a handler: cleanups, or a catch.
    pub has_handler: bool,
}

/// An instruction that may leave a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub vaddr: u64,
    pub kind: ExitKind,
    /// Whether calls of other functions pass here too.
    pub shared: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitKind {
    /// A `ret`.
    Return,
    /// A jump to a function that cannot be followed: it returns in this one's stead, unseen.
    TailCall,
    /// A jump whose target is known only when it is taken. Outside the function's parts it is a tail call.
    Decided(Form),
}

impl Exits {
    /// Whether every exit is a `ret`, where the function's result is known.
    pub fn all_return(&self) -> bool {
        self.exits.iter().all(|exit| exit.kind == ExitKind::Return)
    }
}

/// The code of a file, with what says where its functions begin and end.
#[derive(Debug)]
pub struct Functions<'a> {
    image: Image<'a>,
    unwind: Unwind<'a>,
    /// Size and name by address; of aliases the largest.
    symbols: BTreeMap<u64, (u64, &'a str)>,
    /// Where the linker put its jumps to other files' functions.
    stubs: Vec<Range<u64>>,
}

/// Why no exits are known, to follow a colon.
pub type NoExits = String;

impl<'a> Functions<'a> {
    /// Reads the file's tables, once for all its functions.
    pub fn of(image: &Image<'a>) -> Functions<'a> {
        let mut symbols: BTreeMap<u64, (u64, &'a str)> = BTreeMap::new();
        for symbol in functions(image) {
            let known = symbols.entry(symbol.vaddr).or_insert((symbol.size, symbol.name));
            if symbol.size > known.0 || (is_fragment(symbol.name) && symbol.size == known.0) {
                *known = (symbol.size, symbol.name);
            }
        }
        let stub = |name| {
            let section = image.section(name)?;
            let start = section.sh_addr(LE);
            Some(start..start.checked_add(section.sh_size(LE))?)
        };
        let stubs = [&b".plt"[..], b".plt.sec", b".plt.got", b".iplt"].into_iter().filter_map(stub).collect();
        Functions { image: *image, unwind: Unwind::of(image), symbols, stubs }
    }

    /// The entry of the function whose probe is at `site`: some are probed behind their first instruction.
    pub fn entry_of(&self, site: u64) -> u64 {
        if let Some(function) = self.image.pclntab().and_then(|table| table.covering(site)) {
            return function.entry;
        }
        let before = site.wrapping_sub(super::shape::ENDBR64.len() as u64);
        let is_landing = self.image.code_at(before, 4).is_some_and(|code| code == super::shape::ENDBR64);
        if is_landing && !self.symbols.contains_key(&site) { before } else { site }
    }

    /// Whether exceptions that come through the function that is entered there run a handler of its: a cleanup or a catch.
    pub fn has_handler(&self, entry: u64) -> bool {
        self.unwind.covering(entry).is_some_and(|frame| frame.has_handler)
    }

    /// Finds the exits of the function that is entered at `entry`; `size` is what its symbol says, or 0.
    ///
    /// # Errors
    /// If they cannot be told for certain, with the reason.
    pub fn exits(&self, entry: u64, size: u64) -> Result<Exits, NoExits> {
        if self.image.arch() != Arch::X86_64 {
            return Err("exits are found in x86-64 code only".to_string());
        }
        if let Some(table) = self.image.pclntab()
            && let Some(function) = table.covering(entry).filter(|function| function.entry == entry)
        {
            return golang::exits(&self.image, &table, &function);
        }
        if let Some(frame) = self.unwind.covering(entry) {
            let row = if frame.start == entry { frame.at_start } else { self.above(entry).flatten() };
            if row != Some(8) {
                return Err(
                    "it is not entered by a call: no return address is on top of the stack".to_string()
                );
            }
        }
        let mut range = self.around(entry).unwrap_or(entry..entry);
        range.end = range.end.max(entry.saturating_add(size));
        if range.is_empty() {
            return Err("neither its symbol nor an unwind table says how long it is".to_string());
        }
        let mut search =
            Search { code: self, entry, parts: Vec::new(), left: Vec::new(), followed: Vec::new() };
        search.add(range, Kind::Own)?;
        search.close()?;
        search.exits()
    }

    /// The stretch of code that holds an address; None if nothing says where it begins and ends.
    fn around(&self, vaddr: u64) -> Option<Range<u64>> {
        if let Some(frame) = self.unwind.covering(vaddr) {
            return Some(frame.start..frame.end);
        }
        let (&start, &(size, _)) = self.symbols.range(..=vaddr).next_back()?;
        let end = start.checked_add(size)?;
        (vaddr < end).then_some(start..end)
    }

    /// How far the caller's frame is above the stack pointer there. None without an entry in the unwind table, Some(None)
    /// where the table finds it by another register.
    fn above(&self, vaddr: u64) -> Option<Option<i64>> {
        let frame = self.unwind.covering(vaddr)?;
        let rows = self.unwind.rows(frame);
        let after = rows.partition_point(|(start, _)| *start <= vaddr);
        rows[..after].last().map(|(_, above)| *above)
    }

    /// Whether the code there only jumps on to where a table of the linker's says.
    fn is_stub(&self, vaddr: u64) -> bool {
        if self.stubs.iter().any(|stub| stub.contains(&vaddr)) {
            return true;
        }
        let code = self.image.code_at(vaddr, 16).unwrap_or(&[]);
        let code = code.strip_prefix(super::shape::ENDBR64).unwrap_or(code);
        let code = code.strip_prefix(&[0xf2]).unwrap_or(code);
        code.starts_with(&[0xff, 0x25])
    }

    fn name(&self, vaddr: u64) -> &'a str {
        self.symbols.get(&vaddr).map_or("", |(_, name)| name)
    }
}

/// What a part is to the function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The function, and what was moved out of it.
    Own,
    /// A function that it ends in.
    Followed,
}

struct Part {
    body: Body,
    kind: Kind,
}

struct Search<'s, 'a> {
    code: &'s Functions<'a>,
    entry: u64,
    parts: Vec<Part>,
    /// Jumps that leave for good.
    left: Vec<Jump>,
    followed: Vec<u64>,
}

impl Search<'_, '_> {
    fn add(&mut self, range: Range<u64>, kind: Kind) -> Result<(), NoExits> {
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
    fn close(&mut self) -> Result<(), NoExits> {
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

    fn exits(mut self) -> Result<Exits, NoExits> {
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
