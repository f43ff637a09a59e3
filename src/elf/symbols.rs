//! The names that a program, its debug symbols and its Go table assign to addresses.

use std::collections::HashMap;

use object::elf;

use super::Image;
use super::headers::LE;
use super::pclntab::Pclntab;
use super::symbol_table::{Symbol, SymbolKind, SymbolTable};

/// Iterates over every named symbol: from `.symtab`, from the separate debug file if there is one, and from `.dynsym`.
/// If the first two are missing, those from the table by which a Go program names its own functions follow; otherwise
/// that table is not used, because symbols distinguish functions to which it gives the same name.
pub(super) fn symbols<'a>(image: &Image<'a>) -> impl Iterator<Item = Symbol<'a>> + use<'a> {
    let [own, exported] = [elf::SHT_SYMTAB, elf::SHT_DYNSYM].map(|kind| SymbolTable::of(image, kind));
    let own = own.into_iter().flat_map(SymbolTable::symbols);
    let debug = image.debug_symbols().into_iter().flat_map(SymbolTable::symbols);
    let debug = debug.map(|symbol| Symbol { from_debug_symbols: true, ..symbol });
    let tables = own.chain(debug);
    let versions = image.versions();
    let exported = exported.into_iter().flat_map(SymbolTable::numbered).map(move |(number, symbol)| {
        let version = versions
            .as_ref()
            .and_then(|versions| versions.version(versions.version_index(LE, number).index()).ok().flatten());
        let version = version.and_then(|version| std::str::from_utf8(version.name()).ok());
        Symbol { version: version.or(symbol.version), ..symbol }
    });
    let tables = tables.chain(exported);
    let pclntab = image.pclntab().filter(|_| image.is_stripped());
    tables.chain(pclntab.into_iter().flat_map(Pclntab::functions).map(|function| Symbol {
        name: function.name,
        version: None,
        vaddr: function.entry,
        size: function.end - function.entry,
        kind: SymbolKind::Function,
        defined: true,
        global: false,
        from_debug_symbols: false,
    }))
}

/// Returns the addresses of variables, in one pass over the tables. `Err` is the reason why there is none, phrased to
/// follow a colon.
pub(super) fn variables<'n>(image: &Image<'_>, names: &[&'n str]) -> HashMap<&'n str, Result<u64, String>> {
    let missing = |name| match image.is_stripped() {
        true => {
            format!("the program is stripped and has no symbol `{name}`; install its debug symbols")
        }
        false => format!("the program has no symbol `{name}`"),
    };
    let mut found: HashMap<_, Option<Result<u64, String>>> = names.iter().map(|&name| (name, None)).collect();
    if names.is_empty() {
        return HashMap::new();
    }
    for symbol in symbols(image).filter(|s| s.defined) {
        let Some(place) = found.get_mut(symbol.name) else { continue };
        let name = symbol.name;
        *place = Some(match place {
            _ if symbol.kind == SymbolKind::ThreadLocal => Err(format!("`{name}` is thread-local")),
            None => Ok(symbol.vaddr),
            Some(Ok(vaddr)) if *vaddr == symbol.vaddr => Ok(symbol.vaddr),
            Some(_) => Err(format!("several variables have the name `{name}`")),
        });
    }
    found.into_iter().map(|(name, place)| (name, place.unwrap_or_else(|| Err(missing(name))))).collect()
}

/// Returns the symbols whose addresses the loader writes, by the address of the slot.
pub(super) fn relocated<'a>(image: &Image<'a>) -> HashMap<u64, &'a str> {
    const ENTRY: usize = 24;
    let Some(table) = SymbolTable::of(image, elf::SHT_DYNSYM) else { return HashMap::new() };
    let data = |name| image.section(name).and_then(|section| image.section_data(section)).unwrap_or(&[]);
    let entries =
        [data(b".rela.plt"), data(b".rela.dyn")].into_iter().flat_map(|data| data.as_chunks::<ENTRY>().0);
    let symbol = |entry: &[u8; ENTRY]| {
        let slot = u64::from_le_bytes(*entry.first_chunk()?);
        // The symbol's number is the upper half of the second word.
        let number = u32::from_le_bytes(*entry.get(12..)?.first_chunk()?);
        Some((slot, table.name_of(number as usize)?))
    };
    entries.filter_map(symbol).collect()
}
