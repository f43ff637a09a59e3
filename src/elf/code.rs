//! The code of a file: where its functions begin and end, and their names.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::rc::Rc;

use super::body::Body;
use super::headers::LE;
use super::names::{is_callable_fragment, is_fragment};
use super::runtimes::Runtime;
use super::shape::ENDBR64;
use super::symbol_table::{Symbol, SymbolKind};
use super::symbols::symbols;
use super::unwind::{Frame, Unwind};
use super::{Image, NonLocalExit};
use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use object::read::elf::SectionHeader;

/// The code of a file, and the tables that tell where its functions begin and end.
#[derive(Debug)]
pub struct Functions<'a> {
    pub(super) image: Image<'a>,
    pub(super) unwind: Unwind<'a>,
    /// Size and name by address; of aliases, the largest.
    pub(super) symbols: BTreeMap<u64, (u64, &'a str)>,
    /// The linker's stubs that jump to functions of other files.
    stubs: Vec<Range<u64>>,
    pub(super) non_local_exit: OnceCell<Option<NonLocalExit>>,
    pub(super) may_unwind: OnceCell<bool>,
    nameless_blocks: OnceCell<bool>,
    runs_old_code: OnceCell<bool>,
    /// See [`Functions::is_called`]; sorted.
    called: OnceCell<Vec<u64>>,
    pub(super) runtime: OnceCell<Option<Runtime>>,
    pub(super) moves_stacks: OnceCell<bool>,
    pub(super) ocaml_units: OnceCell<HashSet<&'a str>>,
    moved: OnceCell<HashMap<&'a str, Vec<u64>>>,
    /// Targets outside a function's own code that it jumps to, by its entry.
    jumps_out: RefCell<HashMap<u64, Rc<[u64]>>>,
}

