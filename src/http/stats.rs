//! The counters of an endpoint.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Counters of one endpoint since its start. Read the fields with `Ordering::Relaxed`: each is correct by itself, but
/// they are no consistent snapshot.
#[derive(Debug, Default)]
pub struct HttpStats {
    /// Accepted connections.
    pub connections_accepted: AtomicU64,
    /// Connections closed at once because no slot could be freed for them.
    pub connections_refused: AtomicU64,
    /// Connections closed early to free a slot for a newer one.
    pub connections_evicted: AtomicU64,
    /// Failed TLS handshakes, timeouts excluded.
    pub handshake_failures: AtomicU64,
    /// TLS handshakes that timed out.
    pub handshake_timeouts: AtomicU64,
    /// Requests whose headers did not arrive in time, and connections that never sent a first request.
    pub header_timeouts: AtomicU64,
    /// Requests that timed out in the handler (503).
    pub handler_timeouts: AtomicU64,
    /// Responses that the client did not receive in time.
    pub write_timeouts: AtomicU64,
    /// Streams closed because the client received nothing for too long.
    pub streams_dropped: AtomicU64,
    /// Streams refused because too many are open (503).
    pub streams_refused: AtomicU64,
    /// Requests without the right credentials (401).
    pub unauthorized: AtomicU64,
    /// Requests that are not valid HTTP (400).
    pub malformed: AtomicU64,
    /// Requests whose request line and headers exceed [`super::Limits::max_header_bytes`] (431).
    pub headers_too_large: AtomicU64,
    /// Responses refused for lack of memory, because other clients receive theirs too slowly (503).
    pub answers_refused: AtomicU64,
    /// Requests currently being processed: a gauge.
    pub in_flight: AtomicU64,
    /// When the certificate in use expires, in seconds since 1970; 0 without TLS.
    pub certificate_not_after: AtomicI64,
    /// The certificate or key has changed but is unusable, so the previous pair is still in use.
    pub certificate_reload_failed: AtomicBool,
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
}

/// The number of requests to one route with one response status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestCount {
    /// The route's path, or `other` for any path not in the table, so that clients cannot create series.
    pub route: &'static str,
    pub status: u16,
    pub count: u64,
}

impl HttpStats {
    /// Returns the requests by route and status, sorted.
    pub fn requests(&self) -> Vec<RequestCount> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.iter().map(|(&(route, status), &count)| RequestCount { route, status, count }).collect()
    }

    pub(crate) fn answered(&self, route: &'static str, status: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((route, status)).or_default() += 1;
    }
}

/// Increments a counter.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Increments a gauge for as long as it lives.
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
