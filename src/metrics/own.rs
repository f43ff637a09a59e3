//! The exporter's metrics about itself, read from where they are counted at every scrape.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use super::families::Families;
use crate::abi::book_cell;
use crate::drain::DrainStats;
use crate::http::HttpStats;
use crate::kernel::{Attach, KernelBank, Shared, Sweep};
use crate::logging::Logging;
use crate::plan::{Plan, ProbePlan, SpanEnd, SpanPlan};
use crate::targets::{ProbeState, Status};

/// Every way in which a hit can be lost, with its label.
const LOST: &[(&str, book_cell)] = &[
    ("ring_full", book_cell::BOOK_LOST_RING),
    ("read_fault", book_cell::BOOK_LOST_FAULT),
    ("no_start", book_cell::BOOK_LOST_NO_START),
    ("starts_full", book_cell::BOOK_LOST_STARTS_FULL),
    ("negative", book_cell::BOOK_LOST_NEGATIVE),
];

/// Where everything is counted.
#[derive(Debug, Clone)]
pub struct Own {
    pub plan: Arc<Plan>,
    pub shared: Shared,
    pub status: Arc<Status>,
    pub drain: Arc<DrainStats>,
    /// Of the metrics and the health endpoint.
    pub http: [Arc<HttpStats>; 2],
    pub attach: Attach,
    pub logging: Option<Logging>,
    pub started: f64,
    /// Series of the latest scrape.
    pub series: Arc<AtomicU64>,
    /// Of each metric, label values that its probes have folded.
    pub folded: Arc<Mutex<Vec<u64>>>,
}

/// One probe's books at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Books {
    /// Hits that have been dealt with: the sum of what follows.
    pub hits: u64,
    pub aggregated: u64,
    pub delivered: u64,
    pub filtered: u64,
    pub lost: u64,
    /// Hits that the handler began to deal with: never fewer than `hits`.
    pub begun: u64,
    /// Hits that were being dealt with at that moment.
    pub in_flight: u64,
}

impl Books {
    /// Reads a probe's books. The ways to end are read before the hits, so that a hit in between is in flight, never
    /// missing.
    pub fn read(shared: &Shared, probe: usize) -> Self {
        Self::of(&shared.bank, probe)
    }

    pub(super) fn of(bank: &KernelBank, probe: usize) -> Self {
        let book = |which| bank.book(probe, which);
        let aggregated = book(book_cell::BOOK_AGGREGATED);
        let delivered = book(book_cell::BOOK_DELIVERED);
        let filtered = book(book_cell::BOOK_FILTERED);
        let lost = LOST.iter().map(|(_, which)| book(*which)).sum();
        let hits = aggregated + delivered + filtered + lost;
        // Filtered hits, and those of a probe that only counts, end as they begin.
        let begun = (book(book_cell::BOOK_HITS) + filtered).max(hits);
        let in_flight = begun - hits;
        Self { hits, aggregated, delivered, filtered, lost, begun, in_flight }
    }
}

impl Collector for Own {
    fn desc(&self) -> Vec<&Desc> {
        // The families are described as they are made; the registry only needs descriptions to find duplicates.
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut made = Families::default();
        self.process(&mut made);
        self.probes(&mut made);
        self.errors(&mut made);
        self.http(&mut made);
        made.done()
    }
}

impl Own {
    fn process(&self, to: &mut Families) {
        to.gauge("fibre_exporter_up", "Whether the exporter runs.").add(&[], 1.0);
        to.gauge("fibre_exporter_start_time_seconds", "When the exporter started, in seconds since 1970.")
            .add(&[], self.started);
        let attach = match self.attach {
            Attach::Multi => "uprobe_multi",
            Attach::Perf => "perf_event",
        };
        to.gauge("fibre_exporter_info", "What runs; the value is always 1.").add(
            &[
                ("version", env!("CARGO_PKG_VERSION")),
                ("attach", attach),
                ("kernel", &crate::kernel::kernel_release()),
                ("node", &self.plan.settings.node_name),
            ],
            1.0,
        );
        to.gauge("fibre_exporter_series", "Measured series of the latest scrape.")
            .add(&[], self.series.load(Ordering::Relaxed) as f64);
    }

