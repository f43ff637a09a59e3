//! Functions by name, by pattern and by offset.

use std::collections::HashSet;

use iced_x86::{Decoder, DecoderOptions};

use super::golang;
use super::names::{CloneKind, clone_of};
use super::pclntab::{Function, TableVersion};
use super::probeable::LONGEST_INSTRUCTION;
use super::select::{Selected, matching, missing};
use super::sites::share_semaphores;
use super::symbol_table::{Symbol, SymbolKind};
use super::symbols::symbols;
use super::unwind::frame_at;
use super::{Arch, Convention, Cost, FunctionSite, Image, Site, SiteError, SiteShape, SymbolIndex};

/// The parsed form of a pattern.
#[derive(Debug, PartialEq, Eq)]
enum Pattern<'a> {
    /// A file offset.
    Offset(u64),
    /// A name or glob, and an offset from the function's entry.
    Name(&'a str, u64),
}

/// The functions that a pattern names, one for each address, in order of address. The pattern is
///
/// - a symbol (`SSL_write`), which goes before anything else,
/// - a demangled C++ or Rust name, with its parameters or without (`CConnman::Start`),
/// - a glob of either, with `*` and `?` (`CTxMemPool::*`),
/// - a symbol or demangled name and an offset in bytes (`SSL_write+0x10`),
/// - an offset in the file (`0x1234`).
///
/// A probe at an entry that is `endbr64` and then a push goes on the push: arguments and return address are
/// where they were, and a hit costs a third (measured on Linux 6.18, for entry and for return).
pub fn function_sites(image: &Image<'_>, pattern: &str) -> Result<Vec<FunctionSite>, SiteError> {
    SymbolIndex::of(image).sites(pattern)
}

impl SymbolIndex<'_> {
    /// See [`function_sites`].
    ///
    /// # Errors
    /// If the pattern names no function, or none that can be probed.
    pub fn sites(&self, pattern: &str) -> Result<Vec<FunctionSite>, SiteError> {
        self.remarked(pattern, false).map(|(sites, _)| sites)
    }

    /// Returns the entries of the functions that the pattern matches; empty if there are none.
    pub fn entries(&self, pattern: &str) -> Vec<u64> {
        matching(self, pattern.trim()).map(|found| found.by_address.into_keys().collect()).unwrap_or_default()
    }

    /// Returns how many copies of the functions that the pattern matches were inlined into others, according to debug
    /// information: a probe sees none of them.
    pub fn inlined_copies(&self, pattern: &str) -> usize {
        let Some(debug_info) = self.debug_info() else { return 0 };
        let selected = match matching(self, pattern) {
            Ok(selected) if selected.exact => selected,
            Err(SiteError::NoFunction { .. }) => return debug_info.inlined_copies_of(pattern),
            _ => return 0,
        };
        let symbols: HashSet<&str> = selected.by_address.values().map(|symbol| symbol.name).collect();
        symbols.into_iter().map(|symbol| debug_info.inlined_copies(symbol)).sum()
    }

    /// Like [`SymbolIndex::sites`], with remarks that the user should know about the selection: sentences without a
    /// full stop.
    ///
    /// # Errors
    /// As [`SymbolIndex::sites`].
    pub fn remarked_sites(&self, pattern: &str) -> Result<(Vec<FunctionSite>, Vec<String>), SiteError> {
        self.remarked(pattern, true)
    }

    fn remarked(&self, pattern: &str, wanted: bool) -> Result<(Vec<FunctionSite>, Vec<String>), SiteError> {
        let mut remarks = Vec::new();
        let mut sites = named(self, pattern.trim(), wanted.then_some(&mut remarks))?;
        share_semaphores(self.image(), &mut sites);
        Ok((sites, remarks))
    }
}

