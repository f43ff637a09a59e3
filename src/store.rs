//! Slots and interners, wherever they are: a scrape reads them, and events are added to them in user space.

use std::collections::HashMap;
use std::fmt;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::mapping::Mapped;

/// A store that can be read while it is being updated.
pub trait Store: Send + Sync {
    /// The slot's total over all shards; additions wrap, so that sums of negative numbers work.
    fn total(&self, slot: u32) -> u64;

    /// The slot in the first shard only, for slots that are overwritten rather than added to.
    fn single(&self, slot: u32) -> u64;

    /// Sets the first shard's slot to zero and returns its previous value.
    fn take(&self, slot: u32) -> u64;

    /// Sets a slot to zero in all shards.
    fn clear(&self, slot: u32);

    /// Frees a number, so that it can be assigned to other bytes. Its slots must have been cleared, and must not be
    /// updated anymore.
    fn forget(&self, interner: u32, number: u32);

    /// Reads the bytes to which interner `interner` assigned `number`; returns false if they are not known yet. Text
    /// from the kernel is padded with zeros.
    fn name(&self, interner: u32, number: u32, to: &mut Vec<u8>) -> bool;
}

/// The store of metrics that are computed from events. The drain thread updates it, scrapes read it.
#[derive(Debug)]
pub struct UserStore {
    /// The slots; then, for each probe, label values that were counted as "other"; then the statistics of the drain
    /// thread.
    counters: CounterMemory,
    slots: usize,
    probes: usize,
    interners: Vec<Interner>,
    names: Option<Box<dyn NameStore>>,
}

/// Number of statistics of the drain thread.
pub const DRAIN_NUMBERS: usize = 5;

#[derive(Debug)]
enum CounterMemory {
    Own(Vec<AtomicU64>),
    /// Outlives the exporter.
    Kept(Mapped<AtomicU64>),
}

/// Stores the names behind numbers, for an exporter that continues with them.
pub trait NameStore: fmt::Debug + Send + Sync {
    fn keep(&self, interner: u32, number: u32, name: &[u8]);

    fn forget(&self, interner: u32, number: u32);

    /// All stored names.
    fn all(&self) -> Vec<KeptName>;
}

/// A name of an interner, with its number.
#[derive(Debug)]
pub struct KeptName {
    pub interner: u32,
    pub number: u32,
    pub name: Box<[u8]>,
}

#[derive(Debug)]
struct Interner {
    limit: u32,
    names: RwLock<InternedNames>,
}

#[derive(Debug, Default)]
struct InternedNames {
    ids: HashMap<Box<[u8]>, u32>,
    names: Vec<Box<[u8]>>,
    free: Vec<u32>,
}

impl UserStore {
    /// Creates a store with this number of slots, with an interner for each of the limits, for the metrics of this
    /// number of probes.
    pub fn new(slots: u32, limits: impl IntoIterator<Item = u32>, probes: usize) -> Self {
        let all = Self::numbers(slots, probes);
        let counters = CounterMemory::Own((0..all).map(|_| AtomicU64::new(0)).collect());
        Self {
            counters,
            slots: slots as usize,
            probes,
            interners: interners(limits, Vec::new()),
            names: None,
        }
    }

    /// The total number of values in such a store.
    pub fn numbers(slots: u32, probes: usize) -> usize {
        slots as usize + probes + DRAIN_NUMBERS
    }

    /// As [`UserStore::new`], in memory that outlives the exporter, and may come from an earlier one.
    pub fn kept(
        slots: u32,
        limits: impl IntoIterator<Item = u32>,
        probes: usize,
        numbers: Mapped<AtomicU64>,
        names: Box<dyn NameStore>,
    ) -> Self {
        assert!(numbers.len() >= Self::numbers(slots, probes), "as many as `numbers` says");
        let interners = interners(limits, names.all());
        Self {
            counters: CounterMemory::Kept(numbers),
            slots: slots as usize,
            probes,
            interners,
            names: Some(names),
        }
    }

    fn at(&self, number: usize) -> &AtomicU64 {
        match &self.counters {
            CounterMemory::Own(all) => &all[number],
            CounterMemory::Kept(all) => &all[number],
        }
    }

    fn slot(&self, slot: u32) -> &AtomicU64 {
        self.at(slot as usize)
    }

    /// One of the [`DRAIN_NUMBERS`].
    pub fn drain_number(&self, number: usize) -> &AtomicU64 {
        self.at(self.slots + self.probes + number)
    }

    /// Counts a label value of this probe as "other".
    pub fn count_overflow(&self, probe: usize) {
        self.at(self.slots + probe).fetch_add(1, Ordering::Relaxed);
    }

    /// Label values of this probe that were counted as "other".
    pub fn overflows(&self, probe: usize) -> u64 {
        self.at(self.slots + probe).load(Ordering::Relaxed)
    }

