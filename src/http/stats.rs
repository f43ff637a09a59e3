//! What an endpoint counts about itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Counts of one endpoint since its start. Read the fields with `Ordering::Relaxed`: each is true by
/// itself, no two of them are of the same instant.
#[derive(Debug, Default)]
pub struct HttpStats {
    /// Connections the listener gave.
    pub connections_accepted: AtomicU64,
    /// Connections closed at once because no place could be made for them.
    pub connections_refused: AtomicU64,
    /// Connections closed before their time to make place for a newer one.
    pub connections_evicted: AtomicU64,
    /// TLS handshakes that failed, other than by running out of time.
    pub handshake_failures: AtomicU64,
    /// TLS handshakes that ran out of time.
    pub handshake_timeouts: AtomicU64,
    /// Requests whose headers did not arrive in time; also connections that never sent a first one.
    pub header_timeouts: AtomicU64,
    /// Requests that were not answered in time (503).
    pub handler_timeouts: AtomicU64,
    /// Answers that the client did not take in time.
    pub write_timeouts: AtomicU64,
    /// Streams that were closed because the client took nothing for too long.
    pub streams_dropped: AtomicU64,
    /// Streams that were refused because too many are open (503).
    pub streams_refused: AtomicU64,
    /// Requests without the right credentials (401).
    pub unauthorized: AtomicU64,
    /// Requests that are not HTTP (400).
    pub malformed: AtomicU64,
    /// Requests whose line and headers are larger than [`super::Limits::max_header_bytes`] (431).
    pub headers_too_large: AtomicU64,
    /// Answers that there was no memory for, because others take theirs too slowly (503).
    pub answers_refused: AtomicU64,
    /// Requests now being answered: a gauge.
    pub in_flight: AtomicU64,
    /// When the certificate in use ends, in seconds since 1970; 0 without TLS.
    pub certificate_not_after: AtomicI64,
    /// The certificate or key that has changed since cannot be used, so that the earlier pair is still in use.
    pub certificate_reload_failed: AtomicBool,
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
}

/// Requests that one route answered with one status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestCount {
    /// The route's path, or `other` for every path that is not in the table, so that a client cannot make
    /// series.
    pub route: &'static str,
    pub status: u16,
    pub count: u64,
}

impl HttpStats {
    /// Answered requests by route and status, sorted.
    pub fn requests(&self) -> Vec<RequestCount> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.iter().map(|(&(route, status), &count)| RequestCount { route, status, count }).collect()
    }

    pub(crate) fn answered(&self, route: &'static str, status: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((route, status)).or_default() += 1;
    }
}

/// Adds one to a counter.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Raises a gauge for as long as it lives.
pub(super) struct RaisedGauge<'a>(&'a AtomicU64);

impl<'a> RaisedGauge<'a> {
    pub(super) fn new(gauge: &'a AtomicU64) -> Self {
        count(gauge);
        Self(gauge)
    }
}

impl Drop for RaisedGauge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
