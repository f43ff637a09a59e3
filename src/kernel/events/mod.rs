//! Process events from the kernel: see `bpf/events.bpf.c`.

mod record;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags, MapHandle, UprobeMultiOpts};
use rustix::event::epoll;

use super::error::{KernelError, loading};
use super::files::PidNamespace;
use super::filters::as_glob;
use super::pinnable_link::PinnableLink;
use super::ring::EventRing;
use super::storage::{Storage, new_storage};
use super::tickets::{answer, answer_all, load_waiting};
use crate::abi::bytes_of;
use crate::abi::events::generated::{EventsSkel, EventsSkelBuilder};
use crate::abi::events::{cgroup_state, event_limit, name_key, name_length, tracked_state};
use crate::selectors::{Automaton, Pattern};
pub(crate) use record::process_event;
pub use record::{FileKey, FileUse, KnownUnless, NamedFile, ProcessChange, ProcessEvent, TrappedCode};

/// Which processes are reported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Those with one of these names, of the leader or the executable.
    pub names: Vec<String>,
    /// Likewise by glob; and those that are started with a matching command line.
    pub name_globs: Vec<Pattern>,
    pub line_globs: Vec<Pattern>,
    /// Those in cgroups that are marked as selected, and the first process of each new cgroup.
    pub by_cgroup: bool,
    /// All, because they cannot be selected in advance.
    pub all: bool,
    /// Also the children of reported processes, whatever they run.
    pub children: bool,
    /// Also their mappings.
    pub mappings: bool,
}

impl Wanted {
    /// With no more globs than the kernel can compare: beyond that, all processes are reported.
    fn bounded(mut self) -> Self {
        if self.name_globs.len() + self.line_globs.len() > event_limit::MAX_EVENT_GLOBS.0 as usize {
            self.all = true;
        }
        // They are redundant then.
        if self.all {
            self.name_globs.clear();
            self.line_globs.clear();
        }
        self
    }

    /// Whether a process's own name is used to select it.
    fn asks_for_names(&self) -> bool {
        self.all || !(self.names.is_empty() && self.name_globs.is_empty() && self.line_globs.is_empty())
    }
}

self_cell::self_cell!(
    struct LoadedEvents {
        owner: Storage,
        #[covariant]
        dependent: EventsSkel,
    }
);

/// The attached programs.
pub struct ProcessEvents {
    loaded: LoadedEvents,
    ring: EventRing<ProcessEvent>,
    epoll: OwnedFd,
    lost: u64,
    reports_mappings: bool,
    /// The tickets of waiting processes that were reported.
    unanswered: Vec<u64>,
    links: Vec<Link>,
}

impl fmt::Debug for ProcessEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessEvents").finish_non_exhaustive()
    }
}

/// How long a program waits in execve(2), or a loader in mmap(2), at most, until the file has been examined. It waits
/// this long only while the exporter is stopped or busy.
pub const MAX_HOLD: Duration = Duration::from_millis(500);

/// Of the log.
const NO_MAPPINGS: &str =
    "the kernel does not tell what processes map; their mappings are read again and again";

/// Programs for which the result of the globs is cached.
const GLOB_RESULTS: u32 = 8192;

/// Capacity for names that are added later, as a multiple of the initial ones.
const MORE_NAMES: usize = 8;

/// The reader is woken when a quarter of the ring is full.
const WAKE_BYTES: u32 = 1 << 16;

