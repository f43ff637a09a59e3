//! Which interfaces are wanted of a network namespace, as a reload changes it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::config::Scope;

/// How long a reload waits for a thread to take up what is wanted. It looks once a second.
const TAKING: Duration = Duration::from_secs(5);

/// The interfaces that are wanted of a namespace.
#[derive(Debug)]
pub(super) struct InterfaceSelection {
    /// And whether the namespace's thread is yet to take them up.
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

    /// What is wanted now, if that is new.
    pub fn changed(&self) -> Option<Scope> {
        let wanted = self.lock();
        wanted.1.then(|| wanted.0.clone())
    }

    /// Those are what is attached to now.
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

    /// Until they are taken up, but not for long.
    pub fn wait(&self) {
        let _ = self.taken.wait_timeout_while(self.lock(), TAKING, |(_, is_new)| *is_new);
    }
}
