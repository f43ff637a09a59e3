//! Slots and interners, wherever they are: what a scrape reads, and what events are added to in user space.

use std::collections::HashMap;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// A store that can be read while it is being added to.
pub trait Store: Send + Sync {
    /// The slot's total over all shards; additions wrap, so that sums of negative numbers work.
    fn total(&self, slot: u32) -> u64;

    /// The slot of the first shard alone, for slots that are overwritten instead of added to.
    fn single(&self, slot: u32) -> u64;

    /// Sets the first shard's slot to zero and returns what was there.
    fn take(&self, slot: u32) -> u64;

    /// Sets a slot to zero, in all shards.
    fn clear(&self, slot: u32);

    /// Takes a number back, so that it can be given to other bytes. Its slots must have been cleared, and nothing must
    /// be added to them any more.
    fn forget(&self, interner: u32, number: u32);

    /// The bytes that interner number `interner` gave `number` to, once they are known. Text from the kernel is
    /// padded with zeros.
    fn name(&self, interner: u32, number: u32, to: &mut Vec<u8>) -> bool;
}

/// The store of metrics that are computed from events. The drain thread adds, scrapes read.
#[derive(Debug)]
pub struct UserStore {
    slots: Vec<AtomicU64>,
    interners: Vec<Interner>,
    /// Of each probe, label values that went to "other".
    overflows: Vec<AtomicU64>,
}

#[derive(Debug)]
struct Interner {
    limit: u32,
    names: RwLock<Names>,
}

#[derive(Debug, Default)]
struct Names {
    numbers: HashMap<Box<[u8]>, u32>,
    names: Vec<Box<[u8]>>,
    free: Vec<u32>,
}

impl UserStore {
    /// A store of so many slots, with an interner for each of the limits, for the metrics of so many probes.
    pub fn new(slots: u32, limits: impl IntoIterator<Item = u32>, probes: usize) -> Self {
        let interner = |limit| Interner { limit, names: RwLock::default() };
        Self {
            overflows: (0..probes).map(|_| AtomicU64::new(0)).collect(),
            slots: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            interners: limits.into_iter().map(interner).collect(),
        }
    }

    /// Counts a label value of this probe that went to "other".
    pub fn count_overflow(&self, probe: usize) {
        self.overflows[probe].fetch_add(1, Ordering::Relaxed);
    }

    /// Label values of this probe that went to "other".
    pub fn overflows(&self, probe: usize) -> u64 {
        self.overflows[probe].load(Ordering::Relaxed)
    }

    /// Adds to a slot, wrapping. Only the drain thread may, which needs no locked instruction then.
    pub fn add(&self, slot: u32, amount: u64) {
        let slot = &self.slots[slot as usize];
        slot.store(slot.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    pub fn set(&self, slot: u32, value: u64) {
        self.slots[slot as usize].store(value, Ordering::Relaxed);
    }

    /// Replaces the slot by what `f` makes of it.
    pub fn update(&self, slot: u32, f: impl Fn(u64) -> u64) {
        let slot = &self.slots[slot as usize];
        let mut old = slot.load(Ordering::Relaxed);
        while let Err(now) = slot.compare_exchange_weak(old, f(old), Ordering::Relaxed, Ordering::Relaxed) {
            old = now;
        }
    }

    /// The number of these bytes, given out now if they are new; `None` past the limit.
    pub fn number(&self, interner: u32, bytes: &[u8]) -> Option<u32> {
        let interner = &self.interners[interner as usize];
        if let Some(number) = read(&interner.names).numbers.get(bytes) {
            return Some(*number);
        }
        let mut names = interner.names.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let number = match names.free.pop() {
            Some(free) => {
                names.names[free as usize] = bytes.into();
                free
            }
            None => {
                let new = u32::try_from(names.names.len()).ok().filter(|new| *new < interner.limit)?;
                names.names.push(bytes.into());
                new
            }
        };
        names.numbers.insert(bytes.into(), number);
        Some(number)
    }
}

impl Store for UserStore {
    fn total(&self, slot: u32) -> u64 {
        self.single(slot)
    }

    fn single(&self, slot: u32) -> u64 {
        self.slots[slot as usize].load(Ordering::Relaxed)
    }

    fn take(&self, slot: u32) -> u64 {
        self.slots[slot as usize].swap(0, Ordering::Relaxed)
    }

    fn clear(&self, slot: u32) {
        self.take(slot);
    }

    fn forget(&self, interner: u32, number: u32) {
        let names = &self.interners[interner as usize].names;
        let mut names = names.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(name) = names.names.get_mut(number as usize).map(std::mem::take)
            && names.numbers.remove(&name).is_some()
        {
            names.free.push(number);
        }
    }

    fn name(&self, interner: u32, number: u32, to: &mut Vec<u8>) -> bool {
        let names = read(&self.interners[interner as usize].names);
        let Some(name) = names.names.get(number as usize).filter(|_| !names.free.contains(&number)) else {
            return false;
        };
        to.clear();
        to.extend_from_slice(name);
        true
    }
}

/// A panic elsewhere while the lock was held leaves the names as they were: nothing in here is half done.
fn read(names: &RwLock<Names>) -> std::sync::RwLockReadGuard<'_, Names> {
    names.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(limit: u32) -> UserStore {
        UserStore::new(4, [limit], 1)
    }

    #[test]
    fn numbers_are_given_once_and_end_at_the_limit() {
        let store = store(2);
        assert_eq!(store.number(0, b"a"), Some(0));
        assert_eq!(store.number(0, b"b"), Some(1));
        assert_eq!(store.number(0, b"a"), Some(0));
        assert_eq!(store.number(0, b"c"), None);
        let mut name = Vec::new();
        assert!(store.name(0, 1, &mut name));
        assert_eq!(name, b"b");
        assert!(!store.name(0, 2, &mut name));
    }

    #[test]
    fn sums_of_negative_numbers_wrap_to_the_right_total() {
        let store = store(0);
        store.add(1, (-5i64) as u64);
        store.add(1, 2);
        assert_eq!(store.total(1) as i64, -3);
    }
}
