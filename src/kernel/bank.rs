//! The bank that the probe programs add to.

use std::mem::offset_of;
use std::sync::atomic::Ordering;

use libbpf_rs::{MapCore, MapHandle};

use crate::abi::{SMALL_INTEGERS, TEXT_WORDS, book_cell, dictionary, entry, integer_key};
use crate::bank::Bank;
use crate::layout::{self, DictionaryLayout};
use crate::mapping::Mapping;

/// What the bank is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub cells: Mapping,
    pub shards: u32,
    pub entries: Mapping,
    /// Of each dictionary, how many values are in use, and which numbers are free.
    pub dictionaries: Mapping,
    pub small_integers: Mapping,
    /// The maps that find a number, the long keys first.
    pub numbers: [MapHandle; 2],
}

/// Cells, and the names behind the numbers of dictionaries, as the kernel sees them now.
#[derive(Debug)]
pub struct KernelBank {
    parts: Parts,
    cells_per_shard: u32,
    dictionaries: Vec<DictionaryLayout>,
}

const DICTIONARY_WORDS: usize = size_of::<dictionary>() / 8;

const ENTRY_WORDS: usize = size_of::<entry>() / 8;

impl KernelBank {
    pub(super) fn new(parts: Parts, layout: &layout::Bank) -> Self {
        Self { parts, cells_per_shard: layout.cells, dictionaries: layout.dictionaries.clone() }
    }

    /// One number of a probe's books.
    pub(crate) fn book(&self, probe: usize, which: book_cell) -> u64 {
        self.total(self.book_cell(probe, which))
    }

    /// The latest jiffies at which the probe was hit; 0 if it never was.
    pub(crate) fn last_hit(&self, probe: usize) -> u64 {
        let cell = self.book_cell(probe, book_cell::BOOK_LAST_HIT);
        (0..self.parts.shards).map(|shard| self.load(shard, cell)).max().unwrap_or(0)
    }

    fn book_cell(&self, probe: usize, which: book_cell) -> u32 {
        u32::try_from(probe).unwrap_or(u32::MAX) * book_cell::BOOK_CELLS.0 + which.0
    }

    fn load(&self, shard: u32, cell: u32) -> u64 {
        self.parts.cells.words()[shard as usize * self.cells_per_shard as usize + cell as usize]
            .load(Ordering::Relaxed)
    }
}

impl Bank for KernelBank {
    fn total(&self, cell: u32) -> u64 {
        (0..self.parts.shards).fold(0, |sum: u64, shard| sum.wrapping_add(self.load(shard, cell)))
    }

    fn single(&self, cell: u32) -> u64 {
        self.load(0, cell)
    }

    fn take(&self, cell: u32) -> u64 {
        self.parts.cells.words()[cell as usize].swap(0, Ordering::Relaxed)
    }

    fn clear(&self, cell: u32) {
        for shard in 0..self.parts.shards {
            self.parts.cells.words()[shard as usize * self.cells_per_shard as usize + cell as usize]
                .store(0, Ordering::Relaxed);
        }
    }

    fn forget(&self, dictionary: u32, number: u32) {
        let Some(laid) = self.dictionaries.get(dictionary as usize).filter(|laid| number < laid.capacity)
        else {
            return;
        };
        let first = (laid.first_entry + number) as usize * ENTRY_WORDS;
        let Some(words) = self.parts.entries.words().get(first..first + 1 + TEXT_WORDS) else { return };
        // As in `struct word_key`, and for integers `struct integer_key`.
        let mut key = u64::from(dictionary).to_le_bytes().to_vec();
        words[1..].iter().for_each(|word| key.extend(word.load(Ordering::Relaxed).to_le_bytes()));
        let [long, short] = &self.parts.numbers;
        let _ = short.delete(&key[..size_of::<integer_key>()]);
        // Of text, the table has nothing: clearing a place in it is harmless.
        let value = words[1].load(Ordering::Relaxed) as usize;
        if value < SMALL_INTEGERS {
            let small = &self.parts.small_integers.halves()[dictionary as usize * SMALL_INTEGERS + value];
            small.store(0, Ordering::Relaxed);
        }
        if long.delete(&key).is_err() {
            return;
        }
        words[0].store(0, Ordering::Release);
        let shared =
            &self.parts.dictionaries.words()[dictionary as usize * DICTIONARY_WORDS..][..DICTIONARY_WORDS];
        let free = &shared[offset_of!(dictionary, free) / 8];
        let _ = free.fetch_update(Ordering::AcqRel, Ordering::Acquire, |top| {
            words[1].store(top & 0xffff_ffff, Ordering::Relaxed);
            Some(((top >> 32).wrapping_add(1) << 32) | u64::from(number + 1))
        });
        let accepted = &self.parts.dictionaries.halves()
            [(dictionary as usize * size_of::<dictionary>() + offset_of!(dictionary, accepted)) / 4];
        accepted.fetch_sub(1, Ordering::AcqRel);
    }

    fn name(&self, dictionary: u32, number: u32, to: &mut Vec<u8>) -> bool {
        let Some(laid) = self.dictionaries.get(dictionary as usize).filter(|laid| number < laid.capacity)
        else {
            return false;
        };
        let first = (laid.first_entry + number) as usize * ENTRY_WORDS;
        let Some(words) = self.parts.entries.words().get(first..first + 1 + TEXT_WORDS) else { return false };
        // `ready` is the first half of the first word, and is set last.
        if words[0].load(Ordering::Acquire) as u32 == 0 {
            return false;
        }
        to.clear();
        for word in &words[1..] {
            to.extend_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        true
    }
}
