//! The worst events of each hour: which events rank among them, and the threshold for the kernel.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// The current hour and the previous one: events read from several CPUs arrive in no strict order.
const WINDOWS: usize = 2;

/// An hour in nanoseconds.
const HOUR: u64 = 3_600_000_000_000;

/// The largest values of a clock hour, for one histogram of one probe.
#[derive(Debug)]
pub(crate) struct Worst {
    most: usize,
    windows: VecDeque<Window>,
}

/// An hour, by the kernel's clock.
#[derive(Debug)]
struct Window {
    until: u64,
    /// The smallest value is on top; among equal values the latest, which is displaced first.
    largest: BinaryHeap<Reverse<(i64, Reverse<u64>)>>,
}

/// An event among the worst, and the event that it displaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ranked {
    pub number: u64,
    pub displaces: Option<u64>,
}

/// The value that a hit must exceed to rank among the worst, and until when that holds, by the kernel's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Floor {
    pub until: u64,
    pub above: i64,
}

/// Returns the end of the current clock hour, by the kernel's clock. `time` and `since_1970` are the same instant.
pub(crate) fn end_of_hour(time: u64, since_1970: i64) -> u64 {
    let passed = since_1970.rem_euclid(HOUR as i64).unsigned_abs();
    time.saturating_add(HOUR - passed)
}

impl Worst {
    pub fn new(most: u32) -> Self {
        Self { most: most as usize, windows: VecDeque::new() }
    }

    /// If an event ranks among the worst, calls `keep`; if that fails, nothing changes. `until` returns the end of the
    /// hour that starts with this event, if it starts one. Returns whether the event ranks among the worst.
    pub fn offer(
        &mut self,
        time: u64,
        until: impl FnOnce() -> u64,
        value: i64,
        number: u64,
        keep: impl FnOnce(Ranked) -> bool,
    ) -> bool {
        if self.windows.back().is_none_or(|window| window.until <= time) {
            if self.windows.len() == WINDOWS {
                self.windows.pop_front();
            }
            self.windows.push_back(Window { until: until(), largest: BinaryHeap::new() });
        }
        let Some(window) = self.windows.iter_mut().find(|window| time < window.until) else { return false };
        let is_full = window.largest.len() >= self.most;
        let least = window.largest.peek().copied().filter(|_| is_full);
        if least.is_some_and(|Reverse((least, _))| value <= least) {
            return false;
        }
        let displaces = least.map(|Reverse((_, Reverse(number)))| number);
        if keep(Ranked { number, displaces }) {
            if displaces.is_some() {
                window.largest.pop();
            }
            window.largest.push(Reverse((value, Reverse(number))));
        }
        true
    }

    /// Returns the floor of the current hour.
    pub fn floor(&self) -> Option<Floor> {
        let window = self.windows.back()?;
        let least = window.largest.peek().filter(|_| window.largest.len() >= self.most);
        Some(Floor { until: window.until, above: least.map_or(i64::MIN, |Reverse((least, _))| *least) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Offers the events and returns the final values, sorted.
    fn kept(worst: &mut Worst, events: &[(u64, i64)], from: u64) -> Vec<i64> {
        let mut all: BTreeMap<u64, i64> = BTreeMap::new();
        for (number, (time, value)) in (from..).zip(events) {
            let floor = worst.floor();
            let is_taken = worst.offer(
                *time,
                || time / 100 * 100 + 100,
                *value,
                number,
                |ranked| {
                    assert_eq!(ranked.number, number);
                    if let Some(gone) = ranked.displaces {
                        assert!(all.remove(&gone).unwrap() < *value);
                    }
                    all.insert(number, *value);
                    true
                },
            );
            // The kernel would not have sent it.
            if floor.is_some_and(|floor| *time < floor.until && *value <= floor.above) {
                assert!(!is_taken);
            }
        }
        let mut all: Vec<_> = all.into_values().collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn keeps_the_largest_of_each_hour_in_any_order() {
        let values: Vec<i64> = (0..1000).map(|n| n * 619 % 1000 - 500).collect();
        let events: Vec<_> = values.iter().map(|value| (7, *value)).collect();
        let mut worst = Worst::new(5);
        assert_eq!(kept(&mut worst, &events, 0), [495, 496, 497, 498, 499]);
        assert_eq!(worst.floor(), Some(Floor { until: 100, above: 495 }));
        // The next hour starts empty, and a late event still counts towards the previous one.
        assert_eq!(kept(&mut worst, &[(100, -1), (99, 3), (101, -2)], 1000), [-2, -1]);
        assert_eq!(worst.floor(), Some(Floor { until: 200, above: i64::MIN }));
        // Likewise after hours without events.
        assert_eq!(kept(&mut worst, &[(1300, 1), (1299, 2), (1400, 3)], 2000), [1, 2, 3]);
    }

    #[test]
    fn earlier_events_win_ties() {
        let mut worst = Worst::new(2);
        assert_eq!(kept(&mut worst, &[(1, 5), (2, 5), (3, 5)], 0), [5, 5]);
        let mut displaced = None;
        worst.offer(
            4,
            || 0,
            6,
            9,
            |ranked| {
                displaced = ranked.displaces;
                true
            },
        );
        assert_eq!(displaced, Some(1), "the later one goes first");
    }

    #[test]
    fn failed_insert_changes_nothing() {
        let mut worst = Worst::new(1);
        assert_eq!(kept(&mut worst, &[(1, 5)], 0), [5]);
        assert!(worst.offer(2, || 0, 9, 7, |_| false));
        assert_eq!(worst.floor(), Some(Floor { until: 100, above: 5 }));
        assert!(!worst.offer(3, || 0, 5, 8, |_| true));
        assert!(worst.offer(3, || 0, 6, 8, |ranked| ranked.displaces == Some(0)));
    }

    #[test]
    fn hours_align_with_the_wall_clock() {
        assert_eq!(end_of_hour(1000, 0), 1000 + HOUR);
        assert_eq!(end_of_hour(1000, HOUR as i64 * 3 + 1), 1000 + HOUR - 1);
        assert_eq!(end_of_hour(1000, -1), 1001);
        assert_eq!(end_of_hour(u64::MAX, 5), u64::MAX);
    }
}
