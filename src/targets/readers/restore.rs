//! The file's own bytes over breakpoints in a process's memory.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::super::file::Identity;
use crate::kernel::{BREAKPOINT, Files};
use crate::procfs::{Mapping, text};

/// Which mappings of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    All,
    /// Those that are not executable.
    OnlyRead,
}

/// What was found in a process.
#[derive(Debug, Default)]
pub(super) struct Restored {
    /// The addresses at which the file is mapped.
    pub mapped: Vec<Range<u64>>,
    pub bytes: usize,
    /// Why not all could be written.
    pub failure: Option<io::Error>,
}

/// Writes the bytes of a file, by their offsets, over breakpoints in the process's mappings of it.
pub(super) fn restore(
    kernel: &mut Files,
    pid: u32,
    identity: Identity,
    originals: &BTreeMap<u64, u8>,
    part: Part,
) -> Restored {
    let mut restored = Restored::default();
    let mut all = || -> io::Result<()> {
        // First of all: it stays that of the program that runs now, so that nothing is written into what it executes next.
        let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
        let starts = kernel.starts_of_mappings(pid, identity)?;
        if starts.is_empty() {
            return Ok(());
        }
        let maps = text(format!("/proc/{pid}/maps"))?;
        let maps = maps.lines().filter_map(Mapping::parse).filter(|map| starts.contains(&map.start));
        let maps: Vec<_> = maps.collect();
        // Who runs the file does not copy it, and the kernel lowers a semaphore only where it finds its breakpoint: what comes before
        // the code is often mapped with the code's first page.
        if part == Part::OnlyRead && maps.iter().any(Mapping::is_executable) {
            return Ok(());
        }
        restored.mapped = maps.iter().map(|map| map.start..map.end).collect();
        for map in maps.iter().filter(|map| part == Part::All || !map.is_executable()) {
            let offsets = originals.range(map.offset..map.offset.saturating_add(map.end - map.start));
            for (offset, byte) in offsets {
                restored.bytes += usize::from(write_over(&memory, map.start + (offset - map.offset), *byte)?);
            }
        }
        Ok(())
    };
    restored.failure = all().err();
    restored
}

/// Whether there was a breakpoint.
fn write_over(memory: &File, at: u64, byte: u8) -> io::Result<bool> {
    let mut now = [0];
    memory.read_exact_at(&mut now, at)?;
    if now[0] != BREAKPOINT || byte == BREAKPOINT {
        return Ok(false);
    }
    memory.write_all_at(&[byte], at)?;
    Ok(true)
}

pub(super) fn is_there(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap_or(false)
}

/// What the executable is called that the process runs.
pub(super) fn executable_name(pid: u32) -> Option<String> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some(path.file_name()?.to_str()?.to_string())
}
