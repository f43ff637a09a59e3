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
mod tests {
    use super::*;

    const LIMIT: f64 = 0.02;
    const ASKED_FOR: Overhead = Overhead { share: LIMIT, is_default: false };
    const DEFAULT: Overhead = Overhead { share: LIMIT, is_default: true };

    /// A target with entries that each take some part of its time while they are attached.
    struct Target {
        controller: Controller,
        overhead: Overhead,
        now: f64,
        /// Name, part, and whether it is kept.
        entries: Vec<(&'static str, f64, bool)>,
        is_shed: Vec<bool>,
        costs: Vec<f64>,
        /// When each was taken out.
        sheds: Vec<Vec<f64>>,
        /// When it was told that this is going to happen.
        warnings: Vec<f64>,
    }

    impl Target {
        fn of(entries: &[(&'static str, f64, bool)]) -> Self {
            let count = entries.len();
            Self {
                controller: Controller::default(),
                overhead: ASKED_FOR,
                now: 0.0,
                entries: entries.to_vec(),
                is_shed: vec![false; count],
                costs: vec![0.0; count],
                sheds: vec![Vec::new(); count],
                warnings: Vec::new(),
            }
        }

        fn by_default(entries: &[(&'static str, f64, bool)]) -> Self {
            Self { overhead: DEFAULT, ..Self::of(entries) }
        }

        /// A second later; whether something could be done, if it had to.
        fn second(&mut self) -> bool {
            self.now += 1.0;
            let mut share = 0.0;
            for (n, (_, part, _)) in self.entries.iter().enumerate().filter(|(n, _)| !self.is_shed[*n]) {
                self.costs[n] += part;
                share += part;
            }
            let candidates = self.entries.iter().enumerate().map(|(n, (name, _, keep))| Candidate {
                name,
                keep: *keep,
                is_shed: self.is_shed[n],
                cost: self.costs[n],
            });
            let candidates: Vec<_> = candidates.collect();
            let steps = self.controller.step(self.now, self.overhead.into(), Some(share), &candidates);
            for step in steps.iter().flatten() {
                match step {
                    Step::Shed { at, .. } => {
                        assert!(!self.is_shed[*at] && !self.entries[*at].2);
                        self.is_shed[*at] = true;
                        self.sheds[*at].push(self.now);
                    }
                    Step::Restore { at } => {
                        assert!(self.is_shed[*at]);
                        self.is_shed[*at] = false;
                    }
                    Step::Warn { .. } => self.warnings.push(self.now),
                }
            }
            steps.is_some()
        }

        fn seconds(&mut self, count: usize) {
            for _ in 0..count {
                self.second();
            }
        }
    }

    #[test]
    fn the_dearest_goes_and_no_more_than_has_to() {
        let mut target = Target::of(&[("a", 0.004, false), ("b", 0.3, false), ("c", 0.009, false)]);
        target.seconds(5);
        assert_eq!(target.is_shed, [false, true, false]);
        let mut within = Target::of(&[("a", 0.01, false), ("b", 0.009, false)]);
        within.seconds(100);
        assert_eq!(within.is_shed, [false, false]);
        // All at once where one is not enough.
        let mut many = Target::of(&[("a", 0.1, false), ("b", 0.2, false), ("c", 0.001, false)]);
        many.seconds(4);
        assert_eq!(many.is_shed, [true, true, false]);
    }

    #[test]
    fn what_is_kept_stays_and_that_nothing_is_left_is_told() {
        let mut target = Target::of(&[("a", 0.3, true), ("b", 0.002, false), ("c", 0.0001, false)]);
        target.seconds(4);
        // What takes nearly nothing stays: that would not help.
        assert_eq!(target.is_shed, [false, true, false]);
        assert!((0..20).any(|_| !target.second()));
        assert!(target.sheds[0].is_empty());
    }

    #[test]
    fn a_short_burst_changes_nothing() {
        let mut target = Target::of(&[("a", 0.0, false)]);
        for n in 0..600 {
            target.entries[0].1 = if n % 5 < 2 { 0.9 } else { 0.001 };
            target.second();
        }
        assert!(target.sheds[0].is_empty());
    }

    #[test]
    fn what_calms_down_is_put_back_and_stays() {
        let mut target = Target::of(&[("a", 0.5, false)]);
        target.seconds(6);
        assert!(target.is_shed[0]);
        target.entries[0].1 = 0.001;
        target.seconds(20);
        assert!(!target.is_shed[0]);
        target.seconds(3600);
        assert_eq!(target.sheds[0].len(), 1);
    }

    #[test]
    fn what_stays_too_dear_is_tried_ever_more_rarely() {
        let mut target = Target::of(&[("a", 0.5, false)]);
        target.seconds(24 * 3600);
        let pauses: Vec<f64> = target.sheds[0].windows(2).map(|two| two[1] - two[0]).collect();
        assert!(pauses.windows(2).all(|two| two[1] >= two[0]), "{pauses:?}");
        assert!(target.sheds[0].len() < 36, "{pauses:?}");
    }

    #[test]
    fn whatever_the_load_does_nothing_flaps() {
        let mut seed = 7u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for _ in 0..20 {
            let mut target = Target::of(&[("a", 0.0, false), ("b", 0.0, false), ("c", 0.0, true)]);
            let mut until = 0.0;
            for _ in 0..4 * 3600 {
                if target.now >= until {
                    until = target.now + 1.0 + random(200) as f64;
                    for entry in &mut target.entries {
                        entry.1 = random(40) as f64 / 1000.0;
                    }
                }
                target.second();
            }
            for sheds in &target.sheds {
                assert!(sheds.windows(2).all(|two| two[1] - two[0] >= FIRST_PAUSE), "{sheds:?}");
                // The pause grows as long as it does not do well, so that it is tried a few times an hour.
                assert!(sheds.len() < 4 * 40, "{}", sheds.len());
            }
        }
    }

    #[test]
    fn nothing_is_done_while_the_share_is_not_known() {
        let mut controller = Controller::default();
        for now in 0..100 {
            let entries = [Candidate { name: "a", keep: false, is_shed: false, cost: f64::from(now) }];
            assert_eq!(controller.step(f64::from(now), ASKED_FOR.into(), None, &entries), Some(Vec::new()));
        }
    }
    #[test]
    fn by_default_what_lasts_a_minute_is_taken_out_and_told_before() {
        let mut target = Target::by_default(&[("a", 0.3, false), ("b", 0.01, false)]);
        target.seconds(59);
        assert!(target.sheds[0].is_empty());
        target.seconds(10);
        assert_eq!((target.sheds[0].len(), target.sheds[1].len()), (1, 0));
        assert!(target.warnings.len() == 1 && target.warnings[0] + 30.0 < target.sheds[0][0]);
        // It is told again as long as it goes on, but not each time.
        target.seconds(3600);
        assert!(target.warnings.len() <= 2, "{:?}", target.warnings);
        assert!(target.sheds[1].is_empty());
    }

    #[test]
    fn by_default_nothing_is_taken_out_for_what_is_short_or_little() {
        // As blocks come: much at once, and then nothing for minutes.
        let mut blocks = Target::by_default(&[("a", 0.0, false)]);
        for second in 0..4 * 3600 {
            blocks.entries[0].1 = if second % 600 < 50 { 0.9 } else { 0.0 };
            blocks.second();
        }
        // Half of the time.
        let mut half = Target::by_default(&[("a", 0.0, false)]);
        for second in 0..4 * 3600 {
            half.entries[0].1 = if second % 100 < 50 { 0.9 } else { 0.0 };
            half.second();
        }
        // Most of what the program does, and little of what the machine can.
        let mut little = Target::by_default(&[("a", 0.04, false)]);
        little.seconds(4 * 3600);
        for target in [blocks, half, little] {
            assert!(target.sheds[0].is_empty());
        }
    }

    #[test]
    fn what_was_over_before_a_rest_does_not_count() {
        let mut target = Target::by_default(&[("a", 0.3, false)]);
        for _ in 0..10 {
            target.seconds(50);
            target.controller.rest();
        }
        assert!(target.sheds[0].is_empty());
    }
}
