//! The thread that decides who has crossed a threshold.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::super::block::{Asker, BlockEntry, BlockError, BlockRule, Blocklist};
use super::super::cidr::Prefix;
use super::super::thresholds::BanTerms;
use super::hits::Hits;
use super::metrics::Numbers;
use super::sentence::{Ban, Outcome, Sentences};
use super::{Detection, Report, Sighting, lock, source_of};
use crate::clock::monotonic_now;

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Message {
    Sighting(Box<Sighting>),
}

pub(super) struct Worker {
    messages: Receiver<Message>,
    list: Option<Arc<Blocklist>>,
    report: Report,
    numbers: Arc<Mutex<Numbers>>,
    hits: Hits,
    sentences: Sentences,
}

impl Worker {
    pub fn new(
        messages: Receiver<Message>,
        list: Option<Arc<Blocklist>>,
        report: Report,
        numbers: Arc<Mutex<Numbers>>,
    ) -> Self {
        Self { messages, list, report, numbers, hits: Hits::default(), sentences: Sentences::new() }
    }

    /// Until nobody can send any more.
    pub fn run(mut self) {
        while let Ok(message) = self.messages.recv() {
            match message {
                Message::Sighting(sighting) => self.look_at(*sighting),
            }
        }
    }

    fn look_at(&mut self, sighting: Sighting) {
        let Sighting { rule, target, probe, address, time } = sighting;
        let Some((address, source)) = source_of(&address) else {
            lock(&self.numbers).of(&rule.kind).unusable += 1;
            return;
        };
        if self.hits.note(&rule, address, time) {
            let detection = Detection {
                kind: rule.kind.clone(),
                target,
                probe,
                source: Some(source),
                count: f64::from(rule.after),
                allowed: f64::from(rule.after),
                details: vec![("within", format!("{}s", rule.within.as_secs()))],
                outcome: Outcome::Reported,
            };
            self.decide(detection, &rule.terms);
        }
        let (hits, sentences) = (self.hits.evicted(), self.sentences.evicted());
        lock(&self.numbers).evicted.extend([("hits", hits), ("bans", sentences)]);
    }

    /// Bans the source, if the terms say so, and tells of it; not if that was done already.
    fn decide(&mut self, mut detection: Detection, terms: &BanTerms) {
        if let Some(source) = detection.source {
            let list = List(self.list.as_deref());
            let passed = self.sentences.pass(source, &detection.kind, terms, monotonic_now(), &list);
            let Some(outcome) = passed else { return };
            detection.outcome = outcome;
        }
        {
            let mut numbers = lock(&self.numbers);
            let of = numbers.of(&detection.kind);
            of.events += 1;
            match detection.outcome {
                Outcome::Banned(_) => of.bans += 1,
                Outcome::Refused(cause, _) => *of.refused.entry(cause).or_default() += 1,
                Outcome::Observed(_) | Outcome::Reported => {}
            }
        }
        log::warn!("{detection}");
        (self.report)(detection);
    }
}

/// The blocklist, as bans see it.
struct List<'a>(Option<&'a Blocklist>);

impl Ban for List<'_> {
    fn is_banned(&self, source: Prefix) -> bool {
        self.0.is_some_and(|list| list.row(source).is_some())
    }

    fn ban(&self, source: Prefix, reason: &str, time: Duration) -> Result<(), (&'static str, String)> {
        let Some(list) = self.0 else {
            return Err(("no_blocklist", "there is no network.block in the configuration".to_string()));
        };
        // Somebody else's entry may hold for longer than this one would.
        if let Some(row) = list.row(source).filter(|row| row.source != Asker::Detection.word()) {
            return Err(("listed", format!("{source} is listed already ({})", row.source)));
        }
        let rule = BlockRule { reason: reason.to_string(), ttl: Some(time), scope: None };
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
