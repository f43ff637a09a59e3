//! Sliding sums. Pure.

use std::collections::VecDeque;
use std::hash::Hash;

use super::bounded::Bounded;

/// Sums by key over a sliding window.
#[derive(Debug)]
pub(super) struct Sums<K> {
    of: Bounded<K, VecDeque<(u64, u64)>>,
    within: u64,
}

impl<K: Hash + Eq> Sums<K> {
    /// For at most this many keys, over a window in nanoseconds.
    pub fn new(most: usize, within: u64) -> Self {
        Self { of: Bounded::new(most), within }
    }

    /// Adds to a key's sum; returns the sum.
    pub fn add(&mut self, key: K, now: u64, amount: u64) -> u64 {
        let within = self.within;
        let is_live =
            |sums: &VecDeque<(u64, u64)>| sums.back().is_some_and(|(at, _)| now.saturating_sub(*at) < within);
        let sums = self.of.entry(key, is_live);
        match sums.back_mut() {
            Some((at, sum)) if *at == now => *sum += amount,
            _ => sums.push_back((now, amount)),
        }
        while sums.front().is_some_and(|(at, _)| now.saturating_sub(*at) >= within) {
            sums.pop_front();
        }
        sums.iter().map(|(_, sum)| sum).sum()
    }

    /// Resets a key.
    pub fn forget(&mut self, key: &K) {
        self.of.remove(key);
    }

    pub fn evicted(&self) -> u64 {
        self.of.evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_values_leave_the_window() {
        let mut sums = Sums::new(100, 10);
        assert_eq!(
            [(1, 5), (1, 5), (5, 1), (10, 1), (11, 1)].map(|(now, n)| sums.add("a", now, n)),
            [5, 10, 11, 12, 3]
        );
        assert_eq!(sums.add("b", 11, 1), 1);
        sums.forget(&"a");
        assert_eq!(sums.add("a", 12, 1), 1);
    }
}