    fn probes(&self, to: &mut Families) {
        let states = self.status.probes();
        let books: Vec<Books> = (0..states.len()).map(|probe| Books::read(&self.shared, probe)).collect();
        let each = || {
            self.plan.probes.iter().enumerate().map(|(n, probe)| {
                [("target", self.plan.targets[probe.target].name.as_str()), ("probe", probe.name.as_str())]
                    .map(move |l| (n, l))
            })
        };
        let labels: Vec<[(&str, &str); 2]> = each().map(|both| both.map(|(_, label)| label)).collect();
        let attached = states.iter().filter(|probe| probe.state.is_attached()).count();
        to.gauge("fibre_exporter_probes_attached", "Probes that are attached.").add(&[], attached as f64);
        to.gauge("fibre_exporter_probes_configured", "Probes that the configuration asks for.")
            .add(&[], states.len() as f64);

        let mut rows = to.gauge(
            "fibre_exporter_probe_attached",
            "Whether the probe is attached, if not at all of its sites.",
        );
        for (labels, probe) in labels.iter().zip(&states) {
            rows.add(labels, f64::from(u8::from(probe.state.is_attached())));
        }
        let mut rows = to.gauge(
            "fibre_exporter_probe_state",
            "The probe's state, and why it is not attached, or not everywhere; always 1.",
        );
        for (labels, probe) in labels.iter().zip(&states) {
            let state = [("state", probe.state.word()), ("reason", probe.state.reason())];
            rows.add(&[&labels[..], &state].concat(), 1.0);
        }
        let mut rows = to.gauge("fibre_exporter_probe_sites", "Places at which the probe is attached.");
        for (labels, probe) in labels.iter().zip(&states) {
            rows.add(labels, probe.sites as f64);
        }
        let mut rows = to.gauge(
            "fibre_exporter_probe_sites_refused",
            "Places of the probe at which it is not attached; the reason is in fibre_exporter_probe_state.",
        );
        for (labels, probe) in labels.iter().zip(&states) {
            rows.add(labels, probe.refused as f64);
        }
        type Column = (&'static str, &'static str, fn(&Books) -> u64);
        let columns: [Column; 4] = [
            (
                "fibre_exporter_probe_hits_total",
                "Hits that were dealt with: aggregated + delivered + filtered + lost, exactly.",
                |books| books.hits,
            ),
            (
                "fibre_exporter_probe_aggregated_total",
                "Hits whose metrics were all updated in the kernel.",
                |books| books.aggregated,
            ),
            ("fibre_exporter_probe_delivered_total", "Hits that went whole to user space.", |books| {
                books.delivered
            }),
            ("fibre_exporter_probe_filtered_total", "Hits of processes not asked for.", |books| {
                books.filtered
            }),
        ];
        for (name, help, column) in columns {
            let mut rows = to.counter(name, help);
            for (labels, books) in labels.iter().zip(&books) {
                rows.add(labels, column(books) as f64);
            }
        }
        let mut rows =
            to.counter("fibre_exporter_probe_lost_total", "Hits that some metric misses, by reason.");
        for (probe, labels) in labels.iter().enumerate() {
            for (reason, which) in LOST {
                let lost = self.shared.bank.book(probe, *which);
                rows.add(&[&labels[..], &[("reason", reason)]].concat(), lost as f64);
            }
        }
        let mut rows =
            to.gauge("fibre_exporter_probe_in_flight", "Hits that are being dealt with at this moment.");
        for (labels, books) in labels.iter().zip(&books) {
            rows.add(labels, books.in_flight as f64);
        }
        let mut rows = to.counter(
            "fibre_exporter_probe_read_faults_total",
            "Hits of which a value could not be read from the application's memory.",
        );
        for (probe, labels) in labels.iter().enumerate() {
            rows.add(labels, self.shared.bank.book(probe, book_cell::BOOK_READ_FAULTS) as f64);
        }
        if let Some(ticks) = self.status.ticks() {
            let mut rows = to.gauge(
                "fibre_exporter_probe_last_hit_timestamp_seconds",
                "When the probe was hit last, in seconds since 1970, to about 10 ms; absent before the first hit.",
            );
            for (probe, labels) in labels.iter().enumerate() {
                let jiffies = self.shared.bank.last_hit(probe);
                if jiffies > 0 {
                    let ago = (ticks.jiffies as i64).wrapping_sub(jiffies as i64) as f64 / ticks.hz;
                    rows.add(labels, ticks.unix - ago);
                }
            }
        }
        self.misses(to);
        self.folded(to);
        self.spans(to);
        let mut types: Vec<(&str, u64)> = Vec::new();
        for (probe, books) in self.plan.probes.iter().zip(&books) {
            let done = books.aggregated + books.delivered;
            match types.iter_mut().find(|(name, _)| *name == probe.event_type) {
                Some((_, sum)) => *sum += done,
                None => types.push((&probe.event_type, done)),
            }
        }
        let mut rows = to.counter("fibre_exporter_events_processed_total", "Events counted, by type.");
        for (name, sum) in types {
            rows.add(&[("event_type", name)], sum as f64);
        }
    }

