//! The thread that owns the ring buffer: it drains it in batches, computes what the kernel could not, and writes the
//! verbose log.
//!
//! It sleeps until the kernel wakes it. When there is nothing to do, it asks to be woken by the next event; then it
//! lets a batch grow for a while, asking to be woken earlier only if the ring fills up. So nothing runs when nothing
//! happens, and a busy program pays for at most a hundred wake-ups a second, not for one per event.

mod handler;
mod slow;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use libbpf_rs::RingBufferBuilder;
use rustix::event::{EventfdFlags, epoll, eventfd};

use crate::abi::wake;
use crate::kernel::SharedHandles;
use crate::layout::Layout;
use crate::plan::Plan;
use crate::slow::SlowRecorder;
use crate::store::{DRAIN_NUMBERS, UserStore};
use handler::{Handler, evaluations};

/// How long an event that woke nobody may wait in the ring.
const MAX_DELAY: Duration = Duration::from_secs(1);

/// Statistics of the drain thread.
#[derive(Debug, Default)]
pub struct DrainStats {
    pub events: AtomicU64,
    /// Records that could not be decoded.
    pub undecodable: AtomicU64,
    /// Metric updates lost because of unreadable values, and of negative amounts.
    pub unreadable: AtomicU64,
    pub negative: AtomicU64,
    pub batches: AtomicU64,
}

impl DrainStats {
    fn all(&self) -> [&AtomicU64; DRAIN_NUMBERS] {
        [&self.events, &self.undecodable, &self.unreadable, &self.negative, &self.batches]
    }
}

/// The running thread. Dropping it stops the thread after a last drain.
#[derive(Debug)]
pub struct Drain {
    requests: SyncSender<SyncSender<()>>,
    bell: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    stats: Arc<DrainStats>,
    thread: Option<JoinHandle<()>>,
}

impl Drain {
    /// Starts the thread, which passes slow events to the recorder.
    ///
    /// # Errors
    /// If the ring buffer, its descriptors or the thread cannot be created.
    pub fn start(
        plan: Arc<Plan>,
        layout: &Layout,
        store: Arc<UserStore>,
        shared: SharedHandles,
        recorder: Option<Arc<SlowRecorder>>,
    ) -> io::Result<Self> {
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (requests, asked) = sync_channel(16);
        let stop = Arc::new(AtomicBool::new(false));
        let stats = Arc::new(DrainStats::default());
        for (number, stat) in stats.all().into_iter().enumerate() {
            stat.store(store.drain_number(number).load(Ordering::Relaxed), Ordering::Relaxed);
        }
        let (ready, started) = sync_channel(1);
        let evaluations = evaluations(&plan, layout, &shared.store);
        let (thread_stats, thread_bell, thread_stop) = (stats.clone(), bell.clone(), stop.clone());
        let work = move || {
            // Created here: the symbolizer stays on one thread.
            let handler = Handler::new(plan, evaluations, store, thread_stats, recorder);
            Worker { handler, shared, bell: thread_bell, asked, stop: thread_stop }.run(&ready);
        };
        let thread = std::thread::Builder::new().name("drain".to_string()).spawn(work)?;
        started.recv().map_err(|_| io::Error::other("the drain thread exited"))??;
        Ok(Self { requests, bell, stop, stats, thread: Some(thread) })
    }

    /// Waits up to `limit` until all events that are now in the ring have been counted; returns whether they have been.
    pub fn catch_up(&self, limit: Duration) -> bool {
        let (done, wait) = sync_channel(1);
        self.requests.try_send(done).is_ok() && ring(&self.bell).is_ok() && wait.recv_timeout(limit).is_ok()
    }

    /// Whether the thread is working: it answers within `limit`, or is counting events that keep it from answering.
    pub fn is_alive(&self, limit: Duration) -> bool {
        let before = self.stats.events.load(Ordering::Relaxed);
        self.catch_up(limit) || self.stats.events.load(Ordering::Relaxed) != before
    }

