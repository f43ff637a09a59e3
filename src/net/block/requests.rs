//! Entries added and removed while the exporter runs, and the file in which they are stored.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Duration;

use super::super::cidr::Prefix;
use super::super::sys::monotonic;
use super::blocklist::Blocklist;
use super::config::BlockEntry;
use super::entry::{Asker, BlockError, Blocked};
use super::kept::{PastBan, StoredEntry};
use super::sources::Sources;
use super::state::{ListState, Origin, Requested, deadline, has_expired, kernel_rule};

/// Entries that can be added at run time; longer lists belong into files.
const MAX_REQUESTED: usize = 1 << 16;

impl Blocklist {
    /// Blocks a prefix, or replaces its rule if it is blocked already, and confirms it.
    ///
    /// # Errors
    /// If it is protected, or the kernel refuses.
    pub fn block(&self, entry: &BlockEntry, by: Asker) -> Result<Blocked, BlockError> {
        self.add(entry, by, None)
    }

    /// Blocks a prefix that is not blocked yet, and unblocks it unless it is confirmed in time by [`Self::block`].
    ///
    /// # Errors
    /// As [`Self::block`], or if it is blocked already.
    pub fn block_unless_unconfirmed(
        &self,
        entry: &BlockEntry,
        by: Asker,
        within: Duration,
    ) -> Result<Blocked, BlockError> {
        self.add(entry, by, Some(within))
    }

    fn add(&self, entry: &BlockEntry, by: Asker, confirm: Option<Duration>) -> Result<Blocked, BlockError> {
        let now = monotonic();
        let (mut store, mut state) = self.lock_protected(now);
        let prefix = entry.prefix;
        if let Some((by, why)) = state.reasons_to_pass().find(|(by, _)| by.contains(prefix)) {
            return Err(BlockError::Protected(prefix, format!("{by} is {why}")));
        }
        let before = state.asked.get(&prefix).filter(|asked| !has_expired(asked.until(), now));
        if confirm.is_some() && before.is_some_and(|asked| asked.confirm_by.is_none()) {
            return Err(BlockError::Settled(prefix));
        }
        if before.is_none() && state.asked.len() >= MAX_REQUESTED {
            return Err(BlockError::Full(MAX_REQUESTED));
        }
        let asked = Requested {
            rule: entry.rule.clone(),
            by,
            deadline: deadline(&entry.rule, now),
            confirm_by: confirm.map(|within| now.saturating_add(within.as_nanos() as u64)),
        };
        let direction = entry.rule.direction.unwrap_or(state.config.direction);
        let rule = kernel_rule(prefix, direction, entry.rule.scope, asked.until(), Sources::of_asker(by));
        let (is_new, is_ours) = match state.held.get(&prefix) {
            None => (true, true),
            Some(Origin::Requested(_)) => (before.is_none(), true),
            Some(_) => (false, false),
        };
        if is_ours {
            let done = state.sparing_sessions(&self.maps, |state| {
                state.set(&self.maps, prefix, Origin::Requested(by), rule, now)
            });
            if let Err(error) = done {
                state.errors += 1;
                self.publish(&state);
                return Err(BlockError::Kernel(format!("{error:#}")));
            }
        }
        let kept = asked.kept(prefix, now);
        state.asked.insert(prefix, asked);
        self.update_beside_decision(&mut state, prefix, now);
        let except = state.exceptions(prefix);
        self.publish(&state);
        drop(state);
        if let (Some(store), Some(kept)) = (&mut *store, kept) {
            self.record_stored(store.change(|| self.stored_entries(), |store| store.put(&[kept])));
        }
        Ok(Blocked { is_new, except })
    }

    /// If a decision blocks the prefix too, updates when its rule expires.
    fn update_beside_decision(&self, state: &mut ListState, prefix: Prefix, now: u64) {
        if let Some(Origin::Decision(_)) = state.held.get(&prefix) {
            let done = state.refresh(&self.maps, &BTreeSet::from([prefix]), now);
            state.count_failure(done);
        }
    }

    /// Unblocks a prefix that was blocked at run time.
    ///
    /// # Errors
    /// If it is not listed, or is listed by the configuration or a file; or the kernel refuses.
    pub fn unblock(&self, prefix: Prefix) -> Result<(), BlockError> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        let was_asked = state.asked.remove(&prefix).is_some();
        self.update_beside_decision(&mut state, prefix, monotonic());
        let done = match state.held.get(&prefix).copied() {
            None => Err(BlockError::Absent(prefix)),
            Some(Origin::Requested(_)) => {
                state.unset(&self.maps, prefix).map_err(|error| BlockError::Kernel(format!("{error:#}")))
            }
            Some(origin) => {
                let place = state.place(origin);
                let place = if was_asked { format!("{place} too") } else { place };
                Err(BlockError::Elsewhere(prefix, place))
            }
        };
        self.publish(&state);
        drop(state);
        if let (Some(store), true) = (&mut *store, was_asked) {
            self.record_stored(store.change(|| self.stored_entries(), |store| store.remove(&[prefix])));
        }
        done
    }

    /// The entries that the file must contain.
    pub(super) fn stored_entries(&self) -> Vec<StoredEntry> {
        let (now, state) = (monotonic(), self.lock());
        state.asked.iter().filter_map(|(prefix, asked)| asked.kept(*prefix, now)).collect()
    }

    /// The number of earlier bans of each address, from the file.
    pub(in super::super) fn past_bans(&self) -> Vec<PastBan> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let past = store.as_mut().map(|store| store.past_bans());
        past.unwrap_or_else(|| Ok(Vec::new())).unwrap_or_else(|err| {
            log::warn!("blocklist: the number of earlier bans of each address is unknown: {err}");
            Vec::new()
        })
    }

    /// Stores the number of bans of an address.
    pub(in super::super) fn remember(&self, ban: &PastBan) {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = &mut *store {
            self.record_stored(store.change(|| self.stored_entries(), |store| store.remember(ban)));
        }
    }

    /// Records whether a change was stored.
    pub(super) fn record_stored(&self, done: Result<(), String>) {
        if let Err(error) = &done {
            log::error!(
                "blocklist: a change is in effect, but was not stored and is lost at the next restart: {error}"
            );
        }
        self.summary.lock().unwrap_or_else(PoisonError::into_inner).is_kept = Some(done.is_ok());
    }
}
