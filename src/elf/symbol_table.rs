//! Symbol tables, as one section each.

use object::LittleEndian;
use object::SymbolIndex;
use object::elf::{self, Sym64};
use object::pod::slice_from_bytes;
use object::read::elf::{SectionHeader, Sym};

use super::headers::{Headers, LE, bounded_str};

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

/// The entries of a symbol table section and the strings that they point into.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table<'a> {
    entries: &'a [Sym64<LittleEndian>],
    strings: &'a [u8],
}

impl<'a> Table<'a> {
    /// None when there is no such section or it does not fit the file.
    pub fn of(headers: &Headers<'a>, kind: elf::SectionType) -> Option<Table<'a>> {
        let section = headers.section_of_type(kind)?;
        let strings = headers.section_data(headers.section_at(section.sh_link(LE))?)?;
        let bytes = headers.section_data(section)?;
        let (entries, _) = slice_from_bytes(bytes, bytes.len() / size_of::<Sym64<LittleEndian>>()).ok()?;
        Some(Table { entries, strings })
    }

    /// The symbols in the table's order.
    pub fn symbols(self) -> impl Iterator<Item = Symbol<'a>> + use<'a> {
        self.numbered().map(|(_, symbol)| symbol)
    }

    /// The name of the symbol with this number.
    pub fn name_of(self, number: usize) -> Option<&'a str> {
        std::str::from_utf8(bounded_str(self.strings, self.entries.get(number)?.st_name(LE))?).ok()
    }

    /// The symbols with their numbers in the table.
    pub fn numbered(self) -> impl Iterator<Item = (SymbolIndex, Symbol<'a>)> + use<'a> {
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
