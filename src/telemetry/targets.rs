//! Metrics of targets, and of their discovery.

use super::Telemetry;
use crate::exposition::Families;
use crate::targets::{Foreign, Reattached};

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
            "fibre_exporter_foreign_mappings_total",
            "Mappings of a traced file by processes that do not run it but read it (as what copies it may) or \
             translate its code (Valgrind, QEMU's user mode); the breakpoints in them were removed.",
        );
        for (name, foreign) in names().zip(&counts.foreign) {
            for (kind, word) in Foreign::ALL {
                rows.number(&[("target", name), ("kind", word)], foreign[kind as usize]);
            }
        }
        let rows = to.counter(
            "fibre_exporter_unprobed_seconds_total",
            "Time that processes of the target ran before their file was attached, or ended without that; hits \
             in that time are not counted.",
        );
        for (name, unprobed) in names().zip(&counts.unprobed) {
            rows.number(&[("target", name)], unprobed.as_secs_f64());
        }
        let rows = to.counter(
            "fibre_exporter_breakpoints_thrown_away_total",
            "Breakpoints that processes discarded with pages of their code (madvise with MADV_DONTNEED), found \
             by periodic checks; they are set again, and hits in between are not counted.",
        );
        for (name, thrown_away) in names().zip(&counts.thrown_away) {
            rows.number(&[("target", name)], *thrown_away);
        }
        self.usage(to);
        to.counter(
            "fibre_exporter_process_scans_total",
            "Full scans of /proc: one at start, and one whenever process events were lost.",
        )
        .number(&[], counts.walks);
    }

    /// The cost of tracing, compared with the targets' own usage.
    fn usage(&self, to: &mut Families) {
        let usage = self.status.targets().usage;
        let named = || self.plan.targets.iter().map(|target| [("target", target.name.as_str())]).zip(&usage);
        let rows = to.counter(
            "fibre_exporter_target_cpu_seconds_total",
            "CPU time of the target's processes while they hit its probes, tracing included; without processes \
             that ended within a second.",
        );
        named().for_each(|(labels, usage)| rows.number(&labels, usage.cpu));
        let rows = to.counter(
            "fibre_exporter_target_tracing_seconds_total",
            "The part of fibre_exporter_target_cpu_seconds_total that was spent on tracing (an estimate).",
        );
        named().for_each(|(labels, usage)| rows.number(&labels, usage.tracing));
        let rows = to.gauge(
            "fibre_exporter_target_tracing_ratio",
            "Tracing's share of the target's CPU time in the last ten seconds (an estimate); absent if its \
             processes are not known.",
        );
        named().for_each(|(labels, usage)| {
            usage.share.into_iter().for_each(|share| rows.number(&labels, share))
        });
        let prices = self.prices;
        let source = if prices.is_measured { "measured" } else { "assumed" };
        let rows = to.gauge(
            "fibre_exporter_hit_cost_seconds",
            "Time that a hit takes at least, by the form of the probed instruction; measured at start on code \
             of the exporter's own, or assumed.",
        );
        for (form, seconds) in [
            ("emulated", prices.emulated),
            ("single_stepped", prices.single_stepped),
            ("trampoline", prices.trampoline),
        ] {
            rows.number(&[("form", form), ("source", source)], seconds);
        }
    }
}
