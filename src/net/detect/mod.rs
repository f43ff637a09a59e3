//! Detection of hostile sources: by events of traced applications (`ban:` of a probe) and by traffic
//! (`network.detect`). Sources that cross a threshold are reported and, with `enforce`, put on the blocklist.
//!
//! One thread decides. Drain threads pass hits through a bounded queue and never wait; once a second the thread reads
//! the tables of talkers and flows. Nothing is added to the cost of a packet.

mod address;
mod bounded;
mod cookies;
mod flows;
mod hits;
mod metrics;
mod rates;
mod scan;
mod sentence;
mod snapshot;
mod traffic;
mod window;
mod worker;

use std::fmt;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::block::Blocklist;
use super::cidr::Prefix;
use super::thresholds::{BanRule, DetectConfig};
use crate::exposition::Family;
use crate::mutex::lock;
use metrics::Numbers;
use worker::{Message, Output, Worker};

pub(super) use cookies::SynCookies;
pub(super) use metrics::every_family;
pub use sentence::BanOutcome;
pub(super) use snapshot::{FirstClientPort, Snapshot};

/// Hits that may be queued for the detection thread.
const QUEUE_HITS: usize = 4096;

/// Kinds of events by module.
const MODULE_KINDS: [(&str, &[&str]); 4] = [
    ("syn_flood", &["syn_flood", "syn_flood_in_all"]),
    ("port_scan", &["port_scan"]),
    ("tcp_anomalies", &["tcp_anomaly"]),
    ("rates", &["rate"]),
];

/// A hit of a probe with `ban:`.
#[derive(Debug, Clone)]
pub struct Sighting {
    pub rule: Arc<BanRule>,
    pub target: String,
    pub probe: String,
    /// The address as the application reported it.
    pub address: String,
    /// By the kernel's monotonic clock.
    pub time: u64,
}

/// A detected event.
#[derive(Debug, Clone, PartialEq)]
pub struct Detection {
    pub kind: String,
    /// The module or probe that detected it.
    pub target: String,
    pub probe: String,
    /// The source; `None` if there is not a single one.
    pub source: Option<Prefix>,
    /// The measured value and its threshold.
    pub count: f64,
    pub allowed: f64,
    /// Further details by name.
    pub details: Vec<(&'static str, String)>,
    pub outcome: BanOutcome,
}

/// Receives detections.
type Report = Box<dyn Fn(Detection) + Send>;

/// Takes a snapshot of the traffic, as far as the active modules need it.
type Look = Box<dyn Fn(&DetectConfig) -> Option<Snapshot> + Send>;

/// Detection in a running exporter. Its thread starts with the first configuration that enables a module.
pub struct Detections {
    queue: Mutex<Option<SyncSender<Message>>>,
    numbers: Arc<Mutex<Numbers>>,
    work: Mutex<Work>,
}

struct Work {
    /// Until the thread starts.
    messages: Option<Receiver<Message>>,
    context: Option<Output>,
    is_wanted: bool,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Detections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detections").field("numbers", &self.numbers).finish_non_exhaustive()
    }
}

impl Default for Detections {
    fn default() -> Self {
        let (queue, messages) = sync_channel(QUEUE_HITS);
        let work = Work { messages: Some(messages), context: None, is_wanted: false, thread: None };
        Self { queue: Mutex::new(Some(queue)), numbers: Arc::default(), work: Mutex::new(work) }
    }
}

