//! Metrics of each probe, and of the fate of its hits.

use std::sync::PoisonError;

use super::Telemetry;
use crate::abi::accounting_slot;
use crate::costs::seconds;
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
        to.gauge("fibre_exporter_probes_attached", "Attached probes.").number(&[], attached as u64);
        to.gauge("fibre_exporter_probes_configured", "Configured probes.").number(&[], states.len() as u64);

        let rows =
            to.gauge("fibre_exporter_probe_attached", "Whether the probe is attached, fully or partly.");
        for (labels, probe) in labels.iter().zip(&states) {
            rows.number(labels, u64::from(probe.state.is_attached()));
        }
        let rows = to.gauge(
            "fibre_exporter_probe_state",
            "State of the probe, and the reason if it is not fully attached; the value is always 1.",
        );
        for (labels, probe) in labels.iter().zip(&states) {
            let state = [("state", probe.state.word()), ("reason", probe.state.reason())];
            rows.number(&[&labels[..], &state].concat(), 1u64);
        }
        let rows = to.gauge("fibre_exporter_probe_sites", "Sites at which the probe is attached.");
        for (labels, probe) in labels.iter().zip(&states) {
            rows.number(labels, probe.sites as u64);
        }
        let rows = to.gauge(
            "fibre_exporter_probe_sites_failed",
            "Sites at which the probe failed to attach; see fibre_exporter_probe_state for the reason.",
        );
        for (labels, probe) in labels.iter().zip(&states) {
            rows.number(labels, probe.refused as u64);
        }
        type Column = (&'static str, &'static str, fn(&Accounting) -> u64);
        let columns: [Column; 4] = [
            (
                "fibre_exporter_probe_hits_total",
                "Hits: exactly aggregated + delivered + filtered + lost.",
                |accounting| accounting.hits,
            ),
            ("fibre_exporter_probe_aggregated_total", "Hits aggregated in the kernel.", |accounting| {
                accounting.aggregated
            }),
            (
                "fibre_exporter_probe_delivered_total",
                "Hits delivered to user space as events.",
                |accounting| accounting.delivered,
            ),
            (
                "fibre_exporter_probe_filtered_total",
                "Hits filtered out, such as hits of other processes.",
                |accounting| accounting.filtered,
            ),
        ];
        for (name, help, column) in columns {
            let rows = to.counter(name, help);
            for (labels, accounting) in labels.iter().zip(&accounting) {
                rows.number(labels, column(accounting));
            }
        }
        let rows = to.counter(
            "fibre_exporter_probe_shed_seconds_total",
            "Time for which the probe was detached because of limits.overhead; hits in that time are not counted.",
        );
        for (labels, probe) in labels.iter().zip(&states) {
            rows.number(labels, probe.shed().as_secs_f64());
        }
        let rows = to.counter(
            "fibre_exporter_probe_cost_seconds_total",
            "Time that the probe's hits took of the processes that hit it, filtered hits included (an estimate: \
             hits times fibre_exporter_hit_cost_seconds and the probe's work).",
        );
        for (number, labels) in labels.iter().enumerate() {
            let accounting = |which| self.counts.accounting(number, which);
            rows.number(labels, seconds(&self.plan.probes[number], &self.prices, accounting));
        }
        let rows = to.counter(
            "fibre_exporter_probe_lost_total",
            "Hits missing from at least one metric, by \
             reason.",
        );
        for (probe, labels) in labels.iter().enumerate() {
            for (reason, which) in LOST {
                let lost = self.counts.accounting(probe, *which);
                rows.number(&[&labels[..], &[("reason", reason)]].concat(), lost);
            }
        }
        let rows = to.gauge("fibre_exporter_probe_hits_in_flight", "Hits being processed at this moment.");
        for (labels, accounting) in labels.iter().zip(&accounting) {
            rows.number(labels, accounting.in_flight);
        }
        let rows = to.counter(
            "fibre_exporter_probe_read_faults_total",
            "Hits with a value that could not be read from the application's memory.",
        );
        for (probe, labels) in labels.iter().enumerate() {
            rows.number(labels, self.counts.accounting(probe, accounting_slot::ACCT_READ_FAULTS));
        }
        if let Some(ticks) = self.status.ticks() {
            let rows = to.gauge(
                "fibre_exporter_probe_last_hit_timestamp_seconds",
                "Time of the last hit, in seconds since the Unix epoch, with a resolution of about 10 ms; \
                 absent before the first hit.",
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
        let past = self.counts.past_events();
        let mut types: Vec<(&str, u64)> = Vec::new();
        for (probe, accounting) in self.plan.probes.iter().zip(&accounting) {
            let done = accounting.aggregated + accounting.delivered;
            match types.iter_mut().find(|(name, _)| *name == probe.event_type) {
                Some((_, sum)) => *sum += done,
                None => types.push((&probe.event_type, done)),
            }
        }
        for (name, sum) in &mut types {
            *sum += past.get(*name).copied().unwrap_or(0);
        }
        let rows = to.counter("fibre_exporter_events_processed_total", "Events counted, by type.");
        for (name, sum) in types {
            rows.number(&[("event_type", name)], sum);
        }
    }

    /// Not part of the accounting: a hit for which the kernel did not run the program was never begun.
    fn misses(&self, to: &mut Families) {
        let rows = to.counter(
            "fibre_exporter_program_misses_total",
            "Hits for which the kernel did not run the BPF program (recursion_misses); they are not part of \
             any probe's hits.",
        );
        // If the kernel does not report it, there is no row rather than a zero.
        for (program, misses) in self.counts.misses() {
            rows.number(&[("program", program)], misses);
        }
    }

    fn spans(&self, to: &mut Families) {
        let spans = self.status.spans();
        let starts = |probe: &ProbePlan| matches!(probe.span, Some(SpanPlan { end: SpanEnd::Start, .. }));
        type Column = (&'static str, &'static str, fn(&Sweep, u64) -> u64);
        let columns: [Column; 2] = [
            ("fibre_exporter_spans_open", "Open spans and calls: started and not ended yet.", |s, _| s.open),
            (
                "fibre_exporter_spans_expired_total",
                "Spans and calls that were discarded without an end: left by an exception, ended with their \
                 thread, or open for ten minutes.",
                |s, left| s.expired + left,
            ),
        ];
        for (name, help, column) in columns {
            let rows = if name.ends_with("_total") { to.counter(name, help) } else { to.gauge(name, help) };
            for probe in self.plan.probes.iter().filter(|probe| starts(probe)) {
                let number = probe.span.map_or(0, |span| span.number as usize);
                let target = self.plan.targets[probe.target].name.as_str();
                // Both ends may notice an abandoned start.
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

    /// Takes over how many label values of each metric were beyond their limit; the first time for a metric is logged.
    pub fn update_overflows(&self, overflows: Vec<u64>) {
        let mut known = self.overflows.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, now) in overflows.iter().enumerate() {
            if *now > 0 && known.get(number).is_none_or(|before| *before == 0) {
                log::warn!(
                    "{}: a label has reached its limit; further values are counted as \"other\"",
                    self.plan.metrics[number].name
                );
            }
        }
        *known = overflows;
    }

    /// Overflow is counted for each probe; a metric's overflow is that of the probes that feed it.
    fn overflows(&self, to: &mut Families) {
        let rows = to.counter(
            "fibre_exporter_label_overflow_total",
            "Hits counted as \"other\" because a label reached its limit, by metric.",
        );
        let overflows = self.overflows.lock().unwrap_or_else(PoisonError::into_inner);
        for (metric, overflows) in self.plan.metrics.iter().zip(&*overflows) {
            rows.number(&[("metric", &metric.name)], *overflows);
        }
    }
}
