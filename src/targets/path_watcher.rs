//! Watches the directories on the paths of files, and the mount table, by inotify(7) and mountinfo.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

use super::mounts::Mounts;

/// Maximum number of symbolic links on a path, as in the kernel.
const LINKS: usize = 40;

/// A change on the path of a file.
#[derive(Debug, PartialEq, Eq)]
pub enum PathChange {
    /// The path with this number may lead to another file now, or to other contents.
    OnPath(usize),
    /// A file was written or moved beside a target's file, and could replace it.
    Sibling(Sibling),
}

/// A file beside a target's.
#[derive(Debug, PartialEq, Eq)]
pub struct Sibling {
    pub target: usize,
    pub path: PathBuf,
    /// Its name is the target's with a prefix or suffix.
    pub is_called_like: bool,
}

/// The watched paths.
#[derive(Debug)]
pub struct PathWatcher {
    inotify: OwnedFd,
    /// By watch descriptor: the directory, and which names in it are on the path of which target.
    directories: HashMap<i32, Directory>,
    mounts: Mounts,
    has_mounted: bool,
}

#[derive(Debug, Default)]
struct Directory {
    path: PathBuf,
    names: Vec<(OsString, usize, bool)>,
}

impl PathWatcher {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// From the kernel.
    pub fn new() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        Ok(Self { inotify, directories: HashMap::new(), mounts: Mounts::new()?, has_mounted: false })
    }

    /// Sets the watched paths: each from its first directory through all symbolic links.
    pub fn follow(&mut self, paths: &[(usize, PathBuf)]) {
        for directory in self.directories.values_mut() {
            directory.names.clear();
        }
        self.follow_also(paths);
        let inotify = &self.inotify;
        self.directories.retain(|watch, directory| {
            let is_needed = !directory.names.is_empty();
            if !is_needed {
                // It may no longer exist.
                let _ = inotify::remove_watch(inotify, *watch);
            }
            is_needed
        });
    }

    /// Adds paths, or updates those that lead elsewhere now.
    pub fn follow_also(&mut self, paths: &[(usize, PathBuf)]) {
        for (target, path) in paths {
            for (directory, name, is_last) in way(path) {
                self.add(&directory, name, *target, is_last);
            }
        }
    }

    /// The descriptors to poll: inotify, and the mount table if it may be read now.
    pub fn poll_fds(&self) -> (PollFd<'_>, Option<PollFd<'_>>) {
        let mounts = self.mounts.pause().is_zero().then(|| PollFd::new(&self.mounts, PollFlags::PRI));
        (PollFd::new(&self.inotify, PollFlags::IN), mounts)
    }

    /// How long to wait before the mount table may be read again.
    pub fn pause(&self) -> Option<Duration> {
        Some(self.mounts.pause()).filter(|pause| !pause.is_zero())
    }

    /// All open descriptors.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.inotify.as_fd(), self.mounts.as_fd()]
    }

    /// Mounts may have changed.
    pub fn note_mounts(&mut self) {
        self.has_mounted = true;
    }

    fn add(&mut self, path: &Path, name: OsString, target: usize, is_last: bool) {
        let mut what = WatchFlags::MOVED_TO | WatchFlags::CREATE | WatchFlags::ONLYDIR | WatchFlags::MASK_ADD;
        if is_last {
            what |= WatchFlags::CLOSE_WRITE | WatchFlags::ATTRIB;
        }
        match inotify::add_watch(&self.inotify, path, what) {
            Ok(watch) => {
                let directory = self.directories.entry(watch).or_default();
                directory.path = path.to_path_buf();
                if !directory.names.iter().any(|(known, of, _)| *known == name && *of == target) {
                    directory.names.push((name, target, is_last));
                }
            }
            // Files that do not exist yet are found by the periodic check.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {}
            Err(err) => {
                log::debug!("{}: failed to watch it: {err}; polling every second instead", path.display())
            }
        }
    }

    /// The changes since the last call.
    pub fn take(&mut self) -> Vec<PathChange> {
        let mut siblings = Vec::new();
        let mut on_path = HashSet::new();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(self.inotify.as_fd(), &mut buffer);
        while let Ok(event) = events.next() {
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                let all = self.directories.values().flat_map(|f| f.names.iter().map(|(_, of, _)| *of));
                on_path.extend(all);
            }
            if event.events().contains(ReadFlags::IGNORED) {
                self.directories.remove(&event.wd());
            }
            let (Some(directory), Some(changed)) = (self.directories.get(&event.wd()), event.file_name())
            else {
                continue;
            };
            let changed = OsStr::from_bytes(changed.to_bytes());
            for (name, target, is_last) in &directory.names {
                if changed == name {
                    on_path.insert(*target);
                } else if *is_last && !event.events().intersects(ReadFlags::ATTRIB | ReadFlags::ISDIR) {
                    let is_called_like = is_called_like(changed, name);
                    let path = directory.path.join(changed);
                    siblings.push(PathChange::Sibling(Sibling { target: *target, path, is_called_like }));
                }
            }
        }
        let points = if std::mem::take(&mut self.has_mounted) { self.mounts.changed() } else { Vec::new() };
        for directory in self.directories.values().filter(|_| !points.is_empty()) {
            let is_below = |name| points.iter().any(|point| directory.path.join(name).starts_with(point));
            let mounted = directory.names.iter().filter(|(name, ..)| is_below(name));
            on_path.extend(mounted.map(|(_, target, _)| *target));
        }
        on_path.into_iter().map(PathChange::OnPath).chain(siblings).collect()
    }
}

