//! Copies of a function that the compiler inlined into its callers, as far as DWARF tells. A probe sees none of them.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use flate2::read::ZlibDecoder;
use gimli::{
    AttributeValue, DebuggingInformationEntry, Dwarf, DwarfSections, EndianSlice, LittleEndian, Unit,
};
use object::elf::{ELFCOMPRESS_ZLIB, SHF_COMPRESSED};
use object::read::elf::SectionHeader;

use super::Image;
use super::image::LE;
use super::select::matching;

/// More debug information than this is not read.
const BYTES_MAX: u64 = 1 << 30;

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// How many copies of the functions that `pattern` names were inlined into others, by the debug information in `debug`, which
/// is the file itself or its debug file. None if that cannot be told: there is no debug information, or it is damaged, too
/// large or packed in a way that is not known.
pub fn inlined_copies(image: &Image<'_>, debug: &Image<'_>, pattern: &str) -> Option<usize> {
    let selected = matching(image, pattern).ok().filter(|selected| selected.exact)?;
    let symbols: HashSet<&[u8]> = selected.by_address.values().map(|symbol| symbol.name.as_bytes()).collect();
    let sections =
        DwarfSections::load(|id| section(debug, id.name().as_bytes()).ok_or(gimli::Error::Io)).ok()?;
    let dwarf = sections.borrow(|section| EndianSlice::new(section, LittleEndian));
    count(&dwarf, &symbols).ok().flatten()
}

/// A section's bytes, unpacked; empty if there is none.
fn section<'a>(image: &Image<'a>, name: &[u8]) -> Option<Cow<'a, [u8]>> {
    let Some(section) = image.section(name) else { return Some(Cow::Borrowed(&[])) };
    let data = image.section_data(section)?;
    if !section.sh_flags(LE).contains(SHF_COMPRESSED) {
        return (data.len() as u64 <= BYTES_MAX).then_some(Cow::Borrowed(data));
    }
    // Elf64_Chdr: type, reserved, size, alignment.
    let kind = u32::from_le_bytes(*data.first_chunk()?);
    let size = u64::from_le_bytes(*data.get(8..)?.first_chunk()?);
    if kind != ELFCOMPRESS_ZLIB.0 || size > BYTES_MAX {
        return None;
    }
    let mut unpacked = Vec::new();
    let mut decoder = std::io::Read::take(ZlibDecoder::new(data.get(24..)?), size);
    std::io::Read::read_to_end(&mut decoder, &mut unpacked).ok()?;
    Some(Cow::Owned(unpacked))
}

/// None if no function of these symbols is described.
fn count(dwarf: &Dwarf<Slice<'_>>, symbols: &HashSet<&[u8]>) -> gimli::Result<Option<usize>> {
    let mut copies: HashMap<usize, usize> = HashMap::new();
    let mut meant: HashSet<usize> = HashSet::new();
    let mut specified: Vec<(usize, usize)> = Vec::new();
    let mut units = dwarf.units();
    while let Some(header) = units.next()? {
        let unit = dwarf.unit(header)?;
        let mut entries = unit.entries();
        while let Some(entry) = entries.next_dfs()? {
            match entry.tag() {
                gimli::DW_TAG_inlined_subroutine => {
                    if let Some(origin) = reference(&unit, entry, gimli::DW_AT_abstract_origin) {
                        *copies.entry(origin).or_default() += 1;
                    }
                }
                gimli::DW_TAG_subprogram => {
                    let Some(at) = entry.offset().to_debug_info_offset(&unit.header).map(|at| at.0) else {
                        continue;
                    };
                    if symbol_of(dwarf, &unit, entry).is_some_and(|name| symbols.contains(name)) {
                        meant.insert(at);
                    }
                    if let Some(of) = reference(&unit, entry, gimli::DW_AT_specification) {
                        specified.push((at, of));
                    }
                }
                _ => {}
            }
        }
    }
    let declared: Vec<usize> =
        specified.into_iter().filter(|(_, of)| meant.contains(of)).map(|(at, _)| at).collect();
    meant.extend(declared);
    Ok((!meant.is_empty()).then(|| meant.iter().filter_map(|at| copies.get(at)).sum()))
}

/// The symbol of a described function: its linkage name, or the name itself where the language has no other.
fn symbol_of<'a>(
    dwarf: &Dwarf<Slice<'a>>,
    unit: &Unit<Slice<'a>>,
    entry: &DebuggingInformationEntry<Slice<'a>>,
) -> Option<&'a [u8]> {
    let name = entry.attr_value(gimli::DW_AT_linkage_name).or_else(|| entry.attr_value(gimli::DW_AT_name))?;
    Some(dwarf.attr_string(unit, name).ok()?.slice())
}

/// Where in the debug information an attribute of the entry points.
fn reference(
    unit: &Unit<Slice<'_>>,
    entry: &DebuggingInformationEntry<Slice<'_>>,
    attribute: gimli::DwAt,
) -> Option<usize> {
    match entry.attr_value(attribute)? {
        AttributeValue::UnitRef(offset) => offset.to_debug_info_offset(&unit.header).map(|at| at.0),
        AttributeValue::DebugInfoRef(offset) => Some(offset.0),
        _ => None,
    }
}
