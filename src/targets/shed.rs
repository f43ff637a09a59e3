//! Takes probes out of all files of their target for a while, and puts them back.

use std::collections::BTreeSet;

use super::attached_file::Shed;
use super::worker::Worker;

impl Worker {
    /// Takes the probes out: all of their units.
    pub(super) fn take_out(&mut self, probes: Shed) {
        // Or the kernel could not lower them.
        self.raise_all_semaphores();
        let plan = self.plan.clone();
        let of = |probe: &usize| &plan.probes[*probe];
        for (target, planned) in plan.targets.iter().enumerate() {
            let here = planned.probes.iter().filter(|probe| probes.contains_key(probe));
            let units: BTreeSet<usize> = here.map(|probe| of(probe).unit).collect();
            if units.is_empty() {
                continue;
            }
            let state = &mut self.targets[target];
            state.files_mut().for_each(|file| file.shelve(&units, &plan, &mut self.cookies));
            // What was measured with them says nothing any more.
            state.meter.lately.clear();
        }
        // What has begun ends unseen: the next end at the same place is not its.
        let spans: BTreeSet<u32> = probes.keys().filter_map(|probe| Some(of(probe).span?.number)).collect();
        if !spans.is_empty() {
            self.status.add_expired(&self.kernel.forget_starts(&spans, plan.spans));
        }
        let touched = probes.keys().map(|probe| of(probe).target).collect();
        self.shed.extend(probes);
        self.publish_all(&touched);
    }

    /// Puts probes back that were taken out.
    pub(super) fn put_back(&mut self, probes: &BTreeSet<usize>) {
        let plan = self.plan.clone();
        self.shed.retain(|probe, _| !probes.contains(probe));
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
