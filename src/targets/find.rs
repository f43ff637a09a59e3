//! Which files a target's selector means at this moment.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::libraries::Libraries;
use super::processes::{Applied, Meant, Processes, Uncovered};
use crate::config::model::Selector;
use crate::containers::Containers;
use crate::kernel::{FileKey, Files, Inode, ProcessChange, ProcessEvent, ProcessEvents};
use crate::procfs::Stat;
use crate::regular;

/// A file to set probes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// A path that opens it now.
    pub path: PathBuf,
    /// As it is shown to people.
    pub shown: String,
    pub identity: Identity,
    /// Its device and inode as stat(2) has them where the path leads to it.
    key: (u64, u64),
    pub stamp: Stamp,
    /// Loaded by a process that is meant, and not what it runs: only its USDT probes are of interest.
    pub is_library: bool,
    /// It lies beside the target's file, and may take its place.
    pub is_candidate: bool,
}

impl Found {
    /// Opens it.
    ///
    /// # Errors
    /// What the kernel says, or that the path leads to another file by now: a process has executed another program, or a
    /// file was replaced. Probes that went into that one under this one's identity would be set a second time under its own.
    pub fn open(&self) -> io::Result<File> {
        let file = regular::open(&self.path)?;
        if key(&file.metadata()?) == self.key {
            Ok(file)
        } else {
            Err(io::Error::other("another file is there by now"))
        }
    }

    /// What is in it.
    ///
    /// # Errors
    /// Those of [`Found::open`], and of reading.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        regular::read_all(&self.open()?)
    }
}

fn key(meta: &fs::Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// Which file it is, whatever it is called: probes are set on this.
pub type Identity = Inode;

/// Which contents it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// Of the inode: it also changes by chmod, which on overlayfs can make another file of it.
    changed: (i64, i64),
    bytes: u64,
}

impl Stamp {
    fn of(meta: &fs::Metadata) -> Self {
        Self {
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            bytes: meta.len(),
        }
    }
}

/// Finds files, and remembers what it has found out about them.
#[derive(Debug, Default)]
pub struct Finder {
    files: Option<Files>,
    /// What the kernel tells of processes; without it they are walked through.
    events: Option<ProcessEvents>,
    /// By device and inode as stat(2) has them.
    known: HashMap<(u64, u64), (Stamp, Identity)>,
    processes: Processes,
    libraries: Libraries,
    /// By what targets call them.
    containers: HashMap<String, String>,
    /// Processes that targets name by number.
    pinned: HashSet<u32>,
    /// When these began.
    begun: HashMap<u32, u64>,
    /// Processes that run the file which their executable's path leads to.
    checked: HashMap<u32, Identity>,
    /// Whether a file was in use, and when that was looked up.
    used: Option<(Identity, Instant, bool)>,
    /// Files that processes were seen to run, as the kernel tells of them.
    executed: HashMap<FileKey, Identity>,
    /// Processes that began a moment ago and may not have loaded all of their libraries: when they are looked at again, and
    /// how long after that once more. None where nobody needs libraries.
    young: Option<Vec<(Instant, Duration, u32)>>,
    /// How often all of /proc was looked through.
    pub walks: u64,
    /// What people should know of the latest search, though something was found.
    pub remarks: Vec<String>,
    /// Processes of the latest search that run another file than their executable's path leads to: on overlayfs, the one
    /// below, which was copied up meanwhile.
    pub copied_up: Vec<CopiedUp>,
}

/// What has become of processes.
#[derive(Debug, Default)]
pub struct News {
    /// Targets that may mean other files now.
    pub targets: BTreeSet<usize>,
    /// Programs that have ended already: their names, and paths.
    pub ended: Vec<(String, PathBuf)>,
    /// Processes that have begun to run a program.
    pub executed: Vec<Executed>,
}

/// A process whose executable no path leads to.
#[derive(Debug)]
pub struct CopiedUp {
    pub pid: u32,
    pub shown: String,
    /// All that it maps.
    pub maps: Vec<Identity>,
}

/// How long after a program began its mappings are read first; then after four times that, and so on.
const FIRST_READ: Duration = Duration::from_millis(3);
const LAST_READ: Duration = Duration::from_secs(3);

