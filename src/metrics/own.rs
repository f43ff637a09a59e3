//! The exporter's metrics about itself, read from where they are counted at every scrape.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::process;
use crate::abi::book_cell;
use crate::drain::DrainStats;
use crate::exposition::Families;
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

impl Own {
    /// All of them, as they are now.
    pub fn collect(&self) -> Families {
        let mut to = Families::default();
        self.exporter(&mut to);
        self.probes(&mut to);
        self.errors(&mut to);
        self.http(&mut to);
        process::collect(&mut to);
        to
    }

    fn exporter(&self, to: &mut Families) {
        to.gauge("fibre_exporter_up", "Whether the exporter runs.").number(&[], 1u64);
        to.gauge("fibre_exporter_start_time_seconds", "When the exporter started, in seconds since 1970.")
            .number(&[], self.started);
        let attach = match self.attach {
            Attach::Multi => "uprobe_multi",
            Attach::Perf => "perf_event",
        };
        to.gauge("fibre_exporter_info", "What runs; the value is always 1.").number(
            &[
                ("version", env!("CARGO_PKG_VERSION")),
                ("attach", attach),
                ("kernel", &crate::kernel::kernel_release()),
                ("node", &self.plan.settings.node_name),
            ],
            1u64,
        );
        to.gauge("fibre_exporter_series", "Measured series of the latest scrape.")
            .number(&[], self.series.load(Ordering::Relaxed));
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
            let rows = to.counter(name, help);
            for (labels, books) in labels.iter().zip(&books) {
                rows.number(labels, column(books));
            }
        }
        let rows = to.counter("fibre_exporter_probe_lost_total", "Hits that some metric misses, by reason.");
        for (probe, labels) in labels.iter().enumerate() {
            for (reason, which) in LOST {
                let lost = self.shared.bank.book(probe, *which);
                rows.number(&[&labels[..], &[("reason", reason)]].concat(), lost);
            }
        }
        let rows =
            to.gauge("fibre_exporter_probe_in_flight", "Hits that are being dealt with at this moment.");
        for (labels, books) in labels.iter().zip(&books) {
            rows.number(labels, books.in_flight);
        }
        let rows = to.counter(
            "fibre_exporter_probe_read_faults_total",
            "Hits of which a value could not be read from the application's memory.",
        );
        for (probe, labels) in labels.iter().enumerate() {
            rows.number(labels, self.shared.bank.book(probe, book_cell::BOOK_READ_FAULTS));
        }
        if let Some(ticks) = self.status.ticks() {
            let rows = to.gauge(
                "fibre_exporter_probe_last_hit_timestamp_seconds",
                "When the probe was hit last, in seconds since 1970, to about 10 ms; absent before the first hit.",
            );
            for (probe, labels) in labels.iter().enumerate() {
                let jiffies = self.shared.bank.last_hit(probe);
                if jiffies > 0 {
                    let ago = (ticks.jiffies as i64).wrapping_sub(jiffies as i64) as f64 / ticks.hz;
                    rows.number(labels, ticks.unix - ago);
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
        let rows = to.counter("fibre_exporter_events_processed_total", "Events counted, by type.");
        for (name, sum) in types {
            rows.number(&[("event_type", name)], sum);
        }
    }

    /// No part of the books: a hit that the kernel kept from the program was never begun.
    fn misses(&self, to: &mut Families) {
        let rows = to.counter(
            "fibre_exporter_program_misses_total",
            "Hits for which the kernel did not run the program, by its own count; they are in no probe's hits.",
        );
        for program in self.shared.programs.iter() {
            // A kernel that does not say has no row: not a zero.
            if let Ok(misses) = program.misses() {
                rows.number(&[("program", program.name)], misses);
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
            let rows = if name.ends_with("_total") { to.counter(name, help) } else { to.gauge(name, help) };
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
                    rows.number(&[("target", target), ("probe", &probe.name)], column(sweep, left));
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
        let rows = to.counter(
            "fibre_exporter_series_folded_total",
            "Label values that went to \"other\" because their label's limit was reached, by a metric's probes.",
        );
        let folded = self.folded.lock().unwrap_or_else(PoisonError::into_inner);
        for (metric, folded) in self.plan.metrics.iter().zip(&*folded) {
            rows.number(&[("metric", &metric.name)], *folded);
        }
    }

    fn errors(&self, to: &mut Families) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let states = self.status.probes();
        let refused = states.iter().filter(|probe| matches!(probe.state, ProbeState::Refused(_))).count();
        let book = |which| (0..states.len()).map(|probe| self.shared.bank.book(probe, which)).sum::<u64>();
        let rows = to.counter("fibre_exporter_errors_total", "What went wrong, by type.");
        for (reason, which) in LOST {
            rows.number(&[("error_type", reason)], book(*which));
        }
        rows.number(&[("error_type", "event_unreadable")], load(&self.drain.unreadable));
        rows.number(&[("error_type", "event_negative")], load(&self.drain.negative));
        rows.number(&[("error_type", "event_undecodable")], load(&self.drain.undecodable));
        rows.number(&[("error_type", "stray_hit")], self.shared.control.stray());
        rows.number(&[("error_type", "log_line_dropped")], self.logging.as_ref().map_or(0, Logging::dropped));
        to.gauge("fibre_exporter_probes_refused", "Probes that are in the file but cannot be used.")
            .number(&[], refused as u64);
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
            let rows = to.counter(name, help);
            for (endpoint, stats) in endpoints.iter().zip(&self.http) {
                rows.number(&[("endpoint", endpoint)], column(stats).load(Ordering::Relaxed));
            }
        }
        let not_after = self.http[0].certificate_not_after.load(Ordering::Relaxed);
        if not_after != 0 {
            to.gauge(
                "fibre_exporter_tls_certificate_not_after_seconds",
                "When the certificate in use ends, in seconds since 1970.",
            )
            .number(&[], not_after);
        }
        let rows = to.counter("fibre_exporter_http_requests_total", "Requests answered.");
        for (endpoint, stats) in endpoints.iter().zip(&self.http) {
            for row in stats.requests() {
                let status = row.status.to_string();
                rows.number(&[("endpoint", endpoint), ("route", row.route), ("status", &status)], row.count);
            }
        }
    }
}

/// Seconds since 1970.
pub fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
