//! Files to which threads of their own attach; see `attach_job.rs`.

use std::path::Path;

use super::announce::announce;
use super::attached_file::{AttachContext, AttachedFile, News};
use super::find::Finder;
use super::manager::Task;
use super::state::TargetState;
use super::status::TargetsStatus;
use super::worker::Worker;
use crate::plan::{Plan, TargetPlan};

impl Worker {
    /// Whether a thread is attaching a file.
    pub(super) fn is_attaching(&self) -> bool {
        self.targets.iter().flat_map(TargetState::files).any(AttachedFile::is_attaching)
    }

    /// Whether a thread is attaching a file with which the task is to do something.
    pub(super) fn is_attaching_for(&self, task: &Task) -> bool {
        let is_of = |target: usize| {
            let mut planned = self.plan.targets[target].probes.iter();
            match task {
                Task::Retire(probes) | Task::Restore(probes) => planned.any(|probe| probes.contains(probe)),
                Task::Shed(probes) => planned.any(|probe| probes.contains_key(probe)),
                Task::Wait => true,
            }
        };
        let mut all = self.targets.iter().enumerate();
        all.any(|(target, state)| is_of(target) && state.files().any(AttachedFile::is_attaching))
    }

    /// Records what threads have attached.
    pub(super) fn finish_attaching(&mut self) {
        let plan = self.plan.clone();
        for target in self.record_attached() {
            self.look_at(target, &plan.targets[target]);
            self.publish(target, &plan.targets[target]);
        }
    }

    /// Returns the targets of what threads have attached.
    fn record_attached(&mut self) -> Vec<usize> {
        let plan = self.plan.clone();
        let mut finished = Vec::new();
        for (target, planned) in plan.targets.iter().enumerate() {
            let context = AttachContext { attacher: &self.attacher, plan: &self.plan, target: planned };
            let files = self.targets[target].files_mut();
            finished
                .extend(files.filter_map(|file| file.finish(context, &mut self.cookies).then_some(target)));
        }
        finished.dedup();
        finished
    }

    /// Waits for the threads: links that are to outlive the exporter have to be pinned.
    pub(super) fn wait_for_links(&mut self) {
        self.targets.iter_mut().flat_map(TargetState::files_mut).for_each(AttachedFile::wait);
        self.record_attached();
    }
}

impl TargetState {
    /// Logs and counts what has been attached; returns whether there is anything new.
    pub(super) fn announce(
        &mut self,
        plan: &Plan,
        planned: &TargetPlan,
        status: &TargetsStatus,
        target: usize,
        elsewhere: bool,
        finder: &mut Finder,
    ) -> bool {
        let news: Vec<News> = self.current.iter_mut().map(AttachedFile::take_news).collect();
        let mut any = false;
        for (at, news) in news.into_iter().enumerate().filter(|(_, news)| *news != News::None) {
            if news == News::Attached {
                let file = &self.current[at];
                let named = finder.look_at(Path::new(&file.display), String::new());
                let is_here = named.is_ok_and(|named| named.identity == file.identity);
                self.count_attached(at, target, status, is_here);
            }
            announce(plan, planned, &self.current[at], elsewhere);
            any = true;
        }
        any
    }
}
