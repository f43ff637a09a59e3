//! The queue of events to be sent.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use tokio::sync::{Notify, watch};

use super::receiver::Receiver;

/// Events that may be queued, and their bytes.
const MAX_EVENTS: usize = 1024;
const MAX_BYTES: usize = 4 << 20;

/// Of these, how many are sent at once, and their bytes. A single event is sent whatever its size.
const BATCH_EVENTS: usize = 64;
const BATCH_BYTES: usize = 256 << 10;

/// The reasons for dropping events, as in the metric.
pub(crate) const DROPPED: [&str; 4] = ["queue_full", "rejected", "expired", "stopped"];

/// A bounded queue of events.
#[derive(Debug)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// Notified when there may be something to send.
    changed: Notify,
    ending: watch::Sender<bool>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct State {
    receiver: Option<Arc<Receiver>>,
    queue: VecDeque<Waiting>,
    bytes: usize,
    next: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    since: Instant,
    /// The event as JSON.
    text: String,
}

#[derive(Debug, Default)]
struct Counts {
    events: AtomicU64,
    sent: AtomicU64,
    dropped: [AtomicU64; DROPPED.len()],
    failed_requests: AtomicU64,
}

/// The reason for dropping events: an index into [`DROPPED`].
#[derive(Debug, Clone, Copy)]
pub(super) enum Reason {
    QueueFull,
    Rejected,
    Expired,
    Stopped,
}

/// The outcome of all events.
#[derive(Debug, Clone, Copy, Default)]
pub struct WebhookNumbers {
    pub events: u64,
    pub sent: u64,
    /// In the order of [`DROPPED`].
    pub dropped: [u64; DROPPED.len()],
    pub waiting: u64,
    pub failed_requests: u64,
}

/// The first queued events, as one request.
#[derive(Debug)]
pub(super) struct Batch {
    pub receiver: Arc<Receiver>,
    pub body: Bytes,
    pub events: usize,
    last: u64,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            changed: Notify::default(),
            ending: watch::Sender::new(false),
            counts: Counts::default(),
        }
    }
}

impl Outbox {
    /// Queues an event, which is JSON, if there is a receiver. Never blocks; an event that does not fit is counted as
    /// dropped.
    pub fn offer(&self, event: impl FnOnce() -> String) {
        let mut state = self.lock();
        if state.receiver.is_none() {
            return;
        }
        let text = event();
        self.counts.events.fetch_add(1, Ordering::Relaxed);
        if state.queue.len() >= MAX_EVENTS || state.bytes + text.len() > MAX_BYTES {
            self.counts.dropped[Reason::QueueFull as usize].fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.bytes += text.len();
        let number = state.next;
        state.next += 1;
        state.queue.push_back(Waiting { number, since: Instant::now(), text });
        drop(state);
        self.changed.notify_one();
    }

    /// Returns `None` if there is no receiver.
    pub fn numbers(&self) -> Option<WebhookNumbers> {
        let state = self.lock();
        state.receiver.as_ref()?;
        let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let Counts { events, sent, dropped, failed_requests } = &self.counts;
        Some(WebhookNumbers {
            events: load(events),
            sent: load(sent),
            dropped: std::array::from_fn(|reason| load(&dropped[reason])),
            waiting: state.queue.len() as u64,
            failed_requests: load(failed_requests),
        })
    }

    pub(super) fn set(&self, receiver: Option<Receiver>) {
        let mut state = self.lock();
        state.receiver = receiver.map(Arc::new);
        if state.receiver.is_none() {
            self.take(&mut state, |_| true, Some(Reason::Stopped));
        }
    }

    pub(super) fn has_receiver(&self) -> bool {
        self.lock().receiver.is_some()
    }

    /// Returns the next batch, which stays queued until its outcome is reported.
    pub(super) fn next(&self) -> Option<Batch> {
        let state = self.lock();
        let receiver = state.receiver.clone()?;
        let mut body = String::from("{\"version\":1,\"events\":[");
        let (mut events, mut last) = (0, 0);
        for event in state.queue.iter().take(BATCH_EVENTS) {
            if events > 0 && body.len() + event.text.len() > BATCH_BYTES {
                break;
            }
            body.push_str(if events > 0 { "," } else { "" });
            body.push_str(&event.text);
            (events, last) = (events + 1, event.number);
        }
        body.push_str("]}");
        (events > 0).then(|| Batch { receiver, body: body.into(), events, last })
    }

    pub(super) fn sent(&self, batch: &Batch) {
        self.take(&mut self.lock(), |event| event.number <= batch.last, None);
    }

    pub(super) fn rejected(&self, batch: &Batch) {
        self.take(&mut self.lock(), |event| event.number <= batch.last, Some(Reason::Rejected));
    }

    pub(super) fn request_failed(&self) {
        self.counts.failed_requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Drops events older than `max_age` and returns their number.
    pub(super) fn expire(&self, max_age: Duration) -> usize {
        self.take(&mut self.lock(), |event| event.since.elapsed() > max_age, Some(Reason::Expired))
    }

    /// Drops all events and returns their number.
    pub(super) fn drop_all(&self) -> usize {
        self.take(&mut self.lock(), |_| true, Some(Reason::Stopped))
    }

    /// Removes events from the front while `is_meant` holds; counts them as dropped for this reason, or as sent if
    /// `None`. Returns their number.
    fn take(&self, state: &mut State, is_meant: impl Fn(&Waiting) -> bool, dropped: Option<Reason>) -> usize {
        let counter = match dropped {
            Some(reason) => &self.counts.dropped[reason as usize],
            None => &self.counts.sent,
        };
        let mut taken = 0;
        while state.queue.front().is_some_and(&is_meant) {
            let Some(event) = state.queue.pop_front() else { break };
            state.bytes -= event.text.len();
            taken += 1;
        }
        counter.fetch_add(taken as u64, Ordering::Relaxed);
        taken
    }

    /// Resolves when there may be something to send, or when the queue is ending.
    pub(super) async fn changed(&self) {
        tokio::select! {
            () = self.changed.notified() => {}
            () = self.ending() => {}
        }
    }

    pub(super) fn end(&self) {
        self.ending.send_replace(true);
    }

    pub(super) fn is_ending(&self) -> bool {
        *self.ending.borrow()
    }

    /// Resolves when the queue is ending.
    pub(super) async fn ending(&self) {
        // The sender is owned by `self`, so it still exists.
        let _ = self.ending.subscribe().wait_for(|ending| *ending).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
