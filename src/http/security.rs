//! Who may ask, how connections are secured, and what else responses have: all of it can change while the server runs.

use std::sync::{Arc, PoisonError, RwLock};

use hyper::header::{HeaderName, HeaderValue};

use super::auth::Credentials;
use super::rate::Rate;
use super::tls::Tls;

/// What holds for the next connection and the next request.
#[derive(Default)]
pub struct Security(RwLock<Secured>);

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
        Self(RwLock::new(secured))
    }

    /// From now on.
    pub fn set(&self, secured: Secured) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = secured;
    }

    /// As it is now.
    pub fn now(&self) -> Secured {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn tls(&self) -> Option<Arc<Tls>> {
        self.now().tls
    }
}