fn named(
    index: &SymbolIndex<'_>,
    pattern: &str,
    remarks: Option<&mut Vec<String>>,
) -> Result<Vec<FunctionSite>, SiteError> {
    match parse(pattern)? {
        Pattern::Offset(offset) => at_offset(index, pattern, offset).map(|site| vec![site]),
        Pattern::Name(name, 0) => {
            let found = matching(index, name)?;
            if let Some(remarks) = remarks {
                remarks.extend(found.remarks(index, name));
            }
            let mut sites = Vec::new();
            for symbol in found.by_address.values() {
                match at_entry(index, symbol) {
                    Ok(site) => sites.push(FunctionSite {
                        name: versioned(symbol, index),
                        specialised: is_specialised(symbol, name),
                        ..site
                    }),
                    // A glob skips functions that cannot be probed.
                    Err(error) if found.exact => return Err(error),
                    Err(_) => {}
                }
            }
            if sites.is_empty() { Err(missing(index, name)) } else { Ok(sites) }
        }
        Pattern::Name(name, into) => {
            let Selected { by_address: found, exact, .. } = matching(index, name)?;
            if !exact {
                let reason = "an offset can be added to a name, but not to a glob".to_owned();
                return Err(SiteError::BadPattern { pattern: pattern.to_owned(), reason });
            }
            found.into_values().map(|symbol| inside(index, &symbol, into)).collect()
        }
    }
}

fn parse(pattern: &str) -> Result<Pattern<'_>, SiteError> {
    let bad = |reason: &str| SiteError::BadPattern { pattern: pattern.to_owned(), reason: reason.to_owned() };
    if pattern.is_empty() {
        return Err(bad("it is empty"));
    }
    if pattern.starts_with("0x") {
        return number(pattern)
            .map(Pattern::Offset)
            .ok_or_else(|| bad("it is not a hexadecimal file offset"));
    }
    match pattern.rsplit_once('+') {
        Some((name, into)) if into.starts_with(|c: char| c.is_ascii_digit()) && !name.is_empty() => {
            let into = number(into).ok_or_else(|| bad("the offset after + is not a number of bytes"))?;
            Ok(Pattern::Name(name.trim_end(), into))
        }
        _ => Ok(Pattern::Name(pattern, 0)),
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

fn function_site(
    index: &SymbolIndex<'_>,
    symbol: &Symbol<'_>,
    vaddr: u64,
) -> Result<FunctionSite, SiteError> {
    let unmapped = || SiteError::Unmapped { what: format!("the function {}", symbol.name), vaddr };
    Ok(FunctionSite {
        name: symbol.name.to_owned(),
        demangled: index.source_name(symbol),
        size: symbol.size,
        site: Site::at(index.image(), vaddr).ok_or_else(unmapped)?,
        at_entry: true,
        entry: symbol.vaddr,
        checked: true,
        is_go: index.is_go(),
        convention: Convention::SystemV,
        specialised: false,
        if_above: false,
    })
}

/// Returns whether the symbol names a specialized copy, while the user named the function.
fn is_specialised(symbol: &Symbol<'_>, pattern: &str) -> bool {
    symbol.name != pattern && clone_of(symbol.name).is_some_and(|clone| clone.kind == CloneKind::Specialised)
}

/// Checks that a function can begin at a symbol that has no type, or that is not from the program's own tables.
fn check_entry(index: &SymbolIndex<'_>, symbol: &Symbol<'_>) -> Result<(), SiteError> {
    let is_label = symbol.kind == SymbolKind::Label;
    if !is_label && !symbol.from_debug_symbols {
        return Ok(());
    }
    let image = index.image();
    let labelled = if is_label { index.function_around(symbol.vaddr).map(|f| f.vaddr) } else { None };
    let frame = || frame_at(image, symbol.vaddr).map(|frame| frame.start);
    let Some(start) = labelled.or_else(frame).filter(|start| *start < symbol.vaddr) else { return Ok(()) };
    let whole = Symbol { vaddr: start, ..*symbol };
    check_boundary(image, &whole, symbol.vaddr - start, symbol.name)?;
    if symbol.from_debug_symbols && !is_label {
        return Err(SiteError::NotProbeable {
            name: symbol.name.to_owned(),
            reason: "the debug symbols place it inside another function, so they are from another build: install \
                 those of the installed version",
        });
    }
    Ok(())
}

/// Returns the symbol's name, with its version if the name alone could also mean other code: of another version, or an
/// IFUNC.
fn versioned(symbol: &Symbol<'_>, index: &SymbolIndex<'_>) -> String {
    let is_other = |other: &Symbol<'_>| {
        other.defined
            && other.name == symbol.name
            && other.version != symbol.version
            && other.vaddr != symbol.vaddr
    };
    match symbol.version.filter(|_| index.named(symbol.name).any(is_other)) {
        Some(version) => format!("{}@{version}", symbol.name),
        None => symbol.name.to_owned(),
    }
}

