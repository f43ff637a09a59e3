//! How the entries of all sources are brought into the kernel.

use std::collections::{BTreeMap, BTreeSet};

use super::super::abi::List;
use super::super::cidr::Prefix;
use super::maps::{BlockMaps, Rule};
use super::marks::Marks;
use super::state::{ListState, Origin};

/// More changes than this rebuild the tables instead of being applied one by one.
pub(super) const MAX_SINGLE_CHANGES: usize = 1024;

impl ListState {
    /// Counts and logs a change that the kernel refused, of which nobody else is told.
    pub fn count_failure(&mut self, done: libbpf_rs::Result<()>) {
        if let Err(error) = done {
            self.errors += 1;
            log::error!("blocklist: failed to apply a change: {error:#}");
        }
    }

    pub fn marks(&self) -> Marks {
        marks(self.held.keys(), &self.allowed)
    }

    /// Makes these the active entries, with as few changes as possible.
    pub fn apply(
        &mut self,
        maps: &BlockMaps,
        wanted: BTreeMap<Prefix, Origin>,
        now: u64,
    ) -> libbpf_rs::Result<()> {
        let gone: Vec<Prefix> = self
            .held
            .keys()
            .filter(|prefix| !wanted.contains_key(prefix))
            .take(MAX_SINGLE_CHANGES + 1)
            .copied()
            .collect();
        let new: Vec<(Prefix, Origin)> = (wanted.iter())
            .filter(|(prefix, origin)| self.held.get(prefix) != Some(origin))
            .take(MAX_SINGLE_CHANGES + 1)
            .map(|(prefix, origin)| (*prefix, *origin))
            .collect();
        if gone.len() + new.len() > MAX_SINGLE_CHANGES || !self.tables.has_room(List::Blocked, new.len()) {
            return self.replace_all(maps, wanted, now);
        }
        for (prefix, origin) in new {
            let rule = self.rule(prefix, origin, now);
            self.set(maps, prefix, origin, rule, now)?;
        }
        gone.into_iter().try_for_each(|prefix| self.unset(maps, prefix))
    }

    /// Updates the active entries of these prefixes.
    pub fn refresh(
        &mut self,
        maps: &BlockMaps,
        prefixes: &BTreeSet<Prefix>,
        now: u64,
    ) -> libbpf_rs::Result<()> {
        if prefixes.len() > MAX_SINGLE_CHANGES {
            let wanted = self.wanted(now);
            return self.replace_all(maps, wanted, now);
        }
        for prefix in prefixes {
            match self.wanted_for(*prefix, now) {
                Some(origin) => {
                    let rule = self.rule(*prefix, origin, now);
                    self.set(maps, *prefix, origin, rule, now)?;
                }
                None if self.held.contains_key(prefix) => self.unset(maps, *prefix)?,
                None => {}
            }
        }
        Ok(())
    }

    pub fn set(
        &mut self,
        maps: &BlockMaps,
        prefix: Prefix,
        origin: Origin,
        rule: Rule,
        now: u64,
    ) -> libbpf_rs::Result<()> {
        if !self.held.contains_key(&prefix) && !self.tables.has_room(List::Blocked, 1) {
            // With room for a quarter more.
            let same = self.held.clone();
            self.replace_all(maps, same, now)?;
        }
        self.tables.set(maps, List::Blocked, prefix, rule)?;
        if let Some(before) = self.held.insert(prefix, origin) {
            *self.count(before) -= 1;
        }
        *self.count(origin) += 1;
        Ok(())
    }

    pub fn unset(&mut self, maps: &BlockMaps, prefix: Prefix) -> libbpf_rs::Result<()> {
        self.tables.remove(maps, List::Blocked, prefix)?;
        if let Some(before) = self.held.remove(&prefix) {
            *self.count(before) -= 1;
        }
        self.carried_hits.remove(&prefix);
        self.marks_stale = true;
        Ok(())
    }

    pub fn replace_all(
        &mut self,
        maps: &BlockMaps,
        wanted: BTreeMap<Prefix, Origin>,
        now: u64,
    ) -> libbpf_rs::Result<()> {
        let rules: Vec<_> =
            wanted.iter().map(|(prefix, origin)| (*prefix, self.rule(*prefix, *origin, now))).collect();
        let marks = marks(wanted.keys(), &self.allowed);
        let met = self.tables.replace(maps, List::Blocked, &rules, &marks)?;
        self.unread += u64::from(!met.is_whole);
        for (prefix, hits) in met.hits {
            self.carried_hits.entry(prefix).or_default().add(hits);
        }
        self.carried_hits.retain(|prefix, _| wanted.contains_key(prefix));
        self.by_source.clear();
        wanted.values().for_each(|origin| *self.count(*origin) += 1);
        self.held = wanted;
        self.marks_stale = false;
        Ok(())
    }
}

pub(super) fn marks<'a>(held: impl Iterator<Item = &'a Prefix>, allowed: &BTreeSet<Prefix>) -> Marks {
    let mut marks = Marks::new();
    held.for_each(|prefix| marks.add(List::Blocked, *prefix));
    allowed.iter().for_each(|prefix| marks.add(List::Allowed, *prefix));
    marks
}
