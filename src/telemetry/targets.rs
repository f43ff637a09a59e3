//! Targets, and how they were found.

use super::Telemetry;
use crate::exposition::Families;
use crate::targets::Reattached;

impl Telemetry {
    pub(super) fn targets(&self, to: &mut Families) {
        let counts = self.status.targets();
        let names = || self.plan.targets.iter().map(|target| target.name.as_str());
        let rows = to.counter(
            "fibre_exporter_reattach_total",
            "Files that were attached to in place of another of that name (replaced), or again after they were written.",
        );
        for (name, reattached) in names().zip(&counts.reattached) {
            for (reason, word) in Reattached::ALL {
                rows.number(&[("target", name), ("reason", word)], reattached[reason as usize]);
            }
        }
        let rows = to.counter(
            "fibre_exporter_unprobed_seconds_total",
            "Time that processes ran before their file was attached to; what they did in it is not counted.",
        );
        for (name, unprobed) in names().zip(&counts.unprobed) {
            rows.number(&[("target", name)], unprobed.as_secs_f64());
        }
        to.counter(
            "fibre_exporter_process_scans_total",
            "How often all processes were looked at: once, unless events of processes are not told or were lost.",
        )
        .number(&[], counts.walks);
    }
}
