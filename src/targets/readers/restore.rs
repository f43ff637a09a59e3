//! The file's own bytes over breakpoints in a process's memory.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::super::file::Identity;
use crate::kernel::{BREAKPOINT, Files};
use crate::procfs::{Mapping, living_thread, text};

/// Which mappings of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Of a translator that maps code as it is in the file.
    All,
    /// Of a translator that maps code not executable.
    NotExecutable,
    /// Those of a process that has no executable one.
    OnlyRead,
}

impl Part {
    /// Whether the process runs the code, if only by translating it.
    fn is_run(self) -> bool {
        self != Part::OnlyRead
    }
}

/// What is hidden of a file, and what was raised in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::targets) struct Hidden {
    /// The bytes under breakpoints, by offsets in the file.
    pub originals: BTreeMap<u64, u8>,
    /// Offsets of the semaphores that the breakpoints have raised.
    pub semaphores: BTreeSet<u64>,
}

/// What was found in a process.
#[derive(Debug, Default)]
pub(super) struct Restored {
    /// The addresses at which the file is mapped.
    pub mapped: Vec<Range<u64>>,
    /// The process runs the file, and what it reads was left as it is: a program that names its own functions reads no code.
    pub is_run: bool,
    pub bytes: usize,
    /// Why not all could be written.
    pub failure: Option<io::Error>,
}

/// The memory of a process, and what it has mapped.
#[derive(Debug)]
pub(super) struct Memory {
    file: File,
    mapped: Vec<(u64, Identity)>,
    maps: String,
}

impl Memory {
    /// That of the program which the process runs now: nothing is written into what it executes next.
    ///
    /// # Errors
    /// If the process has ended, or may not be looked into.
    pub fn of(kernel: &mut Files, pid: u32) -> io::Result<Self> {
        let thread = living_thread(pid);
        // First of all: from then on it leads to no other memory.
        let file = OpenOptions::new().read(true).write(true).open(format!("/proc/{thread}/mem"))?;
        Ok(Self { file, mapped: kernel.mapped_by(pid)?, maps: text(format!("/proc/{thread}/maps"))? })
    }

    /// The files that it has mapped.
    pub fn files(&self) -> impl Iterator<Item = Identity> {
        self.mapped.iter().map(|(_, identity)| *identity)
    }

    /// Writes the file's own bytes over breakpoints in the process's mappings of it.
    pub fn restore(&self, identity: Identity, hidden: &Hidden, part: Part) -> Restored {
        let starts: HashSet<u64> =
            self.mapped.iter().filter(|(_, of)| *of == identity).map(|(start, _)| *start).collect();
        let maps = self.maps.lines().filter_map(Mapping::parse).filter(|map| starts.contains(&map.start));
        let maps: Vec<_> = maps.collect();
        // Who runs the file does not copy it, and the kernel lowers a semaphore only where it finds its breakpoint: what comes before
        // the code is often mapped with the code's first page.
        if part == Part::OnlyRead && maps.iter().any(Mapping::is_executable) {
            return Restored { is_run: true, ..Restored::default() };
        }
        let mapped = maps.iter().map(|map| map.start..map.end).collect();
        let mut restored = Restored { mapped, ..Restored::default() };
        let mut all = || -> io::Result<()> {
            for map in maps.iter().filter(|map| part == Part::All || !map.is_executable()) {
                let offsets = hidden.originals.range(offsets(map));
                for (offset, byte) in offsets {
                    restored.bytes += usize::from(self.write_over(map.start + (offset - map.offset), *byte)?);
                }
            }
            for map in maps.iter().filter(|map| part.is_run() && map.is_data()) {
                for offset in hidden.semaphores.range(offsets(map)) {
                    self.lower(map.start + (offset - map.offset))?;
                }
            }
            Ok(())
        };
        restored.failure = all().err();
        restored
    }

    /// Whether there was a breakpoint.
    fn write_over(&self, at: u64, byte: u8) -> io::Result<bool> {
        let mut now = [0];
        self.file.read_exact_at(&mut now, at)?;
        if now[0] != BREAKPOINT || byte == BREAKPOINT {
            return Ok(false);
        }
        self.file.write_all_at(&[byte], at)?;
        Ok(true)
    }

    /// The kernel would lower the semaphore only where it finds the breakpoint.
    fn lower(&self, at: u64) -> io::Result<()> {
        let mut now = [0; 2];
        self.file.read_exact_at(&mut now, at)?;
        if now != [0; 2] { self.file.write_all_at(&[0; 2], at) } else { Ok(()) }
    }
}

/// The part of the file that is mapped.
fn offsets(map: &Mapping<'_>) -> Range<u64> {
    map.offset..map.offset.saturating_add(map.end - map.start)
}

pub(super) fn is_there(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap_or(false)
}

/// What the executable is called that the process runs.
pub(super) fn executable_name(pid: u32) -> Option<String> {
    let path = fs::read_link(format!("/proc/{}/exe", living_thread(pid))).ok()?;
    Some(path.file_name()?.to_str()?.to_string())
}
