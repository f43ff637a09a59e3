//! The headers of an ELF file, and the mappings between its addresses and its offsets.

use serde::{Deserialize, Serialize};

use std::ffi::CStr;

use object::LittleEndian;
use object::elf::{self, FileHeader64, ProgramHeader64, Rela64, SectionHeader64};
use object::pod::slice_from_bytes;
use object::read::StringTable;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, SectionTable, VersionTable};

use super::ElfError;
use super::raw_notes::{RawNote, RawNotes};

pub(super) const LE: LittleEndian = LittleEndian;

/// The longest symbol name that is read. Real ones reach a few thousand bytes; without a limit, a table of many names
/// that share one very long string would cost the square of the file's size.
const NAME_MAX: usize = 1 << 16;
/// The page size in bytes that programs for x86-64 use.
pub(super) const PAGE: u64 = 4096;

/// The supported architectures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    X86_64,
    Aarch64,
}

/// The parsed headers of a linked 64-bit little-endian program or shared library, together with its bytes.
#[derive(Debug, Clone, Copy)]
pub struct Headers<'a> {
    bytes: &'a [u8],
    arch: Arch,
    pie: bool,
    pub(super) has_relocated_code: bool,
    segments: &'a [ProgramHeader64<LittleEndian>],
    sections: &'a [SectionHeader64<LittleEndian>],
    section_names: &'a [u8],
}

/// A semaphore that has to be managed in each process, see [`Headers::semaphore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Semaphore {
    /// Its offset in the file.
    pub offset: u64,
    /// Offset in the file of the first page of code.
    pub code_offset: u64,
    /// The distance from where that page is mapped to the semaphore.
    pub distance: u64,
    /// Offset of the first code of the file that a loader runs once it has mapped all of the file; 0 if there is none.
    #[serde(default)]
    pub first_code: u64,
    /// Whether two writable segments load its page, as with LLVM's linker, which places the data that becomes read-only
    /// after relocation next to the rest. In a process that starts, the kernel raises the semaphore in the first of
    /// them, which need not be the one that the program reads.
    #[serde(default = "is_on_shared_page")]
    pub is_on_shared_page: bool,
}

/// The default for semaphores saved by earlier versions, which handled only these.
fn is_on_shared_page() -> bool {
    true
}

