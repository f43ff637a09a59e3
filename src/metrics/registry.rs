//! The table of measured series: built from the slots of both stores at every scrape, and rendered.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ended::{Ended, LabelVisibility};
use super::facts::ProbeFacts;
use super::labels::{Scratch, const_labels, labels};
use crate::abi::accounting_slot;
use crate::exposition::{Exemplars, Format, Head, Sample, SampleValue};
use crate::kernel::{Accounting, KernelStore};
use crate::kinds::{self, Kind, NumberFormat, Slots, Total};
use crate::layout::{ActionLayout, LabelLayout, Layout};
use crate::plan::{ActionPlan, HIDDEN, LabelPlan, Plan, ProbePlan, Scale};
use crate::store::{Store, UserStore};

/// All measured series of a plan.
#[derive(Debug)]
pub struct Registry {
    pub(super) plan: Arc<Plan>,
    pub(super) stores: Vec<CounterStore>,
    /// Where each probe of the plan is counted.
    probe_refs: Vec<ProbeRef>,
    pub(super) families: Vec<MeasuredFamily>,
    pub(super) sources: Vec<SeriesSource>,
    pub(super) scratch: Scratch,
    /// When the current window of minima and maxima began.
    pub(super) window: Instant,
    /// When processes whose series are still shown were seen to have ended.
    pub(super) ended: Ended,
}

/// Minima and maxima cover the last one to two windows, so that reading them changes nothing: every scraper with an
/// interval up to this one sees every extreme, however many scrapers there are.
pub const WINDOW: Duration = Duration::from_secs(60);

/// The slots of probes that were loaded together.
#[derive(Debug, Clone)]
pub struct CounterStore {
    pub layout: Arc<Layout>,
    pub kernel: Arc<KernelStore>,
    pub user: Arc<UserStore>,
}

/// Where a probe is counted: the engine, and the probe's index in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeRef {
    pub engine: usize,
    pub probe: usize,
}

/// One metric, with its series.
#[derive(Debug)]
pub(super) struct MeasuredFamily {
    pub(super) head: Head,
    pub(super) kind: Arc<dyn Kind>,
    /// Whether some action has a scale, so that values are not whole numbers.
    real: bool,
    /// Indices of series by key.
    index: HashMap<Box<str>, u32>,
    pub(super) series: Vec<Series>,
    /// The buckets of all series, one series after the other.
    pub(super) counts: Vec<u64>,
    /// Unused entries of `series`.
    free: Vec<u32>,
    /// Contributions of probes that no longer exist.
    pub(super) carried: Vec<Carried>,
}

#[derive(Debug)]
pub(super) struct Series {
    /// See [`Head::key`].
    pub key: Box<str>,
    /// The number of sources: runs of slots, and carried contributions.
    fed_by: u32,
    pub total: Total,
}

/// A contribution to a series that is not in any slots.
#[derive(Debug)]
pub(super) struct Carried {
    pub series: u32,
    pub total: Total,
    pub counts: Vec<u64>,
}

/// One action's slots, and the series that each run of them belongs to.
#[derive(Debug)]
pub(super) struct SeriesSource {
    pub(super) probe: usize,
    pub(super) probe_ref: ProbeRef,
    pub(super) action: usize,
    /// `None` for an action that equals the number of hits.
    pub(super) layout: Option<ActionLayout>,
    pub(super) series: Vec<u32>,
    /// For a minimum or maximum: the slot of each series at the end of the previous window.
    pub(super) previous: Vec<u64>,
}

pub(super) const UNKNOWN: u32 = u32::MAX;

impl Registry {
    /// Creates the registry of a plan whose probes were all loaded together.
    pub fn new(plan: Arc<Plan>, layout: Arc<Layout>, kernel: Arc<KernelStore>, user: Arc<UserStore>) -> Self {
        let probe_refs = (0..plan.probes.len()).map(|probe| ProbeRef { engine: 0, probe }).collect();
        Self::of(plan, vec![CounterStore { layout, kernel, user }], probe_refs)
    }

