//! The HTTP end: listeners, TLS, basic authentication, limits, and a table of routes.
//!
//! Nothing here knows what the routes serve. A caller binds its [`Listener`]s (before it gives up
//! privileges), makes one [`Router`] per listener, and runs [`serve`] until its shutdown future resolves.
//!
//! The way of a connection: `server` accepts it and `slots` finds it a place (throwing out an unfinished
//! connection where all places are taken), `watch` keeps its deadlines, hyper reads a request, and `answer`
//! authenticates it, runs the route's handler on a blocking thread and compresses what it gave.

use std::sync::Arc;

mod answer;
mod auth;
mod budget;
mod certificate;
mod client_tls;
mod clients;
mod coding;
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

/// Content type of plain text, also used for every error's body.
pub const PLAIN_TEXT: &str = "text/plain; charset=utf-8";
/// Content type of JSON.
pub const JSON: &str = "application/json";
/// Content type of a stream of events.
pub const EVENTS: &str = "text/event-stream";
/// Content type of a page: what it may load and do is restricted to what comes from here.
pub const HTML: &str = "text/html; charset=utf-8";

/// How much a [`Notice`] matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Of use when a connection is being investigated; a stranger can cause any number of these.
    Debug,
    Info,
    Warning,
    Error,
}

/// One thing that happened while serving, for the log. Never holds a secret.
#[derive(Debug, Clone)]
pub struct Notice {
    pub level: Level,
    pub text: String,
}

/// Where notices go. Called from the reactor's threads: it must not block for long.
pub type Report = Arc<dyn Fn(Notice) + Send + Sync>;

fn notify(report: &Report, level: Level, text: impl Into<String>) {
    report(Notice { level, text: text.into() });
}
