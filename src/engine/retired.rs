//! Counts of all engines together, including those that have been dropped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Engine, Engines};
use crate::abi::{accounting_slot, slow_slot};
use crate::drain::DrainStats;
use crate::kernel::{Accounting, Counts, LOST, Losses, SlowCounts};
use crate::layout::{SLOW_DISPLACED, SLOW_KEPT, SLOW_OUTDONE, SLOW_REFUSED, SLOW_SEEN, SLOW_UNWRITTEN};
use crate::metrics::CounterStore;
use crate::plan::Plan;
use crate::store::Store;
use crate::targets::TargetsStatus;

/// Numbers that must not decrease when probes are removed.
#[derive(Debug, Clone, Default)]
pub(super) struct RetiredCounts {
    /// When counting began, as a Unix time in seconds; an earlier exporter's, if this one continues its counts.
    pub(super) since: f64,
    pub(super) losses: Losses,
    pub(super) events: BTreeMap<String, u64>,
    pub(super) status: Vec<(Arc<Plan>, Arc<TargetsStatus>)>,
    pub(super) drain: Vec<Arc<DrainStats>>,
}

impl Engines {
    /// The sum of the statistics of all drain threads.
    pub fn drain_stats(&self) -> DrainStats {
        let sum = DrainStats::default();
        for stats in self.all.iter().map(|engine| engine.drain.stats()).chain(&self.retired.drain) {
            for (to, from) in [
                (&sum.events, &stats.events),
                (&sum.undecodable, &stats.undecodable),
                (&sum.unreadable, &stats.unreadable),
                (&sum.negative, &stats.negative),
                (&sum.batches, &stats.batches),
            ] {
                to.fetch_add(from.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
        sum
    }

    /// The counts, including those of probes that are no longer in the plan.
    pub(super) fn retired(&self) -> RetiredCounts {
        let mut retired = self.retired.clone();
        for (engine, gone) in self.all.iter().zip(&self.left_out) {
            gone.iter().for_each(|probe| retired.add(engine, *probe));
        }
        retired
    }
}

impl RetiredCounts {
    pub(super) fn add(&mut self, engine: &Engine, probe: usize) {
        for (sum, (_, which)) in self.losses.iter_mut().zip(LOST) {
            *sum += engine.shared.accounting(probe, *which);
        }
        let accounting = Accounting::read(&engine.shared, probe);
        let kind = engine.plan.probes[probe].event_type.clone();
        *self.events.entry(kind).or_default() += accounting.aggregated + accounting.delivered;
    }
}

impl Counts for Engines {
    fn accounting(&self, probe: usize, which: accounting_slot) -> u64 {
        let probe_ref = self.probe_refs[probe];
        self.all[probe_ref.engine].shared.accounting(probe_ref.probe, which)
    }

    fn last_hit(&self, probe: usize) -> u64 {
        let probe_ref = self.probe_refs[probe];
        self.all[probe_ref.engine].shared.last_hit(probe_ref.probe)
    }

    fn stray(&self) -> u64 {
        self.all.iter().map(|engine| engine.shared.stray()).sum()
    }

    fn misses(&self) -> Vec<(&'static str, u64)> {
        let mut sums: BTreeMap<&'static str, u64> = BTreeMap::new();
        for (program, misses) in self.all.iter().flat_map(|engine| engine.shared.misses()) {
            *sums.entry(program).or_default() += misses;
        }
        sums.into_iter().collect()
    }

    fn slow(&self, probe: usize) -> Option<SlowCounts> {
        let at = self.probe_refs[probe];
        let CounterStore { layout, kernel, user } = &self.all[at.engine].counters;
        let slots = layout.slow.iter().find(|slow| slow.probe == at.probe)?;
        let here = |slot: u32| user.total(slots.user + slot);
        // Outcomes are read before the total, so that no event is missing; at worst some still seem to be waiting.
        let (kept, outdone) = (here(SLOW_KEPT), here(SLOW_OUTDONE) + here(SLOW_DISPLACED));
        let in_ring = kernel.total(slots.kernel + slow_slot::SLOW_LOST.0);
        let lost = [in_ring, here(SLOW_REFUSED), here(SLOW_UNWRITTEN)];
        let seen = here(SLOW_SEEN) + kernel.total(slots.kernel + slow_slot::SLOW_SEEN.0);
        Some(SlowCounts { seen, kept, outdone, lost })
    }

    fn past_losses(&self) -> Losses {
        self.retired().losses
    }

    fn past_events(&self) -> BTreeMap<String, u64> {
        self.retired().events
    }
}
