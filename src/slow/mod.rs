//! Slow events, kept whole: the thread that writes them to a file, and what reads them.
//!
//! The kernel decides which hits are slow, and only these are sent. The threads that drain the ring hand them over by a queue that
//! is bounded and never waited for; one thread writes them. Every event is kept or counted as lost, where it is lost:
//! `seen = kept + lost + waiting`.

mod event;
mod query;
mod related;
mod security;
mod store;
mod worst;
mod writer;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use crate::config::model::WebhookSettings;
use crate::exposition::Exemplars;
use crate::http::HttpError;
use crate::net::{DetectConfig, Detections};
use crate::plan::{Plan, ProbePlan};
use crate::webhook::{Receiver, Webhook, WebhookNumbers};
use store::{Bounds, Store};
use writer::{Message, Writer};

pub use event::{Event, Fields, RelatedRow, Row, SlowCounters};
pub(crate) use event::{Related, Wanted};
pub use query::{Query, read, table};
pub(crate) use query::{shown_reason, shown_value};
pub use store::SlowError;
pub(crate) use worst::{Worst, end_of_hour};

/// Events that can wait for the thread that writes.
const QUEUE: usize = 1024;

/// Events that [`SlowRecorder::recent`] knows: all that a page shows, for they are read anew with each write.
const RECENT: usize = 10;

/// Keeps slow events. It begins with the first configuration that has some.
#[derive(Debug, Default)]
pub struct SlowRecorder {
    work: Mutex<Work>,
    queue: OnceLock<SyncSender<Message>>,
    shared: Arc<Shared>,
    webhook: Webhook,
    /// Of the events that are among the worst of an hour.
    ranked: AtomicU64,
    exemplars: Mutex<Exemplars>,
    /// What is detected by events and packets, which is kept beside slow events.
    pub(crate) detections: Detections,
    /// What becomes of those.
    security: OnceLock<SlowCounters>,
}

#[derive(Debug, Default)]
struct Work {
    /// Opened, and not yet written to.
    open: Option<(Store, String)>,
    /// Whether there may be threads.
    is_started: bool,
    thread: Option<JoinHandle<()>>,
}

/// What the thread that writes tells the others.
#[derive(Debug, Default)]
struct Shared {
    waiting: AtomicU64,
    rows: AtomicU64,
    bytes: AtomicU64,
    is_failing: AtomicBool,
    /// Events that may belong to slow ones: those in the queue, and those that were not taken.
    related_waiting: AtomicU64,
    related_lost: AtomicU64,
    is_ending: AtomicBool,
    recent: Mutex<Vec<Arc<Row>>>,
}

/// Numbers of all slow events together.
#[derive(Debug, Clone, Copy, Default)]
pub struct SlowNumbers {
    /// Events that wait to be written.
    pub waiting: u64,
    /// Events in the file, and its size.
    pub rows: u64,
    pub bytes: u64,
    /// The last write has failed.
    pub failing: bool,
    /// Events of other probes that were not looked at, because there were too many.
    pub related_lost: u64,
    /// `None` if there is no webhook.
    pub webhook: Option<WebhookNumbers>,
}

