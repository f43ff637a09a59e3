//! Holds back programs that start while their file replaces a target's file, until it is attached.
//!
//! Setting a breakpoint takes longer than starting a program. A dedicated thread marks a file as soon as it is written
//! beside a target's file or renamed over it. A process that executes a marked file waits until all managers have
//! handled what was reported before, but never longer than [`MAX_HOLD`]; the marks are removed a moment later. The
//! thread waits for nothing else; if it fails or the exporter ends, all waiting programs continue. Where the kernel
//! makes programs wait by itself (`kernel::can_make_wait`), there is no gate.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::path_watcher::{PathChange, PathWatcher, Sibling};
use crate::kernel::{ExecGate, LeaseBreaks, Waker, apart, be_ordinary, be_prompt};
use crate::mutex::lock;

/// How long a program is held back at most.
const MAX_HOLD: Duration = Duration::from_millis(500);

/// How long a file stays marked after the last work on it.
const MARK_TIME: Duration = Duration::from_secs(1);

/// Files that are marked at a time, at most.
const MAX_MARKS: usize = 64;

const NOT_HELD: &str = "programs that start while their file is replaced are not held back";

/// What the thread polls.
type Parts = (ExecGate, PathWatcher, UnixStream);

fn descriptors((gate, watcher, woken): &Parts) -> Vec<RawFd> {
    let watched = watcher.descriptors();
    let all = watched.iter().map(AsRawFd::as_raw_fd);
    all.chain(gate.descriptors()).chain([woken.as_raw_fd()]).collect()
}

/// Shared by all managers of a process, because it can be created only before capabilities are dropped.
#[derive(Debug)]
pub struct Gate {
    state: Arc<Mutex<GateState>>,
    /// Wakes the thread.
    wake: UnixStream,
}

#[derive(Debug, Default)]
struct GateState {
    /// The parts of the thread until it is started.
    parts: Option<Parts>,
    is_at_work: bool,
    clients: Vec<GateClient>,
    last_client: u64,
    /// The clients' paths have changed.
    has_moved: bool,
    /// Files that are about to be written.
    expected: Vec<PathBuf>,
}

/// A manager that attaches to files.
#[derive(Debug)]
struct GateClient {
    number: u64,
    waker: Waker,
    paths: Vec<PathBuf>,
    /// The number of the latest request to the manager, and of its latest answer.
    asked: u64,
    answered: u64,
}

/// A manager's side of the gate. It belongs to the manager's thread and ends with it.
#[derive(Debug)]
pub struct GateHandle {
    gate: Arc<Gate>,
    number: u64,
    _of_this_thread: std::marker::PhantomData<*const ()>,
}

impl Gate {
    /// Creates what needs `CAP_SYS_ADMIN` and `CAP_SYS_NICE` while the process has them; None if it cannot. The calling
    /// thread will start the gate's thread, and runs with high priority until then.
    pub fn prepare() -> Option<Arc<Self>> {
        let created = Self::new().inspect_err(|err| log::debug!("{NOT_HELD}: {err}")).ok()?;
        // Threads inherit the priority of their creator.
        be_prompt();
        Some(Arc::new(created))
    }

    /// Starts the thread, after capabilities have been dropped.
    pub fn start(&self) {
        self.start_thread();
        be_ordinary();
    }

    fn new() -> io::Result<Self> {
        let gate = ExecGate::new()?;
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let state = GateState { parts: Some((gate, PathWatcher::new()?, woken)), ..GateState::default() };
        Ok(Self { state: Arc::new(Mutex::new(state)), wake })
    }

    /// Starts the thread unless it is running; returns whether it runs.
    fn start_thread(&self) -> bool {
        let mut state = lock(&self.state);
        if let Some(parts) = state.parts.take() {
            let shared = self.state.clone();
            let run = |(gate, watcher, woken): Parts| {
                let (paths, marked, held) = (Vec::new(), None, None);
                be_prompt();
                GateThread { gate, watcher, woken, state: shared, paths, marked, held }.run();
            };
            let begun = apart("exec-gate", parts, descriptors, run);
            state.is_at_work = begun.inspect_err(|err| log::debug!("{NOT_HELD}: {err}")).is_ok();
        }
        state.is_at_work
    }

    fn wake(&self) {
        // A full socket wakes it as well.
        let _ = (&self.wake).write(&[0]);
    }
}

impl GateHandle {
    /// For the manager on the calling thread, which is woken when leases are broken; None if programs cannot be held
    /// back.
    pub fn new(gate: Arc<Gate>, _woken: &LeaseBreaks) -> Option<Self> {
        if !gate.start_thread() {
            return None;
        }
        let mut state = lock(&gate.state);
        state.last_client += 1;
        let number = state.last_client;
        let (asked, answered) = (0, 0);
        state.clients.push(GateClient { number, waker: Waker::own(), paths: Vec::new(), asked, answered });
        drop(state);
        Some(Self { gate, number, _of_this_thread: std::marker::PhantomData })
    }

    fn with<T>(&self, change: impl FnOnce(&mut GateClient) -> T) -> Option<T> {
        lock(&self.gate.state).clients.iter_mut().find(|client| client.number == self.number).map(change)
    }

    /// Sets the watched paths.
    pub fn follow(&self, paths: &[(usize, PathBuf)]) {
        let paths: Vec<PathBuf> = paths.iter().map(|(_, path)| path.clone()).collect();
        let has_moved = self.with(|client| {
            client.paths != paths && {
                client.paths = paths;
                true
            }
        });
        if has_moved == Some(true) {
            lock(&self.gate.state).has_moved = true;
            self.gate.wake();
        }
    }

    /// The file is about to be overwritten, and may be executed right after that.
    pub fn expect(&self, path: PathBuf) {
        lock(&self.gate.state).expected.push(path);
        self.gate.wake();
    }

