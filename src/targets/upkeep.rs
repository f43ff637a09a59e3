//! Periodic work that does not depend on the targets: abandoned span starts, the clock, and the targets' CPU time.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::attached_file::AttachedFile;
use super::file::Identity;
use super::find::Finder;
use super::state::TargetState;
use super::status::{Ticks, Usage};
use super::usage::{CpuTime, Measured};
use super::worker::Worker;
use crate::abi::accounting_slot;
use crate::clock::unix_now;
use crate::costs::so_far;
use crate::plan::Pairing;
use crate::selectors::Selector;

/// Possible tick rates of the kernel.
const HZ: [f64; 4] = [100.0, 250.0, 300.0, 1000.0];

impl Worker {
    /// Whether a start found no room since the last sweep.
    pub(super) fn had_no_room(&mut self) -> bool {
        let store = self.attacher.kernel.shared().store;
        let full = |probe| store.accounting(probe, accounting_slot::ACCT_LOST_STARTS_FULL);
        let starts = self.plan.probes.iter().enumerate().filter(|(_, probe)| probe.span.is_some());
        let now = starts.map(|(number, _)| full(number)).sum();
        std::mem::replace(&mut self.starts_refused, now) != now
    }

    pub(super) fn sweep_starts(&self) {
        if self.plan.spans == 0 {
            return;
        }
        let mut pairings = vec![Pairing::Thread; self.plan.spans as usize];
        for span in self.plan.probes.iter().filter_map(|probe| probe.span) {
            pairings[span.number as usize] = span.by;
        }
        self.attacher.status.add_sweep(&self.attacher.kernel.sweep_starts(&pairings));
    }

    /// Whether a periodic check would find nothing new: nothing has happened since the last one, and everything that
    /// could happen is reported by events.
    pub(super) fn is_at_rest(&self) -> bool {
        let is_settled = |state: &TargetState| {
            let is_pending =
                state.written.is_some() || !state.replaced.is_empty() || !state.candidates.is_empty();
            let may_change = |file: &AttachedFile| {
                file.wants_retry()
                    || file.is_attaching()
                    || file.is_attached() && !file.is_as_it_was()
                    || file.can_be_restored(&self.attacher.shed)
            };
            !is_pending && !state.current.iter().any(may_change)
        };
        let is_still =
            !self.is_disturbed && !self.is_behind && self.fresh.is_empty() && !self.code_checks.has_new();
        is_still && self.finder.sees_all_changes() && self.targets.iter().all(is_settled)
    }

    /// Logs once that descendants did not fit into the kernel's table.
    pub(super) fn log_lost_children(&self) {
        let lost = self.attacher.kernel.lost_children();
        if lost > 0 && self.attacher.status.targets().lost_children == 0 {
            log::warn!(
                "Targets with `children: true` have more descendants than can be tracked at once: hits of \
                 the others are not counted (fibre_exporter_errors_total{{error_type=\"child_lost\"}})"
            );
        }
        self.attacher.status.set_lost_children(lost);
    }

    /// Counts process events that were lost, and logs that once.
    pub(super) fn report_lost_events(&mut self) {
        let lost = std::mem::take(&mut self.finder.lost_events);
        if lost > 0 && self.attacher.status.add_lost_events(lost) == lost {
            log::warn!(
                "Process events were lost, because there were too many at once: all processes are scanned instead. \
                 Hits of programs that ran meanwhile may not be counted \
                 (fibre_exporter_errors_total{{error_type=\"process_event_lost\"}})"
            );
        }
    }

    /// The kernel records a hit's time in jiffies, which is free; this measures what a jiffy is.
    pub(super) fn measure_ticks(&mut self) {
        let (Some(first), Some(now)) = (self.first_clock, self.attacher.kernel.clock()) else { return };
        let seconds = now.nanoseconds.saturating_sub(first.nanoseconds) as f64 / 1e9;
        let measured = now.jiffies.saturating_sub(first.jiffies) as f64 / seconds.max(1e-3);
        let hz = HZ.into_iter().min_by(|a, b| (a - measured).abs().total_cmp(&(b - measured).abs()));
        let unix = unix_now();
        if let Some(hz) = hz {
            self.attacher.status.set_ticks(Ticks { jiffies: now.jiffies, unix, hz });
        }
    }
}

