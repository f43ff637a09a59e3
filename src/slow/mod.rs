//! Slow events, recorded in full: the thread that writes them to a file, and the readers of that file.
//!
//! The kernel decides which hits are slow and sends only these. The threads that drain the ring pass them on through a
//! bounded queue without ever blocking; a single thread writes them. Every event is either stored or counted as lost at
//! the point where it is lost: `seen = kept + lost + waiting`.

mod event;
mod query;
mod related;
mod security;
mod store;
mod worst;
mod writer;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;

use crate::config::model::WebhookSettings;
use crate::exposition::Exemplars;
use crate::http::HttpError;
use crate::mutex::lock;
use crate::net::Detections;
use crate::plan::{Plan, ProbePlan};
use crate::webhook::{Receiver, Webhook, WebhookNumbers};
use store::{Bounds, EventStore};
use writer::{Message, Writer};

pub use event::{EventFields, EventRecord, RelatedRow, SlowCounters, StoredEvent};
pub(crate) use event::{Related, RelatedCriteria};
pub use query::{EventQuery, read, table};
pub(crate) use query::{shown_reason, shown_value};
pub use store::SlowError;
pub(crate) use worst::{Worst, end_of_hour};

/// Events that may be queued for the writer.
const QUEUE_EVENTS: usize = 1024;

/// Events that [`SlowRecorder::recent`] returns at most: as many as a page shows. They are read again after each
/// write.
const MAX_RECENT: usize = 10;

/// Records slow events, starting with the first configuration that has any.
#[derive(Debug, Default)]
pub struct SlowRecorder {
    work: Mutex<Work>,
    queue: OnceLock<SyncSender<Message>>,
    shared: Arc<Shared>,
    webhook: Webhook,
    /// The next number for an event among the worst of an hour.
    ranked: AtomicU64,
    exemplars: Mutex<Exemplars>,
    /// Detections from events and packets, which are recorded along with slow events.
    pub(crate) detections: Detections,
    /// The counters of the recorded detections.
    security: OnceLock<SlowCounters>,
}

#[derive(Debug, Default)]
struct Work {
    /// An open file that has no writer thread yet.
    open: Option<(EventStore, String)>,
    /// Whether threads may be spawned.
    is_started: bool,
    thread: Option<JoinHandle<()>>,
}

/// State that the writer thread publishes.
#[derive(Debug, Default)]
struct Shared {
    waiting: AtomicU64,
    rows: AtomicU64,
    bytes: AtomicU64,
    is_failing: AtomicBool,
    /// Possibly related events: those in the queue, and those that were dropped.
    related_waiting: AtomicU64,
    related_lost: AtomicU64,
    is_ending: AtomicBool,
    recent: Mutex<Vec<Arc<StoredEvent>>>,
}

/// Totals over all slow events.
#[derive(Debug, Clone, Copy, Default)]
pub struct SlowNumbers {
    /// Events waiting to be written.
    pub waiting: u64,
    /// The number of events in the file, and the file's size.
    pub rows: u64,
    pub bytes: u64,
    /// The last write failed.
    pub failing: bool,
    /// Events of other probes that were dropped because there were too many.
    pub related_lost: u64,
    /// `None` without a webhook.
    pub webhook: Option<WebhookNumbers>,
}

/// Creates the receiver of slow events.
///
/// # Errors
/// If the authority's certificates are unusable.
pub(crate) fn receiver(settings: &WebhookSettings) -> Result<Receiver, HttpError> {
    Receiver::new(settings.url.clone(), &settings.secret, settings.authority.clone())
}

/// Whether the plan needs the file of slow events.
fn records(plan: &Plan) -> bool {
    let by_probe = |probe: &ProbePlan| !probe.slow.is_empty() || !probe.bans.is_empty();
    let by_packets = plan.network.as_ref().is_some_and(|network| network.detect.is_on());
    by_packets || plan.probes.iter().any(by_probe)
}

/// Checks that [`SlowRecorder::keep_for`] can open the file, without creating it.
///
/// # Errors
/// As [`SlowRecorder::keep_for`].
pub fn check_file(plan: &Plan) -> Result<(), SlowError> {
    if records(plan) { store::check(&plan.settings.slow_events.file) } else { Ok(()) }
}

