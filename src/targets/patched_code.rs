//! Processes whose code at a probe's site differs from the file, as hot patching, XRay and live patching leave it.
//!
//! The kernel compares only the file: it would set its breakpoint into the other code, execute the file's instruction
//! instead, and write the file's byte when the probe is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::pages::is_of_file_by;
use crate::elf::LONGEST_INSTRUCTION;
use crate::kernel::{BREAKPOINT, MappedPart};
use crate::mapping::PAGE;
use crate::procfs::{self, Mapping, living_thread};

/// Bytes before a site that are compared: a longer jump that starts there would reach into it.
const BYTES_BEFORE: u64 = 4;

/// Bytes that are compared for each site: those before it, and the longest instruction.
const COMPARED: usize = BYTES_BEFORE as usize + LONGEST_INSTRUCTION;

/// Attaching waits this long for the comparison. A thousand processes whose code is as in the file take a fraction of it;
/// where many have pages of their own, each place is read in each of them.
const MAX_TIME: Duration = Duration::from_secs(2);

/// What the kernel turns a hit five-byte NOP into (Linux 6.18): a call into a page with this name.
const OPTIMIZED: (&[u8], u8, &str) = (&[0x0f, 0x1f, 0x44, 0, 0], 0xe8, "[uprobes-trampoline]");

/// How many processes map a file, and where their code differs from it.
#[derive(Debug, Default)]
pub(super) struct CodeComparison {
    pub(super) processes: usize,
    /// Processes that were not compared, because the others took too long.
    pub(super) left_out: usize,
    /// Places at which the code of a process differs from the file, and that process.
    pub(super) patched: BTreeMap<u64, u32>,
}

impl CodeComparison {
    /// Compares these places of a file in all processes that map it, whose mappings are given, as far as that does not take too long.
    /// Pages that a process has not modified, usually all, are reported by the kernel in one go and not read.
    pub(super) fn of(mappings: &[MappedPart], file: &File, places: &BTreeSet<u64>) -> Self {
        Self::within(MAX_TIME, mappings, file, places)
    }

    fn within(time: Duration, mappings: &[MappedPart], file: &File, places: &BTreeSet<u64>) -> Self {
        let mut found = Self::default();
        let begun = Instant::now();
        for mappings in mappings.chunk_by(|one, next| one.pid == next.pid) {
            let pid = mappings[0].pid;
            found.processes += 1;
            if begun.elapsed() >= time {
                found.left_out += 1;
                continue;
            }
            match patched_by(pid, mappings, file, places) {
                Ok(patched) => found.patched.extend(patched.into_iter().map(|place| (place, pid))),
                Err(err) => log::debug!("process {pid}: its code is not compared with its file: {err}"),
            }
        }
        found
    }
}

fn patched_by(
    pid: u32,
    mappings: &[MappedPart],
    file: &File,
    places: &BTreeSet<u64>,
) -> io::Result<BTreeSet<u64>> {
    let parts: Vec<_> = mappings.iter().filter_map(|map| Some((map, around(map, places)?))).collect();
    if parts.is_empty() {
        return Ok(BTreeSet::new());
    }
    let thread = living_thread(pid);
    let pages = File::open(format!("/proc/{thread}/pagemap"))?;
    let is_private = |(map, memory): (_, Range<u64>)| {
        let private = private_pages(&pages, &memory);
        private.map(|private| private.contains(&true).then_some((map, memory.start, private))).transpose()
    };
    let parts: Vec<_> = parts.into_iter().filter_map(is_private).collect::<io::Result<_>>()?;
    if parts.is_empty() {
        return Ok(BTreeSet::new());
    }
    let text = procfs::text(format!("/proc/{thread}/maps"))?;
    let maps: Vec<_> = text.lines().filter_map(Mapping::parse).collect();
    let memory = File::open(format!("/proc/{thread}/mem"))?;
    let mut patched = BTreeSet::new();
    for (map, from, private) in parts {
        let Range { start, end } = map.memory;
        for place in places.range(map.offset..map.offset + (end - start)) {
            let at = start + (place - map.offset);
            let (first, end) = compared(at, &map.memory);
            let is_private = |address: u64| private[((address - from) / PAGE) as usize];
            if !is_private(first) && !is_private(end - 1) {
                continue;
            }
            let (mut there, mut original) = ([0; COMPARED], [0; COMPARED]);
            let length = (end - first) as usize;
            memory.read_exact_at(&mut there[..length], first)?;
            let read = file.read_at(&mut original[..length], place - (at - first))?;
            if differs(&there[..read], &original[..read], first, &maps) {
                patched.insert(*place);
            }
        }
    }
    Ok(patched)
}

