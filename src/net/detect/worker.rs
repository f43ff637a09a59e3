//! The detection thread.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::super::block::{Alert, Asker, BlockEntry, BlockError, BlockRule, Blocklist, PastBan};
use super::super::cidr::Prefix;
use super::super::thresholds::{BanTerms, DetectConfig};
use super::hits::Hits;
use super::metrics::Numbers;
use super::sentence::{Ban, BanOutcome, Sentences};
use super::traffic::{Finding, Traffic};
use super::{Detection, Look, Report, Sighting, lock, source_of};
use crate::clock::{monotonic_now, wall};

/// A message to the thread.
#[derive(Debug)]
pub(super) enum Message {
    Sighting(Box<Sighting>),
    /// A new configuration of the traffic modules.
    Packets(Box<DetectConfig>),
}

/// Where the thread sends bans and detections.
pub(super) struct Output {
    pub list: Option<Arc<Blocklist>>,
    pub look: Look,
    pub report: Report,
}

/// How often traffic is evaluated.
const INTERVAL: Duration = Duration::from_secs(1);

/// Sources that are banned for a SYN flood in one minute: spoofed sources must not fill the blocklist.
const MAX_FLOOD_BANS: usize = 100;
const MINUTE: u64 = 60_000_000_000;

pub(super) struct Worker {
    messages: Receiver<Message>,
    output: Output,
    numbers: Arc<Mutex<Numbers>>,
    hits: Hits,
    sentences: Sentences,
    packets: Option<(DetectConfig, Traffic)>,
    /// Times of recent bans for SYN floods.
    flooders: VecDeque<u64>,
}

impl Worker {
    pub fn new(messages: Receiver<Message>, output: Output, numbers: Arc<Mutex<Numbers>>) -> Self {
        let (hits, mut sentences) = (Hits::default(), Sentences::new());
        let now = monotonic_now();
        for ban in output.list.iter().flat_map(|list| list.past_bans()) {
            let until = now.saturating_add_signed(ban.ends_in.saturating_mul(1_000_000_000));
            sentences.restore(ban.prefix, ban.number, until);
        }
        Self { messages, output, numbers, hits, sentences, packets: None, flooders: VecDeque::new() }
    }