    /// Creates the registry of a plan with a reference for each probe: an engine, and the probe's index in it.
    pub fn of(plan: Arc<Plan>, stores: Vec<CounterStore>, probe_refs: Vec<ProbeRef>) -> Self {
        let mut families: Vec<MeasuredFamily> = plan
            .metrics
            .iter()
            .map(|metric| (metric, kinds::of(&metric.kind)))
            .map(|(metric, kind)| MeasuredFamily {
                head: Head::new(metric.name.clone(), metric.help.clone(), kind.exposed_as())
                    .native_if(metric.native)
                    .beside(|name| plan.metrics.iter().any(|other| other.name == name)),
                real: kind.has_fractions(),
                kind,
                index: HashMap::new(),
                series: Vec::new(),
                counts: Vec::new(),
                free: Vec::new(),
                carried: Vec::new(),
            })
            .collect();
        let mut sources = Vec::new();
        for ((probe, planned), &probe_ref) in plan.probes.iter().enumerate().zip(&probe_refs) {
            for (action, planned) in planned.actions.iter().enumerate() {
                families[planned.metric].real |= !planned.scale.is_whole();
                let all = &stores[probe_ref.engine].layout.actions;
                let layout =
                    all.iter().find(|layout| layout.probe == probe_ref.probe && layout.action == action);
                let number = layout.map_or(1, |layout| layout.series as usize);
                let windowed = families[planned.metric].kind.is_windowed();
                let previous = vec![0; if windowed { number } else { 0 }];
                let series = vec![UNKNOWN; number];
                sources.push(SeriesSource {
                    probe,
                    probe_ref,
                    action,
                    layout: layout.cloned(),
                    series,
                    previous,
                });
            }
        }
        // Actions that lower a gauge are read before those that raise it, so that it is never seen lowered first.
        sources.sort_by_key(|source| plan.probes[source.probe].actions[source.action].scale.mul > 0.0);
        Self {
            plan,
            stores,
            probe_refs,
            families,
            sources,
            scratch: Scratch::default(),
            window: Instant::now(),
            ended: Ended::default(),
        }
    }

    /// Appends all series in this format. `facts` has an entry for each probe of the plan. The result depends on when
    /// it is called, but not on earlier calls by others.
    pub fn render(&mut self, facts: &[ProbeFacts], now: Instant, format: Format, to: &mut Vec<u8>) {
        self.render_some(facts, now, format, |_| true, &Exemplars::default(), to);
    }

    /// As [`Registry::render`], with only the metrics that `is_meant` selects, and these exemplars.
    pub fn render_some(
        &mut self,
        facts: &[ProbeFacts],
        now: Instant,
        format: Format,
        is_meant: impl Fn(&Head) -> bool,
        exemplars: &Exemplars,
        to: &mut Vec<u8>,
    ) {
        let window_ends = now.saturating_duration_since(self.window) >= WINDOW;
        if window_ends {
            self.window = now;
        }
        self.forget_ended(now, LabelVisibility::Never);
        if window_ends {
            self.sources
                .iter_mut()
                .for_each(|source| source.end_window(&self.stores[source.probe_ref.engine]));
        }
        self.add_up(facts, |_| true);
        for family in self.families.iter().filter(|family| is_meant(&family.head)) {
            format.write(&family.head, family.samples_with(exemplars), to);
        }
        // Done last: the final numbers of a process that has ended have now been shown.
        self.forget_ended(now, LabelVisibility::ForAWhile);
    }

