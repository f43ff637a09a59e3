//! `.gopclntab`: the table by which a Go program finds its own functions. Stripping leaves it in place, because the
//! garbage collector and every stack trace need it.
//!
//! Layouts: Go's `src/debug/gosym/pclntab.go`, `src/runtime/symtab.go` and `src/cmd/link/internal/ld/pcln.go`.

mod text;

use super::headers::{Headers, bounded_str};
use text::text_start;

/// The header's first eight bytes on x86-64, except for the magic number: variable-length instructions, 8-byte
/// pointers.
const HEADER_TAIL: [u8; 4] = [0, 0, 1, 8];

/// Bit of `_func.flag`: the function is written in assembly.
const FLAG_ASSEMBLY: u8 = 1 << 2;

/// A function of a Go program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::elf) struct Function<'a> {
    /// The linker's name: `net/http.(*conn).serve`, `main.main.func1`, `main.Map[...]`.
    pub name: &'a str,
    pub entry: u64,
    /// Where the next function begins; any gap is padding.
    pub end: u64,
    /// Whether it is written in assembly, according to the table; never set before Go 1.18.
    pub is_assembly: bool,
}

/// The layout of the table, named after the first Go version that writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::elf) enum TableVersion {
    Go1_2,
    /// Go 1.16 and 1.17.
    Go1_16,
    /// Go 1.18 and 1.19.
    Go1_18,
    Go1_20,
}

/// The parsed header of the table, together with the bytes that follow it.
#[derive(Debug, Clone, Copy)]
pub(in crate::elf) struct Pclntab<'a> {
    pub layout: TableVersion,
    /// The base of function entries; 0 in layouts with absolute addresses.
    text: u64,
    /// Pairs of a function's entry and its record's offset, sorted by entry, followed by the end of the last function.
    index: &'a [u8],
    /// The base of record offsets.
    records: &'a [u8],
    names: &'a [u8],
    count: usize,
}

impl<'a> Pclntab<'a> {
    /// Finds the table of a program; `None` if there is no plausible one.
    pub fn of(image: &Headers<'a>) -> Option<Pclntab<'a>> {
        let named = [&b".gopclntab"[..], b".data.rel.ro.gopclntab"];
        if let Some(section) = named.iter().find_map(|name| image.section(name)) {
            let data = image.section_data(section)?;
            return Pclntab::parse(image, section.sh_addr.get(object::LittleEndian), data);
        }
        // The C linker, which links position-independent programs with cgo, merges it into a larger section.
        if image.has_sections() && !is_marked(image) {
            return None;
        }
        image.loaded_segments().find_map(|(vaddr, data)| {
            let starts = (0..data.len()).step_by(8).filter(|&at| magic(&data[at..]).is_some());
            // Everything that looks like a header is checked, up to a limit.
            starts.take(64).find_map(|at| Pclntab::parse(image, vaddr + at as u64, &data[at..]))
        })
    }

    fn parse(image: &Headers<'a>, vaddr: u64, data: &'a [u8]) -> Option<Pclntab<'a>> {
        let layout = magic(data)?;
        let count = usize::try_from(u64_at(data, 8)?).ok()?;
        let from = |field: usize| data.get(usize::try_from(u64_at(data, field)?).ok()?..);
        let (index, records, names) = match layout {
            TableVersion::Go1_2 => (data.get(16..)?, data, data),
            TableVersion::Go1_16 => (from(56)?, from(56)?, from(24)?),
            TableVersion::Go1_18 | TableVersion::Go1_20 => (from(64)?, from(64)?, from(32)?),
        };
        let mut table = Pclntab { layout, text: 0, index, records, names, count };
        // The index must fit; that also bounds the count by the file's size.
        let bytes = count.checked_mul(2)?.checked_add(1)?.checked_mul(table.word())?;
        if count == 0 || bytes > index.len() {
            return None;
        }
        if layout >= TableVersion::Go1_18 {
            table.text =
                text_start(image, vaddr, data, &|text| Pclntab { text, ..table }.is_plausible(image))?;
        }
        table.is_plausible(image).then_some(table)
    }

    /// Returns whether the first function begins, and the last one ends, in code.
    fn is_plausible(&self, image: &Headers<'_>) -> bool {
        let (first, end) = (self.entry(0), self.entry(self.count));
        let (Some(first), Some(end)) = (first, end) else { return false };
        first < end && image.code_at(first, 1).is_some() && image.code_at(end - 1, 1).is_some()
    }

