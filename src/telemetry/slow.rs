//! Metrics of slow events: their outcome, and where they are stored.

use super::Telemetry;
use crate::exposition::Families;
use crate::kernel::{SLOW_LOST, SlowCounts};
use crate::webhook::DROPPED;

impl Telemetry {
    /// Present only if a probe records slow events.
    pub(super) fn slow(&self, to: &mut Families) {
        let Some(numbers) = &self.slow else { return };
        let counted = |(number, probe): (usize, &crate::plan::ProbePlan)| {
            let target = self.plan.targets[probe.target].name.clone();
            Some((target, probe.name.clone(), self.counts.slow(number)?))
        };
        let all: Vec<_> = self.plan.probes.iter().enumerate().filter_map(counted).collect();
        type Column = (&'static str, &'static str, fn(&SlowCounts) -> u64);
        let columns: [Column; 3] = [
            (
                "fibre_exporter_slow_events_total",
                "Slow events: exactly kept + outdone + lost + fibre_exporter_slow_events_waiting and those still in the ring buffer.",
                |counts| counts.seen,
            ),
            (
                "fibre_exporter_slow_events_kept_total",
                "Slow events written to the file; later ones replace the oldest.",
                |counts| counts.kept,
            ),
            (
                "fibre_exporter_slow_events_outdone_total",
                "Slow events that were among the worst of the hour only until larger ones came, before they were written.",
                |counts| counts.outdone,
            ),
        ];
        for (name, help, column) in columns {
            let rows = to.counter(name, help);
            for (target, probe, counts) in &all {
                rows.number(&[("target", target), ("probe", probe)], column(counts));
            }
        }
        let rows =
            to.counter("fibre_exporter_slow_events_lost_total", "Slow events that were not kept, by reason.");
        for (target, probe, counts) in &all {
            for (reason, lost) in SLOW_LOST.iter().zip(counts.lost) {
                rows.number(&[("target", target), ("probe", probe), ("reason", reason)], lost);
            }
        }
        to.gauge("fibre_exporter_slow_events_waiting", "Slow events that wait to be written.")
            .number(&[], numbers.waiting);
        to.counter(
            "fibre_exporter_slow_events_related_lost_total",
            "Events of other probes that were not considered for slow events, because there were too many at once.",
        )
        .number(&[], numbers.related_lost);
        to.gauge("fibre_exporter_slow_events_stored", "Events in the file.").number(&[], numbers.rows);
        to.gauge("fibre_exporter_slow_events_file_bytes", "Size of the file of slow events.")
            .number(&[], numbers.bytes);
        to.gauge("fibre_exporter_slow_events_writable", "Whether the last write to the file succeeded.")
            .number(&[], u64::from(!numbers.failing));
        let Some(webhook) = &numbers.webhook else { return };
        to.counter(
            "fibre_exporter_webhook_events_total",
            "Slow events for the webhook: exactly sent + dropped + fibre_exporter_webhook_events_waiting.",
        )
        .number(&[], webhook.events);
        to.counter(
            "fibre_exporter_webhook_events_sent_total",
            "Slow events that the webhook's receiver has accepted.",
        )
        .number(&[], webhook.sent);
        let rows = to.counter(
            "fibre_exporter_webhook_events_dropped_total",
            "Slow events that were not sent to the webhook, by reason; the file has them.",
        );
        for (reason, dropped) in DROPPED.iter().zip(webhook.dropped) {
            rows.number(&[("reason", reason)], dropped);
        }
        to.gauge("fibre_exporter_webhook_events_waiting", "Slow events that wait to be sent to the webhook.")
            .number(&[], webhook.waiting);
        to.counter(
            "fibre_exporter_webhook_requests_failed_total",
            "Requests to the webhook that failed or were not accepted.",
        )
        .number(&[], webhook.failed_requests);
    }
}
