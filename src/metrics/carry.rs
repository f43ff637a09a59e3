//! What series keep when the probes that feed them are replaced: a counter never decreases, so that no scraper mistakes
//! it for a restart.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::facts::ProbeFacts;
use super::registry::{Carried, MeasuredFamily, Registry, SeriesSource};
use crate::exposition::Kind;
use crate::kinds::Total;
use crate::plan::{LabelPlan, Plan, ValueSource};

/// See [`Registry::carried`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CarriedSeries {
    metric: String,
    key: String,
    total: Total,
    counts: Vec<u64>,
}

impl Registry {
    /// Continues where another registry left off. Probes with the same reference in both are the same. What series
    /// received from other probes of the old registry is carried over, and what new probes have counted so far is
    /// subtracted, as the old ones have counted it, too: from now on only the new ones count. A series that nothing
    /// feeds anymore is dropped when a probe of its metric is removed, unless a new one feeds the metric and so may feed
    /// it again.
    pub fn take_over(&mut self, old: &mut Self, facts_before: &[ProbeFacts], facts: &[ProbeFacts]) {
        self.window = old.window;
        let pairs: Vec<Option<usize>> = self
            .sources
            .iter()
            .map(|source| old.sources.iter().position(|other| self.is_same(source, old, other)))
            .collect();
        for (source, other) in self.sources.iter_mut().zip(&pairs) {
            if let Some(other) = other {
                source.previous = std::mem::take(&mut old.sources[*other].previous);
            }
        }
        let is_kept: Vec<bool> = pairs.iter().map(Option::is_some).collect();
        let kept_before: Vec<(usize, usize)> = pairs
            .iter()
            .flatten()
            .map(|other| (old.sources[*other].probe, old.sources[*other].action))
            .collect();
        let lost_in: Vec<usize> = old
            .sources
            .iter()
            .filter(|source| !kept_before.contains(&(source.probe, source.action)))
            .map(|source| old.plan.probes[source.probe].actions[source.action].metric)
            .collect();
        let new: Vec<(usize, usize)> = self
            .sources
            .iter()
            .zip(&is_kept)
            .filter(|(_, is_kept)| !**is_kept)
            .map(|(source, _)| (source.probe, source.action))
            .collect();
        let metric_of = |(probe, action): &(usize, usize)| self.plan.probes[*probe].actions[*action].metric;
        let new_in: Vec<usize> = new.iter().map(metric_of).collect();
        self.add_up(facts, |_| true);
        let fed: Vec<HashSet<Box<str>>> = self.families.iter().map(MeasuredFamily::live).collect();
        old.add_up(facts_before, |source| !kept_before.contains(&(source.probe, source.action)));
        self.add_up(facts, |source| new.contains(&(source.probe, source.action)));
        for (metric, family) in self.families.iter_mut().enumerate() {
            let is_same = |other: &MeasuredFamily| {
                other.head.name() == family.head.name() && other.head.kind() == family.head.kind()
            };
            if is_cumulative(family)
                && !is_by_process(&self.plan, metric)
                && let Some((before, other)) =
                    old.families.iter().enumerate().find(|(_, other)| is_same(other))
            {
                let are_all_kept = new_in.contains(&metric) || !lost_in.contains(&before);
                family.carry(other, |key| are_all_kept || fed[metric].contains(key));
            }
        }
    }

    /// The contributions of probes that no longer exist, to be saved.
    pub fn carried(&self) -> Vec<CarriedSeries> {
        let of = |family: &MeasuredFamily| {
            let name = family.head.name().to_string();
            let of_series = |carried: &Carried| CarriedSeries {
                metric: name.clone(),
                key: family.series[carried.series as usize].key.to_string(),
                total: carried.total.clone(),
                counts: carried.counts.clone(),
            };
            family.carried.iter().map(of_series).collect::<Vec<_>>()
        };
        self.families.iter().flat_map(of).collect()
    }

    /// Continues with saved contributions.
    pub fn carry_on(&mut self, carried: Vec<CarriedSeries>) {
        for CarriedSeries { metric, key, total, counts } in carried {
            let Some(family) = self.families.iter_mut().find(|family| family.head.name() == metric) else {
                continue;
            };
            if counts.len() == family.head.buckets() {
                let series = family.series_of(key.into_boxed_str());
                family.carried.push(Carried { series, total, counts });
            }
        }
    }

    /// Drops the engines that no probe refers to, which are the last ones.
    pub fn forget_stores(&mut self, left: usize) {
        self.stores.truncate(left);
    }

    fn is_same(&self, source: &SeriesSource, old: &Self, other: &SeriesSource) -> bool {
        let (engine, other_engine) =
            (&self.stores[source.probe_ref.engine], &old.stores[other.probe_ref.engine]);
        let is_same_engine = Arc::ptr_eq(&engine.kernel, &other_engine.kernel);
        is_same_engine && (source.probe_ref.probe, source.action) == (other.probe_ref.probe, other.action)
    }
}

/// Whether it can only grow. A gauge's former value means nothing.
fn is_cumulative(family: &MeasuredFamily) -> bool {
    family.head.kind() != &Kind::Gauge
}

/// Whether its series are removed when the process or thread that they belong to has ended.
fn is_by_process(plan: &Plan, metric: usize) -> bool {
    plan.probes.iter().any(|probe| {
        let mut labels =
            probe.actions.iter().filter(|action| action.metric == metric).flat_map(|action| &action.labels);
        labels.any(|label| match label {
            LabelPlan::From { value, .. } => {
                matches!(probe.values[*value].source, ValueSource::Pid | ValueSource::Tid)
            }
            LabelPlan::Const(_) => false,
        })
    })
}

impl MeasuredFamily {
    /// Keys of series that have a value.
    fn live(&self) -> HashSet<Box<str>> {
        self.series.iter().filter(|series| series.total.live).map(|series| series.key.clone()).collect()
    }

    /// Carries the amounts by which another family's series exceed the same series of this one, as far as they are
    /// wanted. Those that the other does not have start from zero.
    fn carry(&mut self, other: &MeasuredFamily, is_wanted: impl Fn(&str) -> bool) {
        let buckets = self.head.buckets();
        let mut pairs: Vec<(u32, Option<usize>)> = Vec::new();
        let live = other.series.iter().enumerate().filter(|(_, series)| series.total.live);
        for (at, series) in live.filter(|(_, series)| is_wanted(&series.key)) {
            pairs.push((self.series_of(series.key.clone()), Some(at)));
        }
        let known = other.live();
        for key in self.live() {
            if !known.contains(&key) {
                pairs.push((self.series_of(key), None));
            }
        }
        for (here, there) in pairs {
            let now = &self.series[here as usize].total;
            let total = there.map_or_else(Total::default, |at| other.series[at].total.clone()).minus(now);
            let before = |bucket: usize| there.map_or(0, |at| other.counts[at * buckets + bucket]);
            let now = &self.counts[here as usize * buckets..][..buckets];
            let counts =
                now.iter().enumerate().map(|(bucket, now)| before(bucket).wrapping_sub(*now)).collect();
            self.carried.push(Carried { series: here, total, counts });
        }
    }
}
