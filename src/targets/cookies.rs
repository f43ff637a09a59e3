//! Site numbers (attach cookies).

use std::collections::BTreeSet;

/// Allocates site numbers; they are freed when a file is detached.
#[derive(Debug)]
pub struct Cookies {
    pub(super) free: Vec<u32>,
}

impl Cookies {
    pub fn new(sites: u32) -> Self {
        Self { free: (0..sites).rev().collect() }
    }

    /// Marks numbers as used.
    pub(super) fn remove(&mut self, used: &BTreeSet<u32>) {
        self.free.retain(|number| !used.contains(number));
    }

    pub(super) fn take(&mut self, n: usize) -> Option<Vec<u32>> {
        let left = self.free.len().checked_sub(n)?;
        Some(self.free.split_off(left))
    }
}
