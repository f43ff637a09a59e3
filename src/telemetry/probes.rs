//! Each probe, and what became of its hits.

use std::sync::PoisonError;

use super::Telemetry;
use crate::abi::accounting_slot;
use crate::exposition::Families;
use crate::kernel::{Accounting, LOST, Sweep};
use crate::plan::{ProbePlan, SpanEnd, SpanPlan};

impl Telemetry {
    pub(super) fn probes(&self, to: &mut Families) {
        let states = self.status.probes();
        let accounting: Vec<Accounting> = (0..states.len())
            .map(|probe| Accounting::of(|which| self.counts.accounting(probe, which)))
            .collect();
        let each = || {
            self.plan.probes.iter().enumerate().map(|(n, probe)| {
                [("target", self.plan.targets[probe.target].name.as_str()), ("probe", probe.name.as_str())]
                    .map(move |l| (n, l))
            })
        };
        let labels: Vec<[(&str, &str); 2]> = each().map(|both| both.map(|(_, label)| label)).collect();
        let attached = states.iter().filter(|probe| probe.state.is_attached()).count();
        to.gauge("fibre_exporter_probes_attached", "Probes that are attached.").number(&[], attached as u64);
        to.gauge("fibre_exporter_probes_configured", "Probes that the configuration asks for.")
            .number(&[], states.len() as u64);

        let rows = to.gauge(
            "fibre_exporter_probe_attached",
            "Whether the probe is attached, if not at all of its sites.",
        );
        for (labels, probe) in labels.iter().zip(&states) {
            rows.number(labels, u64::from(probe.state.is_attached()));
        }
        let rows = to.gauge(
            "fibre_exporter_probe_state",
            "The probe's state, and why it is not attached, or not everywhere; always 1.",
        );
        for (labels, probe) in labels.iter().zip(&states) {
            let state = [("state", probe.state.word()), ("reason", probe.state.reason())];
            rows.number(&[&labels[..], &state].concat(), 1u64);
        }
        let rows = to.gauge("fibre_exporter_probe_sites", "Places at which the probe is attached.");
        for (labels, probe) in labels.iter().zip(&states) {
            rows.number(labels, probe.sites as u64);
        }
        let rows = to.gauge(
            "fibre_exporter_probe_sites_refused",
            "Places of the probe at which it is not attached; the reason is in fibre_exporter_probe_state.",
        );
        for (labels, probe) in labels.iter().zip(&states) {
            rows.number(labels, probe.refused as u64);
        }
        type Column = (&'static str, &'static str, fn(&Accounting) -> u64);
        let columns: [Column; 4] = [
            (
                "fibre_exporter_probe_hits_total",
                "Hits that were dealt with: aggregated + delivered + filtered + lost, exactly.",
                |accounting| accounting.hits,
            ),
            (
                "fibre_exporter_probe_aggregated_total",
                "Hits whose metrics were all updated in the kernel.",
                |accounting| accounting.aggregated,
            ),
            ("fibre_exporter_probe_delivered_total", "Hits that went whole to user space.", |accounting| {
                accounting.delivered
            }),
            ("fibre_exporter_probe_filtered_total", "Hits of processes not asked for.", |accounting| {
                accounting.filtered
            }),
        ];
        for (name, help, column) in columns {
            let rows = to.counter(name, help);
            for (labels, accounting) in labels.iter().zip(&accounting) {
                rows.number(labels, column(accounting));
            }
        }
        let rows = to.counter("fibre_exporter_probe_lost_total", "Hits that some metric misses, by reason.");
        for (probe, labels) in labels.iter().enumerate() {
            for (reason, which) in LOST {
                let lost = self.counts.accounting(probe, *which);
                rows.number(&[&labels[..], &[("reason", reason)]].concat(), lost);
            }
        }
        let rows =
            to.gauge("fibre_exporter_probe_hits_in_flight", "Hits that are being dealt with at this moment.");
        for (labels, accounting) in labels.iter().zip(&accounting) {
            rows.number(labels, accounting.in_flight);
        }
        let rows = to.counter(
            "fibre_exporter_probe_read_faults_total",
            "Hits of which a value could not be read from the application's memory.",
        );
        for (probe, labels) in labels.iter().enumerate() {
            rows.number(labels, self.counts.accounting(probe, accounting_slot::ACCT_READ_FAULTS));
        }
        if let Some(ticks) = self.status.ticks() {
            let rows = to.gauge(
                "fibre_exporter_probe_last_hit_timestamp_seconds",
                "When the probe was hit last, in seconds since 1970, to about 10 ms; absent before the first hit.",
            );
            for (probe, labels) in labels.iter().enumerate() {
                let jiffies = self.counts.last_hit(probe);
                if jiffies > 0 {
                    let ago = (ticks.jiffies as i64).wrapping_sub(jiffies as i64) as f64 / ticks.hz;
                    rows.number(labels, ticks.unix - ago);
                }
            }
        }
        self.misses(to);
        self.overflows(to);
        self.spans(to);
        let mut types: Vec<(&str, u64)> = Vec::new();
        for (probe, accounting) in self.plan.probes.iter().zip(&accounting) {
            let done = accounting.aggregated + accounting.delivered;
            match types.iter_mut().find(|(name, _)| *name == probe.event_type) {
                Some((_, sum)) => *sum += done,
                None => types.push((&probe.event_type, done)),
            }
        }
        let rows = to.counter("fibre_exporter_events_processed_total", "Events counted, by type.");
        for (name, sum) in types {
            rows.number(&[("event_type", name)], sum);
        }
    }

