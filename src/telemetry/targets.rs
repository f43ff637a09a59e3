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
            "Files attached again, because the file was replaced or because it was written in place.",
        );
        for (name, reattached) in names().zip(&counts.reattached) {
            for (reason, word) in Reattached::ALL {
                rows.number(&[("target", name), ("reason", word)], reattached[reason as usize]);
            }
        }
        let rows = to.counter(
            "fibre_exporter_unprobed_seconds_total",
            "Time that processes of the target ran before their file was attached; hits in that time are not \
             counted.",
        );
        for (name, unprobed) in names().zip(&counts.unprobed) {
            rows.number(&[("target", name)], unprobed.as_secs_f64());
        }
        to.counter(
            "fibre_exporter_process_scans_total",
            "Full scans of /proc: one at start, and one whenever process events were lost.",
        )
        .number(&[], counts.walks);
    }
}
