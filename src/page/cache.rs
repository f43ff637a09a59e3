//! The recent status, shared by all clients.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::Bytes;

use super::history::History;
use super::html::page;
use super::model::Status;
use super::{Snapshot, status};

/// How old a status may be when it is served.
const MAX_AGE: Duration = Duration::from_secs(1);

/// Collecting the status takes at most one part in this many of the time.
const MAX_SHARE: u32 = 50;

/// The latest status. It is produced on demand, by one of the requests.
#[derive(Debug, Default)]
pub(crate) struct StatusCache {
    latest: Mutex<Option<Arc<Shown>>>,
    /// Held by the request that produces the next status.
    history: Mutex<History>,
}

/// One status, and its serialized forms.
#[derive(Debug)]
struct Shown {
    at: Instant,
    took: Duration,
    status: Status,
    json: OnceLock<Bytes>,
    html: OnceLock<Bytes>,
}

impl Shown {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < MAX_AGE.max(self.took * MAX_SHARE)
    }
}

impl StatusCache {
    /// The status as JSON.
    pub fn json(&self, look: impl FnOnce() -> Snapshot) -> Bytes {
        let shown = self.shown(look);
        // Plain data with string keys, which cannot fail to serialize.
        let json = || serde_json::to_vec(&shown.status).unwrap_or_default().into();
        shown.json.get_or_init(json).clone()
    }

    /// The status as an HTML page.
    pub fn html(&self, look: impl FnOnce() -> Snapshot) -> Bytes {
        let shown = self.shown(look);
        shown.html.get_or_init(|| page(&shown.status).into()).clone()
    }

    /// While a new status is being produced, the previous one is good enough: a waiting request occupies a slot that a
    /// scrape may need.
    fn shown(&self, look: impl FnOnce() -> Snapshot) -> Arc<Shown> {
        if let Some(shown) = self.latest().clone().filter(|shown| shown.is_fresh()) {
            return shown;
        }
        let mut history = match self.history.try_lock() {
            Ok(history) => history,
            Err(_) => {
                if let Some(shown) = self.latest().clone() {
                    return shown;
                }
                self.history.lock().unwrap_or_else(PoisonError::into_inner)
            }
        };
        // Another request may have produced it meanwhile.
        if let Some(shown) = self.latest().clone().filter(|shown| shown.is_fresh()) {
            return shown;
        }
        let at = Instant::now();
        let status = status(look(), &mut history);
        let shown = Shown { at, took: at.elapsed(), status, json: OnceLock::new(), html: OnceLock::new() };
        let shown = Arc::new(shown);
        *self.latest() = Some(shown.clone());
        shown
    }

    fn latest(&self) -> MutexGuard<'_, Option<Arc<Shown>>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::tests::snapshot;
    use super::*;

    #[test]
    fn concurrent_requests_share_one_snapshot() {
        let (cache, looks, together) = (StatusCache::default(), AtomicUsize::new(0), Barrier::new(64));
        std::thread::scope(|scope| {
            for _ in 0..64 {
                scope.spawn(|| {
                    together.wait();
                    cache.json(|| {
                        looks.fetch_add(1, Ordering::Relaxed);
                        // Long enough that the result stays fresh for half a minute.
                        std::thread::sleep(Duration::from_millis(600));
                        snapshot()
                    });
                });
            }
        });
        assert_eq!(looks.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn stale_status_is_served_during_a_refresh() {
        let cache = StatusCache::default();
        let stale = Arc::new(Shown {
            at: Instant::now() - 2 * MAX_AGE,
            took: Duration::ZERO,
            status: status(snapshot(), &mut History::default()),
            json: OnceLock::new(),
            html: OnceLock::new(),
        });
        *cache.latest() = Some(stale.clone());
        let making = cache.history.lock().unwrap();
        let shown = cache.shown(|| panic!("two look at once"));
        assert!(Arc::ptr_eq(&shown, &stale));
        drop(making);
        assert!(!Arc::ptr_eq(&cache.shown(snapshot), &stale), "it is not shown for ever");
    }
}