/// Whether a file of this name is likely to be renamed to the other: `X.new`, `X.dpkg-new`, `.X.abcd`.
fn is_called_like(written: &OsStr, name: &OsStr) -> bool {
    let (written, name) = (written.as_bytes(), name.as_bytes());
    let written = written.strip_prefix(b".").unwrap_or(written);
    !name.is_empty() && written.len() > name.len() && written.windows(name.len()).any(|part| part == name)
}

/// The directories and names that are looked up on the path of a file, and which of them is the file itself.
fn way(path: &Path) -> Vec<(PathBuf, OsString, bool)> {
    let mut steps = Vec::new();
    let mut left: Vec<OsString> = components(path);
    let mut at = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = left.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        steps.push((at.clone(), name.clone(), left.is_empty()));
        match fs::read_link(at.join(&name)) {
            Ok(to) if links < LINKS => {
                links += 1;
                if to.is_absolute() {
                    at = PathBuf::from("/");
                }
                left.extend(components(&to));
            }
            _ => at.push(&name),
        }
    }
    steps
}

/// In reverse order.
fn components(path: &Path) -> Vec<OsString> {
    let named = |component: Component<'_>| match component {
        Component::Normal(_) | Component::ParentDir => Some(component.as_os_str().to_os_string()),
        _ => None,
    };
    path.components().rev().filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_components_follow_symlinks() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().canonicalize().unwrap();
        fs::create_dir_all(at.join("v1/bin")).unwrap();
        fs::write(at.join("v1/bin/app"), "").unwrap();
        std::os::unix::fs::symlink("v1", at.join("current")).unwrap();
        std::os::unix::fs::symlink("../current/bin/app", at.join("v1/link")).unwrap();
        let steps = way(&at.join("v1/link"));
        let has = |directory: PathBuf, name: &str| steps.iter().any(|(f, n, _)| *f == directory && n == name);
        assert!(
            has(at.join("v1"), "link") && has(at.clone(), "current") && has(at.clone(), "v1"),
            "{steps:?}"
        );
        assert!(has(at.join("v1/bin"), "app"));
        let last: Vec<_> = steps.iter().filter(|(_, _, is_last)| *is_last).collect();
        assert_eq!(last.len(), 2, "the link, and what it leads to");
    }

    #[test]
    fn recognizes_temporary_file_names() {
        let is = |written: &str, name: &str| is_called_like(written.as_ref(), name.as_ref());
        for written in ["app.new", "app.dpkg-new", ".app.a1B2c3", "app~", "new-app", "app;5f3759df"] {
            assert!(is(written, "app"), "{written}");
        }
        assert!(!is("app", "app") && !is(".app", "app") && !is("ap", "app") && !is("other", "app"));
    }

    #[test]
    fn reports_renames() {
        let directory = tempfile::tempdir().unwrap();
        let mut watcher = PathWatcher::new().unwrap();
        let path = directory.path().join("app");
        watcher.follow(&[(3, path.clone())]);
        fs::write(directory.path().join("app.new"), "x").unwrap();
        let sibling = Sibling { target: 3, path: directory.path().join("app.new"), is_called_like: true };
        let events = watcher.take();
        assert!(events.contains(&PathChange::Sibling(sibling)), "{events:?}");
        assert!(!events.contains(&PathChange::OnPath(3)), "{events:?}");
        fs::rename(directory.path().join("app.new"), &path).unwrap();
        assert_eq!(watcher.take(), [PathChange::OnPath(3)]);
        watcher.follow(&[]);
        fs::write(&path, "y").unwrap();
        assert_eq!(watcher.take(), []);
    }
}