    /// Passes all series to `each`, family by family, for readers other than scrapers: it ends no window of extremes
    /// and removes no series of ended processes.
    pub fn look(
        &mut self,
        facts: &[ProbeFacts],
        mut each: impl FnMut(&Head, &mut dyn Iterator<Item = Sample<'_>>),
    ) {
        self.add_up(facts, |_| true);
        self.families.iter().for_each(|family| each(&family.head, &mut family.samples()));
    }

    /// Adds up the slots of the selected sources, and the carried contributions.
    pub(super) fn add_up(&mut self, facts: &[ProbeFacts], is_meant: impl Fn(&SeriesSource) -> bool) {
        for family in &mut self.families {
            family.reset();
        }
        let nothing = ProbeFacts::default();
        for source in self.sources.iter_mut().filter(|source| is_meant(source)) {
            let probe = &self.plan.probes[source.probe];
            let facts = facts.get(source.probe).unwrap_or(&nothing);
            let family = &mut self.families[probe.actions[source.action].metric];
            let CounterStore { kernel, user, .. } = &self.stores[source.probe_ref.engine];
            match source.layout.as_ref().map(|layout| layout.in_kernel) {
                None => source.add_hits(probe, &self.plan, kernel, facts, family, &mut self.scratch),
                Some(true) => {
                    source.add(probe, &self.plan, &**kernel, kernel, facts, family, &mut self.scratch)
                }
                Some(false) => {
                    source.add(probe, &self.plan, &**user, kernel, facts, family, &mut self.scratch)
                }
            }
        }
        for family in &mut self.families {
            family.add_carried();
        }
    }

    /// For each metric with a limited label, the hits counted as "other" at the probes that feed it.
    pub fn overflows(&self) -> Vec<u64> {
        let mut overflows = vec![0; self.families.len()];
        for (probe, probe_ref) in self.plan.probes.iter().zip(&self.probe_refs) {
            let CounterStore { kernel, user, .. } = &self.stores[probe_ref.engine];
            let here = kernel.accounting(probe_ref.probe, accounting_slot::ACCT_LABEL_OVERFLOW)
                + user.overflows(probe_ref.probe);
            let limited = |action: &&ActionPlan| {
                action.labels.iter().any(|label| matches!(label, LabelPlan::From { default: None, .. }))
            };
            let mut metrics: Vec<_> =
                probe.actions.iter().filter(limited).map(|action| action.metric).collect();
            metrics.sort_unstable();
            metrics.dedup();
            metrics.into_iter().for_each(|metric| overflows[metric] += here);
        }
        overflows
    }

    /// The number of series in the latest scrape.
    pub fn live_series(&self) -> usize {
        self.families.iter().flat_map(|family| &family.series).filter(|series| series.total.live).count()
    }
}

impl MeasuredFamily {
    fn reset(&mut self) {
        self.counts.fill(0);
        for series in &mut self.series {
            series.total = Total::default();
        }
    }

    /// Returns the series with these labels, and adds a source to it.
    fn series(&mut self, labels: &str) -> u32 {
        let key = self.head.key(labels).into_boxed_str();
        self.series_of(key)
    }

    /// As [`Self::series`], by key.
    pub(super) fn series_of(&mut self, key: Box<str>) -> u32 {
        if let Some(known) = self.index.get(&key) {
            self.series[*known as usize].fed_by += 1;
            return *known;
        }
        let entry = Series { key: key.clone(), fed_by: 1, total: Total::default() };
        let number = match self.free.pop() {
            Some(free) => {
                self.series[free as usize] = entry;
                free
            }
            None => {
                self.series.push(entry);
                self.counts.resize(self.counts.len() + self.head.buckets(), 0);
                u32::try_from(self.series.len() - 1).unwrap_or(UNKNOWN - 1)
            }
        };
        self.index.insert(key, number);
        number
    }

    /// Adds the carried contributions to the series.
    pub(super) fn add_carried(&mut self) {
        let buckets = self.head.buckets();
        for carried in &self.carried {
            let at = carried.series as usize;
            let total = &mut self.series[at].total;
            total.add_total(&carried.total);
            total.live = true;
            let counts = self.counts[at * buckets..][..buckets].iter_mut();
            counts.zip(&carried.counts).for_each(|(count, more)| *count = count.wrapping_add(*more));
        }
    }

    /// Removes a source of the series; the last one removes the series.
    pub(super) fn release(&mut self, number: u32) {
        let series = &mut self.series[number as usize];
        series.fed_by -= 1;
        if series.fed_by == 0 {
            self.index.remove(&series.key);
            series.total.live = false;
            self.free.push(number);
        }
    }

