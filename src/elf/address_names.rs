//! Function names by address, for the code that a running process executes.

use std::ops::Range;

use object::read::elf::ProgramHeader;

use super::Image;
use super::headers::{LE, executable};
use super::names::{Signature, clone_of, demangle};
use super::symbol_table::{Symbol, SymbolKind};
use super::symbols::symbols;
use super::unwind::frame_at;

/// The functions of a file by address. Built from an [`Image`], of which nothing else is retained.
#[derive(Debug, Default)]
pub struct AddressNames {
    segments: Vec<Segment>,
    /// Sorted by start address.
    functions: Vec<Function>,
    /// All symbols, concatenated.
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
    /// The highest end of all functions up to and including this one.
    reach: u64,
    name: Range<usize>,
}

/// Functions without a size whose ends are determined. Real files have a few.
const MAX_UNSIZED: usize = 4096;
/// Overlapping functions that are examined at most: only files built to take time have more.
const MAX_OVERLAPPING: usize = 4096;

impl AddressNames {
    /// Built from every source of function names in the image.
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
            .filter(|symbol| {
                matches!(symbol.kind, SymbolKind::Function | SymbolKind::Ifunc | SymbolKind::Label)
            })
            .filter(|symbol| symbol.defined && is_code(symbol.vaddr))
            .collect();
        all.sort_by_key(|symbol| {
            (symbol.vaddr, symbol.size == 0, symbol.kind == SymbolKind::Label, !symbol.global)
        });
        all.dedup_by_key(|symbol| symbol.vaddr);
        let mut found = AddressNames { functions: Vec::new(), names: String::new(), segments };
        let (mut reach, mut room) = (0, MAX_UNSIZED);
        for (number, symbol) in all.iter().enumerate() {
            let end = match symbol.size {
                0 if symbol.kind == SymbolKind::Label || room == 0 => None,
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

    /// Returns the end of a function whose symbol has no size: as its unwind information says, or else where the next
    /// symbol begins. Where only some functions have symbols, the next one may be far away.
    fn end_of(&self, image: &Image<'_>, symbol: &Symbol<'_>, next: Option<&Symbol<'_>>) -> Option<u64> {
        if let Some(frame) = frame_at(image, symbol.vaddr).filter(|frame| frame.start == symbol.vaddr) {
            return Some(frame.end);
        }
        let segment = self.segments.iter().find(|segment| segment.holds(symbol.vaddr))?;
        let end = segment.vaddr.saturating_add(segment.bytes);
        (!image.is_stripped()).then(|| next.map_or(end, |next| next.vaddr.min(end)))
    }

    /// Returns the function whose code is at this file offset, as its source names it, with parameters; `None` if
    /// unknown.
    pub fn name(&self, offset: u64) -> Option<String> {
        let vaddr = self.segments.iter().find_map(|segment| {
            let into = offset.checked_sub(segment.offset).filter(|into| *into < segment.bytes)?;
            segment.vaddr.checked_add(into)
        })?;
        let after = self.functions.partition_point(|function| function.begin <= vaddr);
        let before = self.functions[..after].iter().rev().take(MAX_OVERLAPPING);
        let function =
            before.take_while(|function| function.reach > vaddr).find(|function| vaddr < function.end)?;
        Some(shown_name(self.names.get(function.name.clone())?))
    }

    /// Returns roughly how many bytes of memory this uses.
    pub fn bytes(&self) -> usize {
        self.names.len() + self.functions.len() * size_of::<Function>()
    }
}

impl Segment {
    fn holds(&self, vaddr: u64) -> bool {
        vaddr.checked_sub(self.vaddr).is_some_and(|into| into < self.bytes)
    }
}

/// Returns the name that is shown for a function: the source's, with parameters. Copies that the compiler made of a function get the function's
/// name.
pub fn shown_name(symbol: &str) -> String {
    // Legacy Rust symbols end in a hash.
    let is_rust = symbol.starts_with("_R") || symbol.contains("17h");
    let signature = if is_rust { Signature::Parameters } else { Signature::Whole };
    let plain = || clone_of(symbol).map_or(symbol, |clone| clone.base).to_owned();
    demangle(symbol, signature).unwrap_or_else(plain)
}