fn at_entry(index: &SymbolIndex<'_>, symbol: &Symbol<'_>) -> Result<FunctionSite, SiteError> {
    check_entry(index, symbol)?;
    let image = index.image();
    let entry = function_site(index, symbol, symbol.vaddr)?;
    if let Some(table) = image.pclntab()
        && let Some(function) = table.covering(symbol.vaddr)
    {
        return at_go_entry(image, table.layout, &function, entry);
    }
    if entry.is_go && image.pclntab().is_none() && image.arch() == Arch::X86_64 {
        // Possibly built by a Go that is newer than this program. Its stack check may be recognizable; its calling
        // convention is unknown.
        let end = symbol.vaddr.saturating_add(symbol.size.max(1));
        let function = Function { name: symbol.name, entry: symbol.vaddr, end, is_assembly: false };
        let entry = at_go_entry(image, TableVersion::Go1_16, &function, entry)?;
        return Ok(FunctionSite { convention: Convention::Unknown, ..entry });
    }
    let runtime = index.code().runtime_of(symbol.vaddr, symbol.name);
    let convention = runtime.map_or(Convention::SystemV, |(_, convention)| convention);
    let mut entry = FunctionSite { convention, ..entry };
    if is_copied(index.image(), symbol.name) {
        entry.site.shape = SiteShape::Harmful(COPIED);
        return Ok(entry);
    }
    let may_be_elsewhere = entry.site.shape == SiteShape::Endbr64 || !entry.site.shape.takes_probe();
    if may_be_elsewhere && let Some(site) = Site::at(image, index.code().probed_entry(symbol.vaddr)) {
        return Ok(FunctionSite { site, ..entry });
    }
    Ok(entry)
}

/// Returns whether the program copies the function of this name elsewhere, together with any breakpoint in it: the .NET
/// runtime assembles its write barriers from those in the file.
fn is_copied(image: &Image<'_>, name: &str) -> bool {
    let barriers = ["JIT_WriteBarrier", "JIT_CheckedWriteBarrier", "JIT_ByRefWriteBarrier"];
    (barriers.contains(&name) || name.starts_with("JIT_WriteBarrier_"))
        && symbols(image).any(|symbol| symbol.name == "JIT_PatchedCodeStart")
}

const COPIED: &str = "the program copies this code to another place, where the breakpoint in it would end it";

/// Returns the place in a Go function that each call passes exactly once.
fn at_go_entry(
    image: &Image<'_>,
    layout: TableVersion,
    function: &Function<'_>,
    symbol: FunctionSite,
) -> Result<FunctionSite, SiteError> {
    let unfit = |reason| SiteError::NotProbeable { name: symbol.name.clone(), reason };
    if image.arch() != Arch::X86_64 {
        return Err(unfit("Go functions are only supported on x86-64"));
    }
    if function.entry != symbol.site.vaddr {
        return Err(unfit("it is inside another function"));
    }
    let entry = golang::entry(image, layout, function).map_err(unfit)?;
    let site = |vaddr| Site::at(image, vaddr).ok_or_else(|| unfit("its code is not in the file"));
    let after = site(entry.vaddr)?;
    // The jump is emulated. The instruction after it is a push since Go 1.21; before, it is one that is single-stepped.
    let (site, if_above) = match entry.jump {
        Some(jump) if after.cost() == Cost::SingleStepped => (site(jump)?, true),
        _ => (after, false),
    };
    Ok(FunctionSite { site, convention: entry.convention, if_above, ..symbol })
}