    /// The number of the pending request to the manager, if there is one; must be read before the manager reads its
    /// events.
    pub fn asked(&self) -> Option<u64> {
        self.with(|client| (client.asked != client.answered).then_some(client.asked)).flatten()
    }

    /// The manager has handled all events that it received before it read this number.
    pub fn answer(&self, asked: u64) {
        self.with(|client| client.answered = asked);
        self.gate.wake();
    }
}

impl Drop for GateHandle {
    fn drop(&mut self) {
        let mut state = lock(&self.gate.state);
        state.clients.retain(|client| client.number != self.number);
        state.has_moved = true;
        drop(state);
        self.gate.wake();
    }
}

/// The thread.
struct GateThread {
    gate: ExecGate,
    watcher: PathWatcher,
    woken: UnixStream,
    state: Arc<Mutex<GateState>>,
    /// Of all clients.
    paths: Vec<PathBuf>,
    /// The marked files, and when they expire.
    marked: Option<(usize, Instant)>,
    held: Option<Held>,
}

/// Programs that wait for the clients' answers.
struct Held {
    since: Instant,
    programs: usize,
}

impl GateThread {
    fn run(mut self) {
        loop {
            self.wait();
            if io::copy(&mut &self.woken, &mut io::sink()).is_ok() {
                // No client is left that could wake it.
                return;
            }
            self.update_from_clients();
            let mut moved = Vec::new();
            for change in self.watcher.take() {
                match change {
                    PathChange::OnPath(path) => {
                        moved.extend(self.paths.get(path).cloned().map(|of| (path, of)))
                    }
                    PathChange::Sibling(Sibling { path, .. }) => self.mark(&path, false),
                }
            }
            moved.iter().for_each(|(_, path)| self.mark(path, true));
            self.ask_clients();
            self.admit();
            if !moved.is_empty() {
                // They may lead through other directories now, where something happened before these were watched.
                self.watcher.follow_also(&moved);
                moved.iter().for_each(|(_, path)| drop(self.gate.close(path, true)));
            }
        }
    }

    /// Waits for an event, or until a limit is reached.
    fn wait(&mut self) {
        let due = match (&self.held, self.marked) {
            (Some(held), _) => Some(held.since + MAX_HOLD),
            (None, Some((_, until))) => Some(until),
            (None, None) => None,
        };
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        let left = [left, self.watcher.pause()].into_iter().flatten().min();
        // Rounded up: otherwise the last moment would be polled in a loop.
        let left = left.map(|left| left + Duration::from_micros(100));
        let left =
            left.map(|left| Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() });
        let (directories, mounts) = self.watcher.poll_fds();
        let mut fds = vec![directories, PollFd::new(&self.woken, PollFlags::IN)];
        if self.held.is_none() {
            fds.push(PollFd::new(&self.gate, PollFlags::IN));
        }
        let has_mounts = mounts.is_some();
        fds.extend(mounts);
        let polled = poll(&mut fds, left.as_ref());
        let has_mounted =
            polled.is_ok() && has_mounts && fds.last().is_some_and(|of| !of.revents().is_empty());
        if has_mounted {
            self.watcher.note_mounts();
        }
    }

    fn update_from_clients(&mut self) {
        let (has_moved, expected) = {
            let mut state = lock(&self.state);
            let has_moved = std::mem::take(&mut state.has_moved);
            if has_moved {
                self.paths = state.clients.iter().flat_map(|client| client.paths.clone()).collect();
            }
            (has_moved, std::mem::take(&mut state.expected))
        };
        if has_moved {
            self.follow();
        }
        expected.iter().for_each(|path| self.mark(path, true));
    }

    fn mark(&mut self, path: &Path, follow: bool) {
        let marks = self.marked.map_or(0, |(marks, _)| marks);
        if marks >= MAX_MARKS {
            return;
        }
        match self.gate.close(path, follow) {
            Ok(()) => self.marked = Some((marks + 1, Instant::now() + MARK_TIME)),
            // It no longer exists, or is not executable.
            Err(err) => log::trace!("{}: not held back: {err}", path.display()),
        }
    }

    /// Asks all clients to handle their events if a program waits.
    fn ask_clients(&mut self) {
        let programs = if self.held.is_none() { self.gate.waiting() } else { 0 };
        if programs > 0 {
            self.held = Some(Held { since: Instant::now(), programs });
            for client in &mut lock(&self.state).clients {
                client.asked += 1;
                client.waker.wake();
            }
        }
    }

    /// Lets programs run whose files have been handled, or that have waited long enough, and removes old marks.
    fn admit(&mut self) {
        let Some(held) = &self.held else {
            if self.marked.is_some_and(|(_, until)| until <= Instant::now()) {
                self.open();
            }
            return;
        };
        let waited = held.since.elapsed();
        let admitted = if lock(&self.state).clients.iter().all(|client| client.answered == client.asked) {
            log::debug!("held back {} programs for {} us", held.programs, waited.as_micros());
            self.gate.release(held.programs)
        } else if waited >= MAX_HOLD {
            self.open();
            log::info!("A program started before its file could be attached; its first hits are lost");
            self.gate.release(usize::MAX)
        } else {
            return;
        };
        self.held = None;
        if let Err(err) = admitted {
            log::error!("a program that was held back may not have been released: {err}");
        }
    }

    fn open(&mut self) {
        self.gate.open();
        self.marked = None;
        // Stops watching directories that are on no path.
        self.follow();
    }

    fn follow(&mut self) {
        let paths: Vec<_> = self.paths.iter().cloned().enumerate().collect();
        self.watcher.follow(&paths);
    }
}

#[cfg(test)]
mod tests;
