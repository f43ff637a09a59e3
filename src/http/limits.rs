//! Timeouts and size limits.

use std::time::Duration;

/// Timeouts and limits of one listener. Every wait for a client has one of these deadlines, so that a client that stops
/// sending or receiving holds its slot for a bounded time.
#[derive(Debug, Clone)]
pub struct Limits {
    /// From accepting a connection to the end of its TLS handshake.
    pub handshake: Duration,
    /// From the first byte of a request (for the first request: from the start of the connection) to the end of its
    /// headers.
    pub header: Duration,
    /// For authenticating a request and producing the response; a request that takes longer gets a 503.
    pub handler: Duration,
    /// From the start of a response until the client's side has received all of it.
    pub write: Duration,
    /// How long a response may make no progress before its connection may be evicted for a new one.
    pub stall: Duration,
    /// How long a connection may wait for the next request.
    pub idle: Duration,
    /// How long responses in progress may continue after shutdown was requested.
    pub drain: Duration,
    /// How long a new connection is protected from eviction, so that a flood cannot evict it before it has sent
    /// anything.
    pub grace: Duration,
    /// How long a new connection waits for a slot.
    pub admission: Duration,
    /// The maximum number of new connections of one listener that wait for a slot.
    pub max_waiting: usize,
    /// The maximum number of connections of one listener.
    pub max_connections: usize,
    /// The maximum number of connections of one listener from one peer: an IPv4 address or an IPv6 /64 network. Twice as many
    /// once it has authenticated.
    pub max_per_peer: usize,
    /// The maximum number of concurrent handlers of one listener; further requests wait.
    pub max_handlers: usize,
    /// The maximum total size of one listener's responses being sent; a single response may exceed it.
    pub max_answer_bytes: usize,
    /// The maximum size of a request's request line and headers.
    pub max_header_bytes: usize,
    /// How often the certificate, key and password files are checked for changes.
    pub reload: Duration,
}

impl Limits {
    /// How long the client of a stream may receive nothing. Shorter than the kernel's own timeout, which is that of a
    /// response, so that the reason why the connection ends is known.
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
