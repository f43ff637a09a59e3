//! What the worker does when processes have changed, and periodically about changes that no event reports.

use std::time::{Duration, Instant};

use super::attached_file::AttachedFile;
use super::follow::ProcessChanges;
use super::manager::REST_INTERVAL;
use super::state::{TargetState, Written};
use super::worker::{WALK_INTERVAL, Worker};
use crate::kernel::KnownUnless;
use crate::selectors::{FileSelector, ProcessSelector, Selector};

/// How often container engines are asked for names, which can change without any process event.
const NAME_INTERVAL: Duration = Duration::from_secs(60);

impl Worker {
    /// Handles the targets whose processes have changed.
    pub(super) fn follow_processes(&mut self) {
        let changes = self.finder.follow();
        self.is_behind |= changes.has_lost;
        self.follow_changes(&changes);
        self.finder.release_waiting();
    }

    fn follow_changes(&mut self, changes: &ProcessChanges) {
        self.attacher.status.set_walks(self.finder.walks);
        let known: usize = self.targets.iter().map(|state| state.paths.len()).sum();
        self.look_for(changes);
        // Their processes must be reported from now on.
        if self.targets.iter().map(|state| state.paths.len()).sum::<usize>() != known {
            self.follow();
        }
    }

    fn look_for(&mut self, changes: &ProcessChanges) {
        let plan = self.plan.clone();
        for (target, planned) in plan.targets.iter().enumerate() {
            let Some(name) = planned.selector.executable_name() else { continue };
            let ended = changes.ended.iter().filter(|(of, _)| name.matches(of));
            let before = self.targets[target].paths.len();
            self.targets[target].paths.extend(ended.map(|(_, path)| (path.clone(), Instant::now())));
            if before < self.targets[target].paths.len() && !changes.targets.contains(&target) {
                self.look_at(target, planned);
            }
        }
        for target in &changes.targets {
            self.look_at(*target, &plan.targets[*target]);
        }
        for executed in &changes.executed {
            let Some(identity) = self.finder.file_of(executed) else { continue };
            if !executed.has_ended {
                self.raise_semaphores(executed.pid, identity);
                self.queue_code_check(executed.pid, identity);
            }
        }
        let without = self.settle_runs();
        for (pid, inode) in &changes.loaded {
            self.raise_loaded(*pid, *inode);
        }
        self.detach_killing_probes(changes);
        self.update_known_mappings(&changes.mapped);
        let states = &self.targets;
        let needs_semaphores = |identity| {
            let files = states.iter().flat_map(|state| &state.current);
            files.filter(|of| of.identity == identity).any(AttachedFile::has_semaphores_on_shared_pages)
        };
        // A target selected by command line or parent alone may match another process with the same file and name.
        let selectors = self.plan.targets.iter().map(|target| &target.selector.processes);
        let unless = |identity| {
            let lacking = || {
                let has = |state: &TargetState| state.current.iter().any(|of| of.identity == identity);
                states.iter().zip(selectors.clone()).filter(move |(state, _)| !has(state)).map(|(_, by)| by)
            };
            KnownUnless {
                line: lacking().any(ProcessSelector::is_by_line),
                child: lacking().any(|by| by.children),
            }
        };
        let (detacher, targets) = (&self.attacher.detacher, &self.targets);
        let is_waiting = |identity| {
            detacher.is_busy_with(identity)
                || without.contains(&identity)
                || targets.iter().any(|state| state.is_attaching(identity))
        };
        self.finder.update_known_files(changes, is_waiting, needs_semaphores, unless);
    }

    /// The periodic check, parts of which are done less often.
    pub(super) fn run_periodic_check(&mut self) {
        self.log_lost_children();
        let walk = self.last_walk.elapsed() >= WALK_INTERVAL;
        if walk || self.attacher.status.ticks().is_none() {
            self.measure_ticks();
        }
        if walk {
            self.last_walk = Instant::now();
            self.is_disturbed = false;
        }
        if walk || self.had_no_room() {
            self.sweep_starts();
        }
        self.look(walk);
    }

    /// Compares targets with the files that they match now: those selected by path, and those for which an event
    /// suggests changes. With `walk`, also what is rarely checked.
    pub(super) fn look(&mut self, walk: bool) {
        let plan = self.plan.clone();
        if walk {
            self.begin_walk();
        }
        self.follow_processes();
        for (target, planned) in plan.targets.iter().enumerate() {
            let state = &self.targets[target];
            let is_free = state.written.is_none_or(Written::is_due);
            let is_told = planned.selector.is_by_process() && self.finder.has_events();
            let may_differ = if is_told {
                state.written.is_some()
                    || state
                        .current
                        .iter()
                        .any(|of| of.wants_retry() || of.can_be_restored(&self.attacher.shed))
            } else {
                walk || !planned.selector.is_by_process()
            };
            if is_free && may_differ {
                self.look_at(target, planned);
            }
            if walk {
                self.drop_unused(target, planned);
            }
        }
        if walk {
            self.raise_all_semaphores();
            self.drop_candidates();
            self.finder.forget_runs();
            self.queue_code_checks();
            self.follow();
        }
        self.report_moved_code();
        if walk {
            self.check_code_in_turn();
        }
    }

    fn begin_walk(&mut self) {
        if !self.finder.has_events() || std::mem::take(&mut self.is_behind) {
            self.finder.begin_walk();
        }
        if !self.finder.has_events() || self.last_names.elapsed() >= NAME_INTERVAL {
            self.last_names = Instant::now();
            self.finder.refresh_container_names();
        }
        if self.finder.has_events() && self.last_lines.elapsed() >= REST_INTERVAL {
            self.last_lines = Instant::now();
            self.finder.reread_command_lines();
        }
        let by_process = self.selectors.iter().zip(&self.targets).filter(|(of, _)| of.is_by_process());
        let by_process: Vec<&TargetState> = by_process.map(|(_, state)| state).collect();
        let is_library = |of: &Selector| matches!(of.file, FileSelector::Library(_));
        if self.selectors.iter().any(is_library) || by_process.iter().any(|state| !state.usdt.is_empty()) {
            self.finder.reread_mappings();
        }
        let files = by_process.iter().flat_map(|state| &state.current);
        let unsure: Vec<_> = files.filter(|g| !g.is_as_it_was()).map(|g| g.identity).collect();
        self.finder.recheck(&unsure);
    }
}
