//! Unwind tables: where each function's code is, and where its frame is.
//!
//! The compiler writes an entry for every piece of code with a frame of its own, and stripping does not remove it:
//! exceptions, debuggers and profilers depend on it. Here it tells how far a function extends, whether it has an
//! exception handler, and, for each instruction, whether the return address is on top of the stack.

use std::ops::Range;

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, DW_EH_PE_omit, DW_EH_PE_udata4, DW_EH_PE_uleb128, DebugFrame, DwEhPe,
    EhFrame, EhFrameHdr, EndianSlice, LittleEndian, Pointer, Reader, UnwindContext, UnwindSection, X86_64,
};
use object::read::elf::SectionHeader;

use super::Image;
use super::headers::LE;

/// Code that one entry of the unwind table describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub start: u64,
    pub end: u64,
    /// Whether the entry refers to a table of handlers: cleanups or catches that run here during unwinding.
    pub has_handler: bool,
    /// How far above the stack pointer the caller's frame is at the first instruction; `None` if the table locates it
    /// by another register. 8 in a function that is entered by a call: its return address is on top of the stack.
    pub at_start: Option<i64>,
    /// Offset of the entry in its section.
    offset: usize,
    in_debug_frame: bool,
    /// The address of its table of handlers; `None` if it has none, or if the reference is indirect.
    handlers: Option<u64>,
}

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// All entries of a file, by address.
#[derive(Debug)]
pub(super) struct Unwind<'a> {
    frames: Vec<Frame>,
    bases: BaseAddresses,
    eh_frame: EhFrame<Slice<'a>>,
    debug_frame: DebugFrame<Slice<'a>>,
}

