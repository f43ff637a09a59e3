//! The state of each probe, for the log, `/ready` and the self-metrics.

mod counts;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use self::counts::{Foreign, Reattached, TargetCounts, Ticks, Usage};
use super::probe_state::ProbeState;
use crate::kernel::Sweep;
use crate::metrics::{ProbeFacts, ProbeRef};
use crate::plan::Plan;

/// The state of every probe of the plan.
#[derive(Debug)]
pub struct TargetsStatus {
    probes: Mutex<Vec<ProbeStatus>>,
    hz: Mutex<Option<Ticks>>,
    spans: Mutex<Vec<Sweep>>,
    targets: Mutex<TargetCounts>,
}

/// One probe's state.
#[derive(Debug, Clone)]
pub struct ProbeStatus {
    pub state: ProbeState,
    /// Attached sites in all files.
    pub sites: usize,
    /// Sites that are in the files and not attached.
    pub refused: usize,
    /// How long it has been shed, up to its last restoration.
    shed: Duration,
    /// When it was shed.
    shed_since: Option<Instant>,
    pub facts: ProbeFacts,
}

impl ProbeStatus {
    /// How long it has been shed so far.
    pub fn shed(&self) -> Duration {
        self.shed + self.shed_since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// See [`TargetsStatus::memory`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct SavedCounts {
    functions: Vec<Vec<String>>,
    expired: Vec<u64>,
    targets: TargetCounts,
}

impl TargetsStatus {
    pub fn new(plan: &Plan) -> Self {
        let waiting = ProbeStatus {
            state: ProbeState::Waiting("not looked for yet".to_string()),
            sites: 0,
            refused: 0,
            shed: Duration::ZERO,
            shed_since: None,
            facts: ProbeFacts::default(),
        };
        Self {
            probes: Mutex::new(vec![waiting; plan.probes.len()]),
            hz: Mutex::new(None),
            spans: Mutex::new(vec![Sweep::default(); plan.spans as usize]),
            targets: Mutex::new(TargetCounts {
                walks: 0,
                lost_children: 0,
                lost_events: 0,
                reattached: vec![[0; 2]; plan.targets.len()],
                foreign: vec![[0; 2]; plan.targets.len()],
                unprobed: vec![Duration::ZERO; plan.targets.len()],
                thrown_away: vec![0; plan.targets.len()],
                usage: vec![Usage::default(); plan.targets.len()],
            }),
        }
    }

    /// Merges the states of several plans: for each probe of `plan`, `probe_refs` has the part, as its engine, and the
    /// number there.
    pub fn of_parts(plan: &Plan, parts: &[(Arc<Plan>, Arc<TargetsStatus>)], probe_refs: &[ProbeRef]) -> Self {
        let whole = Self::new(plan);
        let probes: Vec<_> = parts.iter().map(|(_, status)| status.probes()).collect();
        let spans: Vec<_> = parts.iter().map(|(_, status)| status.spans()).collect();
        *whole.lock() = plan
            .probes
            .iter()
            .zip(probe_refs)
            .map(|(planned, probe_ref)| {
                let mut status = probes[probe_ref.engine][probe_ref.probe].clone();
                status.state = status.state.shown_for(&plan.targets[planned.target]);
                status
            })
            .collect();
        for (planned, probe_ref) in plan.probes.iter().zip(probe_refs) {
            if let (Some(span), Some(there)) =
                (planned.span, parts[probe_ref.engine].0.probes[probe_ref.probe].span)
                && let Some(to) = whole.lock_spans().get_mut(span.number as usize)
            {
                *to = spans[probe_ref.engine][there.number as usize];
            }
        }
        *whole.hz.lock().unwrap_or_else(PoisonError::into_inner) =
            parts.iter().find_map(|(_, status)| status.ticks());
        let mut sums = whole.lock_targets();
        for (of, status) in parts {
            let counts = status.targets();
            sums.walks += counts.walks;
            sums.lost_children += counts.lost_children;
            sums.lost_events += counts.lost_events;
            for (number, target) in of.targets.iter().enumerate() {
                let Some(at) = plan.targets.iter().position(|other| other.name == target.name) else {
                    continue;
                };
                for (to, more) in sums.reattached[at].iter_mut().zip(counts.reattached[number]) {
                    *to += more;
                }
                // Each part has seen the same processes.
                for (to, of_part) in sums.foreign[at].iter_mut().zip(counts.foreign[number]) {
                    *to = of_part.max(*to);
                }
                sums.unprobed[at] += counts.unprobed[number];
                sums.thrown_away[at] += counts.thrown_away[number];
                // They are the same processes, measured several times.
                let (sum, of_part) = (&mut sums.usage[at], counts.usage[number]);
                (sum.cpu, sum.tracing) = (sum.cpu.max(of_part.cpu), sum.tracing + of_part.tracing);
                let known = of_part.share.map(|share| share + sum.share.unwrap_or(0.0));
                sum.share = known.or(sum.share);
                sum.is_doubtful |= of_part.is_doubtful;
            }
        }
        drop(sums);
        whole
    }

