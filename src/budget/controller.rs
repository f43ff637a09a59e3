//! Decides which probes of a target are shed when tracing takes too much of its time, and when they are restored. Pure.
//!
//! Whether a shed probe would still be too expensive can only be found out by restoring it. That is tried after a
//! pause, which doubles each time the probe turns out to be too expensive again, and is halved while it does not.

use std::collections::BTreeMap;

use crate::config::model::Overhead;

/// What share of a target's time tracing may take, and how quickly probes are shed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// The share of the target's time that tracing may take.
    pub limit: f64,
    /// Consecutive checks, a second apart, that must exceed the limit. A check below the limit cancels one of them.
    looks: u32,
    /// A cost, in seconds per second, that is too small to act on.
    negligible: f64,
}

impl From<Overhead> for Rules {
    fn from(overhead: Overhead) -> Self {
        let (looks, negligible) = if overhead.is_default {
            (DEFAULT_LIMIT_CHECKS, DEFAULT_LIMIT_NEGLIGIBLE)
        } else {
            (CHECKS, NEGLIGIBLE)
        };
        Self { limit: overhead.share, looks, negligible }
    }
}

/// Consecutive checks above the limit before a probe is shed, where the limit is configured.
const CHECKS: u32 = 3;
/// Below this share of a core, ticks of CPU time are too coarse to decide on.
const NEGLIGIBLE: f64 = 1e-3;

/// The same for the default limit. Whoever has not set it may not know it, so a counter must not stop for a short
/// burst.
const DEFAULT_LIMIT_CHECKS: u32 = 60;
const DEFAULT_LIMIT_NEGLIGIBLE: f64 = 0.05;

/// Where many checks are needed, a warning is given after a third of them, but not more often than this, in seconds.
const WARNING_PAUSE: f64 = 3600.0;

/// Seconds after a change before measurements reflect it.
const SETTLE_SECONDS: f64 = 3.0;

/// Seconds during which a restored probe is checked more strictly and no other one is restored.
const TRIAL_SECONDS: f64 = 10.0;

/// The first pause and the longest, in seconds.
const MIN_PAUSE: f64 = 10.0;
const MAX_PAUSE: f64 = 3600.0;

/// Shares of the limit: what is used after shedding probes, and how much may be used before one is restored.
const SHED_TARGET: f64 = 0.8;
const RESTORE_TARGET: f64 = 0.5;

/// A probe that uses less than this share of the limit is not shed: nothing would be gained.
const MIN_GAIN: f64 = 0.05;

/// The weight of the previous average in a probe's moving average.
const DECAY: f64 = 0.6;

/// What can be shed: an entry of `probes:`, or several entries that share their links.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Does not change during the entry's lifetime.
    pub name: &'a str,
    /// Never shed.
    pub keep: bool,
    /// Currently shed.
    pub is_shed: bool,
    /// Seconds that its hits have cost so far.
    pub cost: f64,
}

/// An action on the entry at index `at`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum BudgetAction {
    /// Shed it; it takes this share of the target's time, and is retried after `pause` seconds.
    Shed {
        at: usize,
        share: f64,
        pause: f64,
    },
    Restore {
        at: usize,
    },
    /// Probes will be shed in this many seconds unless the cost falls.
    Warn {
        within: f64,
    },
}