    /// Returns the size in bytes of a number in the index.
    fn word(&self) -> usize {
        if self.layout >= TableVersion::Go1_18 { 4 } else { 8 }
    }

    fn index_at(&self, n: usize) -> Option<u64> {
        match self.word() {
            4 => u32_at(self.index, n * 4).map(u64::from),
            _ => u64_at(self.index, n * 8),
        }
    }

    /// Returns where function `n` begins; for the number after the last, where the last one ends.
    fn entry(&self, n: usize) -> Option<u64> {
        self.text.checked_add(self.index_at(2 * n)?)
    }

    /// Returns function `n`.
    fn function(&self, n: usize) -> Option<Function<'a>> {
        let (entry, end) = (self.entry(n)?, self.entry(n + 1)?);
        let record = self.records.get(usize::try_from(self.index_at(2 * n + 1)?).ok()?..)?;
        let at_entry = if self.layout >= TableVersion::Go1_18 { 4 } else { 8 };
        let name = std::str::from_utf8(bounded_str(self.names, u32_at(record, at_entry)?)?).ok()?;
        let flag = match self.layout {
            TableVersion::Go1_20 => *record.get(41)?,
            TableVersion::Go1_18 => *record.get(37)?,
            TableVersion::Go1_2 | TableVersion::Go1_16 => 0,
        };
        let is_assembly = flag & FLAG_ASSEMBLY != 0;
        (entry < end && !name.is_empty()).then_some(Function { name, entry, end, is_assembly })
    }

    /// Iterates over all functions, sorted by entry.
    pub fn functions(self) -> impl Iterator<Item = Function<'a>> + use<'a> {
        (0..self.count).filter_map(move |n| self.function(n))
    }

    /// Returns the function that contains an address.
    pub fn covering(&self, vaddr: u64) -> Option<Function<'a>> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entry(middle)? <= vaddr { low = middle + 1 } else { high = middle }
        }
        let found = self.function(low.checked_sub(1)?)?;
        (found.entry..found.end).contains(&vaddr).then_some(found)
    }
}

/// Returns whether other features of the file show that the Go toolchain built it.
pub(in crate::elf) fn is_marked(image: &Headers<'_>) -> bool {
    image.section(b".go.buildinfo").is_some() || image.has_note(b"Go")
}

