//! The debug information (DWARF) of a file, decompressed once, and its navigation.

use std::borrow::Cow;
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use gimli::{
    AttributeValue, DebugInfoOffset, DebuggingInformationEntry, Dwarf, DwarfSections, EndianSlice,
    LittleEndian, RangeIter, Section, SectionId, Unit, UnitOffset, UnitType,
};

use super::Image;
use super::debug::altlink;
use super::packed::{contents, is_there};

pub(super) type Slice<'a> = EndianSlice<'a, LittleEndian>;
pub(super) type Entry<'a> = DebuggingInformationEntry<Slice<'a>>;

/// The compiler's description of a program's functions, beyond their names.
pub struct DebugInfo<'a> {
    sections: DwarfSections<Cow<'a, [u8]>>,
    /// The sections of the file that holds the debug information shared with other files.
    shared: Option<DwarfSections<Cow<'a, [u8]>>>,
    lacks_shared: bool,
    /// How many copies of each function were inlined into others, by symbol.
    pub(super) inlined: OnceCell<HashMap<Box<[u8]>, usize>>,
    units: OnceCell<Units>,
    functions: RefCell<HashMap<usize, Rc<Functions>>>,
}

/// Entries of functions in one unit, by the address of their first instruction.
type Functions = HashMap<u64, Vec<UnitOffset>>;

/// The offsets of the units in the debug information, and the address ranges of the code that they describe. Offsets
/// into the shared file continue after the end of the program's own debug information.
#[derive(Debug, Default)]
pub(super) struct Units {
    pub offsets: Vec<DebugInfoOffset>,
    /// Sorted by start address.
    spans: Vec<Span>,
    /// Types that have units of their own, by signature.
    types: HashMap<u64, DebugInfoOffset>,
    /// The number of units of which the file has only the skeleton.
    split: usize,
}

/// A range of code of one unit.
#[derive(Debug)]
struct Span {
    begin: u64,
    end: u64,
    /// The highest end of all spans up to and including this one.
    reach: u64,
    unit: usize,
}

/// Why a file's debug information is not read, or only partially.
pub(super) const UNREADABLE: &str =
    "its debug information is damaged, or compressed in a way that is not known";
const SHARED: &str = "parts of its debug information are in a file that it shares with others (.gnu_debugaltlink, made by dwz), \
                      which was not found";
const SPLIT: &str =
    "its debug information is in files of its own (.dwo or .dwp, made by -gsplit-dwarf), which are not read";

