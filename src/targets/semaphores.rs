//! Raises semaphores where the kernel does not.
//!
//! In a file whose semaphores are on a page that two segments load (lld), the kernel raises them, in a process that
//! starts, where the first of the two is mapped. Later, once that mapping has become read-only, it lowers them in the
//! second, which the program reads, even if the exporter is killed. So the right one is raised here as often as the
//! kernel will lower it, which balances. Forked processes inherit raised semaphores. A process in which one was not
//! raised would prevent the kernel from removing its probes.
//!
//! For a library that a process has loaded several times (dlmopen(3)), the kernel raises the semaphore of the copy that
//! has the lowest address at that time, for the breakpoints of every copy, and in the end lowers that of the copy that
//! has the lowest address then, usually one that was loaded last. So all of them are raised here as far as the kernel
//! may lower them, and what remains when the probes are removed is lowered here.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::os::unix::fs::FileExt;

use super::denied::why_denied;
use super::file::Identity;
use super::raised::{RaisedCopy, breakpoints, note_copy, read};
use super::worker::Worker;
use crate::elf::Semaphore;
use crate::procfs::{Mapping, living_thread, text, writable_memory};

/// A semaphore by its offset in the file, and the sites that refer to it.
type Wanted = BTreeMap<u64, (Semaphore, BTreeSet<u64>)>;

impl Worker {
    /// Returns the file's semaphores that have to be managed in each process, for all targets together.
    fn wanted_semaphores(&self, identity: Identity) -> Wanted {
        let states = self.targets.iter();
        let files = states.flat_map(|state| state.current.iter().chain(&state.replaced));
        let mut wanted = Wanted::new();
        for (site, of) in files.filter(|of| of.identity == identity).flat_map(|of| &of.semaphores) {
            wanted.entry(of.offset).or_insert_with(|| (*of, BTreeSet::new())).1.insert(*site);
        }
        wanted
    }

    /// Raises them in a process that has just started to run the file, or has loaded it once more.
    pub(super) fn raise_semaphores(&mut self, pid: u32, identity: Identity) {
        let wanted = self.wanted_semaphores(identity);
        if wanted.is_empty() || pid == std::process::id() {
            return;
        }
        let raised = self.finder.starts_of_mappings(pid, identity).and_then(|starts| {
            let mut copies = self.raised.lock();
            raise(pid, &starts, &wanted, copies.entry(identity).or_default())
        });
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

    /// In a process that has just loaded the file with this inode address.
    pub(super) fn raise_loaded(&mut self, pid: u32, inode: u64) {
        let states = self.targets.iter();
        let mut files = states.flat_map(|state| state.current.iter().chain(&state.replaced));
        if let Some(identity) = files.find(|of| of.identity.address == inode).map(|of| of.identity) {
            self.raise_semaphores(pid, identity);
        }
    }

    /// Raises them in processes that have already loaded files of the target several times.
    pub(super) fn raise_copies(&mut self, target: usize) {
        let current = self.targets[target].current.iter();
        let files: Vec<_> = current.filter(|of| !of.semaphores.is_empty()).map(|of| of.identity).collect();
        for identity in files {
            for pid in self.finder.mapping_twice(identity) {
                self.raise_semaphores(pid, identity);
            }
        }
    }

    /// Raises them in all processes that may need it, some of which may not have been reported.
    pub(super) fn raise_all_semaphores(&mut self) {
        let states = self.targets.iter();
        let files = states.flat_map(|state| state.current.iter().chain(&state.replaced));
        let files: HashSet<Identity> =
            files.filter(|of| of.has_semaphores_on_shared_pages()).map(|of| of.identity).collect();
        let copied = self.raised.identities().into_iter().filter(|of| !files.contains(of));
        let mut processes: Vec<_> = copied
            .flat_map(|of| self.finder.mapping_twice(of).into_iter().map(move |pid| (pid, of)))
            .collect();
        for identity in files {
            processes.extend(self.finder.mapping(identity).into_iter().map(|pid| (pid, identity)));
        }
        processes.into_iter().for_each(|(pid, identity)| self.raise_semaphores(pid, identity));
    }
}

/// Raises those that are zero. `starts` are the start addresses of the file's mappings. Returns how many were raised.
fn raise(
    pid: u32,
    starts: &HashSet<u64>,
    wanted: &Wanted,
    copies: &mut Vec<RaisedCopy>,
) -> io::Result<usize> {
    let thread = living_thread(pid);
    let maps = text(format!("/proc/{thread}/maps"))?;
    let maps = maps.lines().filter_map(Mapping::parse);
    let maps: Vec<Mapping<'_>> = maps.filter(|map| starts.contains(&map.start)).collect();
    let memory = writable_memory(thread)?;
    let mut raised = 0;
    for (semaphore, sites) in wanted.values() {
        let code = maps.iter().filter(|map| map.is_executable() && map.offset == semaphore.code_offset);
        let addresses = code.filter_map(|code| {
            let at = code.start.wrapping_add(semaphore.distance);
            maps.iter().find(|map| map.is_data() && map.contains(at)).map(|map| (at, map))
        });
        let addresses: BTreeMap<u64, &Mapping<'_>> = addresses.collect();
        let is_single = addresses.len() == 1;
        if is_single && !semaphore.is_on_shared_page {
            continue;
        }
        let count = breakpoints(&memory, sites, maps.iter());
        for (at, map) in addresses {
            let now = read(&memory, at)?;
            let lacking = if is_single && now > 0 { 0 } else { count.saturating_sub(now) };
            if lacking > 0 {
                memory.write_all_at(&(now + lacking).to_ne_bytes(), at)?;
                raised += 1;
            }
            // The kernel lowers a single one. In the others, this also lowers what was left by a previous exporter that
            // was killed.
            if !is_single && count > 0 {
                let place = (map.device, map.inode, semaphore.offset);
                note_copy(copies, RaisedCopy { pid, at, place, sites: sites.clone(), by: count });
            }
        }
    }
    Ok(raised)
}