    /// A copy of all states, in the plan's order.
    pub fn probes(&self) -> Vec<ProbeStatus> {
        self.lock().clone()
    }

    /// What the metrics need to know.
    pub fn facts(&self) -> Vec<ProbeFacts> {
        self.lock().iter().map(|probe| probe.facts.clone()).collect()
    }

    /// Sets one state, with the numbers of attached and failed sites.
    pub(super) fn set(&self, probe: usize, state: ProbeState, sites: [usize; 2], unsigned: Option<u32>) {
        let mut probes = self.lock();
        let Some(at) = probes.get_mut(probe) else { return };
        at.facts.attached |= state.is_attached();
        match (matches!(state, ProbeState::Shed(_)), at.shed_since) {
            (true, None) => at.shed_since = Some(Instant::now()),
            (false, Some(since)) => (at.shed, at.shed_since) = (at.shed + since.elapsed(), None),
            _ => {}
        }
        if let Some(unsigned) = unsigned {
            at.facts.unsigned = unsigned;
        }
        at.state = state;
        [at.sites, at.refused] = sites;
    }

    /// Why the targets are not ready; empty when they are. Every target needs an attached probe, and every probe that
    /// the user wrote must be attached, while a profile's probe may be missing from this build of the application. Nothing
    /// is expected of an optional target that is absent. A
    /// partly attached probe counts as attached: what it counts is true, [`TargetsStatus::partly`] says what it leaves
    /// out, and no restart helps. So does a shed probe.
    pub fn not_ready(&self, plan: &Plan) -> Vec<String> {
        let missing = self.missing(plan);
        let probes = self.lock();
        let reasons = missing.into_iter().map(|number| {
            let (planned, state) = (&plan.probes[number], &probes[number].state);
            let target = &plan.targets[planned.target].name;
            format!("{target}: {} is {}: {}", planned.name, state.word(), state.reason())
        });
        reasons.collect()
    }

    /// The probes that keep the targets from being ready, according to [`TargetsStatus::not_ready`].
    pub fn missing(&self, plan: &Plan) -> Vec<usize> {
        let probes = self.lock();
        let mut missing = Vec::new();
        for target in &plan.targets {
            let is_there = |state: &ProbeState| state.is_attached() || matches!(state, ProbeState::Shed(_));
            let is_due = |state: &ProbeState| !is_there(state) && !matches!(state, ProbeState::NotRunning(_));
            let attached = target.probes.iter().any(|probe| is_there(&probes[*probe].state));
            for number in &target.probes {
                let (planned, state) = (&plan.probes[*number], &probes[*number].state);
                let excused = attached && planned.optional && matches!(state, ProbeState::Absent(_));
                if is_due(state) && !excused {
                    missing.push(*number);
                }
            }
        }
        missing
    }

