//! The thread that writes slow events, in batches.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::event::{EventRecord, Related, SlowCounters, StoredEvent};
use super::related::RecentEvents;
use super::store::{Bounds, EventStore, is_damage};
use super::{MAX_RECENT, QUEUE_EVENTS, Shared, lock};
use crate::webhook::Outbox;

/// How long an event waits for others before it is written.
const BATCH_DELAY: Duration = Duration::from_secs(1);

/// How long an event waits for related events of other probes.
const RELATED_DELAY: Duration = Duration::from_secs(5);

/// The receive timeout when nothing is due.
const IDLE_INTERVAL: Duration = Duration::from_secs(3600);

/// How long an event among the worst of an hour may still be displaced: events arrive late.
const WORST_OPEN: Duration = Duration::from_secs(7200);

/// So many events are written without waiting for more.
const BATCH_EVENTS: usize = 128;

/// Messages to the writer thread.
#[derive(Debug)]
pub(super) enum Message {
    Event(Box<(EventRecord, SlowCounters)>),
    Related(Box<Related>),
    Bounds(Bounds),
}

#[derive(Debug)]
pub(super) struct Writer {
    store: EventStore,
    node: String,
    messages: Receiver<Message>,
    shared: Arc<Shared>,
    /// The queue to the webhook.
    outbox: Arc<Outbox>,
    /// Events not yet written.
    events: Vec<(EventRecord, SlowCounters)>,
    /// Events waiting for related ones, with the deadline.
    incomplete: VecDeque<(Instant, EventRecord, SlowCounters)>,
    related: RecentEvents,
    /// The rows of the events among the worst of an hour, for as long as they can be displaced.
    ranked: BTreeMap<u64, (Instant, i64)>,
    /// The rows of displaced events.
    gone: Vec<i64>,
}

impl Writer {
    pub(super) fn new(
        store: EventStore,
        node: String,
        messages: Receiver<Message>,
        shared: Arc<Shared>,
        outbox: Arc<Outbox>,
    ) -> Self {
        let (events, incomplete, related, ranked, gone) = Default::default();
        let mut writer =
            Self { store, node, messages, shared, outbox, events, incomplete, related, ranked, gone };
        writer.show_latest();
        writer
    }

