//! The counter store that the probe programs update.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};

use libbpf_rs::{MapCore, MapFlags, MapHandle};

use crate::abi::{
    EntryView, InternerView, SMALL_INTEGERS, SmallIntegersView, accounting_slot, integer_key, process_number,
    process_text,
};
use crate::layout::{InternerLayout, StoreLayout};
use crate::mapping::Mapped;
use crate::store::Store;

/// The parts of the store.
#[derive(Debug)]
pub(super) struct Parts {
    pub slots: Mapped<AtomicU64>,
    pub shards: u32,
    pub entries: Mapped<EntryView>,
    /// For each interner, the number of used values, and the free numbers.
    pub interners: Mapped<InternerView>,
    pub small_integers: Mapped<SmallIntegersView>,
    /// The maps from values to numbers, the one with long keys first.
    pub numbers: [MapHandle; 2],
    /// Executable paths and command lines.
    pub process_texts: MapHandle,
}

/// Slots, and the names of interned numbers, as the kernel has them now.
#[derive(Debug)]
pub struct KernelStore {
    parts: Parts,
    slots_per_shard: u32,
    interners: Vec<InternerLayout>,
}

impl KernelStore {
    pub(super) fn new(parts: Parts, layout: &StoreLayout) -> Self {
        Self { parts, slots_per_shard: layout.slots, interners: layout.interners.clone() }
    }

    /// Sets the first shard's slot, which nothing else updates.
    pub(crate) fn set(&self, slot: u32, value: u64) {
        self.slot(0, slot).store(value, Ordering::Release);
    }

    /// One number of a probe's accounting.
    pub(crate) fn accounting(&self, probe: usize, which: accounting_slot) -> u64 {
        self.total(self.accounting_slot(probe, which))
    }

    /// The latest jiffies at which the probe was hit; 0 if it never was.
    pub(crate) fn last_hit(&self, probe: usize) -> u64 {
        let slot = self.accounting_slot(probe, accounting_slot::ACCT_LAST_HIT);
        (0..self.parts.shards).map(|shard| self.load(shard, slot)).max().unwrap_or(0)
    }

    /// The executable path or command line with this number; `None` if there was no room for it.
    pub(crate) fn process_text(&self, number: u64) -> Option<Vec<u8>> {
        if number < u64::from(process_number::PROCESS_FIRST_NUMBER.0) {
            return None;
        }
        let mut entry = self.parts.process_texts.lookup(&number.to_ne_bytes(), MapFlags::ANY).ok()??;
        let at = |offset: usize| entry[offset..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        let (from, length) = (at(offset_of!(process_text, from)), at(offset_of!(process_text, length)));
        let text = offset_of!(process_text, bytes) + from as usize;
        entry.truncate(text + length as usize);
        Some(entry.split_off(text.min(entry.len())))
    }

    fn accounting_slot(&self, probe: usize, which: accounting_slot) -> u32 {
        u32::try_from(probe).unwrap_or(u32::MAX) * accounting_slot::ACCT_SLOTS.0 + which.0
    }

    fn slot(&self, shard: u32, slot: u32) -> &AtomicU64 {
        &self.parts.slots[shard as usize * self.slots_per_shard as usize + slot as usize]
    }

    fn load(&self, shard: u32, slot: u32) -> u64 {
        self.slot(shard, slot).load(Ordering::Relaxed)
    }

    /// The value of an interned number.
    fn entry(&self, interner: u32, number: u32) -> Option<&EntryView> {
        let layout = self.interners.get(interner as usize).filter(|layout| number < layout.capacity)?;
        self.parts.entries.get((layout.first_entry + number) as usize)
    }
}

impl Store for KernelStore {
    fn total(&self, slot: u32) -> u64 {
        (0..self.parts.shards).fold(0, |sum: u64, shard| sum.wrapping_add(self.load(shard, slot)))
    }

    fn single(&self, slot: u32) -> u64 {
        self.load(0, slot)
    }

    fn take(&self, slot: u32) -> u64 {
        self.slot(0, slot).swap(0, Ordering::Relaxed)
    }

    fn clear(&self, slot: u32) {
        (0..self.parts.shards).for_each(|shard| self.slot(shard, slot).store(0, Ordering::Relaxed));
    }

    fn forget(&self, interner: u32, number: u32) {
        let Some(entry) = self.entry(interner, number) else { return };
        // As in `struct word_key`, and for integers `struct integer_key`.
        let mut key = u64::from(interner).to_le_bytes().to_vec();
        entry.words.iter().for_each(|word| key.extend(word.load(Ordering::Relaxed).to_le_bytes()));
        let [long, short] = &self.parts.numbers;
        let _ = short.delete(&key[..size_of::<integer_key>()]);
        // Texts are not in that table: clearing a slot of it is harmless.
        let value = entry.words[0].load(Ordering::Relaxed) as usize;
        if value < SMALL_INTEGERS {
            self.parts.small_integers[interner as usize][value].store(0, Ordering::Relaxed);
        }
        if long.delete(&key).is_err() {
            return;
        }
        entry.ready.store(0, Ordering::Release);
        self.parts.interners[interner as usize].give_back(entry, number);
    }

    fn name(&self, interner: u32, number: u32, to: &mut Vec<u8>) -> bool {
        let Some(entry) = self.entry(interner, number) else { return false };
        // It is set last.
        if entry.ready.load(Ordering::Acquire) == 0 {
            return false;
        }
        to.clear();
        for word in &entry.words {
            to.extend_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        true
    }
}
