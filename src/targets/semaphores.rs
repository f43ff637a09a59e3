//! Raising semaphores that the kernel raises in the wrong place.
//!
//! In a file whose semaphores are on a page that two segments load (lld), the kernel raises them, in a process that
//! starts, where the first of the two is mapped. Later, when that has become read-only, it lowers them in the second, where the
//! program looks: also when the exporter is killed. So the right one is raised here as often as the kernel will lower it, which
//! balances. What forks takes its raised semaphores along. A process in which one was not raised would keep
//! the kernel from taking out its probes.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use super::denied::why_denied;
use super::file::Identity;
use super::worker::Worker;
use crate::elf::SharedSemaphore;
use crate::kernel::BREAKPOINT;
use crate::procfs::{Mapping, living_thread, text};

/// A semaphore by its place in the file, and the sites that name it.
type Wanted = BTreeMap<u64, (SharedSemaphore, BTreeSet<u64>)>;

impl Worker {
    /// Semaphores of the file that have to be raised in each process, whatever targets they are for.
    fn shared_semaphores(&self, identity: Identity) -> Wanted {
        let states = self.targets.iter();
        let files = states.flat_map(|state| state.current.iter().chain(&state.replaced));
        let mut wanted = Wanted::new();
        for (site, shared) in files.filter(|of| of.identity == identity).flat_map(|of| &of.shared_semaphores)
        {
            wanted.entry(shared.offset).or_insert_with(|| (*shared, BTreeSet::new())).1.insert(*site);
        }
        wanted
    }

    /// In a process that has just begun to run the file.
    pub(super) fn raise_semaphores(&mut self, pid: u32, identity: Identity) {
        let wanted = self.shared_semaphores(identity);
        if wanted.is_empty() {
            return;
        }
        let raised =
            self.finder.starts_of_mappings(pid, identity).and_then(|starts| raise(pid, &starts, &wanted));
        match raised {
            Ok(0) => {}
            Ok(raised) => log::debug!("process {pid}: raised {raised} semaphores"),
            // It has ended.
            Err(err) if matches!(err.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {}
            Err(err) => log::warn!(
                "process {pid}: failed to raise its semaphores ({err}), so its hits are not counted; {}",
                why_denied()
            ),
        }
    }

    /// In a process that has just loaded the file with this address of its inode.
    pub(super) fn raise_loaded(&mut self, pid: u32, inode: u64) {
        let states = self.targets.iter();
        let mut files = states.flat_map(|state| state.current.iter().chain(&state.replaced));
        if let Some(identity) = files.find(|of| of.identity.address == inode).map(|of| of.identity) {
            self.raise_semaphores(pid, identity);
        }
    }

    /// In all processes that map such files, of which some may not have been told.
    pub(super) fn raise_all_semaphores(&mut self) {
        let states = self.targets.iter();
        let files = states.flat_map(|state| state.current.iter().chain(&state.replaced));
        let files: HashSet<Identity> =
            files.filter(|of| !of.shared_semaphores.is_empty()).map(|of| of.identity).collect();
        for identity in files {
            for pid in self.finder.mapping(identity) {
                self.raise_semaphores(pid, identity);
            }
        }
    }
}

/// Raises those that are not. `starts` are the addresses at which mappings of the file begin. Returns how many were
/// raised.
fn raise(pid: u32, starts: &HashSet<u64>, wanted: &Wanted) -> io::Result<usize> {
    let pid = living_thread(pid);
    let maps = text(format!("/proc/{pid}/maps"))?;
    let maps: Vec<Mapping<'_>> = maps.lines().filter_map(Mapping::parse).collect();
    let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
    let mut raised = 0;
    for (shared, sites) in wanted.values() {
        let code = maps.iter().filter(|map| {
            starts.contains(&map.start) && map.is_executable() && map.offset == shared.code_offset
        });
        for code in code {
            let at = code.start.wrapping_add(shared.distance);
            let is_there =
                maps.iter().any(|map| map.is_data() && map.contains(at) && starts.contains(&map.start));
            if !is_there {
                continue;
            }
            let mut now = [0; 2];
            memory.read_exact_at(&mut now, at)?;
            let count = breakpoints(&memory, sites, maps.iter().filter(|map| starts.contains(&map.start)));
            if u16::from_ne_bytes(now) == 0 && count > 0 {
                memory.write_all_at(&count.to_ne_bytes(), at)?;
                raised += 1;
            }
        }
    }
    Ok(raised)
}

/// How many breakpoints there are for sites of the file: the kernel raises and lowers the semaphore for each. A page of code
/// that two segments share is mapped twice, and has two.
fn breakpoints<'a>(
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