impl<'a> Headers<'a> {
    /// Parses the headers.
    ///
    /// A file without section headers is accepted (it has segments, but no notes and no symbols).
    pub fn parse(bytes: &'a [u8]) -> Result<Headers<'a>, ElfError> {
        Headers::read(bytes, false)
    }

    /// Like [`Headers::parse`], but also accepts files that are not linked.
    pub(super) fn of_any_type(bytes: &'a [u8]) -> Result<Headers<'a>, ElfError> {
        Headers::read(bytes, true)
    }

    fn read(bytes: &'a [u8], of_any_type: bool) -> Result<Headers<'a>, ElfError> {
        let ident = bytes.get(..16).ok_or(ElfError::NotElf)?;
        if !ident.starts_with(&elf::ELFMAG) {
            return Err(ElfError::NotElf);
        }
        // Checked before the header is cast, so that a 32-bit file is reported as such rather than as damaged.
        if ident[4] == elf::ELFCLASS32.0 {
            let machine = bytes.get(18..).and_then(<[u8]>::first_chunk).map_or(0, |m| u16::from_le_bytes(*m));
            return Err(ElfError::Class32(machine));
        }
        if ident[5] == elf::ELFDATA2MSB.0 {
            return Err(ElfError::BigEndian);
        }
        let malformed =
            |what| move |e: object::read::Error| ElfError::Malformed { what, reason: e.to_string() };
        let header = FileHeader64::<LittleEndian>::parse(bytes).map_err(malformed("file header"))?;
        let kind = header.e_type(LE);
        if kind != elf::ET_EXEC && kind != elf::ET_DYN && !of_any_type {
            return Err(ElfError::NotLinked(kind.0));
        }
        let arch = match header.e_machine(LE) {
            elf::EM_X86_64 => Arch::X86_64,
            elf::EM_AARCH64 => Arch::Aarch64,
            other => return Err(ElfError::Machine(other.0)),
        };
        let segments = header.program_headers(LE, bytes).map_err(malformed("program headers"))?;
        let sections = header.section_headers(LE, bytes).map_err(malformed("section headers"))?;
        if sections.is_empty() && is_packed(bytes, header, segments.len()) {
            return Err(ElfError::Packed);
        }
        let mut headers = Headers {
            bytes,
            arch,
            pie: kind == elf::ET_DYN,
            has_relocated_code: false,
            segments,
            sections,
            section_names: &[],
        };
        headers.has_relocated_code = headers.asks_to_relocate_code();
        if !sections.is_empty() {
            let index = header.shstrndx(LE, bytes).map_err(malformed("section names"))?;
            let names = sections.get(index as usize);
            headers.section_names = names.and_then(|s| headers.section_data(s)).unwrap_or(&[]);
        }
        Ok(headers)
    }

    /// Returns the architecture that the program was built for.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// Returns whether the program can be loaded at any address: it is position-independent, or a shared library.
    pub fn is_pie(&self) -> bool {
        self.pie
    }

    /// Returns the build ID, which identifies this build in debug packages and tells whether two files are the same
    /// build. `None` if the linker wrote none.
    pub fn build_id(&self) -> Option<Vec<u8>> {
        self.loaded_notes()
            .find(|n| n.owner == b"GNU" && n.kind == elf::NT_GNU_BUILD_ID.0)
            .map(|n| n.desc.to_vec())
    }

    /// Returns the file offset of the byte that is loaded at `vaddr` (an address as in the file's own headers), through
    /// the `PT_LOAD` segment that contains it. `None` for an address outside all segments, or in the zero-filled tail
    /// of one, which is not in the file.
    ///
    /// The difference between addresses and offsets varies by segment, so code and data (a semaphore) must be converted
    /// separately.
    pub fn file_offset(&self, vaddr: u64) -> Option<u64> {
        self.loads().find_map(|s| {
            let into = vaddr.checked_sub(s.p_vaddr(LE))?;
            let offset = s.p_offset(LE).checked_add(into)?;
            (into < s.p_filesz(LE) && offset < self.bytes.len() as u64).then_some(offset)
        })
    }

    /// Returns whether the address is in zero-filled memory, which is loaded but not in the file.
    pub(super) fn is_zero_filled(&self, vaddr: u64) -> bool {
        self.loads().any(|s| {
            let into = vaddr.checked_sub(s.p_vaddr(LE));
            into.is_some_and(|into| (s.p_filesz(LE)..s.p_memsz(LE)).contains(&into))
        })
    }

    /// Returns the location of a semaphore that the kernel might not raise everywhere: that of a library, which a
    /// process can load several times, or one on a page that two segments load. `None` for others.
    pub fn semaphore(&self, offset: u64) -> Option<Semaphore> {
        let page = offset / PAGE;
        let holds = |s: &ProgramHeader64<LittleEndian>| {
            let (start, bytes) = (s.p_offset(LE), s.p_filesz(LE));
            let end = start.saturating_add(bytes.saturating_sub(1));
            bytes > 0 && (start / PAGE..=end / PAGE).contains(&page)
        };
        let writable = || self.loads().filter(|s| s.p_flags(LE).contains(elf::PF_W));
        let is_on_shared_page = writable().filter(|s| holds(s)).count() > 1;
        if !is_on_shared_page && !self.is_library() {
            return None;
        }
        let vaddr = writable().find_map(|s| {
            let into = offset.checked_sub(s.p_offset(LE))?;
            (into < s.p_filesz(LE)).then(|| s.p_vaddr(LE).checked_add(into))?
        })?;
        let code = self.loads().find(|s| executable(s))?;
        let page_of = |at: u64| at / PAGE * PAGE;
        Some(Semaphore {
            offset,
            code_offset: page_of(code.p_offset(LE)),
            distance: vaddr.wrapping_sub(page_of(code.p_vaddr(LE))),
            first_code: self.first_code().unwrap_or_default(),
            is_on_shared_page,
        })
    }

    /// Returns the offset of the function that a loader calls first, before constructors.
    fn first_code(&self) -> Option<u64> {
        let dynamic = self.dynamic();
        let (_, vaddr) = dynamic.iter().find(|(tag, _)| *tag == elf::DT_INIT)?;
        let (offset, is_writable) = self.code_offset(*vaddr)?;
        (!is_writable).then_some(offset)
    }

    /// Returns the file offset of the code that is loaded at `vaddr`, and whether the program may write to it there.
    /// `None` if no executable segment of the file contains the address.
    pub(super) fn code_offset(&self, vaddr: u64) -> Option<(u64, bool)> {
        let (segment, into) = self.code_segment(vaddr)?;
        let offset = segment.p_offset(LE).checked_add(into)?;
        let is_there = offset < self.bytes.len() as u64;
        is_there.then(|| (offset, segment.p_flags(LE).contains(elf::PF_W)))
    }

    /// Returns the address at which the byte at `offset` of the file is loaded as code. The inverse of
    /// [`Headers::file_offset`] for executable segments.
    pub fn code_vaddr(&self, offset: u64) -> Option<u64> {
        self.loads().filter(|s| executable(s)).find_map(|s| {
            let into = offset.checked_sub(s.p_offset(LE))?;
            (into < s.p_filesz(LE)).then(|| s.p_vaddr(LE).checked_add(into))?
        })
    }

    /// Returns up to `max` bytes of code from `vaddr`, fewer at the end of its segment. `None` if no executable segment
    /// of the file contains the address.
    pub fn code_at(&self, vaddr: u64, max: usize) -> Option<&'a [u8]> {
        let (segment, into) = self.code_segment(vaddr)?;
        let start = usize::try_from(segment.p_offset(LE).checked_add(into)?).ok()?;
        let left = usize::try_from(segment.p_filesz(LE) - into).unwrap_or(usize::MAX);
        let tail = self.bytes.get(start..).filter(|t| !t.is_empty())?;
        Some(&tail[..max.min(left).min(tail.len())])
    }

    /// Returns the executable segment whose part of the file contains the address, and the offset of the address in it.
    fn code_segment(&self, vaddr: u64) -> Option<(&'a ProgramHeader64<LittleEndian>, u64)> {
        self.loads().filter(|s| executable(s)).find_map(|s| {
            let into = vaddr.checked_sub(s.p_vaddr(LE))?;
            (into < s.p_filesz(LE)).then_some((s, into))
        })
    }

    pub(super) fn has_sections(&self) -> bool {
        !self.sections.is_empty()
    }

    /// Iterates over the loaded segments: the address and the bytes of each.
    pub(super) fn loaded_segments(&self) -> impl Iterator<Item = (u64, &'a [u8])> + use<'a> {
        let bytes = self.bytes;
        self.loads().filter_map(move |s| Some((s.p_vaddr(LE), s.data(LE, bytes).ok()?)))
    }

    /// Returns the bytes that the file loads from this address on.
    pub(super) fn loaded_from(&self, vaddr: u64) -> Option<&'a [u8]> {
        self.loaded_segments().find_map(|(start, data)| {
            data.get(usize::try_from(vaddr.checked_sub(start)?).ok()?..).filter(|rest| !rest.is_empty())
        })
    }

    /// Returns the pointer that is at this address when the program runs, relative to its load address.
    pub(super) fn pointer_at(&self, vaddr: u64) -> Option<u64> {
        if let Some(relocated) = self.relocations().find(|r| r.r_offset.get(LE) == vaddr) {
            return Some(relocated.r_addend.get(LE) as u64);
        }
        self.loaded_segments().find_map(|(start, data)| {
            let at = data.get(usize::try_from(vaddr.checked_sub(start)?).ok()?..)?;
            at.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
        })
    }

    /// Iterates over the addresses of pointers to this address, found in the same places where [`Headers::pointer_at`]
    /// reads them.
    pub(super) fn pointers_to(&self, vaddr: u64) -> impl Iterator<Item = u64> {
        let relocated = self.relocations().filter(move |r| r.r_addend.get(LE) as u64 == vaddr);
        let in_place = self.loaded_segments().flat_map(move |(start, data)| {
            let words = data.as_chunks::<8>().0.iter().enumerate();
            let there = words.filter(move |(_, word)| **word == vaddr.to_le_bytes());
            there.map(move |(n, _)| start.wrapping_add(8 * n as u64))
        });
        relocated.map(|r| r.r_offset.get(LE)).chain(in_place)
    }

    /// Iterates over the targets of pointers that the loader fills in.
    pub(super) fn pointed_to(&self) -> impl Iterator<Item = u64> + use<'a> {
        self.relocations().map(|r| r.r_addend.get(LE) as u64)
    }

    /// Iterates over the pointers that the loader fills in, in a program that can be loaded anywhere.
    fn relocations(&self) -> impl Iterator<Item = &'a Rela64<LittleEndian>> + use<'a> {
        let kind = match self.arch {
            Arch::X86_64 => elf::R_X86_64_RELATIVE,
            Arch::Aarch64 => elf::R_AARCH64_RELATIVE,
        };
        let is_relative = move |r: &&Rela64<LittleEndian>| r.r_type(LE, false) == kind;
        self.relocation_table().unwrap_or_default().iter().filter(is_relative)
    }

    /// Returns the table that `DT_RELA` and `DT_RELASZ` describe.
    pub(super) fn relocation_table(&self) -> Option<&'a [Rela64<LittleEndian>]> {
        let mut dynamic = self.segments.iter().filter(|s| s.p_type(LE) == elf::PT_DYNAMIC);
        let entries = dynamic.find_map(|s| s.dynamic(LE, self.bytes).ok()?)?;
        let value = |tag| Some(entries.iter().find(|entry| entry.d_tag.get(LE) == tag)?.d_val.get(LE));
        let (at, size) = (value(elf::DT_RELA)?, value(elf::DT_RELASZ)?);
        let (_, data) = self.loaded_segments().find_map(|(start, data)| {
            Some((start, data.get(usize::try_from(at.checked_sub(start)?).ok()?..)?))
        })?;
        let data = data.get(..usize::try_from(size).ok()?)?;
        slice_from_bytes(data, data.len() / size_of::<Rela64<LittleEndian>>()).ok().map(|(table, _)| table)
    }