impl<'a> DebugInfo<'a> {
    /// Returns `None` if the file has none.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub(super) fn of(
        image: &Image<'a>,
        shared: Option<&Image<'a>>,
    ) -> Option<Result<DebugInfo<'a>, &'static str>> {
        if !is_there(image, b".debug_info") {
            return None;
        }
        let link = altlink(image);
        let shared = shared.filter(|file| {
            link.as_ref().is_some_and(|(_, id)| file.build_id().is_some_and(|known| known == *id))
        });
        let shared = shared.and_then(|file| sections(file).ok());
        Some(sections(image).map(|sections| DebugInfo {
            sections,
            lacks_shared: link.is_some() && shared.is_none(),
            shared,
            inlined: OnceCell::new(),
            units: OnceCell::new(),
            functions: RefCell::default(),
        }))
    }

    /// Returns which debug information is elsewhere, so that this is incomplete.
    pub fn lacks(&self) -> impl Iterator<Item = &'static str> {
        [(self.lacks_shared, SHARED), (self.units().split > 0, SPLIT)]
            .into_iter()
            .filter_map(|(lacks, reason)| lacks.then_some(reason))
    }

    pub(super) fn finder(&self) -> Finder<'_> {
        let dwarf = self.dwarf();
        let Units { offsets, types, .. } = self.units();
        Finder { own: own_bytes(&dwarf), dwarf, units: offsets, types, opened: RefCell::default() }
    }

    /// Returns the entries of functions that begin at this address, including those of functions whose identical code
    /// was folded into one.
    pub(super) fn functions_at(&self, finder: &Finder<'_>, vaddr: u64) -> Vec<DebugInfoOffset> {
        let spans = &self.units().spans;
        let after = spans.partition_point(|span| span.begin <= vaddr);
        let before = spans[..after].iter().rev().take_while(|span| span.reach > vaddr);
        let mut numbers: Vec<usize> = before.filter(|span| span.end > vaddr).map(|span| span.unit).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut found = Vec::new();
        for number in numbers {
            let Some(unit) = finder.numbered(number) else { continue };
            let known = self.functions.borrow().get(&number).cloned();
            let functions = known.unwrap_or_else(|| {
                let functions_of_unit = Rc::new(functions(&finder.dwarf, &unit).unwrap_or_default());
                self.functions.borrow_mut().insert(number, functions_of_unit.clone());
                functions_of_unit
            });
            let entries = functions.get(&vaddr).into_iter().flatten();
            found.extend(entries.filter_map(|offset| unit.place(*offset)));
        }
        found
    }

    fn dwarf(&self) -> Dwarf<Slice<'_>> {
        let slice = |section| EndianSlice::new(section, LittleEndian);
        self.sections.borrow_with_sup(self.shared.as_ref(), |section: &Cow<'a, [u8]>| slice(section))
    }

    fn units(&self) -> &Units {
        self.units.get_or_init(|| {
            let mut units = Units::default();
            let dwarf = self.dwarf();
            let mut headers = dwarf.units();
            // After a damaged header, nothing is known.
            while let Ok(Some(header)) = headers.next() {
                let Some(offset) = header.offset().to_debug_info_offset(&header) else { continue };
                let number = units.offsets.len();
                units.offsets.push(offset);
                if let UnitType::Type { type_signature, type_offset } = header.type_()
                    && let Some(offset) = type_offset.to_debug_info_offset(&header)
                {
                    units.types.insert(type_signature.0, offset);
                }
                let Ok(unit) = dwarf.unit(header) else { continue };
                units.split += usize::from(unit.dwo_name().is_ok_and(|name| name.is_some()));
                let mut entries = unit.entries();
                let Ok(Some(root)) = entries.next_dfs() else { continue };
                let Some(mut ranges) = ranges(&dwarf, &unit, root) else { continue };
                while let Ok(Some(range)) = ranges.next() {
                    units.spans.push(Span { begin: range.begin, end: range.end, reach: 0, unit: number });
                }
            }
            if let Some(shared) = dwarf.sup() {
                units.add_shared(shared, own_bytes(&dwarf));
            }
            units.spans.sort_unstable_by_key(|span| span.begin);
            let mut reach = 0;
            for span in &mut units.spans {
                reach = span.end.max(reach);
                span.reach = reach;
            }
            units
        })
    }
}

impl Units {
    /// Adds the units of the shared file, which has no code.
    fn add_shared(&mut self, shared: &Dwarf<Slice<'_>>, own: usize) {
        let mut headers = shared.units();
        while let Ok(Some(header)) = headers.next() {
            let place = |offset: Option<DebugInfoOffset>| Some(DebugInfoOffset(own.checked_add(offset?.0)?));
            let Some(offset) = place(header.offset().to_debug_info_offset(&header)) else { continue };
            self.offsets.push(offset);
            if let UnitType::Type { type_signature, type_offset } = header.type_()
                && let Some(offset) = place(type_offset.to_debug_info_offset(&header))
            {
                self.types.entry(type_signature.0).or_insert(offset);
            }
        }
    }
}

/// Loads the sections of a file's debug information.
fn sections<'a>(image: &Image<'a>) -> Result<DwarfSections<Cow<'a, [u8]>>, &'static str> {
    let section = |id: SectionId| match id {
        // Not used here.
        SectionId::DebugMacro | SectionId::DebugMacinfo | SectionId::DebugAranges => {
            Ok(Cow::Borrowed(&[][..]))
        }
        _ => contents(image, id.name().as_bytes()).ok_or(gimli::Error::Io),
    };
    DwarfSections::load(section).map_err(|_| UNREADABLE)
}

/// Returns how many bytes of the debug information are the program's own rather than the shared file's.
fn own_bytes(dwarf: &Dwarf<Slice<'_>>) -> usize {
    dwarf.debug_info.reader().len()
}