    /// Runs until all senders are gone.
    pub fn run(mut self) {
        let mut next = Instant::now();
        loop {
            let received = match &self.packets {
                Some(_) => self.messages.recv_timeout(next.saturating_duration_since(Instant::now())),
                None => self.messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(Message::Sighting(sighting)) => self.look_at(*sighting),
                Ok(Message::Packets(config)) => self.configure(*config),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.packets.is_some() && next <= Instant::now() {
                self.evaluate_traffic();
                // A slow evaluation is followed by a full pause, too.
                next = Instant::now() + INTERVAL;
            }
        }
    }

    fn configure(&mut self, config: DetectConfig) {
        if self.packets.as_ref().is_none_or(|(now, _)| *now != config) {
            self.packets = config.is_on().then(|| (config.clone(), Traffic::new(&config)));
        }
    }

    fn evaluate_traffic(&mut self) {
        let Some((config, traffic)) = &mut self.packets else { return };
        let Some(at) = (self.output.look)(config) else { return };
        let found = traffic.evaluate(&at);
        {
            let mut numbers = lock(&self.numbers);
            numbers.evicted.extend(traffic.evicted());
            numbers.evicted.insert("bans", self.sentences.evicted());
            numbers.anomalous.clone_from(&traffic.anomalous);
            numbers.cookies = at.cookies;
        }
        for Finding { kind, source, count, allowed, details, terms, is_connected } in found {
            let (target, probe) = ("network".to_string(), kind.to_string());
            let outcome = BanOutcome::Reported;
            let detection =
                Detection { kind: kind.to_string(), target, probe, source, count, allowed, details, outcome };
            self.decide(detection, &terms, is_connected);
        }
    }

    fn look_at(&mut self, sighting: Sighting) {
        let Sighting { rule, target, probe, address, time } = sighting;
        let Some((address, source)) = source_of(&address) else {
            lock(&self.numbers).of(&rule.kind).unusable += 1;
            return;
        };
        if self.hits.record(&rule, address, time) {
            let detection = Detection {
                kind: rule.kind.clone(),
                target,
                probe,
                source: Some(source),
                count: f64::from(rule.after),
                allowed: f64::from(rule.after),
                details: vec![("within", format!("{}s", rule.within.as_secs()))],
                outcome: BanOutcome::Reported,
            };
            self.decide(detection, &rule.terms, false);
        }
        let (hits, sentences) = (self.hits.evicted(), self.sentences.evicted());
        lock(&self.numbers).evicted.extend([("hits", hits), ("bans", sentences)]);
    }

    /// Bans the source, if the terms say so, and reports it; does neither if it was done already.
    fn decide(&mut self, mut detection: Detection, terms: &BanTerms, is_connected: bool) {
        if let Some(source) = detection.source {
            let now = monotonic_now();
            while self.flooders.front().is_some_and(|at| now.saturating_sub(*at) > MINUTE) {
                self.flooders.pop_front();
            }
            let is_flood = detection.kind == "syn_flood";
            let list = List {
                list: self.output.list.as_deref(),
                is_connected,
                is_too_much: is_flood && self.flooders.len() >= MAX_FLOOD_BANS,
            };
            let passed = self.sentences.pass(source, &detection.kind, terms, now, &list);
            let Some(outcome) = passed else { return };
            if is_flood && matches!(outcome, BanOutcome::Banned(_)) {
                self.flooders.push_back(now);
            }
            if let (BanOutcome::Banned(time), Some(list)) = (&outcome, &self.output.list) {
                let ends_in = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
                let longest = i64::try_from(terms.max_ttl.as_secs()).unwrap_or(i64::MAX);
                list.remember(&PastBan {
                    prefix: source,
                    number: self.sentences.number(&source),
                    ends_in,
                    forgotten_in: ends_in.saturating_add(longest),
                });
                list.report(Alert {
                    prefix: source,
                    kind: detection.kind.clone(),
                    count: detection.count,
                    time: wall(),
                    deadline: now.saturating_add(time.as_nanos() as u64),
                });
            }
            detection.outcome = outcome;
        }
        {
            let mut numbers = lock(&self.numbers);
            let of = numbers.of(&detection.kind);
            of.events += 1;
            match detection.outcome {
                BanOutcome::Banned(_) => of.bans += 1,
                BanOutcome::Refused(cause, _) => *of.refused.entry(cause).or_default() += 1,
                BanOutcome::Observed(_) | BanOutcome::Reported => {}
            }
        }
        log::warn!("{detection}");
        (self.output.report)(detection);
    }
}

/// The blocklist, as bans need it.
struct List<'a> {
    list: Option<&'a Blocklist>,
    /// Whether the source has working connections.
    is_connected: bool,
    is_too_much: bool,
}

impl Ban for List<'_> {
    fn is_banned(&self, source: Prefix) -> bool {
        self.list.is_some_and(|list| list.row(source).is_some())
    }

    fn ban(&self, source: Prefix, reason: &str, time: Duration) -> Result<(), (&'static str, String)> {
        let Some(list) = self.list else {
            return Err(("no_blocklist", "network.block is not configured".to_string()));
        };
        if self.is_connected {
            let why = "it has working connections, so its address may be spoofed, or shared by many users";
            return Err(("connected", why.to_string()));
        }
        if self.is_too_much {
            let why =
                format!("{MAX_FLOOD_BANS} sources were banned within a minute; the addresses may be spoofed");
            return Err(("too_many", why));
        }
        // Another source's entry may last longer than this ban.
        if let Some(row) = list.row(source).filter(|row| row.source.name != Asker::Detection.word()) {
            return Err(("listed", format!("{source} is listed already ({})", row.source.name)));
        }
        let rule = BlockRule { reason: reason.to_string(), ttl: Some(time), ..BlockRule::default() };
        match list.block(&BlockEntry { prefix: source, rule }, Asker::Detection) {
            Ok(_) => Ok(()),
            Err(error) => {
                let cause = match &error {
                    BlockError::Protected(..) => "protected",
                    BlockError::Full(_) => "full",
                    BlockError::Absent(_) | BlockError::Elsewhere(..) | BlockError::Settled(_) => "listed",
                    BlockError::Kernel(_) => "kernel",
                };
                Err((cause, error.to_string()))
            }
        }
    }
}