    /// Returns the dynamic section: tags and values.
    pub(super) fn dynamic(&self) -> Vec<(elf::DynamicTag, u64)> {
        let table = self.segments.iter().find_map(|s| s.dynamic(LE, self.bytes).ok().flatten());
        table.unwrap_or(&[]).iter().map(|entry| (entry.d_tag.get(LE), entry.d_val.get(LE))).collect()
    }

    /// Returns whether a process can load the file more than once.
    fn is_library(&self) -> bool {
        let has_name = || self.dynamic().iter().any(|(tag, _)| *tag == elf::DT_SONAME);
        self.pie && (!self.has_interpreter() || has_name())
    }

    /// Returns whether the file names an interpreter that loads it.
    pub(super) fn has_interpreter(&self) -> bool {
        self.segments.iter().any(|s| s.p_type(LE) == elf::PT_INTERP)
    }

    /// Returns bytes that are loaded at an address, code or data. `None` if the file does not contain all of them.
    pub(super) fn bytes_at<const N: usize>(&self, vaddr: u64) -> Option<[u8; N]> {
        let start = usize::try_from(self.file_offset(vaddr)?).ok()?;
        self.bytes.get(start..)?.first_chunk().copied()
    }

    pub(super) fn loads(&self) -> impl Iterator<Item = &'a ProgramHeader64<LittleEndian>> + use<'a> {
        self.segments.iter().filter(|s| s.p_type(LE) == elf::PT_LOAD)
    }