    /// Adds to a slot, wrapping. Only the drain thread may do so, and thus needs no locked instruction.
    pub fn add(&self, slot: u32, amount: u64) {
        let slot = self.slot(slot);
        slot.store(slot.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    pub fn set(&self, slot: u32, value: u64) {
        self.slot(slot).store(value, Ordering::Relaxed);
    }

    /// Replaces the slot's value with the result of `f`.
    pub fn update(&self, slot: u32, f: impl Fn(u64) -> u64) {
        let slot = self.slot(slot);
        let mut old = slot.load(Ordering::Relaxed);
        while let Err(now) = slot.compare_exchange_weak(old, f(old), Ordering::Relaxed, Ordering::Relaxed) {
            old = now;
        }
    }

    /// The number of these bytes, newly assigned if they are new; `None` beyond the limit.
    pub fn number(&self, interner: u32, bytes: &[u8]) -> Option<u32> {
        let index = interner;
        let interner = &self.interners[index as usize];
        if let Some(number) = read(&interner.names).ids.get(bytes) {
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
        names.ids.insert(bytes.into(), number);
        if let Some(name_store) = &self.names {
            name_store.keep(index, number, bytes);
        }
        Some(number)
    }
}

/// Creates an interner for each of the limits, with the stored names.
fn interners(limits: impl IntoIterator<Item = u32>, kept: Vec<KeptName>) -> Vec<Interner> {
    let mut all: Vec<(u32, InternedNames)> =
        limits.into_iter().map(|limit| (limit, InternedNames::default())).collect();
    for KeptName { interner, number, name } in kept {
        let Some((_, names)) = all.get_mut(interner as usize).filter(|(limit, _)| number < *limit) else {
            continue;
        };
        let length = names.names.len().max(number as usize + 1);
        names.names.resize_with(length, Box::default);
        names.names[number as usize] = name.clone();
        names.ids.insert(name, number);
    }
    let made = |(limit, mut names): (u32, InternedNames)| {
        let taken: std::collections::HashSet<u32> = names.ids.values().copied().collect();
        names.free = (0..names.names.len() as u32).filter(|number| !taken.contains(number)).collect();
        Interner { limit, names: RwLock::new(names) }
    };
    all.into_iter().map(made).collect()
}

impl Store for UserStore {
    fn total(&self, slot: u32) -> u64 {
        self.single(slot)
    }

    fn single(&self, slot: u32) -> u64 {
        self.slot(slot).load(Ordering::Relaxed)
    }

    fn take(&self, slot: u32) -> u64 {
        self.slot(slot).swap(0, Ordering::Relaxed)
    }

    fn clear(&self, slot: u32) {
        self.take(slot);
    }

    fn forget(&self, interner: u32, number: u32) {
        let names = &self.interners[interner as usize].names;
        let mut names = names.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(name) = names.names.get_mut(number as usize).map(std::mem::take)
            && names.ids.remove(&name).is_some()
        {
            if let Some(name_store) = &self.names {
                name_store.forget(interner, number);
            }
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

/// A poisoned lock is fine: a panic elsewhere while it was held leaves the names consistent.
fn read(names: &RwLock<InternedNames>) -> std::sync::RwLockReadGuard<'_, InternedNames> {
    names.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(limit: u32) -> UserStore {
        UserStore::new(4, [limit], 1)
    }

    #[test]
    fn numbers_are_unique_and_limited() {
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

    #[derive(Debug, Default)]
    struct KeptNames(std::sync::Mutex<std::collections::BTreeMap<(u32, u32), Vec<u8>>>);

    impl NameStore for std::sync::Arc<KeptNames> {
        fn keep(&self, interner: u32, number: u32, name: &[u8]) {
            self.0.lock().unwrap().insert((interner, number), name.to_vec());
        }

        fn forget(&self, interner: u32, number: u32) {
            self.0.lock().unwrap().remove(&(interner, number));
        }

        fn all(&self) -> Vec<KeptName> {
            let kept = |(at, name): (&(u32, u32), &Vec<u8>)| KeptName {
                interner: at.0,
                number: at.1,
                name: name.as_slice().into(),
            };
            self.0.lock().unwrap().iter().map(kept).collect()
        }
    }

    #[test]
    fn numbers_survive_restart() {
        let kept = std::sync::Arc::new(KeptNames::default());
        let store = || {
            let numbers = Mapped::zeros(UserStore::numbers(4, 1));
            UserStore::kept(4, [3, 2], 1, numbers, Box::new(kept.clone()))
        };
        let first = store();
        assert_eq!([b"a", b"b", b"c"].map(|name| first.number(0, name)), [Some(0), Some(1), Some(2)]);
        assert_eq!(first.number(1, b"a"), Some(0));
        first.forget(0, 1);
        let second = store();
        assert_eq!(second.number(0, b"c"), Some(2));
        let mut name = Vec::new();
        assert!(!second.name(0, 1, &mut name));
        assert_eq!(second.number(0, b"d"), Some(1), "what was given back is free");
        assert_eq!(second.number(0, b"e"), None);
        assert!(second.name(1, 0, &mut name) && name == b"a");
    }

    #[test]
    fn negative_sums_wrap_correctly() {
        let store = store(0);
        store.add(1, (-5i64) as u64);
        store.add(1, 2);
        assert_eq!(store.total(1) as i64, -3);
    }
}