/// The state of one target.
#[derive(Debug, Default)]
pub struct Controller {
    entries: BTreeMap<String, UnitHistory>,
    over: u32,
    settled_at: f64,
    /// When its costs were last recorded.
    noted_at: f64,
    warned_at: Option<f64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct UnitHistory {
    cost: f64,
    recent: f64,
    /// 0 if it was never shed, or long ago.
    pause: f64,
    shed_at: f64,
    restored_at: Option<f64>,
}

impl UnitHistory {
    fn is_tried(&self, now: f64) -> bool {
        self.restored_at.is_some_and(|at| now - at < TRIAL_SECONDS)
    }
}

impl Controller {
    /// What to do at this time, in seconds; `share` is the share of the target's time that tracing takes, if known.
    /// `None` if it is too much and nothing can be done.
    pub fn step(
        &mut self,
        now: f64,
        rules: Rules,
        share: Option<f64>,
        entries: &[Candidate<'_>],
    ) -> Option<Vec<BudgetAction>> {
        let limit = rules.limit;
        let share = if self.update_averages(now, entries) > rules.negligible { share } else { Some(0.0) };
        let Some(share) = share.filter(|_| now >= self.settled_at) else {
            self.over = self.over.saturating_sub(1);
            return Some(Vec::new());
        };
        let is_tried = |entry: &Candidate<'_>| !entry.is_shed && self.entries[entry.name].is_tried(now);
        let trial = entries.iter().any(is_tried);
        if share > limit {
            self.over += 1;
            if self.over < rules.looks && !trial {
                return Some(self.warning(now, rules).into_iter().collect());
            }
            let steps = self.shed(now, limit, share, entries);
            return (!steps.is_empty()).then_some(steps);
        }
        self.over = self.over.saturating_sub(1);
        let due = entries.iter().enumerate().filter(|(_, entry)| {
            let memory = self.entries[entry.name];
            entry.is_shed && now >= memory.shed_at + memory.pause
        });
        let cheapest = due.min_by(|(_, a), (_, b)| self.recent(a).total_cmp(&self.recent(b)));
        Some(match cheapest {
            Some((at, entry)) if share <= limit * RESTORE_TARGET && !trial => {
                if let Some(memory) = self.entries.get_mut(entry.name) {
                    memory.restored_at = Some(now);
                }
                self.settled_at = now + SETTLE_SECONDS;
                vec![BudgetAction::Restore { at }]
            }
            _ => Vec::new(),
        })
    }

    fn recent(&self, entry: &Candidate<'_>) -> f64 {
        self.entries[entry.name].recent
    }

    /// Warns that probes will be shed, if that takes a while and no warning was given recently.
    fn warning(&mut self, now: f64, rules: Rules) -> Option<BudgetAction> {
        let is_due = rules.looks > CHECKS && self.over >= rules.looks / 3;
        if !is_due || self.warned_at.is_some_and(|at| now - at < WARNING_PAUSE) {
            return None;
        }
        self.warned_at = Some(now);
        Some(BudgetAction::Warn { within: f64::from(rules.looks - self.over) })
    }

    /// Called while nothing is measured.
    pub fn rest(&mut self) {
        self.over = 0;
    }

    /// Records the cost of all entries; returns by how much it grew per second.
    fn update_averages(&mut self, now: f64, entries: &[Candidate<'_>]) -> f64 {
        self.entries.retain(|name, _| entries.iter().any(|entry| entry.name == name));
        let mut moved = 0.0;
        for entry in entries {
            let new = UnitHistory { cost: entry.cost, ..UnitHistory::default() };
            let memory = self.entries.entry(entry.name.to_string()).or_insert(new);
            let more = (entry.cost - memory.cost).max(0.0);
            memory.cost = entry.cost;
            moved += more;
            if entry.is_shed {
                continue;
            }
            memory.recent = memory.recent * DECAY + more;
            // It has behaved for twice as long as it was shed.
            if memory.pause > 0.0 && memory.restored_at.is_some_and(|at| now - at >= 2.0 * memory.pause) {
                memory.restored_at = Some(now - TRIAL_SECONDS);
                memory.pause /= 2.0;
                if memory.pause < MIN_PAUSE {
                    memory.pause = 0.0;
                }
            }
        }
        let elapsed = now - std::mem::replace(&mut self.noted_at, now);
        if elapsed > 0.0 { moved / elapsed } else { 0.0 }
    }

    /// Sheds the most expensive entries, those on trial first, until the cost is low enough.
    fn shed(&mut self, now: f64, limit: f64, share: f64, entries: &[Candidate<'_>]) -> Vec<BudgetAction> {
        let all: f64 = entries.iter().filter(|entry| !entry.is_shed).map(|entry| self.recent(entry)).sum();
        let may =
            |(_, entry): &(usize, &Candidate<'_>)| !entry.keep && !entry.is_shed && self.recent(entry) > 0.0;
        let mut dearest: Vec<(usize, &Candidate<'_>)> = entries.iter().enumerate().filter(may).collect();
        dearest.sort_by(|(_, a), (_, b)| {
            let order = |entry: &Candidate<'_>| (self.entries[entry.name].is_tried(now), self.recent(entry));
            let ((tried_a, a), (tried_b, b)) = (order(a), order(b));
            tried_b.cmp(&tried_a).then(b.total_cmp(&a))
        });
        let (mut left, mut steps) = (share, Vec::new());
        for (at, entry) in dearest {
            if left <= limit * SHED_TARGET {
                break;
            }
            let Some(memory) = self.entries.get_mut(entry.name) else { continue };
            let part = share * memory.recent / all;
            if part < limit * MIN_GAIN {
                continue;
            }
            left -= part;
            memory.pause = (memory.pause * 2.0).clamp(MIN_PAUSE, MAX_PAUSE);
            (memory.shed_at, memory.restored_at) = (now, None);
            steps.push(BudgetAction::Shed { at, share: part, pause: memory.pause });
        }
        self.over = 0;
        self.settled_at = now + SETTLE_SECONDS;
        steps
    }
}

#[cfg(test)]
mod tests;
