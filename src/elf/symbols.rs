//! Symbol tables: the names that a file gives to addresses.

use std::collections::HashMap;

use object::LittleEndian;
use object::SymbolIndex;
use object::elf::{self, Sym64};
use object::pod::slice_from_bytes;
use object::read::elf::{SectionHeader, Sym};

use super::Image;
use super::golang::Pclntab;
use super::image::{LE, bounded_str};

/// One defined or undefined symbol.
#[derive(Debug, Clone, Copy)]
pub(super) struct Symbol<'a> {
    /// Without its version.
    pub name: &'a str,
    /// `GLIBC_2.14` of `memcpy@@GLIBC_2.14`.
    pub version: Option<&'a str>,
    pub vaddr: u64,
    /// Bytes; 0 when the table does not say.
    pub size: u64,
    pub kind: Kind,
    /// False for what the file imports from another.
    pub defined: bool,
    pub global: bool,
    /// Whether it is of a debug file, or of the symbols packed into the program, and not of the program's own tables.
    pub from_debug_symbols: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Function,
    /// A function chosen when the program starts.
    Ifunc,
    ThreadLocal,
    /// A place without a type, as assembler leaves it.
    Label,
    Other,
}

/// Every named symbol: of `.symtab`, of the separate debug file if there is one, of `.dynsym`; and of the table by which a
/// Go program names its own functions, where the first two are missing: they tell functions apart that it names alike.
pub(super) fn symbols<'a>(image: &Image<'a>) -> impl Iterator<Item = Symbol<'a>> + use<'a> {
    let [own, exported] = [elf::SHT_SYMTAB, elf::SHT_DYNSYM].map(|kind| Table::of(image, kind));
    let own = own.into_iter().flat_map(Table::symbols);
    let debug = image.debug_symbols().into_iter().flat_map(Table::symbols);
    let debug = debug.map(|symbol| Symbol { from_debug_symbols: true, ..symbol });
    let tables = own.chain(debug);
    let versions = image.versions();
    let exported = exported.into_iter().flat_map(Table::numbered).map(move |(number, symbol)| {
        let version = versions
            .as_ref()
            .and_then(|versions| versions.version(versions.version_index(LE, number).index()).ok().flatten());
        let version = version.and_then(|version| std::str::from_utf8(version.name()).ok());
        Symbol { version: version.or(symbol.version), ..symbol }
    });
    let tables = tables.chain(exported);
    let pclntab = image.pclntab().filter(|_| is_stripped(image));
    tables.chain(pclntab.into_iter().flat_map(Pclntab::functions).map(|function| Symbol {
        name: function.name,
        version: None,
        vaddr: function.entry,
        size: function.end - function.entry,
        kind: Kind::Function,
        defined: true,
        global: false,
        from_debug_symbols: false,
    }))
}

/// Whether only the symbols that other files link against are left.
pub(super) fn is_stripped(image: &Image<'_>) -> bool {
    image.debug_symbols().is_none() && image.section_of_type(elf::SHT_SYMTAB).is_none()
}

/// The addresses of variables, in one pass over the tables. Err says why there is none, to follow a colon.
pub(super) fn variables<'n>(image: &Image<'_>, names: &[&'n str]) -> HashMap<&'n str, Result<u64, String>> {
    let missing = |name| match is_stripped(image) {
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
            _ if symbol.kind == Kind::ThreadLocal => Err(format!("`{name}` is thread-local")),
            None => Ok(symbol.vaddr),
            Some(Ok(vaddr)) if *vaddr == symbol.vaddr => Ok(symbol.vaddr),
            Some(_) => Err(format!("several variables have the name `{name}`")),
        });
    }
    found.into_iter().map(|(name, place)| (name, place.unwrap_or_else(|| Err(missing(name))))).collect()
}

/// The symbols whose addresses the loader writes, by where it does.
pub(super) fn relocated<'a>(image: &Image<'a>) -> HashMap<u64, &'a str> {
    const ENTRY: usize = 24;
    let Some(table) = Table::of(image, elf::SHT_DYNSYM) else { return HashMap::new() };
    let data = |name| image.section(name).and_then(|section| image.section_data(section)).unwrap_or(&[]);
    let entries =
        [data(b".rela.plt"), data(b".rela.dyn")].into_iter().flat_map(|data| data.chunks_exact(ENTRY));
    let symbol = |entry: &[u8]| {
        let slot = u64::from_le_bytes(*entry.first_chunk()?);
        // The symbol's number is the upper half of the second word.
        let number = u32::from_le_bytes(*entry.get(12..)?.first_chunk()?);
        Some((slot, table.name_of(number as usize)?))
    };
    entries.filter_map(symbol).collect()
}

/// The entries of a symbol table section and the strings that they point into.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table<'a> {
    entries: &'a [Sym64<LittleEndian>],
    strings: &'a [u8],
}

impl<'a> Table<'a> {
    /// None when there is no such section or it does not fit the file.
    pub fn of(image: &Image<'a>, kind: elf::SectionType) -> Option<Table<'a>> {
        let section = image.section_of_type(kind)?;
        let strings = image.section_data(image.section_at(section.sh_link(LE))?)?;
        let bytes = image.section_data(section)?;
        let (entries, _) = slice_from_bytes(bytes, bytes.len() / size_of::<Sym64<LittleEndian>>()).ok()?;
        Some(Table { entries, strings })
    }

    fn symbols(self) -> impl Iterator<Item = Symbol<'a>> + use<'a> {
        self.numbered().map(|(_, symbol)| symbol)
    }

    /// The name of the symbol with this number.
    pub fn name_of(self, number: usize) -> Option<&'a str> {
        std::str::from_utf8(bounded_str(self.strings, self.entries.get(number)?.st_name(LE))?).ok()
    }

    /// The symbols with their numbers in the table.
    fn numbered(self) -> impl Iterator<Item = (SymbolIndex, Symbol<'a>)> + use<'a> {
        self.entries.iter().enumerate().filter_map(move |(number, entry)| {
            let name = std::str::from_utf8(bounded_str(self.strings, entry.st_name(LE))?).ok()?;
            let (name, version) = match name.split_once('@') {
                Some((plain, version)) => (plain, Some(version.trim_start_matches('@'))),
                None => (name, None),
            };
            let kind = match entry.st_type() {
                elf::STT_FUNC => Kind::Function,
                elf::STT_GNU_IFUNC => Kind::Ifunc,
                elf::STT_TLS => Kind::ThreadLocal,
                // These name places of the source and of the file, not of the program.
                elf::STT_FILE | elf::STT_SECTION => return None,
                elf::STT_NOTYPE => Kind::Label,
                _ => Kind::Other,
            };
            let symbol = Symbol {
                name,
                version: version.filter(|version| !version.is_empty()),
                vaddr: entry.st_value(LE),
                size: entry.st_size(LE),
                kind,
                defined: entry.st_shndx(LE) != elf::SHN_UNDEF,
                global: !entry.is_local(),
                from_debug_symbols: false,
            };
            (!name.is_empty()).then_some((SymbolIndex(number), symbol))
        })
    }
}
