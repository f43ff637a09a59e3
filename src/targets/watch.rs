//! What the manager's thread waits for.

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
    /// There is a request.
    pub is_asked: bool,
    pub breaks: Vec<LeaseBreak>,
    /// Targets with a change on their path.
    pub targets: HashSet<usize>,
    /// Files that were written or moved beside a target's file, and could replace it.
    pub sibling: Vec<Sibling>,
    /// Process events that must be handled at once.
    pub processes: bool,
    /// Programs wait for all of this to be handled: the number with which to answer the gate.
    pub asked: Option<u64>,
}

impl Wakeup {
    /// Whether there is any event, not only a timeout.
    pub fn has_event(&self) -> bool {
        let Self { is_over, is_asked, breaks, targets, sibling, processes, asked } = self;
        let is_told = *is_over || *is_asked || *processes || asked.is_some();
        is_told || !breaks.is_empty() || !targets.is_empty() || !sibling.is_empty()
    }
}

/// Waits for all events.
#[derive(Debug)]
pub struct Watch {
    stop: UnixStream,
    pub breaks: LeaseBreaks,
    watcher: PathWatcher,
    gate: Option<GateHandle>,
}

impl Watch {
    /// `stop` is closed when the exporter ends; a byte in it announces a request.
    ///
    /// # Errors
    /// From the kernel.
    pub fn new(stop: UnixStream, gate: Option<Arc<Gate>>) -> io::Result<Self> {
        let breaks = LeaseBreaks::new()?;
        let (watcher, gate) = (PathWatcher::new()?, gate.and_then(|gate| GateHandle::new(gate, &breaks)));
        Ok(Self { stop, breaks, watcher, gate })
    }

    /// Sets the watched paths: each from its first directory through all symbolic links.
    pub fn follow(&mut self, paths: &[(usize, PathBuf)]) {
        self.watcher.follow(paths);
        if let Some(gate) = &self.gate {
            gate.follow(paths);
        }
    }

    /// Adds paths, or updates those that lead elsewhere now.
    pub fn follow_also(&mut self, paths: &[(usize, PathBuf)]) {
        self.watcher.follow_also(paths);
    }

    /// The file is about to be written, and may be executed right after that.
    pub fn expect(&self, path: &Path) {
        if let Some(gate) = &self.gate {
            gate.expect(path.to_path_buf());
        }
    }

    /// All events of this wakeup are handled: programs that waited for it may run.
    pub fn answer(&self, wakeup: &Wakeup) {
        if let (Some(gate), Some(asked)) = (&self.gate, wakeup.asked) {
            gate.answer(asked);
        }
    }

    /// No program has to wait any more.
    pub fn open_gate(&mut self) {
        self.gate = None;
    }

    /// Waits up to `most`, or until there is an event.
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
        // Read first: everything reported before it is taken below.
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
    fn new_file_wakes_the_manager() {
        let directory = tempfile::tempdir().unwrap();
        let (_keep, stop) = UnixStream::pair().unwrap();
        let mut watch = Watch::new(stop, None).unwrap();
        watch.follow(&[(3, directory.path().join("app"))]);
        fs::write(directory.path().join("app"), "x").unwrap();
        assert!(watch.wait(Duration::from_secs(10), None).targets.contains(&3));
    }
}
