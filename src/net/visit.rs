//! The thread of one network namespace: it attaches, follows changes, and leaves.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::block::{Blocklist, PROTECTED_INTERVAL, ProtectedChanges};
use super::config::{NetworkConfig, Space};
use super::counter_maps::CounterMaps;
use super::error::BeginError;
use super::event::Event;
use super::follow::{Area, Follower};
use super::hook::fast_interfaces;
use super::links::{Changes, interfaces};
use super::namespace::Namespace;
use super::pinned_spaces::{directory, forget_space};
use super::programs::Programs;
use super::selection::InterfaceSelection;
use super::spaces;
use super::stats::program_switches;
use super::status::{Missing, NetworkStatus};
use super::sys::{enter, monotonic};

/// How often attachments are verified. New interfaces do not wait for it.
const VERIFY_INTERVAL: Duration = Duration::from_secs(1);

/// Verifications are apart by at least so many times what the last one took: with many interfaces, or while others hold
/// the lock for network configuration, new interfaces do not wait for them, nor does the machine.
const VERIFY_PAUSE: u32 = 9;

/// Every so many verifications, counts are compared with the kernel's.
const COMPARE_EVERY: u32 = 2;

/// Every so many verifications, failed attachments are retried although no event suggests it.
const RETRY_EVERY: u32 = 30;

/// The least time between two determinations of the protected addresses.
pub(super) const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// How long the start waits for interfaces to be attached.
const START_TIMEOUT: Duration = Duration::from_millis(400);

/// Stops the threads.
#[derive(Debug)]
pub(super) struct Stop {
    pub asked: AtomicBool,
    pub event: OwnedFd,
}

