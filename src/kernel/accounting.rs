//! The accounting: what became of each probe's hits.

use super::load::Shared;
use super::store::KernelStore;
use crate::abi::book_cell;

/// Every way in which a hit can be lost, with its label.
pub(crate) const LOST: &[(&str, book_cell)] = &[
    ("ring_full", book_cell::BOOK_LOST_RING),
    ("read_fault", book_cell::BOOK_LOST_FAULT),
    ("no_start", book_cell::BOOK_LOST_NO_START),
    ("starts_full", book_cell::BOOK_LOST_STARTS_FULL),
    ("negative", book_cell::BOOK_LOST_NEGATIVE),
];

/// One probe's accounting at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Accounting {
    /// Hits that have been dealt with: the sum of what follows.
    pub hits: u64,
    pub aggregated: u64,
    pub delivered: u64,
    pub filtered: u64,
    pub lost: u64,
    /// Hits that the handler began to deal with: never fewer than `hits`.
    pub begun: u64,
    /// Hits that were being dealt with at that moment.
    pub in_flight: u64,
}

impl Accounting {
    /// Reads a probe's accounting. The ways to end are read before the hits, so that a hit in between is in flight, never
    /// missing.
    pub fn read(shared: &Shared, probe: usize) -> Self {
        Self::of(&shared.store, probe)
    }

    pub(crate) fn of(store: &KernelStore, probe: usize) -> Self {
        let book = |which| store.book(probe, which);
        let aggregated = book(book_cell::BOOK_AGGREGATED);
        let delivered = book(book_cell::BOOK_DELIVERED);
        let filtered = book(book_cell::BOOK_FILTERED);
        let lost = LOST.iter().map(|(_, which)| book(*which)).sum();
        let hits = aggregated + delivered + filtered + lost;
        // Filtered hits, and those of a probe that only counts, end as they begin.
        let begun = (book(book_cell::BOOK_HITS) + filtered).max(hits);
        let in_flight = begun - hits;
        Self { hits, aggregated, delivered, filtered, lost, begun, in_flight }
    }
}
