//! Numbers of sites.

use std::collections::BTreeSet;

/// Numbers of sites, given back when a file is no longer probed.
#[derive(Debug)]
pub struct Cookies {
    pub(super) free: Vec<u32>,
}

impl Cookies {
    pub fn new(sites: u32) -> Self {
        Self { free: (0..sites).rev().collect() }
    }

    /// These are in use.
    pub(super) fn remove(&mut self, used: &BTreeSet<u32>) {
        self.free.retain(|number| !used.contains(number));
    }

    pub(super) fn take(&mut self, n: usize) -> Option<Vec<u32>> {
        let left = self.free.len().checked_sub(n)?;
        Some(self.free.split_off(left))
    }
}
