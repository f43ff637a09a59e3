//! Which probes of a target are taken out when tracing takes too much of its time, and when they are put back. Pure.
//!
//! Whether a probe that is taken out would still be too dear can only be told by putting it back. That is tried after a pause, which
//! doubles each time the probe turns out to be too dear again, and halves as long as it does not.

use std::collections::BTreeMap;

use crate::config::model::Overhead;

/// What of it is taken out, and how soon.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// The part of the target's time that tracing may take.
    pub limit: f64,
    /// So many looks, a second apart, must find too much. One that does not takes one of them back.
    looks: u32,
    /// Seconds of cost in a second that nobody has to care for.
    negligible: f64,
}

impl From<Overhead> for Rules {
    fn from(overhead: Overhead) -> Self {
        let (looks, negligible) =
            if overhead.is_default { (LOOKS_BY_DEFAULT, NEGLIGIBLE_BY_DEFAULT) } else { (LOOKS, NEGLIGIBLE) };
        Self { limit: overhead.share, looks, negligible }
    }
}

/// A limit that somebody has written down is meant.
const LOOKS: u32 = 3;
/// Ticks of CPU time say too little of less.
const NEGLIGIBLE: f64 = 1e-3;

/// Of the default nobody may know: a counter must not stand still for what is over in a moment, or what nobody would notice.
const LOOKS_BY_DEFAULT: u32 = 60;
const NEGLIGIBLE_BY_DEFAULT: f64 = 0.05;

/// What takes so many looks is told after a third of them, but not more often than this, in seconds.
const WARNING_PAUSE: f64 = 3600.0;

/// Seconds after a change until what is measured says something about it.
const SETTLING: f64 = 3.0;

/// Seconds for which what was put back is looked at more strictly, and nothing else is put back.
const TRIAL: f64 = 10.0;

/// The first pause, and the longest, in seconds.
const FIRST_PAUSE: f64 = 10.0;
const LONGEST_PAUSE: f64 = 3600.0;

/// Of the limit: so much is left when probes are taken out, and no more than that is used when one is put back.
const LEFT: f64 = 0.8;
const ROOM: f64 = 0.5;

/// An entry that takes less than this part of the limit is left alone: nothing would be gained.
const WORTH_IT: f64 = 0.05;

/// How much of an entry's earlier cost still counts at the next look.
const FADING: f64 = 0.6;

/// What can be taken out: an entry of `probes:`, or several that have their links in common.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The same for the entry's whole life.
    pub name: &'a str,
    /// Never taken out.
    pub keep: bool,
    /// Taken out at this moment.
    pub is_shed: bool,
    /// Seconds that its hits have cost until now.
    pub cost: f64,
}

/// What is to be done, by the entry's position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    /// Take it out; it takes this part of the target's time, and is tried again after so many seconds.
    Shed {
        at: usize,
        share: f64,
        pause: f64,
    },
    Restore {
        at: usize,
    },
    /// Probes are taken out in so many seconds if this goes on.
    Warn {
        within: f64,
    },
}

/// What is remembered of one target.
#[derive(Debug, Default)]
pub struct Controller {
    entries: BTreeMap<String, UnitHistory>,
    over: u32,
    settled_at: f64,
    /// When its costs were noted last.
    noted_at: f64,
    warned_at: Option<f64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct UnitHistory {
    cost: f64,
    recent: f64,
    /// 0 if it was never taken out, or long ago.
    pause: f64,
    shed_at: f64,
    restored_at: Option<f64>,
}

impl UnitHistory {
    fn is_tried(&self, now: f64) -> bool {
        self.restored_at.is_some_and(|at| now - at < TRIAL)
    }
}

impl Controller {
    /// What to do at this time, in seconds; `share` is the part of the target's time that tracing takes, if that is known. None if it is
    /// too much, and nothing can be done.
    pub fn step(
        &mut self,
        now: f64,
        rules: Rules,
        share: Option<f64>,
        entries: &[Candidate<'_>],
    ) -> Option<Vec<Step>> {
        let limit = rules.limit;
        let share = if self.note(now, entries) > rules.negligible { share } else { Some(0.0) };
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
            Some((at, entry)) if share <= limit * ROOM && !trial => {
                if let Some(memory) = self.entries.get_mut(entry.name) {
                    memory.restored_at = Some(now);
                }
                self.settled_at = now + SETTLING;
                vec![Step::Restore { at }]
            }
            _ => Vec::new(),
        })
    }

    fn recent(&self, entry: &Candidate<'_>) -> f64 {
        self.entries[entry.name].recent
    }

    /// That probes will be taken out, if that takes a while and was not told lately.
    fn warning(&mut self, now: f64, rules: Rules) -> Option<Step> {
        let is_due = rules.looks > LOOKS && self.over >= rules.looks / 3;
        if !is_due || self.warned_at.is_some_and(|at| now - at < WARNING_PAUSE) {
            return None;
        }
        self.warned_at = Some(now);
        Some(Step::Warn { within: f64::from(rules.looks - self.over) })
    }

    /// Nothing is measured.
    pub fn rest(&mut self) {
        self.over = 0;
    }

    /// Remembers what everything costs; returns how much more that is in a second.
    fn note(&mut self, now: f64, entries: &[Candidate<'_>]) -> f64 {
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
            memory.recent = memory.recent * FADING + more;
            // It has done well for as long as it was out, and once more.
            if memory.pause > 0.0 && memory.restored_at.is_some_and(|at| now - at >= 2.0 * memory.pause) {
                memory.restored_at = Some(now - TRIAL);
                memory.pause /= 2.0;
                if memory.pause < FIRST_PAUSE {
                    memory.pause = 0.0;
                }
            }
        }
        let elapsed = now - std::mem::replace(&mut self.noted_at, now);
        if elapsed > 0.0 { moved / elapsed } else { 0.0 }
    }

    /// The dearest first, what is on trial before all others, until enough is left.
    fn shed(&mut self, now: f64, limit: f64, share: f64, entries: &[Candidate<'_>]) -> Vec<Step> {
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
            if left <= limit * LEFT {
                break;
            }
            let Some(memory) = self.entries.get_mut(entry.name) else { continue };
            let part = share * memory.recent / all;
            if part < limit * WORTH_IT {
                continue;
            }
            left -= part;
            memory.pause = (memory.pause * 2.0).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            (memory.shed_at, memory.restored_at) = (now, None);
            steps.push(Step::Shed { at, share: part, pause: memory.pause });
        }
        self.over = 0;
        self.settled_at = now + SETTLING;
        steps
    }
}

#[cfg(test)]
mod tests;
