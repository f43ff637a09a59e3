//! Access control, TLS and additional response headers, all of which can change while the server runs.

use std::sync::{Arc, PoisonError, RwLock};

use hyper::header::{HeaderName, HeaderValue};
use tokio::sync::Notify;

use super::auth::Credentials;
use super::rate::Rate;
use super::tls::Tls;

/// The settings for the next connection and the next request.
#[derive(Default)]
pub struct Security {
    secured: RwLock<Secured>,
    changed: Notify,
}

/// The configured settings.
#[derive(Default, Clone)]
pub struct Secured {
    /// The credentials for routes with [`super::Access::Credentials`]; if `None`, anyone may use them.
    pub auth: Option<Credentials>,
    /// The users who may also use routes with [`super::Access::Writer`].
    pub writers: Arc<[String]>,
    /// If set, all endpoints speak TLS only; otherwise plain HTTP only.
    pub tls: Option<Arc<Tls>>,
    /// Headers added to every response.
    pub headers: Arc<[(HeaderName, HeaderValue)]>,
    pub rate: Option<Rate>,
}

impl Security {
    pub fn new(secured: Secured) -> Self {
        Self { secured: RwLock::new(secured), changed: Notify::new() }
    }

    /// Replaces the settings.
    pub fn set(&self, secured: Secured) {
        *self.secured.write().unwrap_or_else(PoisonError::into_inner) = secured;
        self.changed.notify_one();
    }

    /// Returns the current settings.
    pub fn now(&self) -> Secured {
        self.secured.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the settings are replaced. For a single waiter.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(super) fn tls(&self) -> Option<Arc<Tls>> {
        self.now().tls
    }
}