    /// The series that have a value in this scrape, with the exemplars of their buckets.
    fn samples_with<'a>(&'a self, exemplars: &'a Exemplars) -> impl Iterator<Item = Sample<'a>> {
        let (name, buckets) = (self.head.name(), self.head.buckets());
        self.samples().map(move |sample| match sample.value {
            SampleValue::Number(_) => sample,
            SampleValue::Histogram { counts, sum, .. } => {
                let exemplars = exemplars.of(name, sample.key, buckets);
                Sample { value: SampleValue::Histogram { counts, sum, exemplars }, ..sample }
            }
        })
    }

    /// The series that have a value in this scrape.
    fn samples(&self) -> impl Iterator<Item = Sample<'_>> {
        let buckets = self.head.buckets();
        let live = self.series.iter().enumerate().filter(|(_, series)| series.total.live);
        live.map(move |(at, series)| {
            let number = series.total.displayed(self.real);
            let value = match buckets {
                0 => SampleValue::Number(number),
                _ => SampleValue::Histogram {
                    counts: &self.counts[at * buckets..][..buckets],
                    sum: number,
                    exemplars: &[],
                },
            };
            Sample { key: &series.key, value }
        })
    }
}

impl SeriesSource {
    /// Starts a new window of minima and maxima.
    fn end_window(&mut self, engine: &CounterStore) {
        let Some(layout) = &self.layout else { return };
        let store: &dyn Store = if layout.in_kernel { &*engine.kernel } else { &*engine.user };
        for (number, previous) in (0..).zip(&mut self.previous) {
            *previous = store.take(layout.slot + number * layout.stride);
        }
    }

    /// Adds an action that equals the number of hits.
    fn add_hits(
        &mut self,
        probe: &ProbePlan,
        plan: &Plan,
        kernel: &KernelStore,
        facts: &ProbeFacts,
        family: &mut MeasuredFamily,
        scratch: &mut Scratch,
    ) {
        // Not the hits that began minus the filtered ones: read one after the other, these could differ arbitrarily.
        let accounting = Accounting::of(|which| kernel.accounting(self.probe_ref.probe, which));
        let hits = accounting.hits - accounting.filtered;
        if hits == 0 && !facts.attached {
            return;
        }
        if self.series[0] == UNKNOWN {
            const_labels(probe, self.action, plan, &mut scratch.labels);
            self.series[0] = family.series(&scratch.labels);
        }
        let total = &mut family.series[self.series[0] as usize].total;
        total.live = true;
        total.add(hits, Scale::ONE);
    }

    #[allow(clippy::too_many_arguments)]
    fn add(
        &mut self,
        probe: &ProbePlan,
        plan: &Plan,
        store: &dyn Store,
        texts: &KernelStore,
        facts: &ProbeFacts,
        family: &mut MeasuredFamily,
        scratch: &mut Scratch,
    ) {
        let Some(layout) = &self.layout else { return };
        let action = &probe.actions[self.action];
        let is_unsigned =
            |value: usize| facts.unsigned & 1 << value != 0 || probe.values[value].kind.is_unsigned_word();
        let unsigned = action.value.is_some_and(is_unsigned);
        let format = NumberFormat { scale: action.scale, unsigned };
        let buckets = family.head.buckets();
        // If its labels are known before the first hit, the first run of slots shows the series from the start.
        let hidden = |label: &LabelLayout| plan.metrics[action.metric].labels[label.label] == HIDDEN;
        let shown_unset = facts.attached && family.kind.starts_at_zero() && layout.labels.iter().all(hidden);
        for number in 0..layout.series {
            let previous = self.previous.get(number as usize).copied().unwrap_or(0);
            let first = layout.slot + number * layout.stride;
            let slots = Slots { store, first, number: layout.stride, previous };
            let unset = (shown_unset && number == 0).then_some(0);
            let Some(raw) = family.kind.read(&slots).or(unset) else { continue };
            let known = &mut self.series[number as usize];
            if *known == UNKNOWN {
                if !labels(layout, number, probe, self.action, plan, store, texts, facts, scratch) {
                    continue;
                }
                *known = family.series(&scratch.labels);
            }
            let at = *known as usize;
            let total = &mut family.series[at].total;
            family.kind.merge(raw, &slots, format, total, &mut family.counts[at * buckets..][..buckets]);
            total.live = true;
        }
    }
}