    /// Which probes are partly attached or shed, and why.
    pub fn partly(&self, plan: &Plan) -> Vec<String> {
        let probes = self.lock();
        let lines = plan.probes.iter().zip(&*probes).filter_map(|(planned, status)| {
            let (how, reason) = match &status.state {
                ProbeState::Partly(reason) => ("partly attached", reason),
                ProbeState::Shed(reason) => ("shed", reason),
                _ => return None,
            };
            let target = &plan.targets[planned.target].name;
            Some(format!("{target}: {} is {how}: {reason}", planned.name))
        });
        lines.collect()
    }

    /// The number of a function's name at this probe, assigned if it is new.
    pub(super) fn function(&self, probe: usize, name: &str) -> u32 {
        let mut probes = self.lock();
        let Some(at) = probes.get_mut(probe) else { return 0 };
        let names = &mut at.facts.functions;
        let number = names.iter().position(|known| known == name).unwrap_or_else(|| {
            Arc::make_mut(names).push(name.to_string());
            names.len() - 1
        });
        u32::try_from(number).unwrap_or(u32::MAX)
    }

    /// What is remembered of functions, spans and targets for the next exporter.
    pub(super) fn memory(&self) -> SavedCounts {
        let functions = self.lock().iter().map(|probe| probe.facts.functions.to_vec()).collect();
        let expired = self.lock_spans().iter().map(|span| span.expired).collect();
        SavedCounts { functions, expired, targets: self.targets() }
    }

    /// Restores what a previous exporter remembered.
    pub(super) fn recall(&self, memory: SavedCounts) {
        for (probe, functions) in self.lock().iter_mut().zip(memory.functions) {
            probe.facts.functions = Arc::new(functions);
        }
        for (span, expired) in self.lock_spans().iter_mut().zip(memory.expired) {
            span.expired = expired;
        }
        let mut targets = self.lock_targets();
        let lengths =
            |of: &TargetCounts| [of.reattached.len(), of.foreign.len(), of.unprobed.len(), of.usage.len()];
        if lengths(&memory.targets) == lengths(&targets) {
            *targets = memory.targets;
            // An earlier version did not count them.
            let count = targets.unprobed.len();
            targets.thrown_away.resize(count, 0);
        }
    }

    /// For each span, by number: open starts at the latest sweep, and starts discarded so far.
    pub fn spans(&self) -> Vec<Sweep> {
        self.lock_spans().clone()
    }

    pub(super) fn add_expired(&self, expired: &[u64]) {
        for (span, expired) in self.lock_spans().iter_mut().zip(expired) {
            span.expired += expired;
            span.open = if *expired > 0 { 0 } else { span.open };
        }
    }

    pub(super) fn add_sweep(&self, found: &[Sweep]) {
        let mut spans = self.lock_spans();
        for (span, found) in spans.iter_mut().zip(found) {
            span.open = found.open;
            span.expired += found.expired;
        }
    }

    /// The counts about targets.
    pub fn targets(&self) -> TargetCounts {
        self.lock_targets().clone()
    }

    fn lock_spans(&self) -> MutexGuard<'_, Vec<Sweep>> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_walks(&self, walks: u64) {
        self.lock_targets().walks = walks;
    }

    pub(super) fn set_lost_children(&self, lost: u64) {
        self.lock_targets().lost_children = lost;
    }

    /// Returns the sum.
    pub(super) fn add_lost_events(&self, lost: u64) -> u64 {
        let mut targets = self.lock_targets();
        targets.lost_events += lost;
        targets.lost_events
    }

    pub(super) fn add_reattached(&self, target: usize, reason: Reattached) {
        self.lock_targets().reattached[target][reason as usize] += 1;
    }

    pub(super) fn add_foreign(&self, target: usize, kind: Foreign) {
        self.lock_targets().foreign[target][kind as usize] += 1;
    }

    pub(super) fn add_unprobed(&self, target: usize, nanoseconds: u64) {
        self.lock_targets().unprobed[target] += Duration::from_nanos(nanoseconds);
    }

    pub(super) fn add_thrown_away(&self, target: usize, breakpoints: u64) {
        self.lock_targets().thrown_away[target] += breakpoints;
    }

