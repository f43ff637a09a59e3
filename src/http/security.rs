//! Who may ask, and how connections are secured: both can change while the server runs.

use std::sync::{Arc, PoisonError, RwLock};

use super::auth::Credentials;
use super::tls::Tls;

/// What holds for the next connection and the next request.
#[derive(Default)]
pub struct Security(RwLock<State>);

#[derive(Default, Clone)]
struct State {
    auth: Option<Credentials>,
    tls: Option<Arc<Tls>>,
}

impl Security {
    /// `auth` says who may ask for routes with [`super::Access::Credentials`]; without it, everybody. With `tls` all
    /// endpoints speak TLS only.
    pub fn new(auth: Option<Credentials>, tls: Option<Tls>) -> Self {
        Self(RwLock::new(State { auth, tls: tls.map(Arc::new) }))
    }

    /// From now on.
    pub fn set(&self, auth: Option<Credentials>, tls: Option<Tls>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = State { auth, tls: tls.map(Arc::new) };
    }

    pub(super) fn auth(&self) -> Option<Credentials> {
        self.now().auth
    }

    pub(super) fn tls(&self) -> Option<Arc<Tls>> {
        self.now().tls
    }

    fn now(&self) -> State {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