impl SlowRecorder {
    /// Opens the file if the plan records slow events; if it is already open, updates its limits.
    ///
    /// # Errors
    /// If the file cannot be opened or created.
    pub fn keep_for(&self, plan: &Plan) -> Result<(), SlowError> {
        let bans = plan.probes.iter().flat_map(|probe| &probe.bans);
        let packets = plan.network.as_ref().map(|network| &network.detect);
        self.detections.configure(bans.map(|ban| &ban.rule), packets);
        if !records(plan) {
            return Ok(());
        }
        let settings = &plan.settings.slow_events;
        let receiver = settings.webhook.as_ref().map(receiver).transpose();
        let receiver = receiver.map_err(|err| SlowError::without_source(err.to_string(), ""))?;
        let bounds = Bounds::of(settings);
        if let Some(queue) = self.queue.get() {
            // If the queue is full, the limits stay unchanged until the next reload.
            if queue.try_send(Message::Bounds(bounds)).is_err() {
                log::warn!("The limits of the slow event file were not changed: too many events are queued");
            }
            self.webhook.set(receiver);
            return self.begin_to_send();
        }
        let mut work = lock(&self.work);
        work.open = Some((EventStore::open(&settings.file, bounds)?, plan.settings.node_name.clone()));
        self.webhook.set(receiver);
        if work.is_started { self.write(&mut work) } else { Ok(()) }
    }

    /// Starts writing. The file is opened earlier, with more privileges and before threads are spawned.
    ///
    /// # Errors
    /// If a thread cannot be spawned.
    pub fn start(&self) -> Result<(), SlowError> {
        let mut work = lock(&self.work);
        work.is_started = true;
        self.write(&mut work)
    }

    fn write(&self, work: &mut Work) -> Result<(), SlowError> {
        let Some((store, node)) = work.open.take() else { return Ok(()) };
        log::info!("Slow events are kept in {}", store.path().display());
        let (queue, events) = sync_channel(QUEUE_EVENTS);
        let writer = Writer::new(store, node, events, self.shared.clone(), self.webhook.outbox().clone());
        let thread = std::thread::Builder::new().name("slow events".to_string()).spawn(move || writer.run());
        let thread = thread.map_err(|err| {
            SlowError::without_source(
                format!("failed to start the thread that writes slow events: {err}"),
                "",
            )
        })?;
        work.thread = Some(thread);
        // It is only set while `work` is locked.
        let _ = self.queue.set(queue);
        self.begin_to_send()
    }

    fn begin_to_send(&self) -> Result<(), SlowError> {
        self.webhook.start().map_err(|err| {
            SlowError::without_source(format!("failed to start the thread of the webhook: {err}"), "")
        })
    }

    /// Records a slow event as an exemplar of its bucket.
    pub(crate) fn record_exemplar(&self, note: impl FnOnce(&mut Exemplars)) {
        note(&mut lock(&self.exemplars));
    }

    /// Returns the latest exemplar of each bucket.
    pub fn exemplars(&self) -> Exemplars {
        lock(&self.exemplars).clone()
    }

    /// Returns a unique number for an event among the worst.
    pub(crate) fn number(&self) -> u64 {
        self.ranked.fetch_add(1, Ordering::Relaxed)
    }

    /// Queues an event, or counts it as refused if the queue is full. Never blocks. Returns whether it was queued.
    pub(crate) fn offer(&self, event: EventRecord, counters: SlowCounters) -> bool {
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

    /// Queues an event that may be related to slow ones. Such events may take up at most half of the queue.
    pub(crate) fn offer_related(&self, event: impl FnOnce() -> Related) {
        let Some(queue) = self.queue.get() else { return };
        let waiting = &self.shared.related_waiting;
        let is_taken = waiting.fetch_add(1, Ordering::Relaxed) < QUEUE_EVENTS as u64 / 2
            && queue.try_send(Message::Related(Box::new(event()))).is_ok();
        if !is_taken {
            waiting.fetch_sub(1, Ordering::Relaxed);
            self.shared.related_lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the latest written events, latest first: at most ten.
    pub fn recent(&self) -> Vec<Arc<StoredEvent>> {
        lock(&self.shared.recent).clone()
    }

    /// Returns `None` if slow events are not recorded.
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
    /// Writes the queued events.
    fn drop(&mut self) {
        self.shared.is_ending.store(true, Ordering::Relaxed);
        drop(self.queue.take());
        if let Some(thread) = lock(&self.work).thread.take() {
            let _ = thread.join();
        }
    }
}