    pub(crate) fn add_usage(&self, target: usize, more: Usage) {
        let usage = &mut self.lock_targets().usage[target];
        (usage.cpu, usage.tracing) = (usage.cpu + more.cpu, usage.tracing + more.tracing);
        (usage.share, usage.is_doubtful) = (more.share, more.is_doubtful);
    }

    /// Whether no target's share is known, and no probe is shed.
    pub fn is_at_rest(&self) -> bool {
        let is_out = |probe: &ProbeStatus| matches!(probe.state, ProbeState::Shed(_));
        self.lock_targets().usage.iter().all(|of| of.share.is_none()) && !self.lock().iter().any(is_out)
    }

    /// Ends all measurements.
    pub(super) fn end_usage(&self) {
        for usage in &mut self.lock_targets().usage {
            (usage.share, usage.is_doubtful) = (None, false);
        }
    }

    fn lock_targets(&self) -> MutexGuard<'_, TargetCounts> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn ticks(&self) -> Option<Ticks> {
        *self.hz.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_ticks(&self, ticks: Ticks) {
        *self.hz.lock().unwrap_or_else(PoisonError::into_inner) = Some(ticks);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<ProbeStatus>> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Overrides, load_bytes};

    #[test]
    fn nothing_is_expected_of_an_optional_target_that_is_absent() {
        let probes = "probes: [{ function: f, metrics: [counter: a_total] }]";
        let plan = |optional: bool| {
            let yaml = format!("targets: [{{ name: t, process: p, optional: {optional}, {probes} }}]");
            let loaded =
                load_bytes("a.yaml", yaml.into(), &Overrides::default(), &Environment::new()).unwrap();
            Arc::new(crate::plan::plan(loaded.config, false).unwrap())
        };
        let (required, optional) = (plan(false), plan(true));
        let status = Arc::new(TargetsStatus::new(&optional));
        // A reload that only makes the target optional keeps the engine, with the plan that it had.
        let shown = |plan: &Plan| {
            let parts = [(required.clone(), status.clone())];
            let whole = TargetsStatus::of_parts(plan, &parts, &[ProbeRef { engine: 0, probe: 0 }]);
            (whole.probes()[0].state.word(), whole.missing(plan).len())
        };
        assert_eq!(shown(&optional), ("waiting", 1), "not looked for yet");
        for (state, word, missing) in [
            (ProbeState::Missing("no such process".to_string()), "not_running", 0),
            (ProbeState::Absent("no f".to_string()), "absent", 1),
            (ProbeState::Refused("no".to_string()), "refused", 1),
            (ProbeState::Attached, "attached", 0),
        ] {
            status.set(0, state, [0, 0], None);
            assert_eq!(shown(&optional), (word, missing));
        }
        status.set(0, ProbeState::Missing("no such process".to_string()), [0, 0], None);
        assert_eq!(shown(&required), ("waiting", 1));
    }

    #[test]
    fn usage_of_ended_managers_is_ignored() {
        let yaml = "targets: [{ name: t, binary: /bin/true, probes: [{ function: f, metrics: [counter: a_total] }] }]";
        let loaded = load_bytes("a.yaml", yaml.into(), &Overrides::default(), &Environment::new()).unwrap();
        let plan = Arc::new(crate::plan::plan(loaded.config, false).unwrap());
        let [ended, other] = [0.5, 0.25].map(|share| {
            let status = Arc::new(TargetsStatus::new(&plan));
            let is_doubtful = share > 0.3;
            status.add_usage(0, Usage { cpu: 4.0, tracing: 1.0, share: Some(share), is_doubtful });
            status
        });
        let sum = || {
            let parts = [ended.clone(), other.clone()].map(|status| (plan.clone(), status));
            TargetsStatus::of_parts(&plan, &parts, &[ProbeRef { engine: 1, probe: 0 }]).targets().usage[0]
        };
        assert_eq!((sum().share, sum().is_doubtful), (Some(0.75), true));
        assert!(!ended.is_at_rest());
        ended.end_usage();
        assert!(ended.is_at_rest());
        assert_eq!((sum().share, sum().is_doubtful, sum().tracing), (Some(0.25), false, 2.0));
    }
}
