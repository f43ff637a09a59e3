//! Sheds probes, in all files of their target, and restores them.

use std::collections::BTreeSet;
use std::sync::mpsc::{SyncSender, TryRecvError, sync_channel};

use super::attached_file::Shed;
use super::detacher::Shedding;
use super::worker::Worker;

impl Worker {
    /// Sheds the probes with their whole units. `done` is signaled afterwards.
    pub(super) fn shed(&mut self, probes: Shed, done: SyncSender<()>) {
        // Detaching lowers every semaphore: those that are not raised yet are raised first.
        self.raise_all_semaphores();
        let plan = self.plan.clone();
        let of = |probe: &usize| &plan.probes[*probe];
        let mut leaving_files = Vec::new();
        for (target, planned) in plan.targets.iter().enumerate() {
            let here = planned.probes.iter().filter(|probe| probes.contains_key(probe));
            let units: BTreeSet<usize> = here.map(|probe| of(probe).unit).collect();
            if units.is_empty() {
                continue;
            }
            let state = &mut self.targets[target];
            leaving_files.extend(state.files_mut().map(|file| file.shelve(&units, &plan)));
            // What was measured with them is obsolete.
            state.meter.lately.clear();
        }
        let spans = probes.keys().filter_map(|probe| Some(of(probe).span?.number)).collect();
        let targets = probes.keys().map(|probe| of(probe).target).collect();
        let (tell, out) = sync_channel(1);
        self.shedding.push(Shedding { out, targets, spans, done });
        self.attacher.detacher.detach_and_signal(leaving_files, tell);
        self.attacher.shed.extend(probes);
    }

    /// After detaching: the counts of shed probes stop, and open starts can end unseen, so the next end at the same
    /// place is not theirs.
    pub(super) fn end_shedding(&mut self) {
        let is_out = |shedding: &mut Shedding| shedding.out.try_recv() != Err(TryRecvError::Empty);
        for Shedding { targets, spans, done, .. } in self.shedding.extract_if(.., is_out).collect::<Vec<_>>()
        {
            if !spans.is_empty() {
                self.attacher
                    .status
                    .add_expired(&self.attacher.kernel.forget_starts(&spans, self.plan.spans));
            }
            self.publish_all(&targets);
            let _ = done.try_send(());
        }
    }

    /// Restores shed probes.
    pub(super) fn restore(&mut self, probes: &BTreeSet<usize>) {
        let plan = self.plan.clone();
        self.attacher.shed.retain(|probe, _| !probes.contains(probe));
        let touched: BTreeSet<usize> = probes.iter().map(|probe| plan.probes[*probe].target).collect();
        for target in &touched {
            self.targets[*target].meter.lately.clear();
            self.look_at(*target, &plan.targets[*target]);
        }
        self.publish_all(&touched);
    }

    fn publish_all(&self, targets: &BTreeSet<usize>) {
        for target in targets {
            self.publish(*target, &self.plan.targets[*target]);
        }
    }
}