/// Returns the place `into` bytes after a function's entry.
fn inside(index: &SymbolIndex<'_>, symbol: &Symbol<'_>, into: u64) -> Result<FunctionSite, SiteError> {
    if into == 0 {
        return at_entry(index, symbol);
    }
    let what = format!("{}+{into:#x}", symbol.name);
    if symbol.size != 0 && into >= symbol.size {
        let reason = format!("{} has only {} bytes", symbol.name, symbol.size);
        return Err(SiteError::BadPattern { pattern: what, reason });
    }
    check_entry(index, symbol)?;
    check_boundary(index.image(), symbol, into, &what)?;
    let site = function_site(index, symbol, symbol.vaddr.wrapping_add(into))?;
    Ok(FunctionSite { name: what, at_entry: false, ..site })
}

fn at_offset(index: &SymbolIndex<'_>, pattern: &str, offset: u64) -> Result<FunctionSite, SiteError> {
    let unmapped = || SiteError::BadPattern {
        pattern: pattern.to_owned(),
        reason: "no code is loaded from that offset of the file".to_owned(),
    };
    let image = index.image();
    let vaddr = image.code_vaddr(offset).ok_or_else(unmapped)?;
    if let Some(symbol) = index.function_around(vaddr) {
        return inside(index, symbol, vaddr - symbol.vaddr);
    }
    Ok(FunctionSite {
        name: pattern.to_owned(),
        demangled: None,
        size: 0,
        site: Site::at(image, vaddr).ok_or_else(unmapped)?,
        at_entry: false,
        entry: vaddr,
        checked: false,
        is_go: index.is_go(),
        convention: Convention::SystemV,
        specialised: false,
        if_above: false,
    })
}

/// The largest offset into a function up to which it is decoded.
const DECODED_MAX: u64 = 16 << 20;

/// Checks that an instruction begins `into` bytes after a function's entry.
fn check_boundary(image: &Image<'_>, symbol: &Symbol<'_>, into: u64, what: &str) -> Result<(), SiteError> {
    let inside = |before, after| SiteError::InsideInstruction { what: what.to_owned(), before, after };
    let unclear = SiteError::NotProbeable {
        name: what.to_owned(),
        reason: "the code before it cannot be decoded, so it is not known whether an instruction begins there",
    };
    if image.arch() == Arch::Aarch64 {
        let before = into & !3;
        return if before == into { Ok(()) } else { Err(inside(before, before.saturating_add(4))) };
    }
    if into > DECODED_MAX {
        return Err(unclear);
    }
    let code = image.code_at(symbol.vaddr, into as usize + LONGEST_INSTRUCTION).unwrap_or(&[]);
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    let mut at = 0;
    while at < into {
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return Err(unclear);
        }
        let next = at + instruction.len() as u64;
        if next > into {
            return Err(inside(at, next));
        }
        at = next;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_function_patterns() {
        assert_eq!(parse("SSL_write"), Ok(Pattern::Name("SSL_write", 0)));
        assert_eq!(parse("SSL_write+0x10"), Ok(Pattern::Name("SSL_write", 16)));
        assert_eq!(parse("a::b + 12"), Ok(Pattern::Name("a::b + 12", 0)), "an offset follows its + at once");
        assert_eq!(parse("operator+"), Ok(Pattern::Name("operator+", 0)));
        assert_eq!(parse("0x1234"), Ok(Pattern::Offset(0x1234)));
        for (bad, reason) in [("", "empty"), ("0xzz", "hexadecimal"), ("f+0x", "number"), ("f+1z", "number")]
        {
            assert!(parse(bad).unwrap_err().to_string().contains(reason), "{bad}");
        }
    }
}
