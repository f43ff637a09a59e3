//! Debug information (DWARF) of a file, unpacked once.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::HashMap;

use flate2::read::ZlibDecoder;
use gimli::{
    AttributeValue, DebugInfoOffset, DebuggingInformationEntry, Dwarf, DwarfSections, EndianSlice,
    LittleEndian, Unit, UnitHeader,
};
use object::elf::{ELFCOMPRESS_ZLIB, SHF_COMPRESSED};
use object::read::elf::SectionHeader;

use super::Image;
use super::image::LE;

/// More debug information than this is not read.
const BYTES_MAX: u64 = 1 << 30;

pub(super) type Slice<'a> = EndianSlice<'a, LittleEndian>;
pub(super) type Entry<'a> = DebuggingInformationEntry<Slice<'a>>;

/// What the compiler tells of a program's functions besides their names.
pub struct DebugInfo<'a> {
    sections: DwarfSections<Cow<'a, [u8]>>,
    inlined: OnceCell<HashMap<Box<[u8]>, usize>>,
}

impl<'a> DebugInfo<'a> {
    /// None if the file has none, or it is damaged, too large or packed in a way that is not known.
    pub(super) fn of(image: &Image<'a>) -> Option<DebugInfo<'a>> {
        image.section(b".debug_info").or_else(|| image.section(b".zdebug_info"))?;
        let sections =
            DwarfSections::load(|id| section(image, id.name().as_bytes()).ok_or(gimli::Error::Io)).ok()?;
        Some(DebugInfo { sections, inlined: OnceCell::new() })
    }

    /// How many copies of the function with this symbol were inlined into others.
    pub fn inlined_copies(&self, symbol: &str) -> usize {
        let all = self.inlined.get_or_init(|| inlined(&self.dwarf()).unwrap_or_default());
        all.get(symbol.as_bytes()).copied().unwrap_or(0)
    }

    pub(super) fn dwarf(&self) -> Dwarf<Slice<'_>> {
        self.sections.borrow(|section| EndianSlice::new(section, LittleEndian))
    }
}

impl std::fmt::Debug for DebugInfo<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DebugInfo").finish_non_exhaustive()
    }
}

/// A section's bytes, unpacked; empty if there is none.
fn section<'a>(image: &Image<'a>, name: &[u8]) -> Option<Cow<'a, [u8]>> {
    let Some(section) = image.section(name) else { return old_section(image, name) };
    let data = image.section_data(section)?;
    if !section.sh_flags(LE).contains(SHF_COMPRESSED) {
        return (data.len() as u64 <= BYTES_MAX).then_some(Cow::Borrowed(data));
    }
    // Elf64_Chdr: type, reserved, size, alignment.
    let kind = u32::from_le_bytes(*data.first_chunk()?);
    let size = u64::from_le_bytes(*data.get(8..)?.first_chunk()?);
    if kind != ELFCOMPRESS_ZLIB.0 {
        return None;
    }
    unpacked(data.get(24..)?, size)
}

/// As older binutils compressed it: `.zdebug_info` is `ZLIB`, the size with the highest byte first, and the contents.
fn old_section<'a>(image: &Image<'a>, name: &[u8]) -> Option<Cow<'a, [u8]>> {
    let old = [b".z", name.get(1..)?].concat();
    let Some(section) = image.section(&old) else { return Some(Cow::Borrowed(&[])) };
    let data = image.section_data(section)?.strip_prefix(b"ZLIB")?;
    unpacked(data.get(8..)?, u64::from_be_bytes(*data.first_chunk()?))
}

fn unpacked<'a>(packed: &[u8], size: u64) -> Option<Cow<'a, [u8]>> {
    if size > BYTES_MAX {
        return None;
    }
    let mut unpacked = Vec::new();
    let mut decoder = std::io::Read::take(ZlibDecoder::new(packed), size);
    std::io::Read::read_to_end(&mut decoder, &mut unpacked).ok()?;
    Some(Cow::Owned(unpacked))
}

