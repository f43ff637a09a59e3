//! Which processes come and go, as the kernel tells it: see `bpf/events.bpf.c`.

mod record;

use std::fmt;
use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags, MapHandle};
use rustix::event::epoll;

use super::error::{KernelError, loading};
use super::files::PidNamespace;
use super::filters::as_glob;
use super::ring::EventRing;
use super::storage::{Storage, new_storage};
use super::tickets::{answer, answer_all, load_waiting};
use crate::abi::bytes_of;
use crate::abi::events::generated::{EventsSkel, EventsSkelBuilder};
use crate::abi::events::{cgroup_state, event_limit, name_key, name_length, tracked_state};
use crate::selectors::{Automaton, Pattern};
pub(crate) use record::process_event;
pub use record::{FileKey, FileUse, NamedFile, ProcessChange, ProcessEvent};

/// What is told of processes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Those that are called so, by the leader's or the executable's name.
    pub names: Vec<String>,
    /// Likewise, by globs; and those that are started with such a command line.
    pub name_globs: Vec<Pattern>,
    pub line_globs: Vec<Pattern>,
    /// Those in control groups that are said to be meant, and the first of each control group that is new.
    pub by_cgroup: bool,
    /// All, for it cannot be told beforehand which.
    pub all: bool,
    /// Also whom those start that are of interest, whatever these run.
    pub children: bool,
    /// Also what they map.
    pub mappings: bool,
}

impl Wanted {
    /// With no more globs than the kernel compares: all are told instead.
    fn bounded(mut self) -> Self {
        if self.name_globs.len() + self.line_globs.len() > event_limit::MAX_EVENT_GLOBS.0 as usize {
            self.all = true;
        }
        // Nothing is left for them to tell.
        if self.all {
            self.name_globs.clear();
            self.line_globs.clear();
        }
        self
    }

    /// Whether what a process calls itself says whether it is of interest.
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
    tells_mappings: bool,
    /// What those wait for of whom was told.
    unanswered: Vec<u64>,
    links: Vec<Link>,
}

impl fmt::Debug for ProcessEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessEvents").finish_non_exhaustive()
    }
}

/// How long a program waits in execve(2), or a loader in mmap(2), at most, until the file was looked at. Only an exporter that is stopped, or busy for long,
/// lets it wait so long.
pub const LONGEST_HOLD: Duration = Duration::from_millis(500);

/// Of the log.
const NO_MAPPINGS: &str =
    "the kernel does not tell what processes map; their mappings are read again and again";

/// Programs of which is remembered whether their names fit any of the globs.
const GLOB_RESULTS: u32 = 8192;

/// The reader is woken when a quarter of the ring is full.
const WAKE_BYTES: u32 = 1 << 16;