/// Returns the layout if a header begins here.
fn magic(data: &[u8]) -> Option<TableVersion> {
    if data.get(4..8)? != HEADER_TAIL {
        return None;
    }
    Some(match u32_at(data, 0)? {
        0xffff_fffb => TableVersion::Go1_2,
        0xffff_fffa => TableVersion::Go1_16,
        0xffff_fff0 => TableVersion::Go1_18,
        0xffff_fff1 => TableVersion::Go1_20,
        _ => return None,
    })
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    data.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::Image;

    const CODE: u64 = 0x40_1000;
    const TABLE: u64 = 0x40_2000;
    const NAMES: [&str; 3] = ["main.main", "main.(*Peer).Handle", "gopkg.in/yaml%2ev3.Map[...]"];
    /// Where each function begins in the code, and where the last one ends.
    const ENTRIES: [u64; 4] = [0x10, 0x20, 0x40, 0x60];

    /// Builds a table with [`NAMES`], the second of them in assembly if the layout records that.
    fn table(layout: TableVersion) -> Vec<u8> {
        let (magic, word) = match layout {
            TableVersion::Go1_2 => (0xffff_fffb_u32, 8),
            TableVersion::Go1_16 => (0xffff_fffa, 8),
            TableVersion::Go1_18 => (0xffff_fff0, 4),
            TableVersion::Go1_20 => (0xffff_fff1, 4),
        };
        let header = if layout == TableVersion::Go1_2 { 16 } else { 72 };
        let relative = word == 4;
        let index = header + NAMES.iter().map(|name| name.len() + 1).sum::<usize>();
        // Record offsets are relative to the index, in the oldest layout to the table.
        let base = if layout == TableVersion::Go1_2 { 0 } else { index };
        let index = if layout == TableVersion::Go1_2 { header } else { index };
        let records = index + (2 * NAMES.len() + 1) * word;
        let names = if layout == TableVersion::Go1_2 { records + 48 * NAMES.len() } else { header };
        let name_base = if layout == TableVersion::Go1_2 { 0 } else { names };
        let mut data = vec![0; records + 48 * NAMES.len() + 128];
        let mut put = |at: usize, bytes: &[u8]| data[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &magic.to_le_bytes());
        put(4, &HEADER_TAIL);
        put(8, &(NAMES.len() as u64).to_le_bytes());
        match layout {
            TableVersion::Go1_2 => {}
            TableVersion::Go1_16 => {
                put(24, &(names as u64).to_le_bytes());
                put(56, &(index as u64).to_le_bytes());
            }
            TableVersion::Go1_18 | TableVersion::Go1_20 => {
                put(24, &CODE.to_le_bytes());
                put(32, &(names as u64).to_le_bytes());
                put(64, &(index as u64).to_le_bytes());
            }
        }
        let mut name = names;
        for (n, entry) in ENTRIES.iter().enumerate() {
            let entry = if relative { *entry } else { CODE + entry };
            put(index + 2 * n * word, &entry.to_le_bytes()[..word]);
            let Some(text) = NAMES.get(n) else { break };
            let record = records + 48 * n;
            put(index + (2 * n + 1) * word, &((record - base) as u64).to_le_bytes()[..word]);
            put(record, &entry.to_le_bytes()[..word]);
            put(record + word, &((name - name_base) as u32).to_le_bytes());
            put(name, text.as_bytes());
            if n == 1 && relative {
                put(record + if layout == TableVersion::Go1_18 { 37 } else { 41 }, &[FLAG_ASSEMBLY]);
            }
            name += text.len() + 1;
        }
        data
    }

    /// Builds a program without section headers: 128 bytes of code and the table, in a segment each.
    fn program(table: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        bytes.extend([2u16, 62].map(u16::to_le_bytes).concat());
        bytes.extend(1u32.to_le_bytes());
        bytes.extend([CODE, 64, 0].map(u64::to_le_bytes).concat());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend([64u16, 56, 2, 64, 0, 0].map(u16::to_le_bytes).concat());
        for (flags, offset, vaddr, size) in [(5u32, 0x100, CODE, 0x80), (4, 0x180, TABLE, table.len() as u64)]
        {
            bytes.extend([1, flags].map(u32::to_le_bytes).concat());
            bytes.extend([offset, vaddr, vaddr, size, size, 1].map(u64::to_le_bytes).concat());
        }
        bytes.resize(0x180, 0xcc);
        bytes.extend(table);
        bytes
    }

    const LAYOUTS: [TableVersion; 4] =
        [TableVersion::Go1_2, TableVersion::Go1_16, TableVersion::Go1_18, TableVersion::Go1_20];

    #[test]
    fn parses_every_layout() {
        for layout in LAYOUTS {
            let bytes = program(&table(layout));
            let image = Image::parse(&bytes).unwrap();
            let table = image.pclntab().unwrap_or_else(|| panic!("{layout:?}"));
            assert_eq!(table.layout, layout);
            let found: Vec<_> = table.functions().map(|f| (f.name, f.entry - CODE, f.end - CODE)).collect();
            let expected: Vec<_> = (0..3).map(|n| (NAMES[n], ENTRIES[n], ENTRIES[n + 1])).collect();
            assert_eq!(found, expected, "{layout:?}");
            let in_assembly: Vec<_> = table.functions().map(|f| f.is_assembly).collect();
            assert_eq!(in_assembly, [false, layout >= TableVersion::Go1_18, false]);
            let name = |at| table.covering(CODE + at).map(|f| f.name);
            assert_eq!(
                [0, 0x10, 0x3f, 0x40, 0x5f, 0x60].map(name),
                [None, Some(NAMES[0]), Some(NAMES[1]), Some(NAMES[2]), Some(NAMES[2]), None]
            );
        }
    }

    #[test]
    fn survives_damaged_tables() {
        for layout in LAYOUTS {
            let good = table(layout);
            let all = |bytes: &[u8]| {
                let bytes = program(bytes);
                let Ok(image) = Image::parse(&bytes) else { return };
                let Some(table) = image.pclntab() else { return };
                let known = table.functions().filter(|f| table.covering(f.entry).is_some()).count();
                assert!(known <= table.count && table.count < bytes.len());
            };
            (0..good.len()).for_each(|end| all(&good[..end]));
            for at in 0..good.len() {
                for value in [0, 1, 0x7f, 0xff] {
                    let mut bytes = good.clone();
                    bytes[at] = value;
                    all(&bytes);
                }
            }
        }
    }
}
