//! Which files a target's selector means at this moment.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::libraries::Libraries;
use super::processes::{Process, Processes, Uncovered, started};
use crate::config::model::Selector;
use crate::containers::Containers;
use crate::kernel::{Files, Inode};

/// A file to set probes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// A path that opens it now.
    pub path: PathBuf,
    /// As it is shown to people.
    pub shown: String,
    pub identity: Identity,
    pub stamp: Stamp,
    /// Loaded by a process that is meant, and not what it runs: only its USDT probes are of interest.
    pub is_library: bool,
    /// It lies beside the target's file, and may take its place.
    pub is_candidate: bool,
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
    /// By device and inode as stat(2) has them.
    known: HashMap<(u64, u64), (Stamp, Identity)>,
    processes: Processes,
    libraries: Libraries,
    /// When the processes that targets name by number began.
    begun: HashMap<u32, u64>,
    /// Processes that run the file which their executable's path leads to.
    checked: HashMap<u32, Identity>,
    /// Whether a file was in use, and when that was looked up.
    used: Option<(Identity, Instant, bool)>,
    /// What people should know of the latest search, though something was found.
    pub remarks: Vec<String>,
    /// Processes of the latest search that run another file than their executable's path leads to: on overlayfs, the one
    /// below, which was copied up meanwhile.
    pub copied_up: Vec<CopiedUp>,
}

/// A process whose executable no path leads to.
#[derive(Debug)]
pub struct CopiedUp {
    pub pid: u32,
    pub shown: String,
    /// All that it maps.
    pub maps: Vec<Identity>,
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

/// Whether selecting means a walk over all processes.
pub fn is_costly(selector: &Selector) -> bool {
    matches!(selector, Selector::Process(_) | Selector::Container(_))
}

impl Finder {
    /// With the kernel's knowledge of files.
    pub fn new(files: Files) -> Self {
        Self { files: Some(files), ..Self::default() }
    }

    /// Looks at all processes anew when next a selector needs them.
    pub fn begin_walk(&mut self) {
        self.processes.forget();
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
                let (wanted, uncovered) = self.processes.named(name);
                let none = format!("no process is called {name}");
                self.of_all(&wanted, &uncovered, none, usdt)
            }
            Selector::Container(name) => {
                let id = container_id(name);
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
        let began = started(pid).map_err(|err| failed(&err))?;
        let first = *self.begun.entry(pid).or_insert(began);
        if first != began {
            return Err(format!(
                "process {pid} has ended, and another one has its number now: name the new process, or use `process:`"
            ));
        }
        let found = self.of_process(pid).map_err(|err| failed(&err))?;
        let mut all = vec![found];
        self.add_libraries(&[Process::numbered(pid)], usdt, &mut all);
        Ok(all)
    }

    fn of_all(
        &mut self,
        wanted: &[Process],
        uncovered: &Uncovered,
        none: String,
        usdt: &[String],
    ) -> Result<Vec<Found>, String> {
        let mut all: Vec<Found> = Vec::new();
        let mut refused = Vec::new();
        for process in wanted {
            match self.of_process(process.pid) {
                Ok(found) if all.iter().all(|known| known.identity != found.identity) => all.push(found),
                Err(err) if err.kind() == io::ErrorKind::PermissionDenied => refused.push(process.pid),
                _ => {}
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

    fn add_libraries(&mut self, processes: &[Process], wanted: &[String], all: &mut Vec<Found>) {
        if wanted.is_empty() {
            return;
        }
        for (path, shown) in self.libraries.of(processes, wanted) {
            let Ok(found) = self.look_at(&path, shown) else { continue };
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
        let meta = fs::metadata(path)?;
        if !meta.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let stamp = Stamp::of(&meta);
        let key = (meta.dev(), meta.ino());
        let identity = match self.known.get(&key) {
            Some((known, identity)) if *known == stamp => *identity,
            _ => {
                if self.known.len() >= KNOWN {
                    self.known.clear();
                }
                let identity = self.identity(path, &meta);
                self.known.insert(key, (stamp, identity));
                identity
            }
        };
        Ok(Found { path: path.to_path_buf(), shown, identity, stamp, is_library: false, is_candidate: false })
    }

    fn identity(&mut self, path: &Path, meta: &fs::Metadata) -> Identity {
        let assumed = Identity { device: meta.dev(), number: meta.ino(), address: 0 };
        let Some(files) = &mut self.files else { return assumed };
        File::open(path).and_then(|file| files.inode(&file)).unwrap_or_else(|err| {
            log::debug!(
                "{}: told apart by stat(2), for the kernel's inode is not known: {err}",
                path.display()
            );
            assumed
        })
    }

    /// Whether the process runs the file that its executable's path leads to.
    fn check_layer(&mut self, pid: u32, exe: &Path, found: &Found) -> io::Result<()> {
        let meta = fs::metadata(exe)?;
        let device =
            u64::from(libc::major(meta.dev())) << KERNEL_MINOR_BITS | u64::from(libc::minor(meta.dev()));
        let is_plain = (device, meta.ino()) == (found.identity.device, found.identity.number);
        if is_plain || found.identity.address == 0 || self.checked.get(&pid) == Some(&found.identity) {
            return Ok(());
        }
        let Some(files) = &mut self.files else { return Ok(()) };
        let maps: Vec<_> = files.mapped_by(pid)?.into_iter().map(|(_, inode)| inode).collect();
        if maps.contains(&found.identity) {
            if self.checked.len() >= KNOWN {
                self.checked.clear();
            }
            self.checked.insert(pid, found.identity);
        } else if !maps.is_empty() {
            self.copied_up.push(CopiedUp { pid, shown: found.shown.clone(), maps });
        }
        Ok(())
    }

    /// Through /proc, so that it is the file that runs, in whatever mount namespace, even if it has been replaced.
    fn of_process(&mut self, pid: u32) -> io::Result<Found> {
        let exe = PathBuf::from(format!("/proc/{pid}/exe"));
        let shown = fs::read_link(&exe)?.display().to_string();
        let found = self.look_at(&exe, shown)?;
        self.check_layer(pid, &exe, &found)?;
        Ok(found)
    }
}

/// The id, or how it begins, of the container that is called so.
pub fn container_id(name: &str) -> String {
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
}
