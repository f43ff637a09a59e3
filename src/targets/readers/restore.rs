//! Writes a file's own bytes over breakpoints in a process's memory.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::super::file::Identity;
use crate::kernel::{BREAKPOINT, Files};
use crate::procfs::{Mapping, living_thread, text, writable_memory};

/// Which mappings of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// For a translator that maps code as in the file.
    All,
    /// For a translator that maps code without the executable flag.
    NotExecutable,
    /// Mappings that are only read.
    OnlyRead,
}

/// The bytes that breakpoints hide in a file, and the semaphores that they raise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::targets) struct Hidden {
    /// The bytes under breakpoints, by offset in the file.
    pub originals: BTreeMap<u64, u8>,
    /// Offsets of raised semaphores, by offset of the breakpoint.
    pub semaphores: BTreeMap<u64, u64>,
    /// The length of a mapping by a loader that maps all segments at once, as musl's does; 0 if unknown, or if it
    /// equals the file's size.
    pub span: u64,
}

impl Hidden {
    /// Adds what others hide in the same file.
    pub fn add(&mut self, others: &Hidden) {
        self.originals.extend(&others.originals);
        self.semaphores.extend(&others.semaphores);
        // An engine without sites in the file does not know it.
        self.span = self.span.max(others.span);
    }
}

/// What was found in a process.
#[derive(Debug, Default)]
pub(super) struct Restored {
    /// The address ranges at which the file is mapped.
    pub mapped: Vec<Range<u64>>,
    /// Apparently by a loader, which will map the code over it.
    pub is_loading: bool,
    pub bytes: usize,
    /// Why not everything could be written.
    pub failure: Option<io::Error>,
}

/// A process's memory and mappings.
#[derive(Debug)]
pub(super) struct Memory {
    file: File,
    mapped: Vec<(u64, Identity)>,
    maps: String,
}

impl Memory {
    /// Of the program that the process runs now: nothing is written into the next program that it executes.
    ///
    /// # Errors
    /// If the process has ended, or must not be inspected.
    pub fn of(kernel: &mut Files, pid: u32) -> io::Result<Self> {
        let thread = living_thread(pid);
        // Opened first: from then on it refers to this address space only.
        let file = writable_memory(thread)?;
        Ok(Self { file, mapped: kernel.mapped_by(pid)?, maps: text(format!("/proc/{thread}/maps"))? })
    }

    /// The files that it maps.
    pub fn files(&self) -> impl Iterator<Item = Identity> {
        self.mapped.iter().map(|(_, identity)| *identity)
    }

    /// Writes the file's own bytes over breakpoints in the process's mappings of it. `read` is the address of a mapping
    /// that was just made for reading.
    pub fn restore(&self, identity: Identity, hidden: &Hidden, part: Part, read: Option<u64>) -> Restored {
        let starts: HashSet<u64> =
            self.mapped.iter().filter(|(_, of)| *of == identity).map(|(start, _)| *start).collect();
        let maps = self.maps.lines().filter_map(Mapping::parse).filter(|map| starts.contains(&map.start));
        let maps: Vec<_> = maps.collect();
        // A process that runs the file reads its other mappings: what precedes the code is often mapped with the code's
        // first page.
        let is_run = part == Part::OnlyRead && maps.iter().any(Mapping::is_executable);
        let is_read = |map: &Mapping<'_>| read.is_some_and(|at| map.contains(at));
        let is_meant =
            |map: &&Mapping<'_>| (part == Part::All || !map.is_executable()) && (!is_run || is_read(map));
        let mut restored = Restored {
            mapped: maps.iter().map(|map| map.start..map.end).collect(),
            is_loading: maps.iter().any(|map| is_read(map) && map.end - map.start == hidden.span),
            ..Restored::default()
        };
        let mut all = || -> io::Result<()> {
            for map in maps.iter().filter(is_meant) {
                for (offset, byte) in hidden.originals.range(offsets(map)) {
                    if !self.write_over(map.start + (offset - map.offset), *byte)? {
                        continue;
                    }
                    restored.bytes += 1;
                    // The kernel has raised it for this mapping, too, and lowers it only where it finds the breakpoint.
                    if let Some(semaphore) = hidden.semaphores.get(offset).filter(|_| is_run) {
                        self.lower(&maps, *semaphore, 1)?;
                    }
                }
            }
            // In a translated program no breakpoint is left for which it would be lowered.
            for semaphore in hidden.semaphores.values().filter(|_| part != Part::OnlyRead) {
                self.lower(&maps, *semaphore, u16::MAX)?;
            }
            Ok(())
        };
        restored.failure = all().err();
        restored
    }

    /// Returns whether there was a breakpoint.
    fn write_over(&self, at: u64, byte: u8) -> io::Result<bool> {
        let mut now = [0];
        self.file.read_exact_at(&mut now, at)?;
        if now[0] != BREAKPOINT || byte == BREAKPOINT {
            return Ok(false);
        }
        self.file.write_all_at(&[byte], at)?;
        Ok(true)
    }

    /// Lowers a semaphore, not below 0.
    fn lower(&self, maps: &[Mapping<'_>], semaphore: u64, by: u16) -> io::Result<()> {
        let mut data = maps.iter().filter(|map| map.is_data());
        let Some(map) = data.find(|map| offsets(map).contains(&semaphore)) else { return Ok(()) };
        let at = map.start + (semaphore - map.offset);
        let mut now = [0; 2];
        self.file.read_exact_at(&mut now, at)?;
        let lowered = u16::from_ne_bytes(now).saturating_sub(by).to_ne_bytes();
        if now == lowered { Ok(()) } else { self.file.write_all_at(&lowered, at) }
    }
}

/// The mapped range of the file.
fn offsets(map: &Mapping<'_>) -> Range<u64> {
    map.offset..map.offset.saturating_add(map.end - map.start)
}

pub(super) fn is_there(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap_or(false)
}

/// The base name of the process's executable.
pub(super) fn executable_name(pid: u32) -> Option<String> {
    let path = fs::read_link(format!("/proc/{}/exe", living_thread(pid))).ok()?;
    Some(path.file_name()?.to_str()?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_breakpoints_accumulate_in_any_order() {
        let of = |offset, span| Hidden {
            originals: BTreeMap::from([(offset, 0x90)]),
            semaphores: BTreeMap::from([(offset, 8)]),
            span,
        };
        for spans in [[0x5000, 0], [0, 0x5000]] {
            let mut all = Hidden::default();
            all.add(&of(1, spans[0]));
            all.add(&of(2, spans[1]));
            assert_eq!((all.originals.len(), all.semaphores.len(), all.span), (2, 2, 0x5000));
        }
    }
}