/// Inlined copies by symbol.
fn inlined(dwarf: &Dwarf<Slice<'_>>) -> gimli::Result<HashMap<Box<[u8]>, usize>> {
    let mut copies: HashMap<DebugInfoOffset, usize> = HashMap::new();
    let mut headers = Vec::new();
    let mut units = dwarf.units();
    while let Some(header) = units.next()? {
        headers.push(header);
        let unit = dwarf.unit(header)?;
        let mut entries = unit.entries();
        while let Some(entry) = entries.next_dfs()? {
            if entry.tag() == gimli::DW_TAG_inlined_subroutine
                && let Some(origin) = reference(&unit.header, entry, gimli::DW_AT_abstract_origin)
            {
                *copies.entry(origin).or_default() += 1;
            }
        }
    }
    // Those of one unit come together, so that each is opened once.
    let mut copies: Vec<_> = copies.into_iter().collect();
    copies.sort_unstable();
    let mut finder = Finder { dwarf, headers, unit: None };
    let mut by_symbol: HashMap<Box<[u8]>, usize> = HashMap::new();
    for (origin, count) in copies {
        if let Some(symbol) = finder.symbol(origin) {
            *by_symbol.entry(symbol.into()).or_default() += count;
        }
    }
    Ok(by_symbol)
}

/// Finds entries by their place in the debug information.
struct Finder<'d, 'a> {
    dwarf: &'d Dwarf<Slice<'a>>,
    headers: Vec<UnitHeader<Slice<'a>>>,
    /// The one used last.
    unit: Option<(usize, Unit<Slice<'a>>)>,
}

impl<'a> Finder<'_, 'a> {
    fn unit(&mut self, at: DebugInfoOffset) -> Option<&Unit<Slice<'a>>> {
        let offset = |header: &UnitHeader<Slice<'a>>| header.offset().to_debug_info_offset(header);
        let after = self.headers.partition_point(|header| offset(header).is_some_and(|offset| offset <= at));
        let number = after.checked_sub(1)?;
        if self.unit.as_ref().is_none_or(|(known, _)| *known != number) {
            self.unit = Some((number, self.dwarf.unit(self.headers[number]).ok()?));
        }
        self.unit.as_ref().map(|(_, unit)| unit)
    }

    /// The symbol of a described function: its linkage name, its declaration's, or the name itself where the language has no
    /// other.
    fn symbol(&mut self, at: DebugInfoOffset) -> Option<&'a [u8]> {
        let dwarf = self.dwarf;
        let mut name = None;
        let mut next = Some(at);
        // From an instance by its declaration to the class's, no farther.
        for _ in 0..3 {
            let Some(at) = next else { break };
            let unit = self.unit(at)?;
            let entry = unit.entry(at.to_unit_offset(&unit.header)?).ok()?;
            let text = |attribute| {
                let value = entry.attr_value(attribute)?;
                Some(dwarf.attr_string(unit, value).ok()?.slice())
            };
            if let Some(symbol) = text(gimli::DW_AT_linkage_name) {
                return Some(symbol);
            }
            name = name.or_else(|| text(gimli::DW_AT_name));
            next = reference(&unit.header, &entry, gimli::DW_AT_specification)
                .or_else(|| reference(&unit.header, &entry, gimli::DW_AT_abstract_origin));
        }
        name
    }
}

/// Where in the debug information an attribute of the entry points.
pub(super) fn reference(
    unit: &UnitHeader<Slice<'_>>,
    entry: &Entry<'_>,
    attribute: gimli::DwAt,
) -> Option<DebugInfoOffset> {
    match entry.attr_value(attribute)? {
        AttributeValue::UnitRef(offset) => offset.to_debug_info_offset(unit),
        AttributeValue::DebugInfoRef(offset) => Some(offset),
        _ => None,
    }
}