impl ProcessEvents {
    /// Loads and attaches the programs.
    ///
    /// # Errors
    /// If the kernel rejects them; processes can then be found by scanning /proc.
    pub fn start(wanted: &Wanted, namespace: PidNamespace) -> Result<Self, KernelError> {
        crate::logging::log_libbpf();
        let wanted = &wanted.clone().bounded();
        let load = |wanted: &Wanted| {
            let load =
                |hold| LoadedEvents::try_new(new_storage(), |storage| load(storage, wanted, namespace, hold));
            load_waiting(MAX_HOLD, load)
        };
        let loaded = match load(wanted) {
            // The kernel uses other registers.
            Err(err) if wanted.mappings => {
                log::debug!("{NO_MAPPINGS}: {err}");
                load(&Wanted { mappings: false, ..wanted.clone() })
            }
            loaded => loaded,
        };
        let loaded = loaded.map_err(loading)?;
        let skel = loaded.borrow_dependent();
        for key in wanted.names.iter().flat_map(|name| keys_of(name)).flatten() {
            skel.maps.names.update(&key, &1u32.to_ne_bytes(), MapFlags::ANY).map_err(loading)?;
        }
        for (number, glob) in (0u32..).zip(wanted.name_globs.iter().chain(&wanted.line_globs)) {
            let glob = Automaton::of(glob).as_ref().map(as_glob).unwrap_or_default();
            skel.maps.globs.update(&number.to_ne_bytes(), bytes_of(&glob), MapFlags::ANY).map_err(loading)?;
        }
        let programs = &skel.progs;
        let mut attached = vec![&programs.executed, &programs.forked, &programs.ended, &programs.trapped];
        attached.extend(wanted.asks_for_names().then_some(&programs.renamed));
        attached.extend(wanted.by_cgroup.then_some(&programs.moved));
        let links = attached.into_iter().map(libbpf_rs::ProgramImpl::attach).collect::<Result<Vec<_>, _>>();
        let mut links: Vec<Link> = links.map_err(loading)?;
        let mapped = &programs.mapped;
        let mapped =
            mapped.autoload().then(|| mapped.attach().inspect_err(|err| log::debug!("{NO_MAPPINGS}: {err}")));
        let mapped = mapped.and_then(Result::ok);
        let reports_mappings = mapped.is_some();
        links.extend(mapped);
        let map = MapHandle::try_from(&skel.maps.ring).map_err(loading)?;
        let ring = EventRing::new(&map, process_event).map_err(loading)?;
        let epoll = watch(map.as_fd()).map_err(|err| loading(err.into()))?;
        Ok(Self { loaded, ring, epoll, lost: 0, reports_mappings, unanswered: Vec::new(), links })
    }

    /// Whether mappings are reported.
    pub fn reports_mappings(&self) -> bool {
        self.reports_mappings
    }

    /// Who loads the file, of which a loader runs the code at this offset first, is told as long as the link is kept. `inode` is
    /// the address of the file's inode. `again`: only who has loaded it before.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn report_loading(
        &self,
        file: &File,
        inode: u64,
        first_code: u64,
        again: bool,
    ) -> libbpf_rs::Result<PinnableLink> {
        let again = if again { u64::from(event_limit::LOADED_AGAIN.0) } else { 0 };
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let opts = UprobeMultiOpts {
            offsets: vec![first_code as usize],
            cookies: vec![inode | again],
            ..UprobeMultiOpts::default()
        };
        let program = &self.loaded.borrow_dependent().progs.loaded;
        program.attach_uprobe_multi_with_opts(-1, path, "", opts).map(PinnableLink::new)
    }

    /// The events since the previous call.
    pub fn take(&mut self) -> Vec<ProcessEvent> {
        let mut events = [const { MaybeUninit::uninit() }; 1];
        let _ =
            epoll::wait(&self.epoll, &mut events, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }));
        let taken = self.ring.take();
        self.unanswered.extend(taken.iter().map(ProcessEvent::ticket).filter(|ticket| *ticket > 0));
        taken
    }

    /// Lets all reported processes continue that wait in execve(2) or mmap(2): their files have been examined.
    pub fn answer(&mut self) {
        let unanswered = std::mem::take(&mut self.unanswered);
        self.loaded.with_dependent_mut(|_, skel| {
            let Some(bss) = skel.maps.bss_data.as_deref_mut() else { return };
            answer(&mut bss.answered, unanswered);
        });
    }

    /// The number of events that were lost since the previous call.
    pub fn take_lost(&mut self) -> u64 {
        let now = self.loaded.borrow_dependent().maps.bss_data.as_deref().map_or(0, |bss| bss.lost);
        now - std::mem::replace(&mut self.lost, now)
    }

    /// Reports processes of this name, too.
    pub fn add_name(&self, name: &str) {
        let names = &self.loaded.borrow_dependent().maps.names;
        keys_of(name).iter().flatten().for_each(|key| self.set(names, key, 1));
    }

    /// Reports this process from now on.
    pub fn track(&self, pid: u32) {
        self.set(
            &self.loaded.borrow_dependent().maps.tracked,
            &pid.to_ne_bytes(),
            tracked_state::TRACKED_FOUND.0,
        );
    }

    /// Likewise, and later processes with the same number, too.
    pub fn pin(&self, pid: u32) {
        self.set(
            &self.loaded.borrow_dependent().maps.tracked,
            &pid.to_ne_bytes(),
            tracked_state::TRACKED_PINNED.0,
        );
    }

    /// Stops reporting this process.
    pub fn forget(&self, pid: u32) {
        let _ = self.loaded.borrow_dependent().maps.tracked.delete(&pid.to_ne_bytes());
    }

    /// Sets whether processes in the cgroup are selected.
    pub fn set_cgroup(&self, cgroup: u64, is_meant: bool) {
        let state = if is_meant { cgroup_state::CGROUP_MEANT } else { cgroup_state::CGROUP_OTHER };
        self.set(&self.loaded.borrow_dependent().maps.cgroups, &cgroup.to_ne_bytes(), state.0);
    }

    /// Other containers are selected than before: all cgroups are new.
    pub fn forget_cgroups(&self) {
        let cgroups = &self.loaded.borrow_dependent().maps.cgroups;
        let all: Vec<_> = cgroups.keys().collect();
        all.iter().for_each(|key| drop(cgroups.delete(key)));
    }

    /// Processes that execute the file this way need not be reported; or every one must be, whatever its name and
    /// cgroup.
    pub fn set_known(&self, file: FileUse, needs_semaphores: bool, unless: KnownUnless) {
        let maps = &self.loaded.borrow_dependent().maps;
        if needs_semaphores {
            self.set(&maps.semaphores, bytes_of(&file.file.key()), 1);
        } else {
            self.set(&maps.known, bytes_of(&file.key()), unless.known_use());
        }
    }

    /// Processes that map the file by this name need not be reported.
    pub fn set_library_known(&self, file: NamedFile) {
        self.set(&self.loaded.borrow_dependent().maps.libraries, bytes_of(&file.key()), 1);
    }

    /// They must be reported again.
    pub fn forget_library(&self, file: NamedFile) {
        let _ = self.loaded.borrow_dependent().maps.libraries.delete(bytes_of(&file.key()));
    }

    /// Forgets everything about the file.
    pub fn forget_file(&self, file: FileUse) {
        let maps = &self.loaded.borrow_dependent().maps;
        let _ = maps.semaphores.delete(bytes_of(&file.file.key()));
        let _ = maps.known.delete(bytes_of(&file.key()));
    }

    fn set(&self, map: &impl MapCore, key: &[u8], value: u32) {
        if let Err(err) = map.update(key, &value.to_ne_bytes(), MapFlags::ANY) {
            log::debug!("failed to update the process filter: {err}");
        }
    }
}

