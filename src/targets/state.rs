//! The files of one target, and what keeps it from having any.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::attached_file::AttachedFile;
use super::file::{Identity, TargetFile};
use super::status::{Reattached, TargetsStatus};
use super::usage::Meter;
use crate::kernel::{Filter, Kernel};

/// The files of one target.
#[derive(Debug, Default)]
pub(super) struct TargetState {
    pub(super) current: Vec<AttachedFile>,
    /// Replaced, but still run by a process.
    pub(super) replaced: Vec<AttachedFile>,
    /// Files without any of the probes that ran recently: they need not be read again.
    pub(super) without_probes: Vec<AttachedFile>,
    /// Not the target's yet: beside its file, or where one of its libraries may be loaded from.
    pub(super) candidates: Vec<Candidate>,
    /// Since when the target waits for a file that is being written.
    pub(super) written: Option<Written>,
    /// When a lease was last broken.
    pub(super) broken: Option<Instant>,
    pub(super) missing: Option<String>,
    /// Such reasons that were logged since the target last had files, without digits.
    pub(super) told: BTreeSet<String>,
    pub(super) remarks: Vec<String>,
    /// The paths of the executables of a target that is selected by name, as far as they are reachable in this mount
    /// namespace, and when one was last seen running from there.
    pub(super) paths: BTreeMap<PathBuf, Instant>,
    /// What was attached under each file name, and whether the name led to it in this mount namespace.
    pub(super) identities: HashMap<(String, bool), Identity>,
    pub(super) filter: Option<Filter>,
    /// The number of the scan whose descendants the kernel knows.
    pub(super) family_walk: Option<u64>,
    pub(super) editions: u32,
    /// When processes were killed by breakpoints unknown to the kernel, and the files they ran.
    pub(super) trapped: Vec<(Identity, Instant)>,
    /// The start time of its single process, according to a previous exporter.
    pub(super) began: u64,
    /// Its USDT probes, as `provider:name`.
    pub(super) usdt: Vec<String>,
    pub(super) meter: Meter,
}

/// Files without probes that are remembered for one target.
const MAX_WITHOUT_PROBES: usize = 64;

/// File names that are remembered for one target.
const MAX_FILE_NAMES: usize = 1024;

/// The maximum number of remembered paths of a target's executables from which nothing runs: programs may be built and
/// run in ever new directories.
const IDLE_PATHS: usize = 64;

/// A path from which something was seen running within this time is not idle. Longer than the interval at which files
/// are checked while nothing happens.
const IDLE: Duration = Duration::from_secs(60);

impl TargetState {
    /// Forgets the paths from which nothing has run for the longest time, if there are many.
    pub(super) fn forget_paths(&mut self) {
        if self.paths.len() <= IDLE_PATHS {
            return;
        }
        let mut idle: Vec<_> = self.paths.iter().map(|(path, at)| (*at, path.clone())).collect();
        idle.retain(|(at, _)| at.elapsed() > IDLE);
        idle.sort_unstable();
        let most = idle.len().saturating_sub(IDLE_PATHS);
        for (_, path) in &idle[..most] {
            self.paths.remove(path);
        }
    }

    /// Counts a file that is attached in place of another, or again. `is_here`: its name leads to it in this mount namespace,
    /// where only one file can have the name. Elsewhere, a file of the same name in another container replaces nothing.
    pub(super) fn count_attached(&mut self, at: usize, target: usize, status: &TargetsStatus, is_here: bool) {
        let new_file = &self.current[at];
        if !new_file.is_attached() {
            return;
        }
        if self.identities.len() >= MAX_FILE_NAMES {
            self.identities.clear();
        }
        match self.identities.insert((new_file.display.clone(), is_here), new_file.identity) {
            Some(before) if before == new_file.identity => status.add_reattached(target, Reattached::Written),
            Some(before) if !is_here && self.current.iter().any(|other| other.identity == before) => {}
            Some(_) => status.add_reattached(target, Reattached::Replaced),
            None => {}
        }
    }

