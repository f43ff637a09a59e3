//! The memory held by responses while clients read them.
//!
//! A page of many series is tens of megabytes, and a client that reads slowly holds its copy for as long as the
//! timeouts allow. So a listener has a byte budget for all responses together: when it is exceeded, stalled responses
//! are aborted, and if that does not free enough, the new response is refused.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// A connection whose response can be aborted.
pub(super) trait Evictable: Send + Sync {
    /// Whether its client has stopped reading the response.
    fn is_stalled(&self) -> bool;

    /// Closes the connection.
    fn evict(&self);
}

/// The byte budget for all responses of one listener that are being sent.
pub(super) struct Budget {
    limit: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    next: u64,
    answers: Vec<Holder>,
}

struct Holder {
    id: u64,
    bytes: usize,
    connection: Weak<dyn Evictable>,
}

/// The share of one response, released when dropped.
pub(super) struct Charge {
    budget: Arc<Budget>,
    id: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.lock().answers.retain(|holder| holder.id != self.id);
    }
}

impl Budget {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, held: Mutex::default() })
    }

    /// Reserves `bytes` for a response on this connection, or returns `None` if there is no room. A single response
    /// always has room, whatever its size.
    pub(super) fn charge<C: Evictable + 'static>(
        self: &Arc<Self>,
        connection: &Arc<C>,
        bytes: usize,
    ) -> Option<Charge> {
        let mut held = self.lock();
        while held.total() > 0 && held.total().saturating_add(bytes) > self.limit {
            // Its connection releases the charge too, which then has no effect.
            let evicted = held.take_largest_stalled()?;
            evicted.evict();
        }
        let id = held.next;
        held.next += 1;
        let connection: Weak<C> = Arc::downgrade(connection);
        held.answers.push(Holder { id, bytes, connection });
        Some(Charge { budget: self.clone(), id })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn total(&self) -> usize {
        self.answers.iter().map(|holder| holder.bytes).sum()
    }

    fn take_largest_stalled(&mut self) -> Option<Arc<dyn Evictable>> {
        let stalled =
            |holder: &Holder| holder.connection.upgrade().filter(|connection| connection.is_stalled());
        let (at, connection) = self
            .answers
            .iter()
            .enumerate()
            .filter_map(|(at, holder)| Some((at, stalled(holder)?)))
            .max_by_key(|(at, _)| self.answers[*at].bytes)?;
        self.answers.swap_remove(at);
        Some(connection)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper::body::Bytes;

    use super::*;
    use crate::http::limits::Limits;
    use crate::http::watch::{CloseReason, Watch};
    use crate::http::watched::WatchedBody;

    fn writing(stall: Duration) -> Arc<Watch> {
        let watch = Watch::new(Arc::new(Limits { stall, ..Limits::default() }));
        drop(WatchedBody::whole(Bytes::new(), &watch));
        watch
    }

    #[tokio::test]
    async fn stalled_responses_are_evicted() {
        let budget = Budget::new(100);
        let stalled = writing(Duration::ZERO);
        let _stalled = budget.charge(&stalled, 60).unwrap();
        let moving = writing(Duration::from_secs(3600));
        let moving_charge = budget.charge(&moving, 40).unwrap();
        let next = writing(Duration::from_secs(3600));
        let next_charge = budget.charge(&next, 50).expect("the stalled one makes room");
        assert_eq!(stalled.close_reason().await, CloseReason::Evicted);
        assert!(budget.charge(&next, 20).is_none(), "the others are being read");
        drop((moving_charge, next_charge));
        assert!(budget.charge(&next, 1000).is_some(), "a single answer has room whatever its size");
    }

    #[test]
    fn memory_is_released() {
        let budget = Budget::new(100);
        let watch = writing(Duration::from_secs(3600));
        for _ in 0..10 {
            let charge = budget.charge(&watch, 80).unwrap();
            watch.carry(charge);
            drop(WatchedBody::whole(Bytes::new(), &watch));
            watch.flushed();
        }
        assert_eq!(budget.lock().total(), 0);
    }
}
