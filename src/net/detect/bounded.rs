//! A bounded table with approximate least-recently-used eviction. Pure.

use std::collections::HashMap;
use std::hash::Hash;
use std::mem::take;

/// Two halves: entries that are used move into the younger one; when it is full, the elder one is discarded. Nothing is
/// ever sorted or searched, however it is filled.
#[derive(Debug)]
pub(super) struct Bounded<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    most: usize,
    /// Evicted entries that were still live.
    pub evicted: u64,
}

impl<K: Hash + Eq, V: Default> Bounded<K, V> {
    /// A table for at most this many entries.
    pub fn new(most: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), most, evicted: 0 }
    }

    /// The entry of a key, inserted if missing. If others are evicted for it, `is_live` decides which of them count as
    /// lost.
    pub fn entry(&mut self, key: K, is_live: impl Fn(&V) -> bool) -> &mut V {
        if !self.young.contains_key(&key) && self.young.len() >= self.most / 2 {
            let gone = std::mem::replace(&mut self.old, take(&mut self.young));
            self.evicted += gone.values().filter(|value| is_live(value)).count() as u64;
        }
        let before = self.old.remove(&key);
        self.young.entry(key).or_insert_with(|| before.unwrap_or_default())
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    pub fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_used_entries_within_the_bound() {
        let mut table: Bounded<u32, u32> = Bounded::new(100);
        for number in 0..10_000 {
            *table.entry(u32::MAX, |_| true) += 1;
            *table.entry(number, |_| true) = 1;
            assert!(table.young.len() + table.old.len() <= 100);
        }
        assert_eq!(table.get(&u32::MAX), Some(&10_000));
        assert_eq!(table.get(&9_999), Some(&1));
        assert_eq!(table.get(&0), None);
        let kept = (table.young.len() + table.old.len()) as u64;
        assert_eq!(table.evicted + kept, 10_001, "none goes uncounted");
        let evicted = table.evicted;
        (0..1000).for_each(|number| *table.entry(number, |_| false) = 1);
        assert_eq!(table.evicted, evicted, "nobody misses what is over");
        table.remove(&u32::MAX);
        assert_eq!(table.get(&u32::MAX), None);
    }
}