    pub fn stats(&self) -> &Arc<DrainStats> {
        &self.stats
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = ring(&self.bell);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ring(bell: &OwnedFd) -> io::Result<()> {
    rustix::io::write(bell, &1u64.to_ne_bytes())?;
    Ok(())
}

struct Worker {
    handler: Handler,
    shared: SharedHandles,
    bell: Arc<OwnedFd>,
    asked: Receiver<SyncSender<()>>,
    stop: Arc<AtomicBool>,
}

impl Worker {
    /// Runs the thread. Reports through `ready` whether it could start.
    fn run(mut self, ready: &SyncSender<io::Result<()>>) {
        let plan = self.handler.plan.clone();
        let poll = Duration::from_millis(plan.settings.limits.ring_poll_ms.into());
        let fill = plan.settings.limits.ring_bytes / 4;
        let (stats, store) = (self.handler.stats.clone(), self.handler.store.clone());
        let handler = std::cell::RefCell::new(&mut self.handler);
        let mut builder = RingBufferBuilder::new();
        let made = builder
            .add(&*self.shared.ring, |record| {
                handler.borrow_mut().record(record);
                0
            })
            .map_err(io::Error::other)
            .map(drop)
            .and_then(|()| builder.build().map_err(io::Error::other))
            .and_then(|ring| Ok((ring, watch(&self.bell, &self.shared)?)));
        let (ring, epoll) = match made {
            Ok(made) => made,
            Err(err) => {
                let _ = ready.send(Err(err));
                return;
            }
        };
        let _ = ready.send(Ok(()));
        let control = &self.shared.control;
        // A probe reads the wake request before it submits its event. A probe that read it just before it was set does
        // not wake the thread, so where events are possible, the wait has a timeout.
        let emits = plan.probes.iter().any(|probe| probe.emit.is_some() || !probe.slow.is_empty());
        let longest = emits.then_some(MAX_DELAY);
        let drain = || {
            let before = stats.events.load(Ordering::Relaxed);
            // Fails only if a callback does.
            let _ = ring.consume();
            for (number, stat) in stats.all().into_iter().enumerate() {
                store.drain_number(number).store(stat.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            stats.events.load(Ordering::Relaxed) - before
        };
        while !self.stop.load(Ordering::Relaxed) {
            let some = drain() > 0;
            while let Ok(done) = self.asked.try_recv() {
                drain();
                let _ = done.try_send(());
            }
            if !some {
                control.wake(wake::WAKE_FIRST, 0);
                // Events submitted between the drain and the request have not woken the thread.
                if drain() == 0 && wait(&epoll, longest, &self.bell) {
                    continue;
                }
            }
            // A batch has begun: let it grow.
            stats.batches.fetch_add(1, Ordering::Relaxed);
            control.wake(wake::WAKE_FULL, fill);
            wait(&epoll, Some(poll), &self.bell);
        }
        drain();
    }
}

/// Edge-triggered: the ring is readable as long as it contains anything, and it is left to fill up on purpose.
fn watch(bell: &OwnedFd, shared: &SharedHandles) -> io::Result<OwnedFd> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&epoll, bell, epoll::EventData::new_u64(0), edge)?;
    epoll::add(&epoll, shared.ring.as_fd(), epoll::EventData::new_u64(1), edge)?;
    Ok(epoll)
}

/// Waits for the ring or the bell; returns whether the bell was rung.
fn wait(epoll: &OwnedFd, timeout: Option<Duration>, bell: &OwnedFd) -> bool {
    let timeout = timeout.and_then(|timeout| rustix::event::Timespec::try_from(timeout).ok());
    let mut events = [const { std::mem::MaybeUninit::uninit() }; 2];
    // Interrupted or not, the caller checks everything again.
    let _ = epoll::wait(epoll, &mut events, timeout.as_ref());
    rustix::io::read(bell, &mut [0u8; 8]).is_ok()
}
