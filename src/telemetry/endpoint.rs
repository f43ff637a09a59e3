//! Statistics of the HTTP endpoints.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Telemetry;
use crate::exposition::Families;
use crate::http::HttpStats;

impl Telemetry {
    pub(super) fn http(&self, to: &mut Families) {
        type Column = (&'static str, &'static str, fn(&HttpStats) -> &AtomicU64);
        let columns: [Column; 14] = [
            ("fibre_exporter_http_connections_total", "Accepted connections.", |s| &s.connections_accepted),
            (
                "fibre_exporter_http_connections_rejected_total",
                "Connections rejected because of the \
                 connection limit.",
                |s| &s.connections_refused,
            ),
            (
                "fibre_exporter_http_connections_evicted_total",
                "Incomplete connections closed to make room for a new one.",
                |s| &s.connections_evicted,
            ),
            ("fibre_exporter_http_handshake_failures_total", "Failed TLS handshakes.", |s| {
                &s.handshake_failures
            }),
            ("fibre_exporter_http_handshake_timeouts_total", "TLS handshakes that timed out.", |s| {
                &s.handshake_timeouts
            }),
            (
                "fibre_exporter_http_header_timeouts_total",
                "Connections closed because no complete request headers arrived in time.",
                |s| &s.header_timeouts,
            ),
            (
                "fibre_exporter_http_handler_timeouts_total",
                "Requests that timed out in their handler (503).",
                |s| &s.handler_timeouts,
            ),
            (
                "fibre_exporter_http_responses_rejected_total",
                "Responses rejected because too many slow responses are in progress (503).",
                |s| &s.answers_refused,
            ),
            ("fibre_exporter_http_malformed_requests_total", "Malformed requests (400).", |s| &s.malformed),
            (
                "fibre_exporter_http_oversized_headers_total",
                "Requests whose headers are too large (431).",
                |s| &s.headers_too_large,
            ),
            (
                "fibre_exporter_http_write_timeouts_total",
                "Responses that the client did not read in time.",
                |s| &s.write_timeouts,
            ),
            (
                "fibre_exporter_http_streams_dropped_total",
                "Streams of events closed because the client did not read.",
                |s| &s.streams_dropped,
            ),
            (
                "fibre_exporter_http_streams_rejected_total",
                "Streams of events rejected because too many are open (503).",
                |s| &s.streams_refused,
            ),
            (
                "fibre_exporter_http_unauthorized_requests_total",
                "Requests with missing or wrong credentials (401).",
                |s| &s.unauthorized,
            ),
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
                "Expiry of the TLS certificate in use, in seconds since the Unix epoch.",
            )
            .number(&[], not_after);
            let failed = self.http[0].certificate_reload_failed.load(Ordering::Relaxed);
            to.gauge(
                "fibre_exporter_tls_certificate_last_reload_successful",
                "Whether the last reload of the TLS certificate files succeeded.",
            )
            .number(&[], u64::from(!failed));
        }
        let rows = to.counter("fibre_exporter_http_requests_total", "HTTP requests served.");
        for (endpoint, stats) in endpoints.iter().zip(&self.http) {
            for row in stats.requests() {
                let status = row.status.to_string();
                rows.number(&[("endpoint", endpoint), ("route", row.route), ("status", &status)], row.count);
            }
        }
    }
}