impl ProcessEvents {
    /// Loads and attaches the programs.
    ///
    /// # Errors
    /// What the kernel refuses; processes can be found by walking through /proc then.
    pub fn start(wanted: &Wanted, namespace: PidNamespace) -> Result<Self, KernelError> {
        crate::logging::log_libbpf();
        let wanted = &wanted.clone().bounded();
        let load = |wanted: &Wanted| {
            let load =
                |hold| LoadedEvents::try_new(new_storage(), |storage| load(storage, wanted, namespace, hold));
            load_waiting(LONGEST_HOLD, load)
        };
        let loaded = match load(wanted) {
            // Another kernel's registers.
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
        let mut attached = vec![&programs.executed, &programs.forked, &programs.ended];
        attached.extend(wanted.asks_for_names().then_some(&programs.renamed));
        attached.extend(wanted.by_cgroup.then_some(&programs.moved));
        let links = attached.into_iter().map(libbpf_rs::ProgramImpl::attach).collect::<Result<Vec<_>, _>>();
        let mut links: Vec<Link> = links.map_err(loading)?;
        let mapped = &programs.mapped;
        let mapped =
            mapped.autoload().then(|| mapped.attach().inspect_err(|err| log::debug!("{NO_MAPPINGS}: {err}")));
        let mapped = mapped.and_then(Result::ok);
        let tells_mappings = mapped.is_some();
        links.extend(mapped);
        let map = MapHandle::try_from(&skel.maps.ring).map_err(loading)?;
        let ring = EventRing::new(&map, process_event).map_err(loading)?;
        let epoll = watch(map.as_fd()).map_err(|err| loading(err.into()))?;
        Ok(Self { loaded, ring, epoll, lost: 0, tells_mappings, unanswered: Vec::new(), links })
    }

    /// Whether what processes map is told.
    pub fn tells_mappings(&self) -> bool {
        self.tells_mappings
    }

    /// What has happened since.
    pub fn take(&mut self) -> Vec<ProcessEvent> {
        let mut events = [const { MaybeUninit::uninit() }; 1];
        let _ =
            epoll::wait(&self.epoll, &mut events, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }));
        let taken = self.ring.take();
        self.unanswered.extend(taken.iter().map(ProcessEvent::ticket).filter(|ticket| *ticket > 0));
        taken
    }

    /// Programs that were told to have begun, or to load a library, may go on: the files were looked at.
    pub fn answer(&mut self) {
        let unanswered = std::mem::take(&mut self.unanswered);
        self.loaded.with_dependent_mut(|_, skel| {
            let Some(bss) = skel.maps.bss_data.as_deref_mut() else { return };
            answer(&mut bss.answered, &mut bss.is_unanswered, unanswered);
        });
    }

    /// Whether events were lost since this was asked last.
    pub fn has_lost(&mut self) -> bool {
        let now = self.loaded.borrow_dependent().maps.bss_data.as_deref().map_or(0, |bss| bss.lost);
        std::mem::replace(&mut self.lost, now) != now
    }

    /// What this process does is told from now on.
    pub fn track(&self, pid: u32) {
        self.set(
            &self.loaded.borrow_dependent().maps.tracked,
            &pid.to_ne_bytes(),
            tracked_state::TRACKED_FOUND.0,
        );
    }

    /// Likewise, and also what a later process with the number does.
    pub fn pin(&self, pid: u32) {
        self.set(
            &self.loaded.borrow_dependent().maps.tracked,
            &pid.to_ne_bytes(),
            tracked_state::TRACKED_PINNED.0,
        );
    }

    /// What this process does is of no interest.
    pub fn forget(&self, pid: u32) {
        let _ = self.loaded.borrow_dependent().maps.tracked.delete(&pid.to_ne_bytes());
    }

    /// Whether processes in the control group are meant.
    pub fn set_cgroup(&self, cgroup: u64, is_meant: bool) {
        let state = if is_meant { cgroup_state::CGROUP_MEANT } else { cgroup_state::CGROUP_OTHER };
        self.set(&self.loaded.borrow_dependent().maps.cgroups, &cgroup.to_ne_bytes(), state.0);
    }

    /// Other containers are meant than before: all control groups are new.
    pub fn forget_cgroups(&self) {
        let cgroups = &self.loaded.borrow_dependent().maps.cgroups;
        let all: Vec<_> = cgroups.keys().collect();
        all.iter().for_each(|key| drop(cgroups.delete(key)));
    }

    /// Such a process that executes the file needs nothing at once; or each does, whatever it is called and wherever it is.
    pub fn set_known(&self, file: FileUse, needs_semaphores: bool) {
        let maps = &self.loaded.borrow_dependent().maps;
        if needs_semaphores {
            self.set(&maps.semaphores, bytes_of(&file.file.key()), 1);
        } else {
            self.set(&maps.known, bytes_of(&file.key()), 1);
        }
    }

    /// Nothing has to be done when a process maps the file by this name.
    pub fn set_library_known(&self, file: NamedFile) {
        self.set(&self.loaded.borrow_dependent().maps.libraries, bytes_of(&file.key()), 1);
    }

    /// Something has to be.
    pub fn forget_library(&self, file: NamedFile) {
        let _ = self.loaded.borrow_dependent().maps.libraries.delete(bytes_of(&file.key()));
    }

    /// The file is as one that was never seen.
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
    let entries = u32::try_from(2 * wanted.names.len().max(1)).unwrap_or(u32::MAX);
    open.maps.names.set_max_entries(entries)?;
    let count = |globs: &[Pattern]| u32::try_from(globs.len()).unwrap_or(u32::MAX);
    let (names, lines) = (count(&wanted.name_globs), count(&wanted.line_globs));
    open.maps.globs.set_max_entries((names + lines).max(1))?;
    open.maps.glob_results.set_max_entries(if names > 0 { GLOB_RESULTS } else { 1 })?;
    open.progs.mapped.set_autoload(wanted.mappings);
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        (rodata.pid_namespace, rodata.pid_level) = (namespace.address, namespace.level);
        (rodata.has_cgroups, rodata.wake_bytes) = (u32::from(wanted.by_cgroup), WAKE_BYTES);
        (rodata.name_globs, rodata.line_globs) = (names, lines);
        (rodata.wants_all, rodata.wants_children) = (u32::from(wanted.all), u32::from(wanted.children));
        rodata.longest_wait = hold.as_nanos() as u64;
    }
    open.load()
}

