//! Symbol tables, each from a single section.

use object::LittleEndian;
use object::SymbolIndex;
use object::elf::{self, Sym64};
use object::pod::slice_from_bytes;
use object::read::elf::{SectionHeader, Sym};

use super::headers::{Headers, LE, bounded_str};

/// Bytes of all names of a table. Only tables built to take time have more, with many names that share one string.
const MAX_NAMES: usize = 1 << 30;

/// One defined or undefined symbol.
#[derive(Debug, Clone, Copy)]
pub(super) struct Symbol<'a> {
    /// Without its version.
    pub name: &'a str,
    /// `GLIBC_2.14` for `memcpy@@GLIBC_2.14`.
    pub version: Option<&'a str>,
    pub vaddr: u64,
    /// Bytes; 0 if the table does not say.
    pub size: u64,
    pub kind: SymbolKind,
    /// False for a symbol that the file imports from another one.
    pub defined: bool,
    pub global: bool,
    /// Whether the symbol is from a debug file, or from the symbols embedded in the program, rather than from the
    /// program's own tables.
    pub from_debug_symbols: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SymbolKind {
    Function,
    /// A function whose implementation is chosen when the program starts.
    Ifunc,
    ThreadLocal,
    /// A place without a type, as assembly code defines it.
    Label,
    Other,
}

/// The entries of a symbol table section, and the string table to which they refer.
#[derive(Debug, Clone, Copy)]
pub(super) struct SymbolTable<'a> {
    entries: &'a [Sym64<LittleEndian>],
    strings: &'a [u8],
}

impl<'a> SymbolTable<'a> {
    /// Reads the table. `None` if there is no such section or it is inconsistent with the file. For a file without
    /// sections, the table that the dynamic loader uses.
    pub fn of(headers: &Headers<'a>, kind: elf::SectionType) -> Option<SymbolTable<'a>> {
        if kind == elf::SHT_DYNSYM && !headers.has_sections() {
            return SymbolTable::dynamic(headers);
        }
        let section = headers.section_of_type(kind)?;
        let strings = headers.section_data(headers.section_at(section.sh_link(LE))?)?;
        let bytes = headers.section_data(section)?;
        let (entries, _) = slice_from_bytes(bytes, bytes.len() / size_of::<Sym64<LittleEndian>>()).ok()?;
        Some(SymbolTable { entries, strings })
    }

    fn dynamic(headers: &Headers<'a>) -> Option<SymbolTable<'a>> {
        let tags = headers.dynamic();
        let value = |wanted| tags.iter().find(|(tag, _)| *tag == wanted).map(|(_, value)| *value);
        let from = |tag| headers.loaded_from(value(tag)?);
        let by_hash = || word_at(from(elf::DT_HASH)?, 1);
        let count = from(elf::DT_GNU_HASH).and_then(hashed).or_else(by_hash)?;
        let strings = from(elf::DT_STRTAB)?;
        let size = value(elf::DT_STRSZ).and_then(|size| usize::try_from(size).ok());
        let (entries, _) = slice_from_bytes(from(elf::DT_SYMTAB)?, usize::try_from(count).ok()?).ok()?;
        Some(SymbolTable { entries, strings: &strings[..size.unwrap_or(strings.len()).min(strings.len())] })
    }

    /// Returns whether this text occurs anywhere among the names: much faster than checking each.
    pub fn has_text(self, text: &[u8]) -> bool {
        memchr::memmem::find(self.strings, text).is_some()
    }

    /// Iterates over the symbols in table order.
    pub fn symbols(self) -> impl Iterator<Item = Symbol<'a>> + use<'a> {
        self.numbered().map(|(_, symbol)| symbol)
    }

    /// Returns the name of the symbol with this number.
    pub fn name_of(self, number: usize) -> Option<&'a str> {
        std::str::from_utf8(bounded_str(self.strings, self.entries.get(number)?.st_name(LE))?).ok()
    }

    /// Iterates over the symbols with their numbers in the table.
    pub fn numbered(self) -> impl Iterator<Item = (SymbolIndex, Symbol<'a>)> + use<'a> {
        let mut room = MAX_NAMES;
        self.entries.iter().enumerate().filter_map(move |(number, entry)| {
            let name = bounded_str(self.strings, entry.st_name(LE))?;
            room = room.checked_sub(name.len())?;
            let name = std::str::from_utf8(name).ok()?;
            let (name, version) = versioned(name);
            let kind = match entry.st_type() {
                elf::STT_FUNC => SymbolKind::Function,
                elf::STT_GNU_IFUNC => SymbolKind::Ifunc,
                elf::STT_TLS => SymbolKind::ThreadLocal,
                // These name source files and sections rather than places in the program.
                elf::STT_FILE | elf::STT_SECTION => return None,
                elf::STT_NOTYPE => SymbolKind::Label,
                _ => SymbolKind::Other,
            };
            let symbol = Symbol {
                name,
                version,
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

/// Splits a name into the name without its version, and the version, as `nm` writes both: `memcpy@@GLIBC_2.14`. In
/// other languages, names themselves may contain an `@`, for example Crystal's
/// `*Array(Int32)@Array(T)#push<Int32>:Array(Int32)`.
pub(super) fn versioned(name: &str) -> (&str, Option<&str>) {
    split_version(name, b"_.-+")
}

/// Does the same for a pattern, either part of which may be a glob: `mem*@GLIBC_2.*`.
pub(super) fn versioned_pattern(pattern: &str) -> (&str, Option<&str>) {
    split_version(pattern, b"_.-+*?")
}

fn split_version<'n>(name: &'n str, marks: &[u8]) -> (&'n str, Option<&'n str>) {
    let is_version = |version: &str| {
        !version.is_empty()
            && version.bytes().all(|byte| byte.is_ascii_alphanumeric() || marks.contains(&byte))
    };
    match name.split_once('@').map(|(plain, version)| (plain, version.trim_start_matches('@'))) {
        Some((plain, version)) if !plain.is_empty() && is_version(version) => (plain, Some(version)),
        Some((plain, "")) if !plain.is_empty() => (plain, None),
        _ => (name, None),
    }
}

/// Returns the number of symbols in the table that belongs to a GNU hash table: buckets refer to the first symbol of
/// each chain, and a chain's last one has the lowest bit set.
fn hashed(table: &[u8]) -> Option<u32> {
    const HEADER: usize = 4;
    let [buckets, first, bloom] = [0, 1, 2].map(|number| word_at(table, number));
    let (buckets, first, bloom) = (buckets?, first?, bloom?);
    let buckets_at = usize::try_from(bloom).ok()?.checked_mul(2)?.checked_add(HEADER)?;
    let chains_at = buckets_at.checked_add(usize::try_from(buckets).ok()?)?;
    let bucket = |number| word_at(table, number);
    let last = (buckets_at..chains_at).map_while(bucket).max()?;
    if last < first {
        return Some(first);
    }
    let chain = table.get(chains_at.checked_add(usize::try_from(last - first).ok()?)?.checked_mul(4)?..)?;
    let more = chain.as_chunks::<4>().0.iter().position(|word| word[0] & 1 == 1)?;
    last.checked_add(u32::try_from(more).ok()?)?.checked_add(1)
}

fn word_at(table: &[u8], number: usize) -> Option<u32> {
    table.get(number.checked_mul(4)?..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}