/// The bytes that are compared for a place.
fn compared(at: u64, memory: &Range<u64>) -> (u64, u64) {
    ((at - BYTES_BEFORE).max(memory.start), (at + LONGEST_INSTRUCTION as u64).min(memory.end))
}

/// The pages from the first place in a mapping to the last one. None if there is no place.
fn around(map: &MappedPart, places: &BTreeSet<u64>) -> Option<Range<u64>> {
    let Range { start, end } = map.memory;
    let mut inside = places.range(map.offset..map.offset + (end - start));
    let first = inside.next()?;
    let at = |place: &u64| start + (place - map.offset);
    let (from, _) = compared(at(first), &map.memory);
    let (_, to) = compared(at(inside.next_back().unwrap_or(first)), &map.memory);
    Some(from / PAGE * PAGE..to.next_multiple_of(PAGE))
}

/// Returns which pages of a memory range are not the file's own.
fn private_pages(pages: &File, memory: &Range<u64>) -> io::Result<Vec<bool>> {
    let count = (memory.end - memory.start) / PAGE;
    let mut entries = vec![0; count as usize * 8];
    pages.read_exact_at(&mut entries, memory.start / PAGE * 8)?;
    let entries = entries.as_chunks::<8>().0.iter();
    Ok(entries.map(|entry| !is_of_file_by(u64::from_ne_bytes(*entry))).collect())
}

/// Whether the code differs, apart from what the kernel sets for probes. `address` is that of the first byte.
fn differs(there: &[u8], original: &[u8], address: u64, maps: &[Mapping<'_>]) -> bool {
    let (no_operation, call, trampoline) = OPTIMIZED;
    let mut at = 0;
    while at < there.len() {
        if there[at] == original[at] || there[at] == BREAKPOINT {
            at += 1;
        } else if there[at] == call && no_operation.starts_with(&original[at..original.len().min(at + 5)]) {
            let Some(distance) = there.get(at + 1..at + 5) else { return false };
            let distance = i32::from_le_bytes(distance.try_into().unwrap_or_default());
            let target = (address + at as u64 + 5).wrapping_add_signed(i64::from(distance));
            if !maps.iter().any(|map| map.contains(target) && map.name == trampoline) {
                return true;
            }
            at += 5;
        } else {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_left_out_are_counted() {
        let part = |pid| MappedPart { pid, memory: 0x1000..0x2000, offset: 0 };
        let mappings = [part(1), part(1), part(2)];
        let (file, places) = (tempfile::tempfile().unwrap(), BTreeSet::from([16]));
        let compared = CodeComparison::within(Duration::ZERO, &mappings, &file, &places);
        assert_eq!((compared.processes, compared.left_out), (2, 2));
    }

    #[test]
    fn probe_instructions_do_not_count_as_patches() {
        let maps = "7000-8000 r-xp 00000000 00:00 0 [uprobes-trampoline]\n9000-a000 r-xp 00000000 00:00 0 \n";
        let maps: Vec<_> = maps.lines().filter_map(Mapping::parse).collect();
        let nop = [0x90, 0x0f, 0x1f, 0x44, 0, 0, 0xc3];
        let call = |target: u32| {
            let [a, b, c, d] = (target - 0x1006).to_le_bytes();
            [0x90, 0xe8, a, b, c, d, 0xc3]
        };
        let differs = |there: &[u8]| super::differs(there, &nop[..there.len()], 0x1000, &maps);
        assert!(!differs(&nop) && !differs(&call(0x7000)));
        assert!(differs(&call(0x9000)), "what another program patches in");
        assert!(!differs(&[0x90, BREAKPOINT, 0x1f, 0x44, 0, 0, BREAKPOINT]));
        assert!(differs(&[0x90, 0xe9, 0x1f, 0x44, 0, 0, 0xc3]));
        assert!(!differs(&call(0x7000)[..4]), "cut off at the end");
    }
}