    /// Notes that no selected process runs the file, or that it was replaced.
    pub(super) fn leave(&mut self, mut old: AttachedFile, is_replaced: bool, target: &str) {
        if old.is_attached() {
            if is_replaced {
                log::info!("Target {target}: {} was replaced", old.display);
            }
            old.leave(is_replaced);
            self.replaced.push(old);
        } else if !old.wants_retry() {
            if self.without_probes.len() >= MAX_WITHOUT_PROBES {
                self.without_probes.remove(0);
            }
            // A file without probes may be overwritten.
            old.lease = None;
            self.without_probes.push(old);
        }
    }

    /// The attached probes of a file that runs again, or is back at its path, as when an upgrade is undone.
    pub(super) fn take_back(&mut self, file: &TargetFile) -> Option<AttachedFile> {
        let is_it = |old: &AttachedFile| {
            old.identity == file.identity && (old.stamp == file.stamp || old.is_as_it_was())
        };
        let at = |all: &[AttachedFile]| all.iter().position(is_it);
        let mut old = match (at(&self.replaced), at(&self.without_probes)) {
            (Some(at), _) => self.replaced.swap_remove(at),
            (None, Some(at)) => self.without_probes.swap_remove(at),
            (None, None) => return None,
        };
        old.come_back();
        old.stamp = file.stamp;
        Some(old)
    }

    /// Whether the file is attached, or need not be.
    pub(super) fn knows(&self, identity: Identity) -> bool {
        let all = self.current.iter().chain(&self.replaced).chain(&self.without_probes);
        all.into_iter().any(|of| of.identity == identity)
    }

    /// Whether a thread is attaching the file, of which processes run.
    pub(super) fn is_attaching(&self, identity: Identity) -> bool {
        self.current.iter().any(|of| of.identity == identity && of.is_attaching())
    }

    /// All files that may be attached.
    pub(super) fn files(&self) -> impl Iterator<Item = &AttachedFile> {
        let candidates = self.candidates.iter().map(|candidate| &candidate.attached);
        self.current.iter().chain(&self.replaced).chain(&self.without_probes).chain(candidates)
    }

    /// The same.
    pub(super) fn files_mut(&mut self) -> impl Iterator<Item = &mut AttachedFile> {
        let candidates = self.candidates.iter_mut().map(|candidate| &mut candidate.attached);
        let files = self.current.iter_mut().chain(&mut self.replaced).chain(&mut self.without_probes);
        files.chain(candidates)
    }

    /// The candidate that is this file, which has become the target's.
    pub(super) fn admit(&mut self, kernel: &Kernel, file: &TargetFile) -> Option<AttachedFile> {
        let is_it = |candidate: &Candidate| candidate.attached.identity == file.identity;
        let at = self.candidates.iter().position(is_it)?;
        let mut attached = self.candidates.swap_remove(at).attached;
        attached.admit(kernel, file);
        Some(attached)
    }
}

/// Since when a target waits for a file that is being written, and until when it is not checked again without an event.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written {
    pub(super) since: Instant,
    pub(super) free_until: Instant,
}

impl Written {
    pub(super) fn now() -> Self {
        let now = Instant::now();
        Self { since: now, free_until: now }
    }

    pub(super) fn is_due(self) -> bool {
        self.free_until <= Instant::now()
    }
}

/// A file that may become the target's, attached in advance.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) attached: AttachedFile,
    /// It stays as long as this path leads to it.
    pub(super) path: Option<PathBuf>,
    pub(super) since: Instant,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_of_idle_paths_is_bounded() {
        let Some(long_ago) = Instant::now().checked_sub(IDLE * 2) else { return };
        let mut state = TargetState::default();
        let path = |n: u32| PathBuf::from(format!("/build/{n:03}/program"));
        let at = |n: u32| {
            if n.is_multiple_of(2) { Instant::now() } else { long_ago + Duration::from_millis(n.into()) }
        };
        state.paths.extend((0..400).map(|n| (path(n), at(n))));
        state.forget_paths();
        assert_eq!(state.paths.len(), 200 + IDLE_PATHS);
        assert!((0..400).step_by(2).all(|n| state.paths.contains_key(&path(n))), "these run");
        assert!(state.paths.contains_key(&path(399)) && !state.paths.contains_key(&path(1)));
    }
}
