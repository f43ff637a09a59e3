//! What the thread that looks after the targets waits for.

use std::collections::HashSet;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::gate::{Gate, GateHandle};
use super::path_watcher::{PathChange, PathWatcher, Sibling};
use crate::kernel::{LeaseBreak, LeaseBreaks};

/// What woke the manager.
#[derive(Debug, Default)]
pub struct Wakeup {
    /// The exporter ends.
    pub is_over: bool,
    /// Something is asked for.
    pub is_asked: bool,
    pub breaks: Vec<LeaseBreak>,
    /// Targets on whose way something has changed.
    pub targets: HashSet<usize>,
    /// Files that were written or put beside a target's file, and could take its place.
    pub sibling: Vec<Sibling>,
    /// Processes have begun, or done something else that must be looked at at once.
    pub processes: bool,
    /// Programs wait for all of this to be dealt with: what to answer the gate then.
    pub asked: Option<u64>,
}

impl Wakeup {
    /// Whether it is more than that the time is over.
    pub fn is_told(&self) -> bool {
        let Self { is_over, is_asked, breaks, targets, sibling, processes, asked } = self;
        let is_told = *is_over || *is_asked || *processes || asked.is_some();
        is_told || !breaks.is_empty() || !targets.is_empty() || !sibling.is_empty()
    }
}

/// Waits for all that can happen.
#[derive(Debug)]
pub struct Watch {
    stop: UnixStream,
    pub breaks: LeaseBreaks,
    watcher: PathWatcher,
    gate: Option<GateHandle>,
}

impl Watch {
    /// `stop` ends when the exporter does; a byte in it says that something is asked for.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn new(stop: UnixStream, gate: Option<Arc<Gate>>) -> io::Result<Self> {
        let breaks = LeaseBreaks::new()?;
        let (watcher, gate) = (PathWatcher::new()?, gate.and_then(|gate| GateHandle::new(gate, &breaks)));
        Ok(Self { stop, breaks, watcher, gate })
    }

    /// Watches the way to each path, from its first directory through all symbolic links, and nothing else from now on.
    pub fn follow(&mut self, paths: &[(usize, PathBuf)]) {
        self.watcher.follow(paths);
        if let Some(gate) = &self.gate {
            gate.follow(paths);
        }
    }

    /// Watches these ways too, or as they are now.
    pub fn follow_also(&mut self, paths: &[(usize, PathBuf)]) {
        self.watcher.follow_also(paths);
    }

    /// Somebody who is about to write the file may start it right after that.
    pub fn expect(&self, path: &Path) {
        if let Some(gate) = &self.gate {
            gate.expect(path.to_path_buf());
        }
    }

    /// All that woke the manager is dealt with: programs that waited for it may start.
    pub fn answer(&self, wakeup: &Wakeup) {
        if let (Some(gate), Some(asked)) = (&self.gate, wakeup.asked) {
            gate.answer(asked);
        }
    }

    /// Nobody has to wait any more.
    pub fn open_gate(&mut self) {
        self.gate = None;
    }

    /// Waits at most so long, or until something happens to processes.
    pub fn wait(&mut self, most: Duration, processes: Option<BorrowedFd<'_>>) -> Wakeup {
        let most = self.watcher.pause().map_or(most, |pause| most.min(pause));
        let timeout = Timespec { tv_sec: most.as_secs() as _, tv_nsec: most.subsec_nanos().into() };
        let (directories, mounts) = self.watcher.poll_fds();
        let mut fds = vec![
            PollFd::new(&self.stop, PollFlags::IN),
            PollFd::new(&self.breaks, PollFlags::IN),
            directories,
        ];
        let mounts_at = mounts.map(|mounts| fds.push(mounts)).map(|()| fds.len() - 1);
        let processes_at =
            processes.map(|fd| fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN))).map(|()| fds.len() - 1);
        let mut wakeup = Wakeup::default();
        if poll(&mut fds, Some(&timeout)).is_err() {
            return wakeup;
        }
        let is_ready = |n: usize| !fds[n].revents().is_empty();
        let [stop, breaks, changes] = [0, 1, 2].map(is_ready);
        let has_mounted = mounts_at.is_some_and(is_ready);
        wakeup.processes = processes_at.is_some_and(is_ready);
        if stop {
            wakeup.is_asked = self.stop.read(&mut [0]).is_ok_and(|bytes| bytes > 0);
            wakeup.is_over = !wakeup.is_asked;
        }
        // First: what was told before that is taken below.
        wakeup.asked = self.gate.as_ref().and_then(GateHandle::asked);
        if breaks {
            wakeup.breaks = self.breaks.take();
        }
        if has_mounted || wakeup.asked.is_some() {
            self.watcher.note_mounts();
        }
        if changes || has_mounted || wakeup.asked.is_some() {
            for change in self.watcher.take() {
                match change {
                    PathChange::OnPath(target) => drop(wakeup.targets.insert(target)),
                    PathChange::Sibling(sibling) => wakeup.sibling.push(sibling),
                }
            }
        }
        wakeup
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_appears_wakes_the_manager() {
        let directory = tempfile::tempdir().unwrap();
        let (_keep, stop) = UnixStream::pair().unwrap();
        let mut watch = Watch::new(stop, None).unwrap();
        watch.follow(&[(3, directory.path().join("app"))]);
        fs::write(directory.path().join("app"), "x").unwrap();
        assert!(watch.wait(Duration::from_secs(10), None).targets.contains(&3));
    }
}
