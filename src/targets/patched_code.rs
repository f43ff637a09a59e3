//! Processes that have other code at a probe's place than the file, as hot patches, XRay and live patches leave it.
//!
//! The kernel looks only at the file: it would put its breakpoint into the other code, execute the file's instruction
//! instead, and leave the file's byte there when the probe is taken out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::file::Identity;
use super::find::Finder;
use super::moved_code::is_of_file;
use crate::kernel::BREAKPOINT;
use crate::mapping::PAGE;
use crate::procfs::{Mapping, living_thread, text};

/// So many bytes before a place are compared: a jump that is longer by one would reach into it.
const BEFORE: u64 = 4;

/// And so many from there on: the longest instruction.
const AFTER: u64 = 15;

/// What the kernel makes of a hit no-operation of five bytes (Linux 6.18): a call into a page with this name.
const OPTIMIZED: (&[u8], u8, &str) = (&[0x0f, 0x1f, 0x44, 0, 0], 0xe8, "[uprobes-trampoline]");

impl Finder {
    /// Which of these places of a file have other code in one of the processes that map it, and in which process.
    pub(super) fn patched(
        &mut self,
        processes: &BTreeSet<u32>,
        identity: Identity,
        file: &File,
        places: &BTreeSet<u64>,
    ) -> BTreeMap<u64, u32> {
        let mut patched = BTreeMap::new();
        for pid in processes {
            match self.patched_by(*pid, identity, file, places) {
                Ok(found) => patched.extend(found.into_iter().map(|place| (place, *pid))),
                Err(err) => log::debug!("process {pid}: its code is not compared with its file: {err}"),
            }
        }
        patched
    }

    fn patched_by(
        &mut self,
        pid: u32,
        identity: Identity,
        file: &File,
        places: &BTreeSet<u64>,
    ) -> io::Result<BTreeSet<u64>> {
        let starts = self.starts_of_mappings(pid, identity)?;
        let thread = living_thread(pid);
        let maps = text(format!("/proc/{thread}/maps"))?;
        let maps: Vec<Mapping<'_>> = maps.lines().filter_map(Mapping::parse).collect();
        let memory = File::open(format!("/proc/{thread}/mem"))?;
        let pages = File::open(format!("/proc/{thread}/pagemap"))?;
        let mut patched = BTreeSet::new();
        for map in maps.iter().filter(|map| starts.contains(&map.start)) {
            // A page at a time: most are the file's own, and are not read.
            let mut page = (u64::MAX, true);
            for place in places.range(map.offset..map.offset + (map.end - map.start)) {
                let at = map.start + (place - map.offset);
                let (first, end) = ((at - BEFORE).max(map.start), (at + AFTER).min(map.end));
                let is_private = |address: u64| {
                    if page.0 != address / PAGE {
                        page = (address / PAGE, !is_of_file(&pages, address));
                    }
                    page.1
                };
                if ![first, end - 1].map(is_private).contains(&true) {
                    continue;
                }
                let (mut there, mut original) = ([0; 19], [0; 19]);
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
}

/// Whether there is other code, apart from what the kernel sets for probes. `address` is that of the first byte.
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
    fn only_what_is_not_of_probes_differs() {
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
