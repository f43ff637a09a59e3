//! What happens to files on their way from a path: told by the kernel, so that a new file is attached to before it runs.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

use crate::kernel::{Break, Breaks};

/// Symbolic links on the way to a file, as many as the kernel follows.
const LINKS: usize = 40;

/// What woke the manager.
#[derive(Debug, Default)]
pub struct News {
    /// The exporter ends.
    pub is_over: bool,
    /// Something is asked for.
    pub is_asked: bool,
    pub breaks: Vec<Break>,
    /// Targets on whose way something has changed.
    pub targets: HashSet<usize>,
    /// Files that were written or put beside a target's file, and could take its place.
    pub beside: Vec<Beside>,
    /// Processes have begun, or done something else that must be looked at at once.
    pub processes: bool,
}

/// A file beside a target's.
#[derive(Debug, PartialEq, Eq)]
pub struct Beside {
    pub target: usize,
    pub path: PathBuf,
    /// It is called like the target's, with something before or after that.
    pub is_called_like: bool,
}

/// Waits for all that can happen.
#[derive(Debug)]
pub struct Watch {
    stop: UnixStream,
    pub breaks: Breaks,
    inotify: OwnedFd,
    /// By watch: the directory, and which names in it are on the way of which target.
    directories: HashMap<i32, Directory>,
}

#[derive(Debug, Default)]
struct Directory {
    path: PathBuf,
    names: Vec<(OsString, usize, bool)>,
}

impl Watch {
    /// `stop` ends when the exporter does; a byte in it says that something is asked for.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn new(stop: UnixStream) -> io::Result<Self> {
        Ok(Self {
            stop,
            breaks: Breaks::new()?,
            inotify: inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?,
            directories: HashMap::new(),
        })
    }

    /// Watches the way to each path, from its first directory through all symbolic links, and nothing else from now on.
    pub fn follow(&mut self, paths: &[(usize, PathBuf)]) {
        for directory in self.directories.values_mut() {
            directory.names.clear();
        }
        for (target, path) in paths {
            for (directory, name, is_last) in way(path) {
                self.add(&directory, name, *target, is_last);
            }
        }
        let inotify = &self.inotify;
        self.directories.retain(|watch, directory| {
            let is_needed = !directory.names.is_empty();
            if !is_needed {
                // It may be gone already.
                let _ = inotify::remove_watch(inotify, *watch);
            }
            is_needed
        });
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
            // What is not there yet is found by the regular look.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {}
            Err(err) => {
                log::debug!("{}: failed to watch it: {err}; polling every second instead", path.display())
            }
        }
    }

    /// Waits at most so long, or until there are news of processes.
    pub fn wait(&mut self, most: Duration, processes: Option<BorrowedFd<'_>>) -> News {
        let timeout = Timespec { tv_sec: most.as_secs() as _, tv_nsec: most.subsec_nanos().into() };
        let mut fds = vec![
            PollFd::new(&self.stop, PollFlags::IN),
            PollFd::new(&self.breaks, PollFlags::IN),
            PollFd::from_borrowed_fd(self.inotify.as_fd(), PollFlags::IN),
        ];
        fds.extend(processes.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let mut news = News::default();
        if poll(&mut fds, Some(&timeout)).is_err() {
            return news;
        }
        let is_ready = |n: usize| fds.get(n).is_some_and(|fd| !fd.revents().is_empty());
        let [stop, breaks, changes] = [0, 1, 2].map(is_ready);
        news.processes = is_ready(3);
        if stop {
            news.is_asked = self.stop.read(&mut [0]).is_ok_and(|bytes| bytes > 0);
            news.is_over = !news.is_asked;
        }
        if breaks {
            news.breaks = self.breaks.take();
        }
        if changes {
            self.read_changes(&mut news);
        }
        news
    }

    fn read_changes(&mut self, news: &mut News) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(self.inotify.as_fd(), &mut buffer);
        while let Ok(event) = events.next() {
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                news.targets
                    .extend(self.directories.values().flat_map(|f| f.names.iter().map(|(_, of, _)| *of)));
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
                    news.targets.insert(*target);
                } else if *is_last && !event.events().intersects(ReadFlags::ATTRIB | ReadFlags::ISDIR) {
                    let is_called_like = is_called_like(changed, name);
                    let path = directory.path.join(changed);
                    news.beside.push(Beside { target: *target, path, is_called_like });
                }
            }
        }
    }
}

/// Whether a file of this name is likely to be renamed to the other: `X.new`, `X.dpkg-new`, `.X.abcd`.
fn is_called_like(written: &OsStr, name: &OsStr) -> bool {
    let (written, name) = (written.as_bytes(), name.as_bytes());
    let written = written.strip_prefix(b".").unwrap_or(written);
    !name.is_empty() && written.len() > name.len() && written.windows(name.len()).any(|part| part == name)
}

/// Folders and names that are looked up on the way to a file, and which of them is the file itself.
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

/// Last first.
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
    fn the_way_to_a_file_goes_through_its_links() {
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
    fn names_of_files_that_will_be_renamed() {
        let is = |written: &str, name: &str| is_called_like(written.as_ref(), name.as_ref());
        for written in ["app.new", "app.dpkg-new", ".app.a1B2c3", "app~", "new-app", "app;5f3759df"] {
            assert!(is(written, "app"), "{written}");
        }
        assert!(!is("app", "app") && !is(".app", "app") && !is("ap", "app") && !is("other", "app"));
    }

    #[test]
    fn a_rename_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let (_keep, stop) = UnixStream::pair().unwrap();
        let mut watch = Watch::new(stop).unwrap();
        let path = directory.path().join("app");
        watch.follow(&[(3, path.clone())]);
        fs::write(directory.path().join("app.new"), "x").unwrap();
        let news = watch.wait(Duration::from_secs(10), None);
        let beside = Beside { target: 3, path: directory.path().join("app.new"), is_called_like: true };
        assert!(news.beside.contains(&beside) && news.targets.is_empty(), "{news:?}");
        fs::rename(directory.path().join("app.new"), &path).unwrap();
        assert!(watch.wait(Duration::from_secs(10), None).targets.contains(&3));
        watch.follow(&[]);
        fs::write(&path, "y").unwrap();
        assert!(watch.wait(Duration::from_millis(1), None).targets.is_empty());
    }
}