    /// No part of the books: a hit that the kernel kept from the program was never begun.
    fn misses(&self, to: &mut Families) {
        let mut rows = to.counter(
            "fibre_exporter_program_misses_total",
            "Hits for which the kernel did not run the program, by its own count; they are in no probe's hits.",
        );
        for program in self.shared.programs.iter() {
            // A kernel that does not say has no row: not a zero.
            if let Ok(misses) = program.misses() {
                rows.add(&[("program", program.name)], misses as f64);
            }
        }
    }

    fn spans(&self, to: &mut Families) {
        let spans = self.status.spans();
        let starts = |probe: &ProbePlan| matches!(probe.span, Some(SpanPlan { end: SpanEnd::Start, .. }));
        type Column = (&'static str, &'static str, fn(&Sweep, u64) -> u64);
        let columns: [Column; 2] = [
            (
                "fibre_exporter_span_starts_open",
                "Starts whose end has not come, at the latest look.",
                |s, _| s.open,
            ),
            (
                "fibre_exporter_span_starts_expired_total",
                "Starts that were forgotten: their function was left without the end, their thread ended, or their \
                 end did not come for ten minutes.",
                |s, left| s.expired + left,
            ),
        ];
        for (name, help, column) in columns {
            let mut rows =
                if name.ends_with("_total") { to.counter(name, help) } else { to.gauge(name, help) };
            for probe in self.plan.probes.iter().filter(|probe| starts(probe)) {
                let number = probe.span.map_or(0, |span| span.number as usize);
                let target = self.plan.targets[probe.target].name.as_str();
                // Both ends may see that a start was left.
                let of_span = |(_, other): &(usize, &ProbePlan)| {
                    other.span.map(|span| span.number as usize) == Some(number)
                };
                let ends = self.plan.probes.iter().enumerate().filter(of_span);
                let left = ends.map(|(n, _)| self.shared.bank.book(n, book_cell::BOOK_FORGOTTEN)).sum();
                if let Some(sweep) = spans.get(number) {
                    rows.add(&[("target", target), ("probe", &probe.name)], column(sweep, left) as f64);
                }
            }
        }
    }

