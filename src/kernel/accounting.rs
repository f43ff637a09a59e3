//! Hit accounting: the outcome of each probe's hits.

use std::collections::BTreeMap;
use std::fmt;

use super::load::SharedHandles;
use crate::abi::accounting_slot;

/// Every way in which a hit can be lost, with its label value.
pub(crate) const LOST: &[(&str, accounting_slot)] = &[
    ("ring_full", accounting_slot::ACCT_LOST_RING),
    ("read_fault", accounting_slot::ACCT_LOST_FAULT),
    ("no_start", accounting_slot::ACCT_LOST_NO_START),
    ("starts_full", accounting_slot::ACCT_LOST_STARTS_FULL),
    ("negative", accounting_slot::ACCT_LOST_NEGATIVE),
];

/// One number for each of [`LOST`].
pub(crate) type Losses = [u64; LOST.len()];

/// The source of the programs' counts. The reference of metrics has one without a kernel.
pub(crate) trait Counts: fmt::Debug + Send + Sync {
    /// One number of a probe's accounting.
    fn accounting(&self, probe: usize, which: accounting_slot) -> u64;

    /// The latest jiffies at which the probe was hit; 0 if it never was.
    fn last_hit(&self, probe: usize) -> u64;

    /// Hits of an unknown site.
    fn stray(&self) -> u64;

    /// By program, hits for which the kernel did not run it; programs for which the kernel does not report them are
    /// left out.
    fn misses(&self) -> Vec<(&'static str, u64)>;

    /// Counts of slow events; `None` for a probe that keeps none.
    fn slow(&self, _probe: usize) -> Option<SlowCounts> {
        None
    }

    /// Losses of probes that no longer exist, in the order of [`LOST`].
    fn past_losses(&self) -> Losses {
        Losses::default()
    }

    /// Events counted by probes that no longer exist, by type.
    fn past_events(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }
}

/// Counts of a probe's slow events: seen = kept + outdone + lost + not written yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SlowCounts {
    pub seen: u64,
    pub kept: u64,
    /// No longer among the worst of their hour when they were to be written.
    pub outdone: u64,
    /// By reason, in the order of [`SLOW_LOST`].
    pub lost: [u64; SLOW_LOST.len()],
}

/// Every way in which a slow event can be lost, with its label value.
pub(crate) const SLOW_LOST: [&str; 3] = ["ring_full", "queue_full", "write_failed"];

impl Counts for SharedHandles {
    fn accounting(&self, probe: usize, which: accounting_slot) -> u64 {
        self.store.accounting(probe, which)
    }

    fn last_hit(&self, probe: usize) -> u64 {
        self.store.last_hit(probe)
    }

    fn stray(&self) -> u64 {
        self.control.stray()
    }

    fn misses(&self) -> Vec<(&'static str, u64)> {
        let counted = self.programs.iter().map(|program| Some((program.name, program.misses().ok()?)));
        counted.flatten().collect()
    }
}

/// One probe's accounting at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Accounting {
    /// Completed hits: the sum of the outcomes below.
    pub hits: u64,
    pub aggregated: u64,
    pub delivered: u64,
    pub filtered: u64,
    pub lost: u64,
    /// Hits that the handler has begun: never fewer than `hits`.
    pub begun: u64,
    /// Hits that were being handled at that moment.
    pub in_flight: u64,
    /// Hits with a value that could not be read, whatever their outcome.
    pub read_faults: u64,
}

impl Accounting {
    /// Reads a probe's accounting. Outcomes are read before hits, so that a hit in between is in flight, never missing.
    pub fn read(shared: &SharedHandles, probe: usize) -> Self {
        Self::of(|which| shared.store.accounting(probe, which))
    }

    pub(crate) fn of(accounting: impl Fn(accounting_slot) -> u64) -> Self {
        let aggregated = accounting(accounting_slot::ACCT_AGGREGATED);
        let delivered = accounting(accounting_slot::ACCT_DELIVERED);
        let filtered = accounting(accounting_slot::ACCT_FILTERED);
        let lost = LOST.iter().map(|(_, which)| accounting(*which)).sum();
        let hits = aggregated + delivered + filtered + lost;
        // Filtered hits, and those of a probe that only counts, complete when they begin.
        let begun = (accounting(accounting_slot::ACCT_HITS) + filtered).max(hits);
        let in_flight = begun - hits;
        let read_faults = accounting(accounting_slot::ACCT_READ_FAULTS);
        Self { hits, aggregated, delivered, filtered, lost, begun, in_flight, read_faults }
    }
}
