//! Who may ask, how connections are secured, and what else responses have: all of it can change while the server runs.

use std::sync::{Arc, PoisonError, RwLock};

use hyper::header::{HeaderName, HeaderValue};
use tokio::sync::Notify;

use super::auth::Credentials;
use super::rate::Rate;
use super::tls::Tls;

/// What holds for the next connection and the next request.
#[derive(Default)]
pub struct Security {
    secured: RwLock<Secured>,
    changed: Notify,
}

/// What is configured.
#[derive(Default, Clone)]
pub struct Secured {
    /// Who may ask for routes with [`super::Access::Credentials`]; without it, everybody.
    pub auth: Option<Credentials>,
    /// Names of those users who may also ask for routes with [`super::Access::Writer`].
    pub writers: Arc<[String]>,
    /// All endpoints speak TLS only; without it, HTTP only.
    pub tls: Option<Arc<Tls>>,
    /// Headers of every response.
    pub headers: Arc<[(HeaderName, HeaderValue)]>,
    pub rate: Option<Rate>,
}

impl Security {
    pub fn new(secured: Secured) -> Self {
        Self { secured: RwLock::new(secured), changed: Notify::new() }
    }

    /// From now on.
    pub fn set(&self, secured: Secured) {
        *self.secured.write().unwrap_or_else(PoisonError::into_inner) = secured;
        self.changed.notify_one();
    }

    /// As it is now.
    pub fn now(&self) -> Secured {
        self.secured.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Until it is set again; for one to wait.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(super) fn tls(&self) -> Option<Arc<Tls>> {
        self.now().tls
    }
}
