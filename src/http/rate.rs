//! The rate limit: a token bucket per client.
//!
//! A client is an address. Clients whose credentials or certificate are already known are kept apart from strangers at
//! the same address, who therefore cannot use up the allowance of a scraper behind that address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Clients that are tracked. A client that is evicted starts again with a full bucket, so clients from many addresses
/// do not harm the others.
const MAX_CLIENTS: usize = 4096;

/// The request rate allowed per client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// The time per new token. Not zero.
    pub interval: Duration,
    /// The capacity of a bucket, which starts full.
    pub burst: u32,
}

impl Rate {
    /// The time after which a client that waited has a token, in whole seconds.
    pub fn seconds_per_token(self) -> u64 {
        self.interval.as_secs() + u64::from(self.interval.subsec_nanos() > 0)
    }
}

/// The token buckets of one listener, or of another resource that clients request.
#[derive(Default)]
pub struct Limiter {
    buckets: Mutex<HashMap<(IpAddr, bool), Bucket>>,
}

struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Limiter {
    /// Takes one of the client's tokens, if there is one.
    pub fn allows(&self, rate: Rate, peer: IpAddr, is_known: bool, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let full = f64::from(rate.burst);
        let client = (peer, is_known);
        if buckets.len() >= MAX_CLIENTS && !buckets.contains_key(&client) {
            forget(&mut buckets, rate, now);
        }
        let bucket = buckets.entry(client).or_insert(Bucket { tokens: full, at: now });
        bucket.refill(rate, now);
        let allowed = bucket.tokens >= 1.0;
        if allowed {
            bucket.tokens -= 1.0;
        }
        allowed
    }
}

impl Bucket {
    fn refill(&mut self, rate: Rate, now: Instant) {
        let more = now.saturating_duration_since(self.at).as_secs_f64() / rate.interval.as_secs_f64();
        self.tokens = (self.tokens + more).min(f64::from(rate.burst));
        self.at = now;
    }
}

/// Makes room: drops buckets that are full again, or else the fullest one.
fn forget(buckets: &mut HashMap<(IpAddr, bool), Bucket>, rate: Rate, now: Instant) {
    buckets.retain(|_, bucket| {
        bucket.refill(rate, now);
        bucket.tokens < f64::from(rate.burst)
    });
    if buckets.len() >= MAX_CLIENTS
        && let Some(fullest) =
            buckets.iter().max_by(|a, b| a.1.tokens.total_cmp(&b.1.tokens)).map(|(client, _)| *client)
    {
        buckets.remove(&fullest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { interval: Duration::from_secs(2), burst: 3 };

    fn peer(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    #[test]
    fn allows_a_burst_then_one_per_interval() {
        let limiter = Limiter::default();
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let allowed = |seconds| (0..10).filter(|_| limiter.allows(RATE, peer(1), false, at(seconds))).count();
        assert_eq!([0, 1, 2, 3, 6, 600].map(allowed), [3, 0, 1, 0, 2, 3]);
    }

    #[test]
    fn a_client_that_waits_as_told_is_allowed() {
        for milliseconds in [1, 20, 1000, 1001, 2000, 90_500] {
            let rate = Rate { interval: Duration::from_millis(milliseconds), burst: 1 };
            let (limiter, begin) = (Limiter::default(), Instant::now());
            assert!(
                limiter.allows(rate, peer(1), false, begin) && !limiter.allows(rate, peer(1), false, begin)
            );
            let told = Duration::from_secs(rate.seconds_per_token());
            assert!(told >= Duration::from_secs(1) && limiter.allows(rate, peer(1), false, begin + told));
        }
    }

    #[test]
    fn unauthenticated_requests_do_not_use_the_authenticated_quota() {
        let limiter = Limiter::default();
        let now = Instant::now();
        assert_eq!((0..10).filter(|_| limiter.allows(RATE, peer(1), false, now)).count(), 3);
        assert!(limiter.allows(RATE, peer(1), true, now) && limiter.allows(RATE, peer(2), false, now));
    }

    #[test]
    fn zero_burst_rejects_everything() {
        let none = Rate { burst: 0, ..RATE };
        let limiter = Limiter::default();
        let later = Instant::now() + Duration::from_secs(100);
        assert!(!limiter.allows(none, peer(1), true, Instant::now()));
        assert!(!limiter.allows(none, peer(1), true, later));
    }

    #[test]
    fn memory_is_bounded() {
        let limiter = Limiter::default();
        let now = Instant::now();
        for n in 0..2 * MAX_CLIENTS as u32 {
            assert!(limiter.allows(RATE, peer(n), false, now));
        }
        assert!(limiter.buckets.lock().unwrap().len() <= MAX_CLIENTS);
    }
}