impl std::fmt::Debug for DebugInfo<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DebugInfo").finish_non_exhaustive()
    }
}

/// Returns the code ranges that an entry describes.
fn ranges<'a>(
    dwarf: &Dwarf<Slice<'a>>,
    unit: &Unit<Slice<'a>>,
    entry: &Entry<'a>,
) -> Option<RangeIter<Slice<'a>>> {
    let low = entry.attr_value(gimli::DW_AT_low_pc).and_then(|low| dwarf.attr_address(unit, low).ok()?);
    if let (Some(low), Some(AttributeValue::Udata(size))) = (low, entry.attr_value(gimli::DW_AT_high_pc)) {
        low.checked_add(size)?;
    }
    dwarf.die_ranges(unit, entry).ok()
}

fn functions(dwarf: &Dwarf<Slice<'_>>, unit: &Unit<Slice<'_>>) -> gimli::Result<Functions> {
    let mut found = Functions::new();
    let mut entries = unit.entries();
    while let Some(entry) = entries.next_dfs()? {
        if entry.tag() == gimli::DW_TAG_subprogram
            && let Some(mut ranges) = ranges(dwarf, unit, entry)
            // If its cold part is elsewhere, the first range contains the entry.
            && let Some(range) = ranges.next()?
        {
            found.entry(range.begin).or_default().push(entry.offset());
        }
    }
    Ok(found)
}

/// Finds entries by their offset in the debug information.
pub(super) struct Finder<'d> {
    pub dwarf: Dwarf<Slice<'d>>,
    units: &'d [DebugInfoOffset],
    types: &'d HashMap<u64, DebugInfoOffset>,
    /// Recently used units.
    opened: RefCell<HashMap<usize, Rc<OpenUnit<'d>>>>,
    /// Offsets from here on are in the shared file.
    own: usize,
}

/// A unit, and the base of its file among all offsets.
pub(super) struct OpenUnit<'d> {
    unit: Unit<Slice<'d>>,
    base: usize,
}

impl<'d> std::ops::Deref for OpenUnit<'d> {
    type Target = Unit<Slice<'d>>;

    fn deref(&self) -> &Unit<Slice<'d>> {
        &self.unit
    }
}

impl OpenUnit<'_> {
    fn place(&self, offset: UnitOffset) -> Option<DebugInfoOffset> {
        self.placed(offset.to_debug_info_offset(&self.unit.header)?)
    }

    /// Converts an offset in the unit's own file.
    fn placed(&self, offset: DebugInfoOffset) -> Option<DebugInfoOffset> {
        offset.0.checked_add(self.base).map(DebugInfoOffset)
    }
}

/// An entry, with the unit that contains it.
#[derive(Clone)]
pub(super) struct Node<'d> {
    pub unit: Rc<OpenUnit<'d>>,
    pub entry: Entry<'d>,
    pub at: DebugInfoOffset,
}

impl<'d> Finder<'d> {
    /// Units that are kept open.
    const MAX_OPEN_UNITS: usize = 16;
    /// The maximum number of an entry's children that are examined.
    const MAX_CHILDREN: usize = 4096;