    /// No part of the accounting: a hit that the kernel kept from the program was never begun.
    fn misses(&self, to: &mut Families) {
        let rows = to.counter(
            "fibre_exporter_program_misses_total",
            "Hits for which the kernel did not run the program, by its own count; they are in no probe's hits.",
        );
        // A kernel that does not say has no row: not a zero.
        for (program, misses) in self.counts.misses() {
            rows.number(&[("program", program)], misses);
        }
    }

    fn spans(&self, to: &mut Families) {
        let spans = self.status.spans();
        let starts = |probe: &ProbePlan| matches!(probe.span, Some(SpanPlan { end: SpanEnd::Start, .. }));
        type Column = (&'static str, &'static str, fn(&Sweep, u64) -> u64);
        let columns: [Column; 2] = [
            ("fibre_exporter_spans_open", "Starts whose end has not come, at the latest look.", |s, _| {
                s.open
            }),
            (
                "fibre_exporter_spans_expired_total",
                "Starts that were forgotten: their function was left without the end, their thread ended, or their \
                 end did not come for ten minutes.",
                |s, left| s.expired + left,
            ),
        ];
        for (name, help, column) in columns {
            let rows = if name.ends_with("_total") { to.counter(name, help) } else { to.gauge(name, help) };
            for probe in self.plan.probes.iter().filter(|probe| starts(probe)) {
                let number = probe.span.map_or(0, |span| span.number as usize);
                let target = self.plan.targets[probe.target].name.as_str();
                // Both ends may see that a start was left.
                let of_span = |(_, other): &(usize, &ProbePlan)| {
                    other.span.map(|span| span.number as usize) == Some(number)
                };
                let ends = self.plan.probes.iter().enumerate().filter(of_span);
                let left =
                    ends.map(|(n, _)| self.counts.accounting(n, accounting_slot::ACCT_FORGOTTEN)).sum();
                if let Some(sweep) = spans.get(number) {
                    rows.number(&[("target", target), ("probe", &probe.name)], column(sweep, left));
                }
            }
        }
    }

    /// Takes over how many label values of each metric were beyond their limit; a metric's first time is worth a line.
    pub fn note_overflows(&self, overflows: Vec<u64>) {
        let mut known = self.overflows.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, now) in overflows.iter().enumerate() {
            if *now > 0 && known.get(number).is_none_or(|before| *before == 0) {
                log::warn!(
                    "{}: a label has reached its limit; further values are counted under \"other\"",
                    self.plan.metrics[number].name
                );
            }
        }
        *known = overflows;
    }

    /// Overflow is counted for each probe; a metric's is that of the probes that feed it.
    fn overflows(&self, to: &mut Families) {
        let rows = to.counter(
            "fibre_exporter_label_overflow_total",
            "Label values that went to \"other\" because their label's limit was reached, by a metric's probes.",
        );
        let overflows = self.overflows.lock().unwrap_or_else(PoisonError::into_inner);
        for (metric, overflows) in self.plan.metrics.iter().zip(&*overflows) {
            rows.number(&[("metric", &metric.name)], *overflows);
        }
    }
}
