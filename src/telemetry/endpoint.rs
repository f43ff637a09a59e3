//! What the HTTP endpoints count.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Telemetry;
use crate::exposition::Families;
use crate::http::HttpStats;

impl Telemetry {
    pub(super) fn http(&self, to: &mut Families) {
        type Column = (&'static str, &'static str, fn(&HttpStats) -> &AtomicU64);
        let columns: [Column; 12] = [
            ("fibre_exporter_http_connections_total", "Connections taken.", |s| &s.connections_accepted),
            ("fibre_exporter_http_connections_rejected_total", "Connections refused: too many.", |s| {
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
                "fibre_exporter_http_responses_rejected_total",
                "Answers refused because others are read too slowly (503).",
                |s| &s.answers_refused,
            ),
            ("fibre_exporter_http_malformed_requests_total", "Requests that are not HTTP (400).", |s| {
                &s.malformed
            }),
            ("fibre_exporter_http_oversized_headers_total", "Requests with too large headers (431).", |s| {
                &s.headers_too_large
            }),
            ("fibre_exporter_http_write_timeouts_total", "Answers that were not taken in time.", |s| {
                &s.write_timeouts
            }),
            (
                "fibre_exporter_http_unauthorized_requests_total",
                "Requests with no or wrong credentials.",
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
                "When the certificate in use ends, in seconds since 1970.",
            )
            .number(&[], not_after);
            let failed = self.http[0].certificate_reload_failed.load(Ordering::Relaxed);
            to.gauge(
                "fibre_exporter_tls_certificate_last_reload_successful",
                "Whether the certificate in use is that of the files; 0 if these have changed and cannot be used.",
            )
            .number(&[], u64::from(!failed));
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