    /// Takes over how much each metric's probes have folded; the first time that a metric does is worth a line.
    pub fn note_folded(&self, folded: Vec<u64>) {
        let mut known = self.folded.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, now) in folded.iter().enumerate() {
            if *now > 0 && known.get(number).is_none_or(|before| *before == 0) {
                log::warn!(
                    "{}: a label has reached its limit; further values are counted under \"other\"",
                    self.plan.metrics[number].name
                );
            }
        }
        *known = folded;
    }

    /// Folding is counted for each probe; a metric's is that of the probes that feed it.
    fn folded(&self, to: &mut Families) {
        let mut rows = to.counter(
            "fibre_exporter_series_folded_total",
            "Label values that went to \"other\" because their label's limit was reached, by a metric's probes.",
        );
        let folded = self.folded.lock().unwrap_or_else(PoisonError::into_inner);
        for (metric, folded) in self.plan.metrics.iter().zip(&*folded) {
            rows.add(&[("metric", &metric.name)], *folded as f64);
        }
    }

    fn errors(&self, to: &mut Families) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let states = self.status.probes();
        let refused = states.iter().filter(|probe| matches!(probe.state, ProbeState::Refused(_))).count();
        let book =
            |which| (0..states.len()).map(|probe| self.shared.bank.book(probe, which)).sum::<u64>() as f64;
        let mut rows = to.counter("fibre_exporter_errors_total", "What went wrong, by type.");
        for (reason, which) in LOST {
            rows.add(&[("error_type", reason)], book(*which));
        }
        rows.add(&[("error_type", "event_unreadable")], load(&self.drain.unreadable));
        rows.add(&[("error_type", "event_negative")], load(&self.drain.negative));
        rows.add(&[("error_type", "event_undecodable")], load(&self.drain.undecodable));
        rows.add(&[("error_type", "stray_hit")], self.shared.control.stray() as f64);
        rows.add(
            &[("error_type", "log_line_dropped")],
            self.logging.as_ref().map_or(0, Logging::dropped) as f64,
        );
        to.gauge("fibre_exporter_probes_refused", "Probes that are in the file but cannot be used.")
            .add(&[], refused as f64);
    }

    fn http(&self, to: &mut Families) {
        type Column = (&'static str, &'static str, fn(&HttpStats) -> &AtomicU64);
        let columns: [Column; 12] = [
            ("fibre_exporter_http_connections_total", "Connections taken.", |s| &s.connections_accepted),
            ("fibre_exporter_http_connections_refused_total", "Connections refused: too many.", |s| {
                &s.connections_refused
            }),
            (
                "fibre_exporter_http_connections_evicted_total",
                "Unfinished connections closed to make room for a new one.",
                |s| &s.connections_evicted,
            ),
            ("fibre_exporter_http_handshake_failures_total", "TLS handshakes that failed.", |s| {
                &s.handshake_failures
            }),
            ("fibre_exporter_http_handshake_timeouts_total", "TLS handshakes that took too long.", |s| {
                &s.handshake_timeouts
            }),
            (
                "fibre_exporter_http_header_timeouts_total",
                "Requests whose headers did not arrive in time, and connections that never sent any.",
                |s| &s.header_timeouts,
            ),
            ("fibre_exporter_http_handler_timeouts_total", "Requests not answered in time (503).", |s| {
                &s.handler_timeouts
            }),
            (
                "fibre_exporter_http_answers_refused_total",
                "Answers refused because others are read too slowly (503).",
                |s| &s.answers_refused,
            ),
            ("fibre_exporter_http_malformed_total", "Requests that are not HTTP (400).", |s| &s.malformed),
            ("fibre_exporter_http_headers_too_large_total", "Requests with too large headers (431).", |s| {
                &s.headers_too_large
            }),
            ("fibre_exporter_http_write_timeouts_total", "Answers that were not taken in time.", |s| {
                &s.write_timeouts
            }),
            ("fibre_exporter_http_unauthorized_total", "Requests with no or wrong credentials.", |s| {
                &s.unauthorized
            }),
        ];
        let endpoints = ["metrics", "health"];
        for (name, help, column) in columns {
            let mut rows = to.counter(name, help);
            for (endpoint, stats) in endpoints.iter().zip(&self.http) {
                rows.add(&[("endpoint", endpoint)], column(stats).load(Ordering::Relaxed) as f64);
            }
        }
        let not_after = self.http[0].certificate_not_after.load(Ordering::Relaxed);
        if not_after != 0 {
            to.gauge(
                "fibre_exporter_tls_certificate_not_after_seconds",
                "When the certificate in use ends, in seconds since 1970.",
            )
            .add(&[], not_after as f64);
        }
        let mut rows = to.counter("fibre_exporter_http_requests_total", "Requests answered.");
        for (endpoint, stats) in endpoints.iter().zip(&self.http) {
            for row in stats.requests() {
                let status = row.status.to_string();
                rows.add(
                    &[("endpoint", endpoint), ("route", row.route), ("status", &status)],
                    row.count as f64,
                );
            }
        }
    }
}

/// Seconds since 1970.
pub fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
