//! When it is looked at again what processes have made of their code: nothing tells of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::file::Identity;
use super::worker::Worker;

/// It takes no more than one part in so many of the time.
const SHARE: u32 = 4000;

/// Processes that are looked at without a pause.
const AT_ONCE: usize = 16;

/// So often breakpoints of one process are set again: each time its semaphores are raised once more, and only lowered once.
const REARMED: u32 = 1000;

/// What was found of a process's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Finding {
    Replaced,
    Written,
    ThrownAway,
}

/// Whose turn it is, and what was told.
#[derive(Debug)]
pub(super) struct CodeChecks {
    due: Instant,
    /// Processes that have the file.
    waiting: Vec<(u32, Identity)>,
    last: Option<Identity>,
    told: BTreeSet<(Identity, u32, Finding)>,
    rearmed: BTreeMap<(Identity, u32), u32>,
}

impl CodeChecks {
    pub(super) fn new() -> Self {
        Self {
            due: Instant::now(),
            waiting: Vec::new(),
            last: None,
            told: BTreeSet::new(),
            rearmed: BTreeMap::new(),
        }
    }

    /// Whether it is told for the first time.
    pub(super) fn is_new(&mut self, pid: u32, identity: Identity, finding: Finding) -> bool {
        self.told.insert((identity, pid, finding))
    }

    pub(super) fn may_rearm(&mut self, pid: u32, identity: Identity) -> bool {
        let times = self.rearmed.entry((identity, pid)).or_default();
        *times = times.saturating_add(1);
        *times <= REARMED
    }

    /// The processes that have a file now; what was told of others is forgotten.
    fn begin(&mut self, identity: Identity, processes: BTreeSet<u32>) {
        let is_left = |of: Identity, pid: u32| of != identity || processes.contains(&pid);
        self.told.retain(|(of, pid, _)| is_left(*of, *pid));
        self.rearmed.retain(|(of, pid), _| is_left(*of, *pid));
        self.waiting = processes.into_iter().map(|pid| (pid, identity)).collect();
        self.last = Some(identity);
    }
}

impl Worker {
    /// One file after the other, and a few processes of it at a time.
    pub(super) fn check_code_in_turn(&mut self) {
        if Instant::now() < self.code_checks.due {
            return;
        }
        let begun = Instant::now();
        if self.code_checks.waiting.is_empty() {
            let attached = self.targets.iter().flat_map(|state| &state.current).filter(|of| of.is_attached());
            let files: BTreeSet<Identity> = attached.map(|of| of.identity).collect();
            let after = files.iter().find(|of| self.code_checks.last.is_none_or(|last| **of > last));
            let Some(next) = after.or(files.first()).copied() else { return };
            let mut processes = self.finder.mapping(next);
            processes.remove(&std::process::id());
            self.code_checks.begin(next, processes);
        }
        for _ in 0..AT_ONCE {
            let Some((pid, identity)) = self.code_checks.waiting.pop() else { break };
            self.tell_if_moved(pid, identity);
        }
        let used = begun.elapsed();
        self.code_checks.due = begun + used.saturating_mul(SHARE).max(Duration::from_secs(1));
    }
}