impl Stop {
    pub fn now(&self) {
        self.asked.store(true, Ordering::Relaxed);
        // It is never read, so all waiting threads are woken. There is always room for one.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// Waits up to `time`; returns whether the stop has been signaled.
    pub fn wait_for(&self, time: Duration) -> bool {
        self.wait(&[], time);
        self.is_asked()
    }

    fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Waits for the stop, a readable descriptor, or `time`; returns whether the stop has been signaled.
    pub fn wait_for_any(&self, readable: &[BorrowedFd<'_>], time: Duration) -> bool {
        self.wait(readable, time);
        self.is_asked()
    }

    /// Waits for the stop, a readable descriptor, or `time`.
    fn wait(&self, readable: &[BorrowedFd<'_>], time: Duration) {
        let mut fds = vec![PollFd::new(&self.event, PollFlags::IN)];
        fds.extend(readable.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        let limit = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
        // Whatever the result, the caller checks what has happened.
        let _ = poll(&mut fds, Some(&limit));
    }
}

pub(super) type Reporter = Arc<Mutex<dyn FnMut(Event) + Send>>;

pub(super) fn telling(report: &Reporter) -> impl FnMut(Event) + '_ {
    |event| (report.lock().unwrap_or_else(PoisonError::into_inner))(event)
}

/// What a thread needs to count in one network namespace.
pub(super) struct Visit {
    pub space: Space,
    pub selection: Arc<InterfaceSelection>,
    pub number: usize,
    pub labels: Vec<(&'static str, String)>,
    pub config: NetworkConfig,
    pub counter_maps: Arc<CounterMaps>,
    pub status: Arc<NetworkStatus>,
    pub stop: Arc<Stop>,
    pub report: Reporter,
}

impl Visit {
    /// Subscribes to changes and attaches to the existing interfaces.
    pub fn begin(&self) -> Result<Follower, BeginError> {
        let end = Instant::now() + START_TIMEOUT;
        let changes = Changes::listen().map_err(BeginError::Changes)?;
        let present = interfaces().map_err(BeginError::Interfaces)?;
        let scope = self.selection.scope();
        let fast = fast_interfaces(&self.config, &scope, &present);
        let switches = program_switches(&self.config.count.statistics);
        let programs = directory(&self.counter_maps, &self.space)
            .and_then(|pins| Programs::new(Arc::clone(&self.counter_maps), fast, switches, pins))
            .map_err(BeginError::Programs)?;
        let area = Area {
            scope: scope.clone(),
            mode: self.config.mode,
            number: self.number,
            labels: self.labels.clone(),
        };
        let mut follower = Follower::new(area, Arc::clone(&self.status), programs, changes);
        follower.follow(&mut telling(&self.report));
        follower.attach_more(end, &mut telling(&self.report));
        self.selection.taken(&scope);
        Ok(follower)
    }

    /// Follows changes until it is stopped or the namespace disappears. `guard` protects what another namespace than
    /// the exporter's depends on.
    pub fn stay(&self, mut follower: Follower, mut guard: Option<&mut Guard>, is_there: &dyn Fn() -> bool) {
        let mut report = telling(&self.report);
        let (mut next, mut turns) = (Instant::now() + VERIFY_INTERVAL, 0u32);
        loop {
            let idle =
                if follower.is_behind() || follower.has_news() { Duration::ZERO } else { Duration::MAX };
            let mut fds = vec![follower.changes().as_fd()];
            fds.extend(guard.iter().flat_map(|guard| guard.fds()));
            let due = guard.as_ref().map_or(next, |guard| guard.due.min(next));
            self.stop.wait(&fds, idle.min(due.saturating_duration_since(Instant::now())));
            if self.stop.is_asked() {
                return;
            }
            guard.iter_mut().for_each(|guard| guard.update());
            if let Some(scope) = self.selection.changed() {
                follower.select(scope.clone(), &mut report);
                self.selection.taken(&scope);
            } else if follower.has_news() {
                follower.follow(&mut report);
            }
            follower.attach_more(Instant::now(), &mut report);
            if Instant::now() < next {
                continue;
            }
            if !is_there() {
                return;
            }
            let begun = Instant::now();
            turns = turns.wrapping_add(1);
            follower.verify(
                turns.is_multiple_of(RETRY_EVERY),
                turns.is_multiple_of(COMPARE_EVERY),
                &mut report,
            );
            if turns.is_multiple_of(RETRY_EVERY) {
                // Messages may have been lost.
                follower.follow(&mut report);
            }
            next = Instant::now() + VERIFY_INTERVAL.max(VERIFY_PAUSE * begun.elapsed());
        }
    }

    /// Waits for the namespace to exist, stays in it while others use it, and then leaves it: the thread itself would
    /// keep it alive.
    pub fn run_while_present(&self) {
        let home = match Namespace::own() {
            Ok(home) => home,
            Err(error) => return self.report_absent(&format!("failed to read /proc: {error}")),
        };
        let mut text = String::new();
        while !self.stop.is_asked() {
            let error = match spaces::find(&self.space) {
                Ok(there) if there.is_same(&home) => {
                    "it is the exporter's own network namespace; list its interfaces without `netns` and \
                     `container`"
                        .to_string()
                }
                Ok(there) => match self.go(&Arc::new(there)) {
                    Ok(()) => "it no longer exists".to_string(),
                    Err(error) => error,
                },
                Err(error) => error.to_string(),
            };
            if self.stop.is_asked() {
                return;
            }
            if let Err(error) = enter(home.file.as_fd()) {
                return self.report_absent(&format!("failed to leave it: {error}"));
            }
            if error != text {
                self.report_absent(&error);
                text = error;
            }
            if let Some(scope) = self.selection.changed() {
                self.selection.taken(&scope);
            }
            self.stop.wait(&[], VERIFY_INTERVAL);
        }
    }

    fn go(&self, there: &Arc<Namespace>) -> Result<(), String> {
        enter(there.file.as_fd())
            .map_err(|error| format!("failed to enter it: {error}; run with CAP_SYS_ADMIN"))?;
        let list = self.counter_maps.block.as_ref();
        let mut guard = list.map(|list| Guard::begin(Arc::clone(list), self.number, self.name(), there));
        let follower = self.begin();
        let done = follower.map(|follower| self.stay(follower, guard.as_mut(), &|| there.is_there()));
        // When the exporter ends, what is pinned stays as it is.
        if !self.stop.is_asked() {
            guard.iter().for_each(Guard::end);
            if done.is_ok() {
                forget_space(&self.counter_maps, &self.space);
            }
        }
        done.map_err(|error| error.to_string())
    }

    pub fn absent(&self, error: &str) {
        let error = Some(error.to_string());
        self.status.missing(self.number, Missing { labels: self.labels.clone(), names: vec![], error });
    }

    fn report_absent(&self, error: &str) {
        self.absent(error);
        telling(&self.report)(Event::Absent { space: self.name(), error: error.to_string() });
    }

    /// How the configuration calls the namespace.
    fn name(&self) -> String {
        self.labels.iter().map(|(kind, name)| format!("{kind} {name}")).collect()
    }
}

/// Keeps what another namespace depends on from being blocked.
pub(super) struct Guard {
    list: Arc<Blocklist>,
    number: usize,
    name: String,
    namespace: Arc<Namespace>,
    changes: io::Result<ProtectedChanges>,
    /// When it was determined, and when it will be again.
    last: Instant,
    due: Instant,
}

impl Guard {
    /// Protects it from now on. The calling thread must be in the namespace.
    fn begin(list: Arc<Blocklist>, number: usize, name: String, namespace: &Arc<Namespace>) -> Self {
        let (changes, now) = (ProtectedChanges::listen_in(namespace), Instant::now());
        let namespace = Arc::clone(namespace);
        let mut guard = Self { list, number, name, namespace, changes, last: now, due: now };
        guard.update();
        guard
    }

    fn end(&self) {
        self.list.leave(self.number);
    }

    fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.changes.iter().flat_map(ProtectedChanges::fds)
    }

    /// Determines it if it has changed, at most ten times a second, and every five seconds.
    fn update(&mut self) {
        let now = Instant::now();
        if self.changes.as_ref().is_ok_and(ProtectedChanges::take) {
            self.due = self.due.min(self.last + MIN_INTERVAL).max(now);
        }
        if self.due <= now {
            self.list.protect_in(self.number, &self.name, &self.namespace);
            self.last = now;
            // In all namespaces at the same time, because they share what is read of processes and files.
            let into_interval = u128::from(monotonic()) % PROTECTED_INTERVAL.as_nanos();
            self.due = now + PROTECTED_INTERVAL - Duration::from_nanos(into_interval as u64);
        }
    }
}
