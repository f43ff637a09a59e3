//! The recent clients of a route.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Visitors of one route that are remembered.
const MAX_VISITORS: usize = 16;
/// The maximum length of a user name or `User-Agent`.
const MAX_NAME: usize = 100;

/// The latest request of each recent visitor. Only authorized clients are recorded, so that strangers cannot evict
/// them.
#[derive(Debug, Default)]
pub struct Visitors(Mutex<Vec<Visitor>>);

/// A client and its latest request.
#[derive(Debug, Clone, PartialEq)]
pub struct Visitor {
    pub peer: IpAddr,
    /// The authenticated user, if credentials are required.
    pub user: Option<String>,
    /// The client's `User-Agent`.
    pub agent: String,
    /// When the response was ready, in seconds since 1970.
    pub at: f64,
    /// The time from the request's headers to the response.
    pub took: Duration,
    /// The size of the response's body as sent.
    pub bytes: usize,
    pub status: u16,
    /// The number of requests by this client since it was first seen.
    pub requests: u64,
}

impl Visitors {
    /// Records a request that was just handled. Requests with the same peer, user and agent belong to one visitor.
    pub(super) fn record(
        &self,
        peer: IpAddr,
        user: Option<String>,
        agent: &str,
        took: Duration,
        bytes: usize,
        status: u16,
    ) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let peer = peer.to_canonical();
        let user = user.map(|user| cut(&user));
        let agent = cut(agent);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |old: &Visitor| old.peer == peer && old.user == user && old.agent == agent;
        let before = all.iter().position(is_it).map(|at| all.remove(at).requests).unwrap_or(0);
        all.insert(0, Visitor { peer, user, agent, at, took, bytes, status, requests: before + 1 });
        all.truncate(MAX_VISITORS);
    }

    /// Returns all visitors, latest first.
    pub fn all(&self) -> Vec<Visitor> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn cut(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(MAX_NAME).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(visitors: &Visitors, peer: &str, agent: &str) {
        visitors.record(peer.parse().unwrap(), None, agent, Duration::from_millis(4), 10, 200);
    }

    #[test]
    fn records_the_latest_request_per_client() {
        let visitors = Visitors::default();
        for (peer, agent) in
            [("192.0.2.1", "a"), ("192.0.2.2", "a"), ("::ffff:192.0.2.1", "a"), ("192.0.2.1", "b")]
        {
            record(&visitors, peer, agent);
        }
        let seen: Vec<_> =
            visitors.all().into_iter().map(|v| (v.peer.to_string(), v.agent, v.requests)).collect();
        let expected = [("192.0.2.1", "b", 1), ("192.0.2.1", "a", 2), ("192.0.2.2", "a", 1)];
        assert_eq!(seen, expected.map(|(peer, agent, requests)| (peer.into(), agent.into(), requests)));
    }

    #[test]
    fn memory_is_bounded() {
        let visitors = Visitors::default();
        for number in 0..1000 {
            record(&visitors, "192.0.2.1", &format!("{number}{}\n", "x".repeat(1000)));
        }
        let all = visitors.all();
        assert_eq!(all.len(), MAX_VISITORS);
        assert!(
            all[0].agent.starts_with("999x") && all.iter().all(|visitor| visitor.agent.len() == MAX_NAME)
        );
    }
}
