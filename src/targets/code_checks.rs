//! Schedules checks of the code of running processes, whose changes are not reported by any event.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::file::Identity;

/// Checks take at most one part in this many of a processor's time.
const MAX_SHARE: u32 = 4000;

/// Times that one process's breakpoints are set again: each time its semaphores are raised once more, and only
/// lowered once.
const MAX_REARMED: u32 = 1000;

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Finding {
    Replaced,
    Written,
    /// The code after the breakpoint changed, within the same instruction.
    Changed,
    ThrownAway,
}

/// The schedule of checks, and what was reported.
#[derive(Debug)]
pub(super) struct CodeChecks {
    due: Instant,
    /// Processes that are checked for the first time.
    new: Vec<(u32, Identity)>,
    /// Processes of the file that remain to be checked.
    waiting: Vec<(u32, Identity)>,
    last: Option<Identity>,
    told: BTreeSet<(Identity, u32, Finding)>,
    rearmed: BTreeMap<(Identity, u32), u32>,
}

impl CodeChecks {
    pub(super) fn new() -> Self {
        Self {
            due: Instant::now(),
            new: Vec::new(),
            waiting: Vec::new(),
            last: None,
            told: BTreeSet::new(),
            rearmed: BTreeMap::new(),
        }
    }

    /// Whether this finding is reported for the first time.
    pub(super) fn is_new(&mut self, pid: u32, identity: Identity, finding: Finding) -> bool {
        self.told.insert((identity, pid, finding))
    }

    pub(super) fn may_rearm(&mut self, pid: u32, identity: Identity) -> bool {
        let times = self.rearmed.entry((identity, pid)).or_default();
        *times = times.saturating_add(1);
        *times <= MAX_REARMED
    }

    /// Queues processes that were not checked yet.
    pub(super) fn add(&mut self, processes: impl IntoIterator<Item = (u32, Identity)>) {
        self.new.extend(processes);
        self.new.sort_unstable_by_key(|(pid, of)| (*pid, of.address, of.number));
        self.new.dedup();
    }

    pub(super) fn has_new(&self) -> bool {
        !self.new.is_empty()
    }

    pub(super) fn next_new(&mut self) -> Option<(u32, Identity)> {
        self.new.pop()
    }

    pub(super) fn is_due(&self) -> bool {
        Instant::now() >= self.due
    }

    /// Whether all processes of the last file have been checked.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The file that is next.
    pub(super) fn next_of(&self, files: &BTreeSet<Identity>) -> Option<Identity> {
        let after = files.iter().find(|of| self.last.is_none_or(|last| **of > last));
        after.or(files.first()).copied()
    }

    pub(super) fn next_process(&mut self) -> Option<(u32, Identity)> {
        self.waiting.pop()
    }

    /// Schedules the next check according to the CPU time that was used.
    pub(super) fn rest(&mut self, used: Duration) {
        self.due = Instant::now() + used.saturating_mul(MAX_SHARE).max(Duration::from_secs(1));
    }

    /// Sets the processes that run a file now; reports about others are forgotten.
    pub(super) fn begin(&mut self, identity: Identity, processes: BTreeSet<u32>) {
        let is_left = |of: Identity, pid: u32| of != identity || processes.contains(&pid);
        self.told.retain(|(of, pid, _)| is_left(*of, *pid));
        self.rearmed.retain(|(of, pid), _| is_left(*of, *pid));
        self.waiting = processes.into_iter().map(|pid| (pid, identity)).collect();
        self.last = Some(identity);
    }
}
