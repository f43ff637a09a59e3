//! Copies of functions that the compiler inlined into others.

use std::collections::HashMap;

use gimli::DebugInfoOffset;

use super::debug_info::{DebugInfo, Finder};
use super::names::canonical;
use super::select::is_called;

impl DebugInfo<'_> {
    /// Returns how many copies of the function with this symbol were inlined into others.
    pub fn inlined_copies(&self, symbol: &str) -> usize {
        let all = self.inlined.get_or_init(|| inlined(&self.finder()).unwrap_or_default());
        all.get(symbol.as_bytes()).copied().unwrap_or(0)
    }

    /// Returns how many copies of functions with this symbol or source name were inlined into others. Unlike
    /// [`DebugInfo::inlined_copies`], it finds functions of which no code of their own is left.
    pub fn inlined_copies_of(&self, name: &str) -> usize {
        let all = self.inlined.get_or_init(|| inlined(&self.finder()).unwrap_or_default());
        let wanted = canonical(name);
        let is_meant = |symbol: &[u8]| {
            std::str::from_utf8(symbol).is_ok_and(|symbol| symbol == name || is_called(symbol, &wanted))
        };
        all.iter().filter(|(symbol, _)| is_meant(symbol)).map(|(_, copies)| copies).sum()
    }
}

/// Counts the inlined copies by symbol.
fn inlined(finder: &Finder<'_>) -> gimli::Result<HashMap<Box<[u8]>, usize>> {
    let mut copies: HashMap<DebugInfoOffset, usize> = HashMap::new();
    for unit in finder.all_units() {
        let mut entries = unit.entries();
        while let Some(entry) = entries.next_dfs()? {
            if entry.tag() == gimli::DW_TAG_inlined_subroutine
                && let Some(origin) = finder.reference(&unit, entry, gimli::DW_AT_abstract_origin)
            {
                *copies.entry(origin).or_default() += 1;
            }
        }
    }
    // Grouped by unit, so that each is opened once.
    let mut copies: Vec<_> = copies.into_iter().collect();
    copies.sort_unstable();
    let mut by_symbol: HashMap<Box<[u8]>, usize> = HashMap::new();
    for (origin, count) in copies {
        if let Some(symbol) = finder.symbol(origin) {
            *by_symbol.entry(symbol.into()).or_default() += count;
        }
    }
    Ok(by_symbol)
}
