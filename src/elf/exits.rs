//! Where a function is left: every `ret`, and every jump to code that is not its own.
//!
//! A function is more than one stretch of code. What the compiler thought unlikely lies elsewhere (`f.cold`), and a call at the
//! very end is a jump (a tail call): the callee then returns in the function's stead, from the same place on the stack. So code
//! that a direct jump leads to is taken in, whatever it is, until no direct jump leads out; a `ret` anywhere in it that finds
//! the stack where the function was entered is the function's return. Nothing is guessed: code that does not decode to its
//! end, or a jump that cannot be told, is a reason to refuse.

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::approach::Approach;
use super::image::LE;
use super::names::is_fragment;
use super::search::{Search, is_callable_fragment};
use super::symbols::{Kind, Symbol, is_stripped, symbols};
use super::unwind::{Frame, Unwind};
use super::{Arch, Form, Image, golang, is_program, leaps};
use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use object::read::elf::SectionHeader;

/// How a function is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exits {
    /// In order of address.
    pub exits: Vec<Exit>,
    /// In order of address.
    pub passages: Vec<Passage>,
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
    /// The processor's condition (0 overflow to 15 greater) under which it leaves; None if it always does.
    pub when: Option<u8>,
    /// Of a `ret`: jumps that can be probed in its place, and cost less. None if there are none.
    pub approaches: Vec<Approach>,
}

