//! How long runs of programs went without a target's probes because they began before these were in their file.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::file::Identity;
use super::find::Finder;
use super::runs::{Program, Run, Runs};
use super::state::TargetState;
use super::worker::Worker;
use crate::clock::monotonic_now;
use crate::kernel::MAX_HOLD;
use crate::plan::TargetPlan;
use crate::selectors::FileSelector;

/// Runs that are over and not settled; beyond that, the oldest are counted as lost events.
const MAX_OVER: usize = 4096;

/// What the kernel appends to the path of a file that was removed.
const REMOVED: &str = " (deleted)";

impl Finder {
    /// Notes the processes that a scan has found, and that may have become the targets' since a time: because events were
    /// lost then, or because they have overwritten their command lines.
    pub(super) fn begin_runs_since(&mut self, since: u64, found: &[u32]) {
        let is_over = |pid: &&u32| self.processes.get(**pid).is_none();
        let over: Vec<u32> = self.runs.open.keys().filter(is_over).copied().collect();
        over.into_iter().for_each(|pid| self.runs.end(pid, monotonic_now()));
        for &pid in found {
            let Ok(file) = self.of_process(pid) else { continue };
            let (targets, program) = (self.processes.targets_of(pid), Program::Examined(file.display.into()));
            let run = Run {
                pid,
                identity: file.identity,
                program,
                targets,
                from: since,
                until: None,
                is_held: false,
            };
            if !self.runs.open.contains_key(&pid) {
                self.runs.begin(run);
            }
        }
    }
}

impl Worker {
    /// Counts how long runs went without probes, as far as that is certain by now. Returns the files of those that did: it
    /// must be reported who executes them next.
    pub(super) fn settle_runs(&mut self) -> BTreeSet<Identity> {
        let plan = self.plan.clone();
        let mut without = BTreeSet::new();
        let Runs { open, over } = std::mem::take(&mut self.finder.runs);
        for mut run in over.into_iter().chain(open.into_values()) {
            let mut targets = std::mem::take(&mut run.targets);
            targets.retain(|target| match self.missed(&run, *target, &plan.targets[*target]) {
                Some(missed) => {
                    self.attacher.status.add_unprobed(*target, missed);
                    false
                }
                None => true,
            });
            let is_known = |target: &TargetState| {
                target.files().any(|file| file.identity == run.identity && !file.is_attaching())
            };
            if !targets.is_empty() || run.until.is_some() && !self.targets.iter().any(is_known) {
                without.insert(run.identity);
            }
            // It is let go now.
            self.finder.runs.begin(Run { targets, is_held: false, ..run });
        }
        let excess = self.finder.runs.over.len().saturating_sub(MAX_OVER);
        self.finder.runs.over.drain(..excess);
        self.finder.lost_events += excess as u64;
        without
    }

    /// How long the run went without the target's probes, in nanoseconds; None while that may change.
    fn missed(&mut self, run: &Run, target: usize, planned: &TargetPlan) -> Option<u64> {
        // What a process loads is reported separately.
        let is_library = matches!(planned.selector.file, FileSelector::Library(_));
        let is_examined = !matches!(run.program, Program::Unexamined(_));
        if planned.probes.is_empty() || is_library && is_examined {
            return Some(0);
        }
        let is_it = |of: Identity| of == run.identity;
        let is_known = self.targets[target].files().any(|file| is_it(file.identity));
        if let Some(path) = planned.selector.path()
            && !is_known
        {
            let is_at = match &run.program {
                Program::Known => false,
                Program::Examined(executed) | Program::Unexamined(Some(executed)) => is_at(path, executed),
                Program::Unexamined(None) => true,
            };
            if self.finder.look_at(path, String::new()).is_ok_and(|here| is_it(here.identity)) {
                // It may not have been reported yet that it is there.
                self.look_at(target, planned);
            } else if !is_at {
                return Some(0);
            }
        }
        let state = &self.targets[target];
        let since = |until: u64| until.saturating_sub(run.from);
        match state.files().find(|file| is_it(file.identity)) {
            Some(file) if file.is_attaching() => None,
            Some(file) if file.is_attached() => {
                let missed = since(run.until.map_or(file.attached_at, |until| until.min(file.attached_at)));
                let has_waited = run.is_held && Duration::from_nanos(missed) < MAX_HOLD;
                Some(if has_waited { 0 } else { missed })
            }
            // Its probes' states say why.
            Some(file) if !file.wants_retry() => Some(0),
            Some(_) => run.until.map(since),
            None if matches!(run.program, Program::Known) => Some(0),
            None if state.written.is_some() => None,
            None => run.until.map(since),
        }
    }
}

/// Whether a file that was executed as `executed` was at the path.
fn is_at(path: &Path, executed: &Path) -> bool {
    let executed =
        executed.to_str().map_or(executed, |text| Path::new(text.strip_suffix(REMOVED).unwrap_or(text)));
    let real = |path: &Path| {
        let directory = path.parent().and_then(|directory| directory.canonicalize().ok());
        directory.zip(path.file_name()).map(|(directory, name)| directory.join(name))
    };
    executed == path
        || path.canonicalize().is_ok_and(|path| path == executed)
        || real(path).is_some_and(|path| real(executed) == Some(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removed_file_was_at_its_path() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&at, at.join("link")).unwrap();
        std::os::unix::fs::symlink("app-2", at.join("app")).unwrap();
        std::fs::write(at.join("app-2"), "").unwrap();
        assert!(is_at(&at.join("app"), &at.join("link/app")) && is_at(&at.join("app"), &at.join("app-2")));
        assert!(is_at(&at.join("gone"), &at.join("gone (deleted)")));
        assert!(
            !is_at(&at.join("gone"), &at.join("app")) && !is_at(&at.join("gone/app"), &at.join("other/app"))
        );
    }
}