/// Processes whose mappings are read so often; of more of them in their turn with all others.
const YOUNG: usize = 256;

/// A process that has begun to run a program.
#[derive(Debug)]
pub struct Executed {
    pub pid: u32,
    key: FileKey,
    /// When, by `CLOCK_MONOTONIC`, in nanoseconds.
    pub time: u64,
}

/// What is remembered of so many files; then it is found out anew.
const KNOWN: usize = 4096;

/// The kernel's own device numbers have so many bits for the minor one.
const KERNEL_MINOR_BITS: u32 = 20;

/// How long it is not looked up again whether a file is in use.
const USED: Duration = Duration::from_secs(1);

/// The files that the selector means now, told apart as stat(2) does.
///
/// # Errors
/// Why there is none, as a sentence for people.
pub fn find(selector: &Selector) -> Result<Vec<Found>, String> {
    Finder::default().find(selector, &[])
}

/// Whether the selector means processes, and whatever they run.
pub fn is_by_process(selector: &Selector) -> bool {
    !matches!(selector, Selector::Binary(_))
}

impl Finder {
    /// With the kernel's knowledge of files, and what it tells of the processes that targets mean.
    /// `needs_libraries` if any of the targets has probes that can be in these.
    pub fn new(
        files: Files,
        selectors: &[Selector],
        events: Option<ProcessEvents>,
        needs_libraries: bool,
    ) -> Self {
        let young = (needs_libraries && events.is_some()).then(Vec::new);
        let mut finder = Self { files: Some(files), events, young, ..Self::default() };
        let meant = selectors.iter().map(|selector| finder.meant(selector)).collect();
        finder.processes = Processes::of(meant);
        let pids = selectors.iter().filter_map(|selector| match selector {
            Selector::Pid(pid) => Some(*pid),
            _ => None,
        });
        finder.pinned = pids.collect();
        if let Some(events) = &finder.events {
            finder.pinned.iter().for_each(|pid| events.pin(*pid));
        }
        finder
    }

    fn meant(&mut self, selector: &Selector) -> Option<Meant> {
        match selector {
            // To be told when it is run.
            Selector::Binary(path) => {
                let name = path.file_name().and_then(|name| name.to_str());
                name.map(|name| Meant::Name(name.to_string()))
            }
            Selector::Pid(pid) => Some(Meant::Pid(*pid)),
            Selector::Process(name) => Some(Meant::Name(name.clone())),
            Selector::Container(name) => Some(Meant::Container(self.container_id(name))),
        }
    }

    /// Whether changes of processes are told.
    pub fn has_events(&self) -> bool {
        self.events.is_some()
    }

