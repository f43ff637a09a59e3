//! Semaphores that were raised in the memory of processes and are lowered there once the probes are removed; see
//! `semaphores.rs`.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::file::Identity;
use crate::kernel::BREAKPOINT;
use crate::procfs::{Mapping, living_thread, text, writable_memory};

/// Semaphores of libraries that processes have loaded several times: the kernel lowers only one per process.
#[derive(Debug, Default)]
pub(super) struct RaisedCopies(Mutex<HashMap<Identity, Vec<RaisedCopy>>>);

/// One of these semaphores, in one process.
#[derive(Debug)]
pub(super) struct RaisedCopy {
    pub(super) pid: u32,
    pub(super) at: u64,
    /// Device and inode of its mapping, as shown in /proc, and its offset in the file.
    pub(super) place: ((u32, u32), u64, u64),
    pub(super) sites: BTreeSet<u64>,
    /// The maximum by which it is lowered.
    pub(super) by: u16,
}

impl RaisedCopies {
    /// Locks the semaphores, which are keyed by file.
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<Identity, Vec<RaisedCopy>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the files that have such raised semaphores.
    pub(super) fn identities(&self) -> Vec<Identity> {
        let mut copies = self.lock();
        copies.retain(|_, of| !of.is_empty());
        copies.keys().copied().collect()
    }

    /// Lowers them in processes that have none of their breakpoints left.
    pub(super) fn lower(&self, identity: Identity) {
        let mut copies = self.lock();
        let Some(of_file) = copies.get_mut(&identity) else { return };
        of_file.retain(|copy| copy.lower().unwrap_or(false));
        if of_file.is_empty() {
            copies.remove(&identity);
        }
    }
}

impl RaisedCopy {
    /// Lowers it, unless there are breakpoints yet. Whether it is still raised.
    ///
    /// # Errors
    /// If the process has ended.
    fn lower(&self) -> io::Result<bool> {
        let pid = living_thread(self.pid);
        let maps = text(format!("/proc/{pid}/maps"))?;
        let (device, inode, offset) = self.place;
        let of_file = maps.lines().filter_map(Mapping::parse);
        let of_file: Vec<_> = of_file.filter(|map| (map.device, map.inode) == (device, inode)).collect();
        let memory = writable_memory(pid)?;
        if breakpoints(&memory, &self.sites, of_file.iter()) > 0 {
            return Ok(true);
        }
        // The pid may belong to another process by now, or the copy may have been unloaded.
        let is_it = |map: &&Mapping<'_>| {
            map.is_data() && map.contains(self.at) && map.offset + (self.at - map.start) == offset
        };
        if of_file.iter().any(|map| is_it(&map)) {
            let now = read(&memory, self.at)?;
            memory.write_all_at(&now.saturating_sub(self.by).to_ne_bytes(), self.at)?;
        }
        Ok(false)
    }
}

/// Adds a copy to those to be lowered.
pub(super) fn note_copy(copies: &mut Vec<RaisedCopy>, copy: RaisedCopy) {
    let known = copies.iter_mut().find(|of| (of.pid, of.at, of.place) == (copy.pid, copy.at, copy.place));
    let Some(known) = known else {
        copies.retain(|of| Path::new(&format!("/proc/{}", of.pid)).exists());
        copies.push(copy);
        return;
    };
    known.sites.extend(copy.sites);
    known.by = known.by.max(copy.by);
}

pub(super) fn read(memory: &File, at: u64) -> io::Result<u16> {
    let mut now = [0; 2];
    memory.read_exact_at(&mut now, at)?;
    Ok(u16::from_ne_bytes(now))
}

/// Returns the number of breakpoints for sites of the file: the kernel raises and lowers the semaphore for each. A page
/// of code that two segments share is mapped twice, and has two.
pub(super) fn breakpoints<'a>(
    memory: &File,
    sites: &BTreeSet<u64>,
    maps: impl Iterator<Item = &'a Mapping<'a>> + Clone,
) -> u16 {
    let is_there = |map: &Mapping<'_>, site: u64| {
        let at = site.checked_sub(map.offset).and_then(|into| map.start.checked_add(into));
        let mut byte = [0];
        at.is_some_and(|at| {
            map.contains(at) && memory.read_exact_at(&mut byte, at).is_ok() && byte[0] == BREAKPOINT
        })
    };
    let all = sites.iter().map(|site| maps.clone().filter(|map| is_there(map, *site)).count());
    u16::try_from(all.sum::<usize>()).unwrap_or(u16::MAX)
}