impl Drop for ProcessEvents {
    fn drop(&mut self) {
        self.links.clear();
        self.loaded.with_dependent_mut(|_, skel| {
            let bss = skel.maps.bss_data.as_deref_mut();
            bss.into_iter().for_each(|bss| answer_all(&mut bss.answered));
        });
    }
}

impl AsFd for ProcessEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

fn load<'a>(
    storage: &'a Storage,
    wanted: &Wanted,
    namespace: PidNamespace,
    hold: Duration,
) -> libbpf_rs::Result<EventsSkel<'a>> {
    let mut open = EventsSkelBuilder::default().open(storage.borrow_mut())?;
    let entries = u32::try_from(2 * MORE_NAMES * wanted.names.len().max(1)).unwrap_or(u32::MAX);
    open.maps.names.set_max_entries(entries)?;
    let count = |globs: &[Pattern]| u32::try_from(globs.len()).unwrap_or(u32::MAX);
    let (names, lines) = (count(&wanted.name_globs), count(&wanted.line_globs));
    open.maps.globs.set_max_entries((names + lines).max(1))?;
    open.maps.glob_results.set_max_entries(if names > 0 { GLOB_RESULTS } else { 1 })?;
    open.progs.mapped.set_autoload(wanted.mappings);
    // Without waiting, the report would come too late.
    open.progs.loaded.set_autoload(!hold.is_zero());
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        (rodata.pid_namespace, rodata.pid_level) = (namespace.address, namespace.level);
        (rodata.has_cgroups, rodata.wake_bytes) = (u32::from(wanted.by_cgroup), WAKE_BYTES);
        (rodata.name_globs, rodata.line_globs) = (names, lines);
        (rodata.wants_all, rodata.wants_children) = (u32::from(wanted.all), u32::from(wanted.children));
        (rodata.own_pid, rodata.longest_wait) = (std::process::id(), hold.as_nanos() as u64);
    }
    open.load()
}

/// Edge-triggered, because events that are not urgent stay in the ring.
fn watch(ring: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&epoll, ring, epoll::EventData::new_u64(0), edge)?;
    Ok(epoll)
}

/// The keys of a name: as an executable's, and, if it is short enough, as a leader's.
fn keys_of(name: &str) -> [Option<Vec<u8>>; 2] {
    let mut start = [0; 16];
    let taken = name.len().min(start.len());
    start[..taken].copy_from_slice(&name.as_bytes()[..taken]);
    let key = |length: u32| {
        let mut key = vec![0; size_of::<name_key>()];
        key[..4].copy_from_slice(&length.to_ne_bytes());
        key[offset_of!(name_key, start)..].copy_from_slice(&start);
        key
    };
    let length = u32::try_from(name.len()).unwrap_or_default();
    [Some(key(length)), (name.len() < start.len()).then(|| key(name_length::NAME_COMM.0))]
}