impl<'a> Unwind<'a> {
    /// Reads `.eh_frame` and `.debug_frame`. Damaged entries are skipped.
    pub fn of(image: &Image<'a>) -> Unwind<'a> {
        let mut bases = BaseAddresses::default();
        let address = |name| image.section(name).map(|section| section.sh_addr(LE));
        if let Some(address) = address(b".text") {
            bases = bases.set_text(address);
        }
        if let Some(address) = address(b".eh_frame") {
            bases = bases.set_eh_frame(address);
        }
        if let Some(address) = address(b".got") {
            bases = bases.set_got(address);
        }
        let data = |name| image.section(name).and_then(|s| image.section_data(s)).unwrap_or(&[]);
        let mut eh_frame = EhFrame::new(data(b".eh_frame"), LittleEndian);
        let mut debug_frame = DebugFrame::new(data(b".debug_frame"), LittleEndian);
        eh_frame.set_address_size(8);
        debug_frame.set_address_size(8);
        let mut frames = Vec::new();
        collect(&eh_frame, &bases, false, &mut frames);
        collect(&debug_frame, &bases, true, &mut frames);
        frames.sort_by_key(|frame| (frame.start, frame.in_debug_frame));
        frames.dedup_by_key(|frame| frame.start);
        Unwind { frames, bases, eh_frame, debug_frame }
    }

    pub fn frames(&self) -> impl Iterator<Item = &Frame> {
        self.frames.iter()
    }

    /// Iterates over the entries whose code begins in this range.
    pub fn within(&self, range: &Range<u64>) -> impl Iterator<Item = &Frame> {
        let from = self.frames.partition_point(|frame| frame.start < range.start);
        self.frames[from..].iter().take_while(|frame| frame.start < range.end)
    }

    /// Returns the entry whose code contains this address.
    pub fn covering(&self, vaddr: u64) -> Option<&Frame> {
        let after = self.frames.partition_point(|frame| frame.start <= vaddr);
        self.frames[..after].last().filter(|frame| vaddr < frame.end)
    }

    /// Returns where a function continues after exceptions that unwind through the code of this range; `None` if a
    /// table is not understood.
    pub fn landing_pads(&self, image: &Image<'_>, range: &Range<u64>) -> Option<Vec<u64>> {
        let from = self.frames.partition_point(|frame| frame.end <= range.start);
        let frames = self.frames[from..].iter().take_while(|frame| frame.start < range.end);
        let mut pads = Vec::new();
        for frame in frames.filter(|frame| frame.has_handler) {
            let section = image.section(b".gcc_except_table")?;
            let into = frame.handlers?.checked_sub(section.sh_addr(LE))?;
            let table = image.section_data(section)?.get(usize::try_from(into).ok()?..)?;
            pads.extend(landing_pads(EndianSlice::new(table, LittleEndian), frame.start).ok().flatten()?);
        }
        Some(pads)
    }

    /// Returns how far above the stack pointer the caller's frame is, with the address from which each value is valid;
    /// `None` where the frame is located by another register.
    pub fn rows(&self, frame: &Frame) -> Vec<(u64, Option<i64>)> {
        let rows = match frame.in_debug_frame {
            true => rows(&self.debug_frame, &self.bases, frame.offset),
            false => rows(&self.eh_frame, &self.bases, frame.offset),
        };
        rows.unwrap_or_default()
    }
}

/// Returns the landing pads of the code that begins at `start`; `None` if the table is not of the usual form.
fn landing_pads(mut table: Slice<'_>, start: u64) -> gimli::Result<Option<Vec<u64>>> {
    let (base, types) = (table.read_u8()?, table.read_u8()?);
    if base != DW_EH_PE_omit.0 {
        return Ok(None);
    }
    if types != DW_EH_PE_omit.0 {
        table.read_uleb128()?;
    }
    let encoding = DwEhPe(table.read_u8()?);
    let bytes = table.read_uleb128()?;
    let mut calls = table.split(bytes as usize)?;
    let mut pads = Vec::new();
    while !calls.is_empty() {
        let mut number = || {
            if encoding == DW_EH_PE_uleb128 {
                calls.read_uleb128().map(Some)
            } else if encoding == DW_EH_PE_udata4 {
                calls.read_u32().map(|number| Some(number.into()))
            } else {
                Ok(None)
            }
        };
        let (_, _, Some(pad)) = (number()?, number()?, number()?) else { return Ok(None) };
        calls.read_uleb128()?;
        if pad != 0 {
            pads.push(start.wrapping_add(pad));
        }
    }
    Ok(Some(pads))
}

/// Returns the range around an address that one entry of `.eh_frame` describes, using the linker's index of the
/// entries: the others are not read.
pub(super) fn frame_at(image: &Image<'_>, vaddr: u64) -> Option<Range<u64>> {
    let section = |name| {
        let section = image.section(name)?;
        Some((section.sh_addr(LE), image.section_data(section)?))
    };
    let (index_at, index) = section(b".eh_frame_hdr")?;
    let (entries_at, entries) = section(b".eh_frame")?;
    let bases = BaseAddresses::default().set_eh_frame_hdr(index_at).set_eh_frame(entries_at);
    let index = EhFrameHdr::new(index, LittleEndian).parse(&bases, 8).ok()?;
    let mut frames = EhFrame::new(entries, LittleEndian);
    frames.set_address_size(8);
    let found = index.table()?.fde_for_address(&frames, &bases, vaddr, EhFrame::cie_from_offset).ok()?;
    Some(found.initial_address()..found.end_address())
}

fn collect<'a, S: UnwindSection<Slice<'a>>>(
    section: &S,
    bases: &BaseAddresses,
    in_debug_frame: bool,
    frames: &mut Vec<Frame>,
) where
    S::Offset: gimli::UnwindOffset<usize>,
{
    let mut entries = section.entries(bases);
    let mut context = UnwindContext::new();
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else { continue };
        let Ok(fde) = partial.parse(S::cie_from_offset) else { continue };
        if fde.end_address() <= fde.initial_address() {
            continue;
        }
        let first = fde.rows(section, bases, &mut context);
        let at_start =
            first.ok().and_then(|mut rows| rows.next_row().ok().flatten().and_then(|row| above(row.cfa())));
        frames.push(Frame {
            start: fde.initial_address(),
            end: fde.end_address(),
            has_handler: fde.lsda().is_some(),
            handlers: match fde.lsda() {
                Some(Pointer::Direct(address)) => Some(address),
                _ => None,
            },
            at_start,
            offset: fde.offset(),
            in_debug_frame,
        });
    }
}

fn rows<'a, S: UnwindSection<Slice<'a>>>(
    section: &S,
    bases: &BaseAddresses,
    offset: usize,
) -> gimli::Result<Vec<(u64, Option<i64>)>> {
    let fde = section.fde_from_offset(bases, S::Offset::from(offset), S::cie_from_offset)?;
    let mut context = UnwindContext::new();
    let mut table = fde.rows(section, bases, &mut context)?;
    let mut found = Vec::new();
    while let Some(row) = table.next_row()? {
        found.push((row.start_address(), above(row.cfa())));
    }
    Ok(found)
}

fn above(cfa: &CfaRule<usize>) -> Option<i64> {
    match cfa {
        CfaRule::RegisterAndOffset { register, offset } if *register == X86_64::RSP => Some(*offset),
        _ => None,
    }
}