/// An instruction at which the same call goes on elsewhere, which its probes must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passage {
    pub vaddr: u64,
    pub kind: PassageKind,
    /// The processor's condition under which it is one; None if it always is.
    pub when: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassageKind {
    /// A jump to the function's own entry: what is entered there is no other call.
    LoopBack,
    /// A jump to a function that the call ends in.
    TailJump,
    /// Where such a function is entered, by whomever. A call that has not come by its jump was left before: by an exception.
    CalleeEntry,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitKind {
    /// A `ret`.
    Return,
    /// A jump to a function that cannot be followed: it returns in this one's stead, unseen.
    TailCall,
    /// A jump whose target is known only when it is taken. Outside of these stretches of code it is a tail call.
    Decided { target: Form, inside: Vec<Range<u64>> },
}

impl Exit {
    /// Whether it is hit when nothing is left, too. What jumps to where one fixed pointer says is rarely anything but a call of
    /// another file's function.
    pub(super) fn is_costly(&self) -> bool {
        matches!(&self.kind, ExitKind::Decided { target, .. } if !matches!(target, Form::Static { .. }))
    }
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
    pub(super) image: Image<'a>,
    pub(super) unwind: Unwind<'a>,
    /// Size and name by address; of aliases the largest.
    pub(super) symbols: BTreeMap<u64, (u64, &'a str)>,
    /// Where the linker put its jumps to other files' functions.
    stubs: Vec<Range<u64>>,
    may_unwind: OnceCell<bool>,
    nameless_blocks: OnceCell<bool>,
    moved: OnceCell<HashMap<&'a str, Vec<u64>>>,
}

/// Why no exits are known, to follow a colon.
pub type NoExits = String;

impl<'a> Functions<'a> {
    /// Reads the file's tables, once for all its functions.
    pub fn of(image: &Image<'a>) -> Functions<'a> {
        let mut named: BTreeMap<u64, (u64, &'a str)> = BTreeMap::new();
        // Basic blocks in sections of their own are named, but not typed as functions.
        let is_code = |symbol: &Symbol<'_>| match symbol.kind {
            Kind::Function => symbol.defined,
            Kind::Label => symbol.defined && is_fragment(symbol.name),
            _ => false,
        };
        for symbol in symbols(image).filter(is_code) {
            let known = named.entry(symbol.vaddr).or_insert((symbol.size, symbol.name));
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
        Functions {
            image: *image,
            unwind: Unwind::of(image),
            symbols: named,
            stubs,
            may_unwind: OnceCell::new(),
            nameless_blocks: OnceCell::new(),
            moved: OnceCell::new(),
        }
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

    /// Where a function that begins here is probed: `endbr64` and a push, at the push.
    pub(super) fn probed_entry(&self, entry: u64) -> u64 {
        let next = entry.wrapping_add(super::shape::ENDBR64.len() as u64);
        let code = self.image.code_at(entry, 4);
        let is_push =
            || super::Site::at(&self.image, next).is_some_and(|site| site.shape == super::SiteShape::Push);
        if code.is_some_and(|code| code == super::shape::ENDBR64) && is_push() { next } else { entry }
    }

    /// What the symbols call parts of the function: a jump table may be all that leads there.
    pub(super) fn moved_out_of(&self, entry: u64) -> impl Iterator<Item = Range<u64>> {
        let moved = self.moved.get_or_init(|| {
            let mut moved: HashMap<&str, Vec<u64>> = HashMap::new();
            let mut known: HashMap<&str, u32> = HashMap::new();
            for (&vaddr, (_, name)) in &self.symbols {
                *known.entry(name).or_default() += 1;
                let whole = name.strip_suffix(".cold").or_else(|| name.strip_suffix(".eh"));
                let whole = whole.or_else(|| Some(name.rsplit_once(".__part.")?.0));
                if let Some(whole) = whole {
                    moved.entry(whole).or_default().push(vaddr);
                }
            }
            // Of local functions of one name it is not known whose they are.
            moved.retain(|whole, _| known.get(whole) == Some(&1));
            moved
        });
        let parts = moved.get(self.name(entry)).into_iter().flatten();
        parts.filter_map(|part| self.around(*part).filter(|range| range.start == *part))
    }

    /// Where control comes to that runs on over the fill between two functions.
    pub(super) fn past_padding(&self, vaddr: u64) -> u64 {
        const LONGEST: usize = 64;
        let code = self.image.code_at(vaddr, LONGEST).unwrap_or(&[]);
        let fill = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE).into_iter();
        let next = fill.take_while(|now| now.mnemonic() == Mnemonic::Nop && self.around(now.ip()).is_none());
        next.last().map_or(vaddr, |last| last.next_ip())
    }

    /// Whether a function's first instruction is there, not counting a landing pad.
    pub(super) fn is_first(&self, vaddr: u64, entry: u64) -> bool {
        let into = vaddr.wrapping_sub(entry);
        let is_landing = || self.image.code_at(entry, 4).is_some_and(|code| code == super::shape::ENDBR64);
        into == 0 || into == super::shape::ENDBR64.len() as u64 && is_landing()
    }

    /// Whether calls may be left by something else than an exit: an exception, `longjmp`. False only for a program that has
    /// none of that.
    pub fn may_unwind(&self) -> bool {
        *self.may_unwind.get_or_init(|| {
            !is_program(&self.image) || self.symbols.is_empty() || leaps(&self.image).is_some()
        })
    }

    /// Whether a symbol says that a function begins there.
    pub(super) fn is_function(&self, vaddr: u64) -> bool {
        let is_whole = |(_, name): &(u64, &str)| !is_fragment(name) || is_callable_fragment(name);
        self.symbols.get(&vaddr).is_some_and(is_whole)
    }

    /// Whether code looks like a function, but no symbol calls it one: the symbol was stripped, or it is a block of one.
    pub(super) fn is_nameless(&self, frame: &Frame) -> bool {
        frame.at_start == Some(8) && !self.is_function(frame.start)
    }

    pub(super) fn is_stripped(&self) -> bool {
        is_stripped(&self.image)
    }

    /// Whether much of the code is blocks in places of their own without names (`-fbasic-block-sections=all`). A stripped file
    /// does not tell.
    pub(super) fn has_nameless_blocks(&self) -> bool {
        *self.nameless_blocks.get_or_init(|| {
            let (nameless, named): (Vec<_>, Vec<_>) = self
                .unwind
                .frames()
                .filter(|frame| frame.at_start == Some(8))
                .partition(|f| self.is_nameless(f));
            !self.is_stripped() && nameless.len() > named.len()
        })
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
            return Err("exits are only supported in x86-64 code".to_string());
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
                    "it is not entered by a call: there is no return address on top of the stack".to_string()
                );
            }
        }
        let mut range = self.around(entry).unwrap_or(entry..entry);
        range.end = range.end.max(entry.saturating_add(size));
        if range.is_empty() {
            return Err("its size is unknown: neither its symbol nor an unwind table has it".to_string());
        }
        let mut search = Search::new(self, entry);
        search.add(range)?;
        search.close()?;
        search.exits()
    }

    /// The stretch of code that holds an address; None if nothing says where it begins and ends.
    pub(super) fn around(&self, vaddr: u64) -> Option<Range<u64>> {
        if let Some(frame) = self.unwind.covering(vaddr) {
            return Some(frame.start..frame.end);
        }
        let (&start, &(size, _)) = self.symbols.range(..=vaddr).next_back()?;
        let end = start.checked_add(size)?;
        (vaddr < end).then_some(start..end)
    }

    /// How far the caller's frame is above the stack pointer there. None without an entry in the unwind table, Some(None)
    /// where the table finds it by another register.
    pub(super) fn above(&self, vaddr: u64) -> Option<Option<i64>> {
        let frame = self.unwind.covering(vaddr)?;
        let rows = self.unwind.rows(frame);
        let after = rows.partition_point(|(start, _)| *start <= vaddr);
        rows[..after].last().map(|(_, above)| *above)
    }

    /// Whether the code there only jumps on to where a table of the linker's says.
    pub(super) fn is_stub(&self, vaddr: u64) -> bool {
        if self.stubs.iter().any(|stub| stub.contains(&vaddr)) {
            return true;
        }
        let code = self.image.code_at(vaddr, 16).unwrap_or(&[]);
        let code = code.strip_prefix(super::shape::ENDBR64).unwrap_or(code);
        let code = code.strip_prefix(&[0xf2]).unwrap_or(code);
        code.starts_with(&[0xff, 0x25])
    }

    pub(super) fn name(&self, vaddr: u64) -> &'a str {
        self.symbols.get(&vaddr).map_or("", |(_, name)| name)
    }
}