    fn numbered(&self, number: usize) -> Option<Rc<OpenUnit<'d>>> {
        if let Some(unit) = self.opened.borrow().get(&number) {
            return Some(unit.clone());
        }
        let offset = self.units.get(number)?.0;
        let (dwarf, base) = match offset.checked_sub(self.own) {
            Some(_) => (self.dwarf.sup()?, self.own),
            None => (&self.dwarf, 0),
        };
        let header = dwarf.debug_info.header_from_offset(DebugInfoOffset(offset - base)).ok()?;
        let unit = Rc::new(OpenUnit { unit: dwarf.unit(header).ok()?, base });
        let mut opened = self.opened.borrow_mut();
        if opened.len() >= Self::MAX_OPEN_UNITS {
            opened.clear();
        }
        opened.insert(number, unit.clone());
        Some(unit)
    }

    /// Iterates over the units.
    pub fn all_units(&self) -> impl Iterator<Item = Rc<OpenUnit<'d>>> {
        (0..self.units.len()).filter_map(|number| self.numbered(number))
    }

    /// Returns the debug information that contains a unit.
    pub fn dwarf_of(&self, unit: &OpenUnit<'d>) -> &Dwarf<Slice<'d>> {
        self.dwarf.sup().filter(|_| unit.base > 0).unwrap_or(&self.dwarf)
    }

    /// Returns the entry at this offset.
    pub fn node(&self, at: DebugInfoOffset) -> Option<Node<'d>> {
        let after = self.units.partition_point(|offset| *offset <= at);
        let unit = self.numbered(after.checked_sub(1)?)?;
        let here = DebugInfoOffset(at.0.checked_sub(unit.base)?);
        let entry = unit.entry(here.to_unit_offset(&unit.header)?).ok()?;
        Some(Node { unit, entry, at })
    }

    /// Returns the entry that an attribute refers to.
    pub fn follow(&self, node: &Node<'d>, attribute: gimli::DwAt) -> Option<Node<'d>> {
        match node.entry.attr_value(attribute) {
            Some(AttributeValue::DebugTypesRef(signature)) => self.node(*self.types.get(&signature.0)?),
            _ => self.node(self.reference(&node.unit, &node.entry, attribute)?),
        }
    }

    /// Returns the offset that an attribute of the entry refers to.
    pub fn reference(
        &self,
        unit: &OpenUnit<'d>,
        entry: &Entry<'d>,
        attribute: gimli::DwAt,
    ) -> Option<DebugInfoOffset> {
        match entry.attr_value(attribute)? {
            AttributeValue::UnitRef(offset) => unit.place(offset),
            AttributeValue::DebugInfoRef(offset) => unit.placed(offset),
            AttributeValue::DebugInfoRefSup(offset) => offset.0.checked_add(self.own).map(DebugInfoOffset),
            _ => None,
        }
    }

    /// Returns the direct children of this entry.
    pub fn children(&self, node: &Node<'d>) -> Vec<Node<'d>> {
        let mut found = Vec::new();
        let Ok(mut entries) = node.unit.entries_at_offset(node.entry.offset()) else { return found };
        let mut step = || entries.next_entry().unwrap_or(false);
        if !node.entry.has_children() || !step() || !step() {
            return found;
        }
        while let Some(entry) = entries.current() {
            let Some(at) = node.unit.place(entry.offset()) else { break };
            found.push(Node { unit: node.unit.clone(), entry: entry.clone(), at });
            if found.len() == Self::MAX_CHILDREN || entries.next_sibling().is_err() {
                break;
            }
        }
        found
    }

    /// Returns an attribute's string value.
    pub fn text(&self, node: &Node<'d>, attribute: gimli::DwAt) -> Option<&'d [u8]> {
        let value = node.entry.attr_value(attribute)?;
        Some(self.dwarf_of(&node.unit).attr_string(&**node.unit, value).ok()?.slice())
    }

    /// Returns the symbol of a described function: its linkage name, its declaration's, or the plain name if the
    /// language has no other.
    pub fn symbol(&self, at: DebugInfoOffset) -> Option<&'d [u8]> {
        let mut name = None;
        for node in self.declarations(self.node(at)?) {
            if let Some(symbol) = self.text(&node, gimli::DW_AT_linkage_name) {
                return Some(symbol);
            }
            name = name.or_else(|| self.text(&node, gimli::DW_AT_name));
        }
        name
    }

    /// Iterates over the entry of a function and those that it instantiates or defines: from an instance through its
    /// declaration to the class's, and no further.
    pub fn declarations(&self, function: Node<'d>) -> impl Iterator<Item = Node<'d>> {
        let next = |node: &Node<'d>| {
            self.follow(node, gimli::DW_AT_specification)
                .or_else(|| self.follow(node, gimli::DW_AT_abstract_origin))
        };
        std::iter::successors(Some(function), next).take(3)
    }
}

impl Node<'_> {
    pub fn number(&self, attribute: gimli::DwAt) -> Option<u64> {
        self.entry.attr(attribute)?.udata_value()
    }

    pub fn is_set(&self, attribute: gimli::DwAt) -> bool {
        matches!(self.entry.attr_value(attribute), Some(AttributeValue::Flag(true)))
    }
}