/// Edge-triggered, for what need not be acted on at once stays in the ring.
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::clock::monotonic_now;

    /// What happens to this process, until nothing more does.
    fn of(events: &mut ProcessEvents, pid: u32) -> Vec<ProcessChange> {
        events.take().into_iter().filter(|event| event.pid == pid).map(|event| event.change).collect()
    }

    #[test]
    fn only_what_is_wanted_is_told_as_root() {
        let directory = tempfile::tempdir().unwrap();
        let name = format!("wanted{}", std::process::id());
        let path = directory.path().join(&name);
        std::fs::copy("/bin/dash", &path).unwrap();
        let wanted = Wanted { names: vec![name], ..Wanted::default() };
        let mut events = ProcessEvents::start(&wanted, PidNamespace::default()).unwrap();
        let start = |path: &std::path::Path| {
            let mut child =
                Command::new(path).args(["-c", "(true); read x"]).stdin(Stdio::piped()).spawn().unwrap();
            let pid = child.id();
            drop(child.stdin.take());
            child.wait().unwrap();
            pid
        };
        let pid = start(&path);
        let changes = of(&mut events, pid);
        let ProcessChange::Executed { file, path: ref executed, .. } = changes[0] else {
            panic!("{changes:?}")
        };
        assert_eq!(executed, &path);
        assert!(
            file.file.inode != 0 && changes.last() == Some(&ProcessChange::Ended { signal: 0 }),
            "{changes:?}"
        );
        let other = start("/bin/dash".as_ref());
        assert_eq!(of(&mut events, other), []);
        // Of a file that is known its path is not told.
        events.set_known(file, false);
        let pid = start(&path);
        let changes = of(&mut events, pid);
        assert!(matches!(&changes[0], ProcessChange::Executed { path, .. } if path.as_os_str().is_empty()));
        events.pin(u32::MAX >> 2);
        events.forget(u32::MAX >> 2);
        assert!(!events.has_lost());
    }

    #[test]
    fn a_program_waits_until_its_file_was_looked_at_as_root() {
        let directory = tempfile::tempdir().unwrap();
        let name = format!("waits{}", std::process::id());
        let [program, written] = [name.as_str(), "written"].map(|name| directory.path().join(name));
        std::fs::copy("/bin/dash", &program).unwrap();
        let wanted = Wanted { names: vec![name], ..Wanted::default() };
        let mut events = ProcessEvents::start(&wanted, PidNamespace::default()).unwrap();
        let types = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        let call = b"bpf_task_work_schedule_resume_impl";
        let can_wait = types.windows(call.len()).any(|window| window == call);
        let run = |events: &mut ProcessEvents| {
            let _ = std::fs::remove_file(&written);
            let mut child = Command::new(&program).args(["-c", "echo > $0"]).arg(&written).spawn().unwrap();
            let (file, time, ticket) = loop {
                let told = of(events, child.id());
                if let Some(ProcessChange::Executed { file, time, ticket, .. }) = told.first() {
                    break (*file, *time, *ticket);
                }
            };
            let has_run = written.exists();
            let late = monotonic_now() - time;
            events.answer();
            assert!(child.wait().unwrap().success() && written.exists());
            (file, ticket, (late < LONGEST_HOLD.as_nanos() as u64).then_some(has_run))
        };
        // It waits only so long, and this test may be late.
        let held = (0..100).map(|_| run(&mut events)).find(|(.., has_run)| has_run.is_some());
        let (file, ticket, has_run) = held.unwrap();
        assert_eq!(ticket > 0, can_wait);
        assert!(!can_wait || has_run == Some(false), "it has run before its file was looked at");
        events.set_known(file, false);
        assert_eq!(run(&mut events).1, 0, "nobody waits for what is known");
        // Who has waited in vain is the last one until somebody answers.
        events.forget_file(file);
        let mut unanswered = || {
            let mut child = Command::new(&program).args(["-c", "true"]).spawn().unwrap();
            assert!(child.wait().unwrap().success());
            let told = of(&mut events, child.id());
            told.iter().any(|change| matches!(change, ProcessChange::Executed { ticket, .. } if *ticket > 0))
        };
        assert_eq!([unanswered(), unanswered()], [can_wait, false]);
        events.answer();
        assert_eq!(run(&mut events).1 > 0, can_wait);
    }

    #[test]
    fn what_fits_no_glob_is_not_told_as_root() {
        let directory = tempfile::tempdir().unwrap();
        let id = std::process::id();
        let [fits, other] = [format!("glob{id}-x"), format!("other{id}")].map(|name| {
            let path = directory.path().join(name);
            std::fs::copy("/bin/dash", &path).unwrap();
            path
        });
        let pattern = |text: String| Pattern::new(&text).unwrap();
        let wanted = Wanted {
            name_globs: vec![pattern(format!("nobody{id}*")), pattern(format!("glob{id}-[x-z]"))],
            line_globs: vec![pattern(format!("*needle{id} *"))],
            ..Wanted::default()
        };
        let mut events = ProcessEvents::start(&wanted, PidNamespace::default()).unwrap();
        let run_with = |events: &mut ProcessEvents, path: &std::path::Path, text: &str| {
            let mut child = Command::new(path).args(["-c", text]).spawn().unwrap();
            child.wait().unwrap();
            of(events, child.id())
        };
        let mut run = |path: &std::path::Path, text: &str| run_with(&mut events, path, text);
        let is_told =
            |changes: &[ProcessChange]| matches!(changes.first(), Some(ProcessChange::Executed { .. }));
        // The second time it is known what the globs say of the name.
        for _ in 0..2 {
            assert!(is_told(&run(&fits, "true")));
            assert_eq!(run(&other, "true"), []);
        }
        assert!(is_told(&run(&other, &format!(": needle{id} ; true"))));
        assert_eq!(run(&other, &format!(": needle{id}; true")), []);
        // The same file by another name.
        let linked = directory.path().join(format!("glob{id}-y"));
        std::fs::hard_link(&other, &linked).unwrap();
        assert!(is_told(&run(&linked, "true")));
        assert_eq!(run(&other, "true"), []);
        let wanted = Wanted { line_globs: Vec::new(), ..wanted };
        let mut events = ProcessEvents::start(&wanted, PidNamespace::default()).unwrap();
        let mut rename =
            |name: &str| run_with(&mut events, &other, &format!("echo {name} > /proc/self/comm"));
        assert_eq!(rename("anybody"), []);
        let renamed = rename(&format!("nobody{id}"));
        assert!(
            matches!(&renamed[..], [ProcessChange::Renamed { .. }, ProcessChange::Ended { .. }]),
            "{renamed:?}"
        );
    }

    #[test]
    fn more_globs_than_the_kernel_compares_are_left_to_the_reader() {
        let globs = |count: u32| Wanted {
            name_globs: (0..count).map(|n| Pattern::new(&format!("a{n}*")).unwrap()).collect(),
            ..Wanted::default()
        };
        let most = event_limit::MAX_EVENT_GLOBS.0;
        assert!(!globs(most).bounded().all);
        let all = globs(most + 1).bounded();
        assert!(all.all && all.name_globs.is_empty());
    }

    #[test]
    fn what_is_mapped_is_told_until_it_is_known_as_root() {
        let directory = tempfile::tempdir().unwrap();
        let name = format!("maps{}", std::process::id());
        let path = directory.path().join(&name);
        std::fs::copy("/bin/dash", &path).unwrap();
        let wanted = Wanted { names: vec![name], mappings: true, ..Wanted::default() };
        let mut events = ProcessEvents::start(&wanted, PidNamespace::default()).unwrap();
        assert!(events.tells_mappings());
        let mut mapped = || -> Vec<NamedFile> {
            let mut child = Command::new(&path).args(["-c", "true"]).spawn().unwrap();
            child.wait().unwrap();
            let file = |change| match change {
                ProcessChange::Mapped { file, .. } => Some(file),
                _ => None,
            };
            let told: Vec<_> = of(&mut events, child.id()).into_iter().filter_map(file).collect();
            told.iter().for_each(|file| events.set_library_known(*file));
            told
        };
        // The C library at least, and what the loader has looked up.
        let told = mapped();
        assert!(!told.is_empty() && told.iter().all(|of| of.file.inode != 0 && of.name != 0), "{told:?}");
        assert_eq!(mapped(), []);
        events.forget_library(told[0]);
        let path = directory.path().join("other");
        std::fs::copy("/bin/dash", &path).unwrap();
        let mut other = Command::new(path).args(["-c", "true"]).spawn().unwrap();
        other.wait().unwrap();
        assert_eq!(of(&mut events, other.id()), [], "of no interest");
    }

    #[test]
    fn what_is_mapped_shared_is_data_and_not_told_as_root() {
        let directory = tempfile::tempdir().unwrap();
        let name = format!("data{}", std::process::id());
        let [program, private, shared] =
            [name.as_str(), "private", "shared"].map(|name| directory.path().join(name));
        std::os::unix::fs::symlink("/usr/bin/python3", &program).unwrap();
        std::fs::write(&private, [0; 4096]).unwrap();
        std::fs::write(&shared, [0; 4096]).unwrap();
        let wanted = Wanted { names: vec![name], mappings: true, ..Wanted::default() };
        let mut events = ProcessEvents::start(&wanted, PidNamespace::default()).unwrap();
        let text = "import mmap, sys\nfor path, flags in zip(sys.argv[1:], [mmap.MAP_PRIVATE, mmap.MAP_SHARED]):\n    \
                    file = open(path, 'r+b')\n    \
                    mmap.mmap(file.fileno(), 0, flags=flags)";
        let mut child = Command::new(&program).args(["-c", text]).args([&private, &shared]).spawn().unwrap();
        assert!(child.wait().unwrap().success());
        let told = of(&mut events, child.id());
        let number = |change: &ProcessChange| match change {
            ProcessChange::Mapped { file, .. } => Some(file.file.number),
            _ => None,
        };
        let numbers: Vec<u64> = told.iter().filter_map(number).collect();
        let is_told = |path: &PathBuf| numbers.contains(&path.metadata().unwrap().ino());
        assert_eq!([&private, &shared].map(is_told), [true, false], "{told:?}");
    }

    #[test]
    fn a_name_has_a_key_for_each_way_to_be_called_so() {
        let [exe, comm] = keys_of("bitcoind");
        assert_eq!(exe.unwrap()[..4], 8u32.to_ne_bytes());
        assert_eq!(comm.unwrap()[..4], u32::MAX.to_ne_bytes());
        assert_eq!(keys_of("a-name-of-16-byte")[1], None);
    }
}
