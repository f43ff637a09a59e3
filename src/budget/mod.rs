//! `limits.overhead`: how much of a target's time tracing may take.
//!
//! Once a second, the measured share of each target is compared with the limit; the most expensive probes are shed, and
//! restored when the limit allows it.

mod controller;

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use controller::{BudgetAction, Candidate, Controller};

use crate::engine::{Engines, ShedUnit};
use crate::plan::Plan;
use crate::privileges::given_up;
use crate::targets::{ProbeState, ProbeStatus};

/// The check interval, and the interval while nothing is measured and nothing is urgent.
const INTERVAL: Duration = Duration::from_secs(1);
const INTERVAL_AT_REST: Duration = Duration::from_secs(5);

/// The thread that checks the targets. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Budget {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Budget {
    /// Starts the thread. `look` is called once a second, or less often while it reports that all targets are at rest.
    ///
    /// # Errors
    /// If the thread cannot be created.
    pub fn start(mut look: impl FnMut(&mut Controllers) -> Activity + Send + 'static) -> io::Result<Self> {
        let (stop, stopped) = sync_channel::<()>(1);
        let thread = std::thread::Builder::new().name("budget".to_string()).spawn(move || {
            let (mut controllers, mut activity) = (Controllers::new(), Activity::Measured);
            while stopped.recv_timeout(activity.interval()) == Err(RecvTimeoutError::Timeout) {
                activity = look(&mut controllers);
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether there is something to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    /// The share of a target is known, or a probe is shed.
    Measured,
    AtRest,
}

impl Activity {
    fn interval(self) -> Duration {
        match self {
            Self::Measured => INTERVAL,
            Self::AtRest => INTERVAL_AT_REST,
        }
    }
}

/// The state of all targets, by name.
#[derive(Debug)]
pub(crate) struct Controllers {
    began: Instant,
    targets: HashMap<String, Controller>,
    /// Targets for which it has been reported that nothing can be done.
    reported: HashSet<String>,
}

impl Controllers {
    fn new() -> Self {
        Self { began: Instant::now(), targets: HashMap::new(), reported: HashSet::new() }
    }

    /// Forgets targets with other names: a later target of the same name is a different one.
    fn forget_others(&mut self, names: &[&str]) {
        self.targets.retain(|name, _| names.contains(&name.as_str()));
        self.reported.retain(|name| names.contains(&name.as_str()));
    }

    /// Checks all targets, and sheds and restores probes.
    pub fn look(&mut self, engines: &Engines) -> Activity {
        let plan = &engines.plan;
        let limit = plan.settings.limits.overhead;
        if limit.is_none() && self.targets.is_empty() {
            return Activity::AtRest;
        }
        self.forget_others(&plan.targets.iter().map(|target| target.name.as_str()).collect::<Vec<_>>());
        if engines.are_at_rest() {
            self.targets.values_mut().for_each(Controller::rest);
            return Activity::AtRest;
        }
        let status = engines.status();
        let (states, usage) = (status.probes(), status.targets().usage);
        let now = self.began.elapsed().as_secs_f64();
        let entries = engines.entries();
        for (target, planned) in plan.targets.iter().enumerate() {
            let here: Vec<&ShedUnit> = entries.iter().filter(|entry| entry.target == target).collect();
            let Some(limit) = limit else {
                // The limit was removed.
                here.iter().filter(|entry| is_shed(entry, &states)).for_each(|entry| engines.restore(entry));
                continue;
            };
            let candidates: Vec<_> = here
                .iter()
                .map(|entry| Candidate {
                    name: &plan.probes[entry.probes[0]].name,
                    keep: entry.probes.iter().any(|probe| plan.probes[*probe].keep),
                    is_shed: is_shed(entry, &states),
                    cost: entry.probes.iter().map(|probe| engines.cost(*probe)).sum(),
                })
                .collect();
            // The default limit acts only on measurements that are beyond doubt.
            let share = usage[target].share.filter(|_| !(limit.is_default && usage[target].is_doubtful));
            let controller = self.targets.entry(planned.name.clone()).or_default();
            if given_up() {
                // What is shed could not be restored.
                continue;
            }
            let steps = controller.step(now, limit.into(), share, &candidates);
            let too_much = || {
                format!(
                    "Target {}: tracing takes {} of its CPU time, more than limits.overhead ({})",
                    planned.name,
                    percent(share.unwrap_or(0.0)),
                    percent(limit.share)
                )
            };
            let Some(steps) = steps else {
                if self.reported.insert(planned.name.clone()) {
                    log::warn!("{}, and no probe that may be detached takes much of that", too_much());
                }
                continue;
            };
            for step in steps {
                match step {
                    BudgetAction::Warn { within } => log::warn!(
                        "{}: if that continues, the most expensive probes are detached for a while in {within:.0} s; `keep: true` keeps a \
                         probe attached, `limits: {{ overhead: off }}` all",
                        too_much()
                    ),
                    BudgetAction::Shed { at, share: part, pause } => {
                        log::warn!(
                            "{}: {} is detached for {pause:.0} s (about {})",
                            too_much(),
                            names(plan, here[at]),
                            percent(part)
                        );
                        engines.shed(here[at], &reason(limit.share));
                    }
                    BudgetAction::Restore { at } => {
                        log::info!("Target {}: {} is attached again", planned.name, names(plan, here[at]));
                        engines.restore(here[at]);
                    }
                }
            }
        }
        if limit.is_none() {
            self.targets.clear();
        }
        Activity::Measured
    }
}

/// Constant as long as the limit is: it becomes a label.
fn reason(limit: f64) -> String {
    format!(
        "tracing took more than {} of the target's CPU time (limits.overhead); hits are not counted until it is \
         attached again",
        percent(limit)
    )
}

fn is_shed(entry: &ShedUnit, states: &[ProbeStatus]) -> bool {
    entry.probes.iter().any(|probe| matches!(states[*probe].state, ProbeState::Shed(_)))
}

fn names(plan: &Plan, entry: &ShedUnit) -> String {
    let names: Vec<&str> = entry.probes.iter().map(|probe| plan.probes[*probe].name.as_str()).collect();
    names.join(", ")
}

fn percent(part: f64) -> String {
    let percent = format!("{:.1}", part * 100.0);
    format!("{}%", percent.trim_end_matches(".0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removed_targets_are_forgotten() {
        let mut all = Controllers::new();
        for name in ["a", "b"] {
            all.targets.insert(name.to_string(), Controller::default());
            all.reported.insert(name.to_string());
        }
        all.forget_others(&["b"]);
        assert_eq!(all.targets.keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(all.reported.iter().collect::<Vec<_>>(), ["b"]);
    }
}