impl<'a> Functions<'a> {
    /// Reads the file's tables, once for all its functions.
    pub fn of(image: &Image<'a>) -> Functions<'a> {
        let mut named: BTreeMap<u64, (u64, &'a str)> = BTreeMap::new();
        // Basic blocks in sections of their own are named, but not typed as functions.
        let is_code = |symbol: &Symbol<'_>| match symbol.kind {
            SymbolKind::Function => symbol.defined,
            SymbolKind::Label => symbol.defined && is_fragment(symbol.name),
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
            non_local_exit: OnceCell::new(),
            may_unwind: OnceCell::new(),
            nameless_blocks: OnceCell::new(),
            runs_old_code: OnceCell::new(),
            called: OnceCell::new(),
            runtime: OnceCell::new(),
            moves_stacks: OnceCell::new(),
            ocaml_units: OnceCell::new(),
            moved: OnceCell::new(),
            jumps_out: RefCell::default(),
        }
    }

    /// Returns the parts of the function according to the symbols: a jump table may be the only way to reach them.
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
            // If several local functions share a name, their parts cannot be attributed.
            moved.retain(|whole, _| known.get(whole) == Some(&1));
            moved
        });
        let parts = moved.get(self.name(entry)).into_iter().flatten();
        parts.filter_map(|part| self.around(*part).filter(|range| range.start == *part))
    }

    /// Returns where control arrives if it runs on through the padding between two functions.
    pub(super) fn past_padding(&self, vaddr: u64) -> u64 {
        const MAX_LENGTH: usize = 64;
        let code = self.image.code_at(vaddr, MAX_LENGTH).unwrap_or(&[]);
        let fill = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE).into_iter();
        let next = fill.take_while(|now| now.mnemonic() == Mnemonic::Nop && self.around(now.ip()).is_none());
        next.last().map_or(vaddr, |last| last.next_ip())
    }

    /// Returns whether the address is a function's first instruction, not counting a landing pad.
    pub(super) fn is_first(&self, vaddr: u64, entry: u64) -> bool {
        let into = vaddr.wrapping_sub(entry);
        let is_landing = || self.image.code_at(entry, 4).is_some_and(|code| code == ENDBR64);
        into == 0 || into == ENDBR64.len() as u64 && is_landing()
    }

    /// Returns whether a symbol marks the address as the start of a function.
    pub(super) fn is_function(&self, vaddr: u64) -> bool {
        let is_whole = |(_, name): &(u64, &str)| !is_fragment(name) || is_callable_fragment(name);
        self.symbols.get(&vaddr).is_some_and(is_whole)
    }

    /// Returns whether code looks like a function, but no symbol marks it as one: the symbol was stripped, or the code
    /// is a basic block of a function.
    pub(super) fn is_nameless(&self, frame: &Frame) -> bool {
        frame.at_start == Some(8) && !self.is_function(frame.start)
    }

    pub(super) fn is_stripped(&self) -> bool {
        self.image.is_stripped()
    }

    /// Returns whether much of the code consists of basic blocks that were placed separately and have no names
    /// (`-fbasic-block-sections=all`). This is unknown for a stripped file.
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

    /// Returns whether some `call` has this address as its target: only functions are called. That other bytes happen
    /// to look like such a call is not expected, given 2^32 possible targets.
    pub(super) fn is_called(&self, vaddr: u64) -> bool {
        self.called.get_or_init(|| called(&self.image)).binary_search(&vaddr).is_ok()
    }

    /// Returns whether code is still run at its old place after BOLT, a post-link optimizer, has moved it: BOLT retains
    /// the old code, without names, and tables of labels that a function jumps to still point there. Code there calls
    /// functions at their old places.
    pub fn runs_old_code(&self) -> bool {
        *self.runs_old_code.get_or_init(|| {
            let Some(old) = self.image.section(b".bolt.org.text") else { return false };
            let old = old.sh_addr(LE)..old.sh_addr(LE).saturating_add(old.sh_size(LE));
            let is_named = |vaddr: u64| {
                let before = self.symbols.range(..=vaddr).next_back();
                before.is_some_and(|(start, (size, _))| vaddr - start < *size)
            };
            self.image.pointed_to().any(|to| old.contains(&to) && !is_named(to))
        })
    }

    /// Returns the entry of a function near this code that jumps into its middle, as functions written in assembly do: its `ret`s
    /// are then also theirs, unless there is more on the stack than the return address. `is_part` tells the function's own parts.
    pub(super) fn entered_from(&self, range: &Range<u64>, is_part: impl Fn(u64) -> bool) -> Option<u64> {
        const NEAR: u64 = 4096;
        let around = range.start.saturating_sub(NEAR)..range.end.saturating_add(NEAR);
        let is_middle = |to: &u64| {
            range.contains(to)
                && *to != range.start
                && !self.symbols.contains_key(to)
                && self.above(*to).is_none_or(|above| above.is_none_or(|above| above == 8))
        };
        let symbols =
            self.symbols.range(around.clone()).map(|(start, (size, _))| *start..start.saturating_add(*size));
        let frames = self.unwind.within(&around).filter(|frame| frame.at_start == Some(8));
        let near = symbols.chain(frames.map(|frame| frame.start..frame.end)).filter(|code| {
            let size = code.end.saturating_sub(code.start);
            (1..=NEAR).contains(&size) && !range.contains(&code.start) && !is_part(code.start)
        });
        let mut others = near.filter(|code| !is_fragment(self.name(code.start)));
        others.find(|code| self.jumps_out_of(code).iter().any(is_middle)).map(|code| code.start)
    }

    /// Returns the targets outside the function's own code that it jumps to.
    fn jumps_out_of(&self, range: &Range<u64>) -> Rc<[u64]> {
        let mut known = self.jumps_out.borrow_mut();
        let found = known.entry(range.start).or_insert_with(|| {
            let body = Body::decode(&self.image, range.clone());
            let targets = body.iter().flat_map(|body| body.jumps.iter().map(|jump| jump.target));
            targets.filter(|target| !range.contains(target)).collect()
        });
        found.clone()
    }

    /// Returns whether exceptions that unwind through the function entered at `entry` run one of its handlers: a
    /// cleanup or a catch.
    pub fn has_handler(&self, entry: u64) -> bool {
        self.unwind.covering(entry).is_some_and(|frame| frame.has_handler)
    }

    /// Returns the stretch of code that contains an address; `None` if its bounds are unknown.
    pub(super) fn around(&self, vaddr: u64) -> Option<Range<u64>> {
        if let Some(frame) = self.unwind.covering(vaddr) {
            return Some(frame.start..frame.end);
        }
        let (&start, &(size, _)) = self.symbols.range(..=vaddr).next_back()?;
        let end = start.checked_add(size)?;
        (vaddr < end).then_some(start..end)
    }

    /// Returns how far the caller's frame is above the stack pointer at this address. `None` without an entry in the
    /// unwind table, `Some(None)` where the table locates the frame by another register.
    pub(super) fn above(&self, vaddr: u64) -> Option<Option<i64>> {
        let frame = self.unwind.covering(vaddr)?;
        let rows = self.unwind.rows(frame);
        let after = rows.partition_point(|(start, _)| *start <= vaddr);
        rows[..after].last().map(|(_, above)| *above)
    }

    /// Returns whether the code there only jumps to an address from one of the linker's tables.
    pub(super) fn is_stub(&self, vaddr: u64) -> bool {
        if self.stubs.iter().any(|stub| stub.contains(&vaddr)) {
            return true;
        }
        let code = self.image.code_at(vaddr, 16).unwrap_or(&[]);
        let code = code.strip_prefix(ENDBR64).unwrap_or(code);
        let code = code.strip_prefix(&[0xf2]).unwrap_or(code);
        code.starts_with(&[0xff, 0x25])
    }

    pub(super) fn name(&self, vaddr: u64) -> &'a str {
        self.symbols.get(&vaddr).map_or("", |(_, name)| name)
    }
}

/// Returns the targets of all calls in the code, sorted.
fn called(image: &Image<'_>) -> Vec<u64> {
    const CALL: u8 = 0xe8;
    let Some(text) = image.section(b".text") else { return Vec::new() };
    let (start, size) = (text.sh_addr(LE), text.sh_size(LE));
    let code = image.code_at(start, usize::try_from(size).unwrap_or(usize::MAX)).unwrap_or(&[]);
    let target = |(bytes, at): (&[u8], u64)| {
        let [CALL, offset @ ..] = bytes else { return None };
        let offset = i32::from_le_bytes(*offset.first_chunk()?);
        let to = at.wrapping_add(5).wrapping_add_signed(i64::from(offset));
        (to.wrapping_sub(start) < size).then_some(to)
    };
    let mut called: Vec<u64> = code.windows(5).zip(start..).filter_map(target).collect();
    called.sort_unstable();
    called.dedup();
    called
}
