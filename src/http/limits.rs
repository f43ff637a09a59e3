//! How long and how many.

use std::time::Duration;

/// Time and number limits of one listener. Every wait on a client has one of these deadlines, so that a
/// client which stops sending or receiving holds its place for a bounded time only.
#[derive(Debug, Clone)]
pub struct Limits {
    /// From accepting a connection to the end of its TLS handshake.
    pub handshake: Duration,
    /// From a request's first byte (or, for the first request, from the connection's beginning) to the end
    /// of its headers.
    pub header: Duration,
    /// For authenticating a request and producing its answer; a request that takes longer gets a 503.
    pub handler: Duration,
    /// From an answer's first byte to its last being taken by the client's side.
    pub write: Duration,
    /// How long an answer may make no progress before its connection can be thrown out for a newcomer.
    pub stall: Duration,
    /// How long a connection may wait for its next request.
    pub idle: Duration,
    /// How long answers in progress may go on after shutdown was asked for.
    pub drain: Duration,
    /// How long a connection is safe from eviction, so that a flood cannot evict it before it has said anything.
    pub grace: Duration,
    /// How long a newcomer waits for a place while there is none.
    pub admission: Duration,
    /// Newcomers of one listener that may wait for a place.
    pub max_waiting: usize,
    /// Connections of one listener.
    pub max_connections: usize,
    /// Connections of one listener from one peer: an IPv4 address, or an IPv6 network of 64 bits.
    pub max_per_peer: usize,
    /// Handlers of one listener that run at once; further requests wait.
    pub max_handlers: usize,
    /// Bytes of all answers of one listener that are being sent; a single one may have more.
    pub max_answer_bytes: usize,
    /// Bytes of a request's line and headers.
    pub max_header_bytes: usize,
    /// How often the files of the certificate, the key and the passwords are looked at for a change.
    pub reload: Duration,
}

impl Limits {
    /// How long the client of a stream may take nothing. Less than the kernel's own limit, which is that of an answer, so that it
    /// is known why the connection ends.
    pub(super) fn stream(&self) -> Duration {
        self.write / 2
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            header: Duration::from_secs(5),
            handler: Duration::from_secs(30),
            write: Duration::from_secs(30),
            stall: Duration::from_secs(1),
            idle: Duration::from_secs(60),
            drain: Duration::from_millis(500),
            grace: Duration::from_millis(100),
            admission: Duration::from_secs(5),
            max_waiting: 128,
            max_connections: 64,
            max_per_peer: 16,
            max_handlers: 4,
            max_answer_bytes: 128 << 20,
            max_header_bytes: 16 * 1024,
            reload: Duration::from_secs(5),
        }
    }
}
