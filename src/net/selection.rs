//! The selected interfaces of a network namespace, which a reload can change.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::config::Scope;

/// How long a reload waits for a thread to apply the new selection. The thread checks once a second.
const APPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// The selected interfaces of a namespace.
#[derive(Debug)]
pub(super) struct InterfaceSelection {
    /// The selection, and whether the namespace's thread has yet to apply it.
    scope: Mutex<(Scope, bool)>,
    taken: Condvar,
}

impl InterfaceSelection {
    pub fn new(scope: Scope) -> Self {
        Self { scope: Mutex::new((scope, false)), taken: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, (Scope, bool)> {
        self.scope.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn scope(&self) -> Scope {
        self.lock().0.clone()
    }

    /// The selection, if it has not been applied yet.
    pub fn changed(&self) -> Option<Scope> {
        let wanted = self.lock();
        wanted.1.then(|| wanted.0.clone())
    }

    /// Marks the selection as applied.
    pub fn taken(&self, scope: &Scope) {
        let mut wanted = self.lock();
        if wanted.0 == *scope {
            wanted.1 = false;
            self.taken.notify_all();
        }
    }

    pub fn change(&self, scope: Scope) {
        let mut wanted = self.lock();
        if wanted.0 != scope {
            *wanted = (scope, true);
        }
    }

    /// Waits until it is applied, up to the timeout.
    pub fn wait(&self) {
        let _ = self.taken.wait_timeout_while(self.lock(), APPLY_TIMEOUT, |(_, is_new)| *is_new);
    }
}
