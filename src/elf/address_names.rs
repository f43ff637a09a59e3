//! The names of code by its address, for what a running process executes.

use std::ops::Range;

use object::read::elf::ProgramHeader;

use super::Image;
use super::headers::{LE, executable};
use super::names::{Signature, clone_of, demangle};
use super::symbol_table::{Kind, Symbol};
use super::symbols::symbols;
use super::unwind::frame_at;

/// The functions of a file by their addresses. It is made from an [`Image`], and keeps nothing else of it.
#[derive(Debug, Default)]
pub struct AddressNames {
    segments: Vec<Segment>,
    /// In order of their beginning.
    functions: Vec<Function>,
    /// All symbols, one behind the other.
    names: String,
}

#[derive(Debug)]
struct Segment {
    offset: u64,
    bytes: u64,
    vaddr: u64,
}

#[derive(Debug)]
struct Function {
    begin: u64,
    end: u64,
    /// The farthest end of those up to this one.
    reach: u64,
    name: Range<usize>,
}

/// Functions without a size whose ends are looked for. Real files have a few.
const UNSIZED_MAX: usize = 4096;
/// Functions that are looked at: more overlap nowhere but in a file that was made to take time.
const LOOKED_AT: usize = 4096;

impl AddressNames {
    /// Of all that names the image's functions.
    pub fn of(image: &Image<'_>) -> AddressNames {
        let code = image.loads().filter(|segment| executable(segment));
        let segments: Vec<Segment> = code
            .map(|segment| Segment {
                offset: segment.p_offset(LE),
                bytes: segment.p_filesz(LE),
                vaddr: segment.p_vaddr(LE),
            })
            .collect();
        let is_code = |vaddr: u64| segments.iter().any(|segment| segment.holds(vaddr));
        let mut all: Vec<Symbol<'_>> = symbols(image)
            .filter(|symbol| matches!(symbol.kind, Kind::Function | Kind::Ifunc | Kind::Label))
            .filter(|symbol| symbol.defined && is_code(symbol.vaddr))
            .collect();
        all.sort_by_key(|symbol| {
            (symbol.vaddr, symbol.size == 0, symbol.kind == Kind::Label, !symbol.global)
        });
        all.dedup_by_key(|symbol| symbol.vaddr);
        let mut found = AddressNames { functions: Vec::new(), names: String::new(), segments };
        let (mut reach, mut room) = (0, UNSIZED_MAX);
        for (number, symbol) in all.iter().enumerate() {
            let end = match symbol.size {
                0 if symbol.kind == Kind::Label || room == 0 => None,
                0 => {
                    room -= 1;
                    found.end_of(image, symbol, all.get(number + 1))
                }
                size => symbol.vaddr.checked_add(size),
            };
            let Some(end) = end else { continue };
            reach = end.max(reach);
            let from = found.names.len();
            found.names.push_str(symbol.name);
            let name = from..found.names.len();
            found.functions.push(Function { begin: symbol.vaddr, end, reach, name });
        }
        found
    }

    /// Where a function ends whose symbol does not say: where its unwind information does, or where the next symbol begins. Where
    /// only some functions have symbols, the next one may be far away.
    fn end_of(&self, image: &Image<'_>, symbol: &Symbol<'_>, next: Option<&Symbol<'_>>) -> Option<u64> {
        if let Some(frame) = frame_at(image, symbol.vaddr).filter(|frame| frame.start == symbol.vaddr) {
            return Some(frame.end);
        }
        let segment = self.segments.iter().find(|segment| segment.holds(symbol.vaddr))?;
        let end = segment.vaddr.saturating_add(segment.bytes);
        (!image.is_stripped()).then(|| next.map_or(end, |next| next.vaddr.min(end)))
    }

    /// The function whose code is at this offset of the file, as its source calls it, with parameters; None if that is not known.
    pub fn name(&self, offset: u64) -> Option<String> {
        let vaddr = self.segments.iter().find_map(|segment| {
            let into = offset.checked_sub(segment.offset).filter(|into| *into < segment.bytes)?;
            segment.vaddr.checked_add(into)
        })?;
        let after = self.functions.partition_point(|function| function.begin <= vaddr);
        let before = self.functions[..after].iter().rev().take(LOOKED_AT);
        let function =
            before.take_while(|function| function.reach > vaddr).find(|function| vaddr < function.end)?;
        Some(shown(self.names.get(function.name.clone())?))
    }

    /// About how many bytes of memory it takes.
    pub fn bytes(&self) -> usize {
        self.names.len() + self.functions.len() * size_of::<Function>()
    }
}

impl Segment {
    fn holds(&self, vaddr: u64) -> bool {
        vaddr.checked_sub(self.vaddr).is_some_and(|into| into < self.bytes)
    }
}

/// What the source calls the function of this symbol; what the compiler made of it is called the same.
fn shown(symbol: &str) -> String {
    // Old Rust symbols end in a hash.
    let is_rust = symbol.starts_with("_R") || symbol.contains("17h");
    let signature = if is_rust { Signature::Parameters } else { Signature::Whole };
    let plain = || clone_of(symbol).map_or(symbol, |clone| clone.base).to_owned();
    demangle(symbol, signature).unwrap_or_else(plain)
}