/// Who is told of slow events.
///
/// # Errors
/// If the certificates of the authority cannot be used.
pub(crate) fn receiver(settings: &WebhookSettings) -> Result<Receiver, HttpError> {
    Receiver::new(settings.url.clone(), &settings.secret, settings.authority.clone())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SlowRecorder {
    /// Opens the file if the plan keeps slow events; of one that is open, takes over the bounds.
    ///
    /// # Errors
    /// If the file cannot be had.
    pub fn keep_for(&self, plan: &Plan) -> Result<(), SlowError> {
        let bans = plan.probes.iter().flat_map(|probe| &probe.bans);
        let packets = plan.network.as_ref().map(|network| &network.detect);
        self.detections.configure(bans.map(|ban| &ban.rule), packets);
        let keeps = |probe: &ProbePlan| !probe.slow.is_empty() || !probe.bans.is_empty();
        if !plan.probes.iter().any(keeps) && !packets.is_some_and(DetectConfig::is_on) {
            return Ok(());
        }
        let settings = &plan.settings.slow_events;
        let receiver = settings.webhook.as_ref().map(receiver).transpose();
        let receiver = receiver.map_err(|err| SlowError::told(err.to_string(), ""))?;
        let bounds = Bounds::of(settings);
        if let Some(queue) = self.queue.get() {
            // With the queue full, the bounds stay as they were until the next reload.
            if queue.try_send(Message::Bounds(bounds)).is_err() {
                log::warn!("The limits of the slow event file were not changed: too many events are queued");
            }
            self.webhook.set(receiver);
            return self.begin_to_send();
        }
        let mut work = lock(&self.work);
        work.open = Some((Store::open(&settings.file, bounds)?, plan.settings.node_name.clone()));
        self.webhook.set(receiver);
        if work.is_started { self.write(&mut work) } else { Ok(()) }
    }

    /// Begins to write. The file is opened before, with more privileges and without threads.
    ///
    /// # Errors
    /// If there is no thread.
    pub fn start(&self) -> Result<(), SlowError> {
        let mut work = lock(&self.work);
        work.is_started = true;
        self.write(&mut work)
    }

    fn write(&self, work: &mut Work) -> Result<(), SlowError> {
        let Some((store, node)) = work.open.take() else { return Ok(()) };
        log::info!("Slow events are kept in {}", store.path().display());
        let (queue, events) = sync_channel(QUEUE);
        let writer = Writer::new(store, node, events, self.shared.clone(), self.webhook.outbox().clone());
        let thread = std::thread::Builder::new().name("slow events".to_string()).spawn(move || writer.run());
        let thread = thread.map_err(|err| {
            SlowError::told(format!("failed to start the thread that writes slow events: {err}"), "")
        })?;
        work.thread = Some(thread);
        // Nobody else sets it while the work is locked.
        let _ = self.queue.set(queue);
        self.begin_to_send()
    }

    fn begin_to_send(&self) -> Result<(), SlowError> {
        self.webhook
            .start()
            .map_err(|err| SlowError::told(format!("failed to start the thread of the webhook: {err}"), ""))
    }

    /// Takes note of a slow event as an exemplar of its bucket.
    pub(crate) fn note_exemplar(&self, note: impl FnOnce(&mut Exemplars)) {
        note(&mut lock(&self.exemplars));
    }

    /// The latest of each bucket.
    pub fn exemplars(&self) -> Exemplars {
        lock(&self.exemplars).clone()
    }

    /// A number for an event among the worst that no other one has.
    pub(crate) fn number(&self) -> u64 {
        self.ranked.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes an event, or counts that there is no room for it. Never waits. Returns whether it was taken.
    pub(crate) fn offer(&self, event: Event, counters: SlowCounters) -> bool {
        let Some(queue) = self.queue.get() else {
            counters.rejected();
            return false;
        };
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        if queue.try_send(Message::Event(Box::new((event, counters.clone())))).is_err() {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            counters.rejected();
            return false;
        }
        true
    }

    /// Takes an event that may belong to slow ones. At most half of the queue is for them.
    pub(crate) fn offer_related(&self, event: impl FnOnce() -> Related) {
        let Some(queue) = self.queue.get() else { return };
        let waiting = &self.shared.related_waiting;
        let is_taken = waiting.fetch_add(1, Ordering::Relaxed) < QUEUE as u64 / 2
            && queue.try_send(Message::Related(Box::new(event()))).is_ok();
        if !is_taken {
            waiting.fetch_sub(1, Ordering::Relaxed);
            self.shared.related_lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The latest events that were written, the last one first: at most ten.
    pub fn recent(&self) -> Vec<Arc<Row>> {
        lock(&self.shared.recent).clone()
    }

    /// `None` if no slow events are kept.
    pub fn numbers(&self) -> Option<SlowNumbers> {
        self.queue.get()?;
        let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let Shared { waiting, rows, bytes, is_failing, .. } = &*self.shared;
        let failing = is_failing.load(Ordering::Relaxed);
        let related_lost = load(&self.shared.related_lost);
        Some(SlowNumbers {
            waiting: load(waiting),
            rows: load(rows),
            bytes: load(bytes),
            failing,
            related_lost,
            webhook: self.webhook.outbox().numbers(),
        })
    }
}

impl Drop for SlowRecorder {
    /// What waits is written.
    fn drop(&mut self) {
        self.shared.is_ending.store(true, Ordering::Relaxed);
        drop(self.queue.take());
        if let Some(thread) = lock(&self.work).thread.take() {
            let _ = thread.join();
        }
    }
}