    /// Returns the distance in memory from the first to the last loaded byte, in whole pages: some loaders map all of
    /// it at once.
    pub fn load_span(&self) -> u64 {
        let first = self.loads().map(|segment| segment.p_vaddr(LE) / PAGE * PAGE).min().unwrap_or(0);
        let end = |segment: &ProgramHeader64<_>| segment.p_vaddr(LE).saturating_add(segment.p_memsz(LE));
        let last = self.loads().map(end).max().unwrap_or(0);
        last.saturating_sub(first).checked_next_multiple_of(PAGE).unwrap_or(0)
    }

    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub(super) fn sections(&self) -> &'a [SectionHeader64<LittleEndian>] {
        self.sections
    }

    /// Returns the versions of the dynamic symbols.
    pub(super) fn versions(&self) -> Option<VersionTable<'a, FileHeader64<LittleEndian>>> {
        let sections = SectionTable::new(self.sections, StringTable::default());
        sections.versions(LE, self.bytes).ok().flatten()
    }

    /// Returns the first section of that name.
    pub(super) fn section(&self, name: &[u8]) -> Option<&'a SectionHeader64<LittleEndian>> {
        self.sections_named(name).next()
    }

    /// Iterates over all sections of that name.
    pub(super) fn sections_named<'h>(
        &'h self,
        name: &'h [u8],
    ) -> impl Iterator<Item = &'a SectionHeader64<LittleEndian>> + 'h {
        self.sections.iter().filter(move |s| {
            let at = self.section_names.get(s.sh_name(LE) as usize..);
            at.and_then(|at| at.strip_prefix(name)).is_some_and(|after| after.first() == Some(&0))
        })
    }

    pub(super) fn section_of_type(
        &self,
        kind: elf::SectionType,
    ) -> Option<&'a SectionHeader64<LittleEndian>> {
        self.sections.iter().find(|s| s.sh_type(LE) == kind)
    }

    pub(super) fn section_at(&self, index: u32) -> Option<&'a SectionHeader64<LittleEndian>> {
        self.sections.get(index as usize)
    }

    /// Returns the bytes of a section; `None` if they lie outside the file. Empty for a section without contents.
    pub(super) fn section_data(&self, section: &SectionHeader64<LittleEndian>) -> Option<&'a [u8]> {
        section.data(LE, self.bytes).ok()
    }

    pub(super) fn has_note(&self, owner: &[u8]) -> bool {
        self.loaded_notes().any(|note| note.owner == owner)
    }

    /// Iterates over the well-formed notes that identify the build, from sections (which remain valid in a separate
    /// debug file, whereas its segments do not) and from segments.
    fn loaded_notes(&self) -> impl Iterator<Item = RawNote<'a>> + '_ {
        let from_sections = self.sections.iter().filter(|s| s.sh_type(LE) == elf::SHT_NOTE);
        let from_sections = from_sections.filter_map(|s| Some((self.section_data(s)?, s.sh_addralign(LE))));
        let from_segments = self.segments.iter().filter(|s| s.p_type(LE) == elf::PT_NOTE);
        let from_segments = from_segments.filter_map(|s| Some((s.data(LE, self.bytes).ok()?, s.p_align(LE))));
        // Identifying notes come first in their section; the limit prevents thousands of headers that all refer to the
        // same bytes from multiplying the work.
        let blocks = from_sections.chain(from_segments).take(64);
        blocks.flat_map(|(data, align)| RawNotes::new(data, align).map_while(Result::ok).take(16))
    }
}

/// Returns whether the file was packed by UPX: the packer's own header follows the program headers, with its magic
/// after a checksum.
fn is_packed(bytes: &[u8], header: &FileHeader64<LittleEndian>, segments: usize) -> bool {
    let after =
        header.e_phoff.get(LE).saturating_add((segments * size_of::<ProgramHeader64<LittleEndian>>()) as u64);
    let mark = usize::try_from(after).ok().and_then(|after| bytes.get(after.checked_add(4)?..));
    mark.is_some_and(|mark| mark.starts_with(b"UPX!"))
}

pub(super) fn executable(segment: &ProgramHeader64<LittleEndian>) -> bool {
    segment.p_flags(LE).contains(elf::PF_X)
}

/// Returns the string that starts at `offset` of a string table, without its NUL. `None` if it does not end within the
/// table or is longer than any real name.
pub(super) fn bounded_str(table: &[u8], offset: u32) -> Option<&[u8]> {
    let tail = table.get(offset as usize..)?;
    let tail = &tail[..tail.len().min(NAME_MAX)];
    CStr::from_bytes_until_nul(tail).ok().map(CStr::to_bytes)
}