impl Detections {
    /// Applies a configuration: `ban:` of its probes, and the traffic modules.
    pub fn configure<'a>(&self, rules: impl Iterator<Item = &'a BanRule>, packets: Option<&DetectConfig>) {
        let mut numbers = lock(&self.numbers);
        let mut by_probes = None;
        for rule in rules {
            numbers.of(&rule.kind);
            by_probes = Some(by_probes.unwrap_or(false) || rule.terms.enforce);
        }
        let packets = packets.filter(|packets| packets.is_on());
        let is_wanted = by_probes.is_some() || packets.is_some();
        if is_wanted || !numbers.modules.is_empty() {
            numbers.modules.insert("ban", by_probes);
            numbers.evicted.entry("bans").or_default();
            if by_probes.is_some() {
                numbers.evicted.entry("hits").or_default();
            }
            numbers.modules.extend(packets.cloned().unwrap_or_default().modules());
        }
        for (module, kinds) in MODULE_KINDS {
            if numbers.modules.get(module).copied().flatten().is_some() {
                kinds.iter().for_each(|kind| {
                    numbers.of(kind);
                });
            }
        }
        drop(numbers);
        if is_wanted || lock(&self.work).is_wanted {
            let message = Message::Packets(Box::new(packets.cloned().unwrap_or_default()));
            let queue = lock(&self.queue);
            if queue.as_ref().is_some_and(|queue| queue.try_send(message).is_err()) {
                log::warn!("detection: the thresholds were not changed: too many hits are queued");
            }
        }
        let mut work = lock(&self.work);
        work.is_wanted |= is_wanted;
        self.start_if_enabled(&mut work);
    }

    /// Starts the thread; hits that arrived before are queued. Bans go to this list, all detections to `report`.
    pub(super) fn start(
        &self,
        list: Option<Arc<Blocklist>>,
        look: impl Fn(&DetectConfig) -> Option<Snapshot> + Send + 'static,
        report: impl Fn(Detection) + Send + 'static,
    ) {
        let output = Output { list, look: Box::new(look), report: Box::new(report) };
        self.start_with(output);
    }

    /// As [`Self::start`], where no packets are counted.
    pub fn start_without_network(&self, report: impl Fn(Detection) + Send + 'static) {
        self.start_with(Output { list: None, look: Box::new(|_| None), report: Box::new(report) });
    }

    fn start_with(&self, output: Output) {
        let mut work = lock(&self.work);
        work.context = Some(output);
        self.start_if_enabled(&mut work);
    }

    fn start_if_enabled(&self, work: &mut Work) {
        if !work.is_wanted || work.context.is_none() {
            return;
        }
        let Some(messages) = work.messages.take() else { return };
        let Some(output) = work.context.take() else { return };
        let worker = Worker::new(messages, output, self.numbers.clone());
        match std::thread::Builder::new().name("detection".to_string()).spawn(move || worker.run()) {
            Ok(thread) => work.thread = Some(thread),
            Err(err) => log::error!("nothing is detected: failed to start the detection thread: {err}"),
        }
    }

    /// Queues a hit of a probe, or counts it as lost if the queue is full. Never blocks.
    pub fn submit(&self, sighting: Sighting) {
        let kind = sighting.rule.clone();
        let queue = lock(&self.queue);
        let is_taken =
            queue.as_ref().is_some_and(|queue| queue.try_send(Message::Sighting(Box::new(sighting))).is_ok());
        drop(queue);
        if !is_taken {
            lock(&self.numbers).of(&kind.kind).lost += 1;
        }
    }

    /// All metrics; empty if detection is off.
    pub fn families(&self) -> Vec<Family> {
        metrics::families(&lock(&self.numbers))
    }
}

impl Drop for Detections {
    /// Queued hits are still processed.
    fn drop(&mut self) {
        drop(lock(&self.queue).take());
        if let Some(thread) = lock(&self.work).thread.take() {
            let _ = thread.join();
        }
    }
}

/// The source address that an application reported, if it is valid.
fn source_of(text: &str) -> Option<(IpAddr, Prefix)> {
    let address = address::address_in(text)?;
    Some((address, Prefix::new(address, 128)))
}

impl fmt::Display for Detection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, source, count, details, outcome, probe, .. } = self;
        let source = source.map(|source| format!(" by {source}")).unwrap_or_default();
        write!(f, "detection: {kind}{source} ({probe}: {count}")?;
        details.iter().try_for_each(|(name, value)| write!(f, ", {name} {value}"))?;
        match outcome {
            BanOutcome::Banned(time) => write!(f, "): banned for {}s", time.as_secs()),
            BanOutcome::Observed(time) => {
                write!(f, "): mode observe, would be banned for {}s", time.as_secs())
            }
            BanOutcome::Refused(_, why) => write!(f, "): not banned: {why}"),
            BanOutcome::Reported => write!(f, ")"),
        }
    }
}
