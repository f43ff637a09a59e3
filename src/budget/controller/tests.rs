use super::*;

const LIMIT: f64 = 0.02;
const ASKED_FOR: Overhead = Overhead { share: LIMIT, is_default: false };
const DEFAULT: Overhead = Overhead { share: LIMIT, is_default: true };

/// A target whose entries each take a share of its time while they are attached.
struct Target {
    controller: Controller,
    overhead: Overhead,
    now: f64,
    /// Name, share, and whether it is never shed.
    entries: Vec<(&'static str, f64, bool)>,
    is_shed: Vec<bool>,
    costs: Vec<f64>,
    /// When each one was shed.
    sheds: Vec<Vec<f64>>,
    /// When a warning was given.
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

    /// Advances by a second; returns whether something could be done, if necessary.
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
                BudgetAction::Shed { at, .. } => {
                    assert!(!self.is_shed[*at] && !self.entries[*at].2);
                    self.is_shed[*at] = true;
                    self.sheds[*at].push(self.now);
                }
                BudgetAction::Restore { at } => {
                    assert!(self.is_shed[*at]);
                    self.is_shed[*at] = false;
                }
                BudgetAction::Warn { .. } => self.warnings.push(self.now),
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
fn sheds_the_costliest_and_no_more_than_needed() {
    let mut target = Target::of(&[("a", 0.004, false), ("b", 0.3, false), ("c", 0.009, false)]);
    target.seconds(5);
    assert_eq!(target.is_shed, [false, true, false]);
    let mut within = Target::of(&[("a", 0.01, false), ("b", 0.009, false)]);
    within.seconds(100);
    assert_eq!(within.is_shed, [false, false]);
    // Several at once where one is not enough.
    let mut many = Target::of(&[("a", 0.1, false), ("b", 0.2, false), ("c", 0.001, false)]);
    many.seconds(4);
    assert_eq!(many.is_shed, [true, true, false]);
}

#[test]
fn never_sheds_exempt_probes_and_reports_when_none_are_left() {
    let mut target = Target::of(&[("a", 0.3, true), ("b", 0.002, false), ("c", 0.0001, false)]);
    target.seconds(4);
    // An entry that takes next to nothing stays: shedding it would not help.
    assert_eq!(target.is_shed, [false, true, false]);
    assert!((0..20).any(|_| !target.second()));
    assert!(target.sheds[0].is_empty());
}

#[test]
fn short_bursts_shed_nothing() {
    let mut target = Target::of(&[("a", 0.0, false)]);
    for n in 0..600 {
        target.entries[0].1 = if n % 5 < 2 { 0.9 } else { 0.001 };
        target.second();
    }
    assert!(target.sheds[0].is_empty());
}

#[test]
fn restores_a_probe_whose_cost_drops() {
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
fn retries_back_off_while_the_cost_stays_high() {
    let mut target = Target::of(&[("a", 0.5, false)]);
    target.seconds(24 * 3600);
    let pauses: Vec<f64> = target.sheds[0].windows(2).map(|two| two[1] - two[0]).collect();
    assert!(pauses.windows(2).all(|two| two[1] >= two[0]), "{pauses:?}");
    assert!(target.sheds[0].len() < 36, "{pauses:?}");
}

#[test]
fn nothing_flaps_under_random_load() {
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
            assert!(sheds.windows(2).all(|two| two[1] - two[0] >= MIN_PAUSE), "{sheds:?}");
            // The pause grows while it remains too expensive, so that it is retried a few times an hour.
            assert!(sheds.len() < 4 * 40, "{}", sheds.len());
        }
    }
}

#[test]
fn does_nothing_while_the_share_is_unknown() {
    let mut controller = Controller::default();
    for now in 0..100 {
        let entries = [Candidate { name: "a", keep: false, is_shed: false, cost: f64::from(now) }];
        assert_eq!(controller.step(f64::from(now), ASKED_FOR.into(), None, &entries), Some(Vec::new()));
    }
}
#[test]
fn default_sheds_after_a_minute_with_a_prior_warning() {
    let mut target = Target::by_default(&[("a", 0.3, false), ("b", 0.01, false)]);
    target.seconds(59);
    assert!(target.sheds[0].is_empty());
    target.seconds(10);
    assert_eq!((target.sheds[0].len(), target.sheds[1].len()), (1, 0));
    assert!(target.warnings.len() == 1 && target.warnings[0] + 30.0 < target.sheds[0][0]);
    // The warning is repeated while the cost stays high, but not every time.
    target.seconds(3600);
    assert!(target.warnings.len() <= 2, "{:?}", target.warnings);
    assert!(target.sheds[1].is_empty());
}

#[test]
fn default_ignores_short_or_moderate_overload() {
    // Like blocks: much at once, and then nothing for minutes.
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
    // Most of the program's own time, but a small share of the machine's.
    let mut little = Target::by_default(&[("a", 0.04, false)]);
    little.seconds(4 * 3600);
    for target in [blocks, half, little] {
        assert!(target.sheds[0].is_empty());
    }
}

#[test]
fn rest_resets_the_overload_history() {
    let mut target = Target::by_default(&[("a", 0.3, false)]);
    for _ in 0..10 {
        target.seconds(50);
        target.controller.rest();
    }
    assert!(target.sheds[0].is_empty());
}
