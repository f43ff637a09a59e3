//! Determines which file a path or a process leads to, by the kernel's identity, and which processes map it.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::file::{CopiedUp, Identity, Stamp, TargetFile, key};
use super::find::{CACHE_SIZE, Finder};
use crate::kernel::MappedPart;
use crate::procfs::{is_denied, living_thread, text};
use crate::regular;

/// The width of the minor number in the kernel's own device numbers.
const KERNEL_MINOR_BITS: u32 = 20;

/// How long the answer to whether a file is in use stays valid.
const USE_VALID_FOR: Duration = Duration::from_secs(1);

/// Returns what a process runs, for display. A file that was mounted by itself, and whose mount is gone, has only the
/// path of the mount's root left; so have `runc`'s helpers in each container that they start.
fn display(pid: u32, exe: &Path) -> String {
    if exe != Path::new("/") {
        return exe.display().to_string();
    }
    let name = text(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("/proc/{pid}/exe, a file without a path, as {}", name.trim_end_matches('\n'))
}

impl Finder {
    /// The file at a path.
    ///
    /// # Errors
    /// If it cannot be examined, or is not a regular file.
    pub fn look_at(&mut self, path: &Path, display: String) -> io::Result<TargetFile> {
        let mut meta = fs::metadata(path)?;
        if !meta.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let identity = match self.known.get(&key(&meta)) {
            Some((stamp, identity)) if *stamp == Stamp::of(&meta) => *identity,
            _ => {
                if self.known.len() >= CACHE_SIZE {
                    self.known.clear();
                }
                let file = regular::open(path);
                // All fields from the opened file, in case the path leads to another one by now.
                if let Ok(file) = &file {
                    meta = file.metadata()?;
                }
                let identity = self.identity(path, file, &meta);
                self.known.insert(key(&meta), (Stamp::of(&meta), identity));
                identity
            }
        };
        Ok(TargetFile {
            path: path.to_path_buf(),
            display,
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
                "{}: identified by stat(2), because the kernel's inode is not known: {err}",
                path.display()
            );
            assumed
        })
    }

    /// All files that the process maps, if the file at its executable's path is not among them.
    fn check_layer(&mut self, pid: u32, exe: &Path, found: &TargetFile) -> io::Result<Option<Vec<Identity>>> {
        let meta = fs::metadata(exe)?;
        let device =
            u64::from(libc::major(meta.dev())) << KERNEL_MINOR_BITS | u64::from(libc::minor(meta.dev()));
        let is_plain = (device, meta.ino()) == (found.identity.device, found.identity.number);
        if is_plain || found.identity.address == 0 || self.checked.get(&pid) == Some(&found.identity) {
            return Ok(None);
        }
        let Some(files) = &mut self.files else { return Ok(None) };
        let mapped = match files.mapped_by(pid) {
            // It is in /proc, but not in the exporter's pid namespace.
            Err(err) if err.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            mapped => mapped?,
        };
        let maps: Vec<_> = mapped.into_iter().map(|(_, inode)| inode).collect();
        if maps.contains(&found.identity) {
            if self.checked.len() >= CACHE_SIZE {
                self.checked.clear();
            }
            self.checked.insert(pid, found.identity);
            return Ok(None);
        }
        Ok(Some(maps).filter(|maps| !maps.is_empty()))
    }

    /// Whether it can be determined what the process runs, or only the permission is missing.
    pub(super) fn is_there(&mut self, pid: u32) -> bool {
        self.of_process(pid).map_or_else(|err| is_denied(pid, &err), |_| true)
    }

    /// Through /proc, so that it is the running file in whatever mount namespace, even if it has been replaced.
    pub(super) fn of_process(&mut self, pid: u32) -> io::Result<TargetFile> {
        let known = self
            .processes
            .get(pid)
            .and_then(|process| Some((process.file.clone()?, process.copied_up.clone())));
        let (found, copied_up) = match known {
            Some(known) => known,
            None => {
                let exe = PathBuf::from(format!("/proc/{}/exe", living_thread(pid)));
                let display = display(pid, &fs::read_link(&exe)?);
                let found = self.look_at(&exe, display)?;
                let copied_up = self.check_layer(pid, &exe, &found)?;
                if let Some(process) = self.processes.get_mut(pid) {
                    (process.file, process.copied_up) = (Some(found.clone()), copied_up.clone());
                }
                (found, copied_up)
            }
        };
        if let Some(maps) = copied_up {
            self.copied_up.push(CopiedUp { pid, display: found.display.clone(), maps });
        }
        Ok(found)
    }

    /// The start addresses of the process's mappings of the file.
    ///
    /// # Errors
    /// If the process has ended, or the kernel does not report them.
    pub fn starts_of_mappings(&mut self, pid: u32, identity: Identity) -> io::Result<HashSet<u64>> {
        let Some(files) = &mut self.files else { return Ok(HashSet::new()) };
        let all = files.mapped_by(pid)?;
        Ok(all.into_iter().filter(|(_, inode)| *inode == identity).map(|(start, _)| start).collect())
    }

    /// The processes that map the file, if the kernel's process numbers are those of /proc.
    pub fn mapping(&mut self, identity: Identity) -> BTreeSet<u32> {
        let files = self.files.as_mut().filter(|_| identity.address != 0);
        files.and_then(|files| files.mapping(identity).ok()).unwrap_or_default()
    }

    /// Returns the mappings of the file by other processes.
    pub(super) fn mappings(&mut self, identity: Identity) -> Vec<MappedPart> {
        let files = self.files.as_mut().filter(|_| identity.address != 0);
        files.and_then(|files| files.mappings(identity).ok()).unwrap_or_default()
    }

    /// Returns the processes that have loaded the file more than once, under the same condition.
    pub(super) fn mapping_twice(&mut self, identity: Identity) -> BTreeSet<u32> {
        let files = self.files.as_mut().filter(|_| identity.address != 0);
        files.and_then(|files| files.mapping_twice(identity).ok()).unwrap_or_default()
    }

    /// Whether any process maps the file, or did a moment ago.
    pub fn in_use(&mut self, identity: Identity) -> bool {
        if let Some((of, at, used)) = self.used
            && of == identity
            && at.elapsed() < USE_VALID_FOR
        {
            return used;
        }
        let used = self.look_for_use(identity);
        self.used = Some((identity, Instant::now(), used));
        used
    }

    /// As [`Finder::in_use`], from the file's own list of mappings where that is short: a program that has just executed the file
    /// waits for the answer.
    pub fn is_mapped(&mut self, identity: Identity) -> bool {
        let files = self.files.as_mut().filter(|files| identity.address != 0 && files.sees_all());
        match files.map(|files| files.mappings(identity)) {
            Some(Ok(mappings)) => !mappings.is_empty(),
            _ => self.in_use(identity),
        }
    }

    fn look_for_use(&mut self, identity: Identity) -> bool {
        match self.files.as_mut().filter(|files| identity.address != 0 && files.sees_all()) {
            // Detaching from a running file is worse than staying attached.
            Some(files) => files.is_mapped(identity).unwrap_or(true),
            None => self.processes.map(identity),
        }
    }

    /// The start time of the process by the kernel's clock; 0 if unknown.
    pub fn began(&mut self, pid: u32) -> u64 {
        self.files.as_mut().and_then(|files| files.began(pid).ok()).unwrap_or_default()
    }
}
