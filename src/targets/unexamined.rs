//! Counts the time of processes that ended before their file was attached: nothing of them was counted, and without this nothing
//! would say so.

use std::path::Path;

use super::file::Identity;
use super::find::Finder;
use super::follow::Executed;
use super::worker::Worker;
use crate::kernel::{ProcessChange, ProcessEvent};
use crate::selectors::FileSelector;

/// A run of a program that could not be examined.
#[derive(Debug, Clone)]
pub struct UnexaminedRun {
    /// The targets that may select the process.
    pub targets: Vec<usize>,
    pub identity: Identity,
    /// When it began and ended, by `CLOCK_MONOTONIC`, in nanoseconds.
    pub from: u64,
    pub until: u64,
}

impl Finder {
    /// Notes a process that has executed a file and cannot be examined any more. `path` leads to the file.
    pub(super) fn note_unexamined(&mut self, event: &ProcessEvent, path: Option<&Path>) {
        let ProcessChange::Executed { file, path: executed, parent, cgroup, time, .. } = &event.change else {
            return;
        };
        let here = path.and_then(|path| self.look_at(path, String::new()).ok());
        let identity = here.map_or_else(|| file.file.unstacked(), |here| here.identity);
        let real = path.and_then(|path| path.canonicalize().ok());
        let name = real.as_deref().unwrap_or(executed).file_name().unwrap_or_default();
        let comm = file.comm.split(|byte| *byte == 0).next().unwrap_or_default();
        let names = [String::from_utf8_lossy(comm).into_owned(), name.to_string_lossy().into_owned()];
        let targets = self.processes.targets_of_unexamined(event.pid, *parent, names, *cgroup);
        self.unexamined.insert(event.pid, UnexaminedRun { targets, identity, from: *time, until: *time });
    }

    /// The run of the process, if it was noted, which has ended at this time.
    pub(super) fn end_unexamined(&mut self, pid: u32, time: u64) -> Option<UnexaminedRun> {
        self.unexamined.remove(&pid).map(|run| UnexaminedRun { until: time, ..run })
    }
}

impl Worker {
    /// Notes a process that could be examined, but ended before its file was attached; returns whether that is so.
    pub(super) fn note_gone(&mut self, executed: &Executed, identity: Identity) -> bool {
        let is_unknown = |target: &usize| {
            let is_known = self.targets[*target].files().any(|file| file.identity == identity);
            !is_known && self.plan.targets[*target].selector.file == FileSelector::Executable
        };
        let targets = self.finder.processes.targets_of(executed.pid);
        let targets: Vec<usize> = targets.into_iter().filter(is_unknown).collect();
        let is_gone = !targets.is_empty();
        if is_gone {
            let run = UnexaminedRun { targets, identity, from: executed.time, until: executed.time };
            self.finder.unexamined.insert(executed.pid, run);
        }
        is_gone
    }

    /// Counts how long it ran without probes. Its file, if it is still there, has been attached by now.
    pub(super) fn count_unexamined(&mut self, run: &UnexaminedRun) {
        let plan = self.plan.clone();
        for target in &run.targets {
            let selector = &plan.targets[*target].selector;
            let is_it = |of: Identity| of == run.identity;
            // Its replacement may not have been reported yet.
            if selector.path().is_some() && !self.targets[*target].files().any(|file| is_it(file.identity)) {
                self.look_at(*target, &plan.targets[*target]);
            }
            let until = match self.targets[*target].files().find(|file| is_it(file.identity)) {
                Some(file) if file.is_attached() => file.attached_at.min(run.until),
                // Its probes' states say why.
                Some(file) if !file.is_attaching() => continue,
                _ => match selector.path() {
                    Some(path)
                        if !self.finder.look_at(path, String::new()).is_ok_and(|of| is_it(of.identity)) =>
                    {
                        continue;
                    }
                    _ => run.until,
                },
            };
            self.status.add_unprobed(*target, until.saturating_sub(run.from));
        }
    }
}
