//! The HTTP layer: listeners, TLS, basic authentication, limits, and a table of routes.
//!
//! Nothing here knows what the routes serve. A caller binds its [`Listener`]s (before it drops privileges), creates one
//! [`Router`] per listener, and runs [`serve`] until its shutdown future resolves.
//!
//! The life of a connection: `server` accepts it and `slots` assigns it a slot (evicting another connection if all are
//! taken), `watch` enforces its deadlines, hyper parses a request, and `answer` authenticates it, runs the route's
//! handler on a blocking thread and compresses the result.

use std::sync::Arc;

mod answer;
mod auth;
mod budget;
mod certificate;
mod client_tls;
mod clients;
mod coding;
mod deferred;
mod error;
mod exposure;
mod limits;
mod listener;
mod mistaken;
mod pem;
mod rate;
mod route;
mod security;
mod server;
mod slots;
mod stats;
mod stream;
mod system_authorities;
mod tls;
mod tls_error;
mod turns;
mod visitors;
mod watch;
mod watched;

pub use auth::{Credentials, check_user, is_hash};
pub use client_tls::ClientTls;
pub use clients::{Clients, Demand};
pub use error::HttpError;
pub use exposure::exposure_warnings;
pub use listener::{Listener, has_address};
pub use pem::Pem;
pub use rate::{Limiter, Rate};
pub use route::{Access, Caller, Reply, RequestInfo, Route, Router};
pub use security::{Secured, Security};
pub use server::{Endpoint, EndpointKind, ServerOptions, serve};
pub use stats::HttpStats;
pub use stream::Broadcast;
pub use tls::{Fingerprint, Tls, TlsOptions, is_tls13_suite};
pub use visitors::{Visitor, Visitors};

/// The content type of plain text, also used for the body of every error.
pub const PLAIN_TEXT: &str = "text/plain; charset=utf-8";
/// The content type of JSON.
pub const JSON: &str = "application/json";
/// The content type of an event stream.
pub const EVENTS: &str = "text/event-stream";
/// The content type of a page, which may load resources from this server only.
pub const HTML: &str = "text/html; charset=utf-8";

/// The severity of a [`Notice`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Useful for debugging a connection; strangers can cause any number of these.
    Debug,
    Info,
    Warning,
    Error,
}

/// An event of the server, for the log. Never contains a secret.
#[derive(Debug, Clone)]
pub struct Notice {
    pub level: Level,
    pub text: String,
}

/// Receives notices. Called from reactor threads, so it must not block for long.
pub type Report = Arc<dyn Fn(Notice) + Send + Sync>;

fn notify(report: &Report, level: Level, text: impl Into<String>) {
    report(Notice { level, text: text.into() });
}