/// The interval grows by this with each process: reading one takes some 20 us.
const INTERVAL_PER_PROCESS: Duration = Duration::from_millis(10);

/// How often it is determined who maps a library, which reads the mappings of all processes.
const MAPPING_INTERVAL: Duration = Duration::from_secs(30);

impl Worker {
    /// Measures targets whose probes were hit since the last time; without hits nothing is read. Returns whether there were any.
    pub(super) fn measure_usage(&mut self) -> bool {
        let plan = self.plan.clone();
        let (shared, prices) = (self.attacher.kernel.shared(), self.prices.get());
        let mut any = false;
        for (target, planned) in plan.targets.iter().enumerate() {
            let state = &mut self.targets[target];
            let files: Vec<Identity> =
                state.current.iter().chain(&state.replaced).map(|file| file.identity).collect();
            let meter = &mut state.meter;
            let cost = |probe: &usize| so_far(&plan, &shared, &prices, *probe);
            // What no process runs has no hits to look for: most of many targets, each second.
            let cost = (!files.is_empty()).then(|| planned.probes.iter().map(cost).sum::<f64>());
            // Prices are measured after the first hits.
            let hit = cost.filter(|cost| (cost - meter.cost).abs() > 0.0 || meter.last.is_none());
            let Some(cost) = hit else {
                if !meter.lately.is_empty() {
                    let (share, is_doubtful) = (meter.share(), meter.has_missed());
                    self.attacher.status.add_usage(target, Usage { share, is_doubtful, ..Usage::default() });
                }
                continue;
            };
            any = true;
            let pause = INTERVAL_PER_PROCESS * u32::try_from(meter.ticks.len()).unwrap_or(u32::MAX);
            if meter.last.is_some_and(|last| last.elapsed() < pause) {
                continue;
            }
            let processes = self.finder.running(target, &planned.selector, &files, &mut meter.mapping);
            let used = meter.read(&processes);
            let tracing = (cost - meter.cost).max(0.0);
            meter.cost = cost;
            if let Some(cpu) = used {
                let CpuTime { seconds: cpu, has_missed } = cpu;
                meter.lately.push_back(Measured { at: Instant::now(), cpu, tracing, has_missed });
                let (share, is_doubtful) = (meter.share(), meter.has_missed());
                self.attacher.status.add_usage(target, Usage { cpu, tracing, share, is_doubtful });
            }
        }
        any
    }
}

impl Finder {
    /// The target's processes that run one of these files, or have loaded it.
    fn running(
        &mut self,
        target: usize,
        selector: &Selector,
        files: &[Identity],
        mapping: &mut Option<(Instant, Vec<u32>)>,
    ) -> Vec<u32> {
        if selector.path().is_none() {
            self.walk();
            return self.processes.fitting(&selector.processes, Some(target)).0;
        }
        let is_it = |finder: &mut Self, pid: u32| {
            finder.of_process(pid).is_ok_and(|found| files.contains(&found.identity))
        };
        let named = self.processes.of_target(target);
        let running: Vec<u32> = named.into_iter().filter(|pid| is_it(self, *pid)).collect();
        if !running.is_empty() {
            return running;
        }
        if let Some((_, known)) = mapping.as_ref().filter(|(at, _)| at.elapsed() < MAPPING_INTERVAL) {
            return known.clone();
        }
        let own = std::process::id();
        let all: HashSet<u32> = files.iter().flat_map(|file| self.mapping(*file)).collect();
        let found: Vec<u32> = all.into_iter().filter(|pid| *pid != own).collect();
        *mapping = Some((Instant::now(), found.clone()));
        found
    }
}