    /// Becomes readable when there is something to follow at once.
    pub fn told(&self) -> Option<BorrowedFd<'_>> {
        self.events.as_ref().map(AsFd::as_fd)
    }

    /// Looks at all processes anew when next a selector needs them.
    pub fn begin_walk(&mut self) {
        self.processes.forget();
    }

    /// Processes may have loaded other files meanwhile, which the kernel does not tell: those that began a while ago, and a
    /// few of all others in turn.
    pub fn read_mappings_again(&mut self) {
        self.processes.forget_some_libraries();
    }

    /// Asks the engines again which containers are called as targets call them.
    pub fn name_containers(&mut self, selectors: &[Selector]) {
        let mut has_changed = false;
        for (target, selector) in selectors.iter().enumerate() {
            let Selector::Container(name) = selector else { continue };
            let id = container_id(name);
            if self.containers.get(name) != Some(&id) {
                self.containers.insert(name.clone(), id.clone());
                self.processes.set_meant(target, Meant::Container(id));
                has_changed = true;
            }
        }
        if let Some(events) = self.events.as_ref().filter(|_| has_changed) {
            events.forget_cgroups();
        }
    }

    /// The id, or how it begins, of the container that is called so.
    pub fn container_id(&mut self, name: &str) -> String {
        self.containers.entry(name.to_string()).or_insert_with(|| container_id(name)).clone()
    }

    /// Follows what the kernel has told of processes. None if some of that was lost, so that a
    /// walk is needed.
    pub fn follow(&mut self, selectors: &[Selector]) -> Option<News> {
        let mut news = News::default();
        let Some(events) = &mut self.events else { return Some(news) };
        let told = events.take();
        if events.has_lost() {
            return None;
        }
        // Of a process that has ended meanwhile nothing can be looked up.
        let ends = |event: &&ProcessEvent| event.change == ProcessChange::Ended;
        let ended: HashSet<u32> = told.iter().filter(ends).map(|event| event.pid).collect();
        for event in &told {
            self.follow_one(event, selectors, ended.contains(&event.pid), &mut news);
        }
        self.read_young();
        self.walk();
        news.targets = self.processes.take_changed();
        Some(news)
    }

    /// When [`follow`](Self::follow) has something to do, even if nothing is told.
    pub fn due_in(&self) -> Option<Duration> {
        let due = self.young.iter().flatten().map(|(due, ..)| *due).min();
        due.map(|due| due.saturating_duration_since(Instant::now()))
    }

    fn read_young(&mut self) {
        let now = Instant::now();
        for (due, pause, pid) in self.young.iter_mut().flatten() {
            if *due <= now {
                if let Some(process) = self.processes.get_mut(*pid) {
                    process.libraries = None;
                    self.processes.touch(*pid);
                }
                (*due, *pause) = (now + *pause, *pause * 4);
            }
        }
        if let Some(young) = &mut self.young {
            young.retain(|(_, pause, pid)| *pause <= LAST_READ * 4 && self.processes.get(*pid).is_some());
        }
    }

    fn follow_one(&mut self, event: &ProcessEvent, selectors: &[Selector], has_ended: bool, news: &mut News) {
        let pid = event.pid;
        let applied = if has_ended && event.change != ProcessChange::Ended {
            Applied::default()
        } else {
            self.processes.apply(event)
        };
        if applied.is_new_cgroup && applied.containers > 0 {
            self.name_containers(selectors);
        }
        let Some(events) = &self.events else { return };
        if let ProcessChange::Executed { cgroup, .. } | ProcessChange::Moved { cgroup } = event.change
            && let Some(is_meant) = self.processes.means_cgroup(cgroup)
        {
            events.set_cgroup(cgroup, is_meant);
        }
        let is_pinned = self.pinned.contains(&pid);
        if !applied.is_of_interest && event.change != ProcessChange::Ended && !is_pinned {
            events.forget(pid);
        }
        let ProcessChange::Executed { path, file, time, .. } = &event.change else { return };
        let is_seen = self.executed.contains_key(file) || (applied.is_of_interest && self.is_there(pid));
        if !is_seen {
            // It has ended before it could be looked at, even if its name could still be read; the next one is to find its
            // file attached to.
            if path.is_absolute() && fs::metadata(path).is_ok_and(|meta| meta.ino() == file.number) {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                news.ended.push((name, path.clone()));
            }
        } else {
            news.executed.push(Executed { pid, key: *file, time: *time });
            if let Some(young) = self.young.as_mut().filter(|young| young.len() < YOUNG) {
                young.push((Instant::now() + FIRST_READ, 4 * FIRST_READ, pid));
            }
        }
    }

    /// Looks through /proc, if that is needed, and has the kernel tell of what was found there.
    fn walk(&mut self) {
        let found = self.processes.walk_if_needed();
        self.walks += u64::from(found.is_some());
        for pid in found.unwrap_or_default() {
            let Some(events) = &self.events else { return };
            if !self.pinned.contains(&pid) {
                events.track(pid);
            }
            // It may have ended before that.
            if !Path::new("/proc").join(pid.to_string()).exists() {
                self.processes.apply(&ProcessEvent { pid, change: ProcessChange::Ended });
                if !self.pinned.contains(&pid) {
                    events.forget(pid);
                }
            }
        }
    }

    /// After all targets that mean these processes were looked at: who runs the same files needs nothing at once.
    /// Where semaphores have to be raised, all such processes are told.
    pub fn note_executed(&mut self, news: &News, needs_semaphores: impl Fn(Identity) -> bool) {
        for executed in &news.executed {
            let Some(identity) = self.file_of(executed) else { continue };
            let Some(events) = &self.events else { return };
            if self.executed.len() >= KNOWN {
                self.executed.drain().for_each(|(key, _)| events.forget_file(key));
            }
            if self.executed.insert(executed.key, identity) != Some(identity) {
                events.set_known(executed.key, needs_semaphores(identity));
            }
        }
    }

    /// What the process runs.
    pub fn file_of(&mut self, executed: &Executed) -> Option<Identity> {
        let known = self.executed.get(&executed.key).copied();
        known.or_else(|| Some(self.of_process(executed.pid).ok()?.identity))
    }

    /// Where the process has mapped the file: the addresses at which a mapping of it begins.
    ///
    /// # Errors
    /// If the process has ended, or the kernel does not say.
    pub fn starts_of_mappings(&mut self, pid: u32, identity: Identity) -> io::Result<HashSet<u64>> {
        let Some(files) = &mut self.files else { return Ok(HashSet::new()) };
        let all = files.mapped_by(pid)?;
        Ok(all.into_iter().filter(|(_, inode)| *inode == identity).map(|(start, _)| start).collect())
    }

    /// The processes that map the file, as far as the kernel's numbers are those of /proc.
    pub fn mapping(&mut self, identity: Identity) -> BTreeSet<u32> {
        let files = self.files.as_mut().filter(|_| identity.address != 0);
        files.and_then(|files| files.mapping(identity).ok()).unwrap_or_default()
    }

    /// The file is no longer attached to: whoever runs it next is to be looked at.
    pub fn forget_executed(&mut self, identity: Identity) {
        let Some(events) = &self.events else { return };
        self.executed.retain(|key, of| {
            let is_other = *of != identity;
            if !is_other {
                events.forget_file(*key);
            }
            is_other
        });
    }

    /// Whether the contents of these files have changed is looked at again.
    pub fn check_again(&mut self, files: &[Identity]) {
        self.processes.forget_files(files);
    }

    /// The files that the selector means now. Files that its processes have
    /// loaded are among them if they have one of these USDT probes, written `provider:name`.
    ///
    /// # Errors
    /// Why there is none, as a sentence for people.
    pub fn find(&mut self, selector: &Selector, usdt: &[String]) -> Result<Vec<Found>, String> {
        self.remarks.clear();
        self.copied_up.clear();
        match selector {
            Selector::Binary(path) => self
                .look_at(path, path.display().to_string())
                .map(|found| vec![found])
                .map_err(|err| format!("{}: {err}", path.display())),
            Selector::Pid(pid) => self.of_one(*pid, usdt),
            Selector::Process(name) => {
                self.walk();
                let (wanted, uncovered) = self.processes.named(name);
                let none = format!("no process is called {name}");
                self.of_all(&wanted, &uncovered, none, usdt)
            }
            Selector::Container(name) => {
                let id = self.container_id(name);
                self.walk();
                let (wanted, uncovered) = self.processes.in_container(&id);
                let none =
                    format!("no process runs in a container called {name}, or whose id begins with that");
                self.of_all(&wanted, &uncovered, none, usdt)
            }
        }
    }

    /// When the process began, by the kernel's clock; 0 if that is not known.
    pub fn began(&mut self, pid: u32) -> u64 {
        self.files.as_mut().and_then(|files| files.began(pid).ok()).unwrap_or_default()
    }

    /// Whether any process still has the file mapped, or had a moment ago.
    pub fn in_use(&mut self, identity: Identity) -> bool {
        if let Some((of, at, used)) = self.used
            && of == identity
            && at.elapsed() < USED
        {
            return used;
        }
        let used = self.look_for_use(identity);
        self.used = Some((identity, Instant::now(), used));
        used
    }

    fn look_for_use(&mut self, identity: Identity) -> bool {
        match self.files.as_mut().filter(|_| identity.address != 0) {
            // To detach from a file that runs is worse than to stay.
            Some(files) => files.is_mapped(identity).unwrap_or(true),
            None => self.processes.map(identity),
        }
    }

    fn of_one(&mut self, pid: u32, usdt: &[String]) -> Result<Vec<Found>, String> {
        let failed = |err: &io::Error| format!("process {pid}: {}", process_error(err));
        let began = Stat::of(pid).map_err(|err| failed(&err))?.start_ticks;
        let first = *self.begun.entry(pid).or_insert(began);
        if first != began {
            return Err(format!(
                "process {pid} has ended, and another one has its number now: name the new process, or use `process:`"
            ));
        }
        self.walk();
        let found = self.of_process(pid).map_err(|err| failed(&err))?;
        let mut all = vec![found];
        self.add_libraries(&[pid], usdt, &mut all);
        Ok(all)
    }

    fn of_all(
        &mut self,
        wanted: &[u32],
        uncovered: &Uncovered,
        none: String,
        usdt: &[String],
    ) -> Result<Vec<Found>, String> {
        let mut all: Vec<Found> = Vec::new();
        let mut seen = HashSet::new();
        let mut refused = Vec::new();
        for pid in wanted {
            match self.of_process(*pid) {
                Ok(found) => {
                    if seen.insert(found.identity) {
                        all.push(found);
                    }
                }
                Err(err) if err.kind() == io::ErrorKind::PermissionDenied => refused.push(*pid),
                Err(_) => {}
            }
        }
        let unseen = uncovered.sentence(&refused);
        if all.is_empty() {
            return Err(unseen.map_or(none.clone(), |unseen| format!("{none}; {unseen}")));
        }
        if !refused.is_empty() {
            self.remarks.extend(unseen);
        }
        self.add_libraries(wanted, usdt, &mut all);
        Ok(all)
    }

    fn add_libraries(&mut self, processes: &[u32], wanted: &[String], all: &mut Vec<Found>) {
        if wanted.is_empty() {
            return;
        }
        let mut seen = HashSet::new();
        let mut of_process = Vec::new();
        for pid in processes {
            let known = self.processes.get(*pid).and_then(|process| process.libraries.clone());
            of_process.push(known.unwrap_or_else(|| {
                let found = self.libraries.of(*pid);
                if let Some(process) = self.processes.get_mut(*pid) {
                    process.libraries = Some(found.clone());
                }
                found
            }));
        }
        for library in of_process.into_iter().flatten() {
            if !library.has_any(wanted) || !seen.insert(library.file) {
                continue;
            }
            let Ok(found) = self.look_at(&library.path, library.shown) else {
                // Another process that has loaded it may still be there.
                seen.remove(&library.file);
                continue;
            };
            if all.iter().all(|known| known.identity != found.identity) {
                all.push(Found { is_library: true, ..found });
            }
        }
    }

    /// A file by its path.
    ///
    /// # Errors
    /// If it cannot be looked at, or is no regular file.
    pub fn look_at(&mut self, path: &Path, shown: String) -> io::Result<Found> {
        let mut meta = fs::metadata(path)?;
        if !meta.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let identity = match self.known.get(&key(&meta)) {
            Some((stamp, identity)) if *stamp == Stamp::of(&meta) => *identity,
            _ => {
                if self.known.len() >= KNOWN {
                    self.known.clear();
                }
                let file = regular::open(path);
                // All of one file, if the path leads to another one by now.
                if let Ok(file) = &file {
                    meta = file.metadata()?;
                }
                let identity = self.identity(path, file, &meta);
                self.known.insert(key(&meta), (Stamp::of(&meta), identity));
                identity
            }
        };
        Ok(Found {
            path: path.to_path_buf(),
            shown,
            identity,
            key: key(&meta),
            stamp: Stamp::of(&meta),
            is_library: false,
            is_candidate: false,
        })
    }

    fn identity(&mut self, path: &Path, file: io::Result<File>, meta: &fs::Metadata) -> Identity {
        let assumed = Identity { device: meta.dev(), number: meta.ino(), address: 0 };
        let Some(files) = &mut self.files else { return assumed };
        file.and_then(|file| files.inode(&file)).unwrap_or_else(|err| {
            log::debug!(
                "{}: told apart by stat(2), for the kernel's inode is not known: {err}",
                path.display()
            );
            assumed
        })
    }

    /// All that the process maps, if that is not the file which its executable's path leads to.
    fn check_layer(&mut self, pid: u32, exe: &Path, found: &Found) -> io::Result<Option<Vec<Identity>>> {
        let meta = fs::metadata(exe)?;
        let device =
            u64::from(libc::major(meta.dev())) << KERNEL_MINOR_BITS | u64::from(libc::minor(meta.dev()));
        let is_plain = (device, meta.ino()) == (found.identity.device, found.identity.number);
        if is_plain || found.identity.address == 0 || self.checked.get(&pid) == Some(&found.identity) {
            return Ok(None);
        }
        let Some(files) = &mut self.files else { return Ok(None) };
        let maps: Vec<_> = files.mapped_by(pid)?.into_iter().map(|(_, inode)| inode).collect();
        if maps.contains(&found.identity) {
            if self.checked.len() >= KNOWN {
                self.checked.clear();
            }
            self.checked.insert(pid, found.identity);
            return Ok(None);
        }
        Ok(Some(maps).filter(|maps| !maps.is_empty()))
    }

    /// Whether it can be told what the process runs, or only the right to is missing.
    fn is_there(&mut self, pid: u32) -> bool {
        self.of_process(pid).map_or_else(|err| err.kind() == io::ErrorKind::PermissionDenied, |_| true)
    }

    /// Through /proc, so that it is the file that runs, in whatever mount namespace, even if it has been replaced.
    fn of_process(&mut self, pid: u32) -> io::Result<Found> {
        let known = self
            .processes
            .get(pid)
            .and_then(|process| Some((process.file.clone()?, process.copied_up.clone())));
        let (found, copied_up) = match known {
            Some(known) => known,
            None => {
                let exe = PathBuf::from(format!("/proc/{pid}/exe"));
                let shown = fs::read_link(&exe)?.display().to_string();
                let found = self.look_at(&exe, shown)?;
                let copied_up = self.check_layer(pid, &exe, &found)?;
                if let Some(process) = self.processes.get_mut(pid) {
                    (process.file, process.copied_up) = (Some(found.clone()), copied_up.clone());
                }
                (found, copied_up)
            }
        };
        if let Some(maps) = copied_up {
            self.copied_up.push(CopiedUp { pid, shown: found.shown.clone(), maps });
        }
        Ok(found)
    }
}