    /// Runs until there are no senders left.
    pub(super) fn run(mut self) {
        let mut due = None;
        loop {
            // If as many events are held here as fit in the queue, leave the queue to fill up; events are then counted
            // as refused.
            let has_room = self.events.len() + self.incomplete.len() < QUEUE_EVENTS;
            let next = self.incomplete.front().map(|(until, ..)| *until).into_iter().chain(due).min();
            let timeout = next.map_or(IDLE_INTERVAL, |next| next.saturating_duration_since(Instant::now()));
            let received = if has_room {
                self.messages.recv_timeout(timeout)
            } else {
                std::thread::sleep(timeout.min(BATCH_DELAY));
                let is_ending = self.shared.is_ending.load(Ordering::Relaxed);
                Err(if is_ending { RecvTimeoutError::Disconnected } else { RecvTimeoutError::Timeout })
            };
            match received {
                Ok(Message::Event(event)) => {
                    let (event, counters) = *event;
                    self.displace(&event);
                    if event.wanted.is_some() {
                        self.incomplete.push_back((Instant::now() + RELATED_DELAY, event, counters));
                    } else {
                        self.events.push((event, counters));
                        due.get_or_insert_with(|| Instant::now() + BATCH_DELAY);
                    }
                }
                Ok(Message::Related(event)) => self.remember(*event),
                Ok(Message::Bounds(bounds)) => self.store.bounds = bounds,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while self.incomplete.front().is_some_and(|(until, ..)| *until <= Instant::now()) {
                self.complete_first();
                due.get_or_insert_with(Instant::now);
            }
            let is_full =
                self.events.len() >= BATCH_EVENTS && !self.shared.is_failing.load(Ordering::Relaxed);
            if is_full || due.is_some_and(|due| due <= Instant::now()) {
                self.write();
                due = (!self.events.is_empty()).then(|| Instant::now() + BATCH_DELAY);
            }
        }
        while let Ok(message) = self.messages.try_recv() {
            match message {
                Message::Event(event) => {
                    let (event, counters) = *event;
                    self.displace(&event);
                    self.incomplete.push_back((Instant::now(), event, counters));
                }
                Message::Related(event) => self.remember(*event),
                Message::Bounds(_) => {}
            }
        }
        while self.complete_first() {}
        self.write();
        if !self.events.is_empty() {
            log::error!("{} slow events could not be written and were lost", self.events.len());
        }
        for (_, counters) in self.events.drain(..) {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            counters.unwritten();
        }
    }

    fn remember(&mut self, event: Related) {
        self.shared.related_waiting.fetch_sub(1, Ordering::Relaxed);
        self.related.add(event);
    }

    /// Drops the event that this one displaces.
    fn displace(&mut self, by: &EventRecord) {
        let Some(gone) = by.ranked.and_then(|ranked| ranked.displaces) else { return };
        if let Some((_, row)) = self.ranked.remove(&gone) {
            self.gone.push(row);
            return;
        }
        let is_it = |event: &EventRecord| event.ranked.is_some_and(|ranked| ranked.number == gone);
        let counters = if let Some(at) = self.events.iter().position(|(event, _)| is_it(event)) {
            self.events.remove(at).1
        } else if let Some(at) = self.incomplete.iter().position(|(_, event, _)| is_it(event)) {
            let Some((_, _, counters)) = self.incomplete.remove(at) else { return };
            counters
        } else {
            return;
        };
        counters.displaced();
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// Completes the first event that waits for related ones; returns whether there was one.
    fn complete_first(&mut self) -> bool {
        let Some((_, mut event, counters)) = self.incomplete.pop_front() else { return false };
        self.related.complete(&mut event);
        self.events.push((event, counters));
        true
    }

    /// Writes all events, or keeps them for the next attempt.
    fn write(&mut self) {
        if self.events.is_empty() {
            return;
        }
        let written = self.try_to_write();
        let was_failing = self.shared.is_failing.swap(written.is_err(), Ordering::Relaxed);
        match written {
            Err(err) if !was_failing => log::error!(
                "failed to write slow events to {}: {err}; they are queued; beyond {QUEUE_EVENTS}, they are lost",
                self.store.path().display()
            ),
            Err(_) => {}
            Ok(rows) => {
                if was_failing {
                    log::info!("Slow events are written to {} again", self.store.path().display());
                }
                // Before counting them as kept: a reader who sees that none are waiting sees all rows.
                self.show_latest();
                for ((event, counters), id) in self.events.drain(..).zip(rows) {
                    let row = StoredEvent { id, node: self.node.clone(), event };
                    // Plain data with text keys always serializes.
                    self.outbox.offer(|| serde_json::to_string(&row).unwrap_or_default());
                    counters.written();
                    self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Like [`Self::write_batch`], but recreates a missing or damaged file. Returns the rows of the events.
    fn try_to_write(&mut self) -> Result<Vec<i64>, String> {
        if self.store.is_gone() {
            log::warn!(
                "The file of slow events {} was deleted or moved: it is created again",
                self.store.path().display()
            );
            self.renew()?;
        }
        let rows = match self.write_batch() {
            Err(err) if is_damage(&err) => {
                self.renew()?;
                self.write_batch()
            }
            other => other,
        };
        let rows = rows.map_err(|err| err.to_string())?;
        self.gone.clear();
        let now = Instant::now();
        self.ranked.retain(|_, (at, _)| now.duration_since(*at) < WORST_OPEN);
        for ((event, _), row) in self.events.iter().zip(&rows) {
            if let Some(ranked) = event.ranked {
                self.ranked.insert(ranked.number, (now, *row));
            }
        }
        Ok(rows)
    }

    /// Writes all events and deletes the displaced ones. Returns the rows of the new events.
    fn write_batch(&mut self) -> rusqlite::Result<Vec<i64>> {
        let events: Vec<_> = self.events.iter().map(|(event, _)| event).collect();
        self.store.write(&self.node, &events, &self.gone)
    }

    /// Opens a new file; row IDs of the old one are no longer valid.
    fn renew(&mut self) -> Result<(), String> {
        self.ranked.clear();
        self.gone.clear();
        self.store.renew().map_err(|err| err.to_string())
    }

    /// Publishes the state of the file.
    fn show_latest(&mut self) {
        let rows = self.store.rows().unwrap_or_default();
        self.shared.rows.store(rows, Ordering::Relaxed);
        self.shared.bytes.store(self.store.file_bytes().unwrap_or_default(), Ordering::Relaxed);
        let latest: Vec<StoredEvent> = self.store.latest(MAX_RECENT).unwrap_or_default();
        *lock(&self.shared.recent) = latest.into_iter().map(Arc::new).collect();
    }
}