fn container_id(name: &str) -> String {
    Containers::default().id(name).unwrap_or_else(|| name.to_string())
}

fn process_error(err: &io::Error) -> String {
    match err.kind() {
        io::ErrorKind::NotFound => "does not exist, or is a thread of the kernel".to_string(),
        io::ErrorKind::PermissionDenied => {
            "its executable may not be read; CAP_SYS_PTRACE is needed".to_string()
        }
        _ => err.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_by_pid_by_name_and_by_file() {
        let exe = std::env::current_exe().unwrap();
        let by_file = find(&Selector::Binary(exe.clone())).unwrap();
        let by_pid = find(&Selector::Pid(std::process::id())).unwrap();
        assert_eq!(by_file[0].identity, by_pid[0].identity);
        let name = exe.file_name().unwrap().to_str().unwrap().to_string();
        let by_name = find(&Selector::Process(name)).unwrap();
        assert!(by_name.iter().any(|found| found.identity == by_file[0].identity));
        assert!(Finder::default().in_use(by_file[0].identity));
    }

    #[test]
    fn what_is_not_there_is_said() {
        let missing = find(&Selector::Binary("/nonexistent/x".into())).unwrap_err();
        assert!(missing.contains("/nonexistent/x") && missing.contains("No such file"), "{missing}");
        assert!(find(&Selector::Binary("/".into())).unwrap_err().contains("not a regular file"));
        assert!(find(&Selector::Process("no such process".into())).is_err());
        assert!(find(&Selector::Pid(u32::MAX)).unwrap_err().contains("does not exist"));
    }

    #[test]
    fn a_file_is_not_opened_by_a_path_that_leads_to_another_by_now() {
        let folder = tempfile::tempdir().unwrap();
        let [path, other] = ["file", "other"].map(|name| folder.path().join(name));
        fs::write(&path, "one").unwrap();
        fs::write(&other, "two").unwrap();
        let found = Finder::default().look_at(&path, "shown".to_string()).unwrap();
        assert_eq!(found.read().unwrap(), b"one");
        fs::rename(&other, &path).unwrap();
        assert_eq!(found.open().unwrap_err().to_string(), "another file is there by now");
    }
}
