//! The connection slots of one listener, and the choice of the connection to evict when all are taken.
//!
//! A new connection gets a slot at once if one can be freed. If its peer already holds the maximum per peer, one of
//! that peer's own connections is evicted; if the listener is full, one of the peer that holds the most. Only
//! connections that are not being served can be evicted, and checking a password does not count as being served. So
//! strangers, however many, cost other peers nothing, and their own peer only its oldest strangers.
//!
//! A connection cannot be evicted during its first moments; otherwise a client that reconnects as soon as it is evicted
//! would evict everyone else before they have sent anything. New connections wait that long if nothing else can be
//! evicted.
//!
//! Authenticated connections are evicted only if there are no others, and among the rest, peers that authenticated
//! before are evicted last.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::limits::Limits;
use super::watch::{EvictionClass, Watch};

/// How often a waiting connection checks for a free slot.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

pub(super) struct Slots {
    limits: Arc<Limits>,
    places: Mutex<Occupants>,
    /// Notified when a slot is released.
    freed: Notify,
    /// Connections waiting for a slot, oldest first. Dropping an entry refuses the connection.
    waiting: Mutex<VecDeque<oneshot::Sender<Infallible>>>,
}

/// Authenticated peers that are remembered for each listener.
const MAX_KNOWN_PEERS: usize = 64;

#[derive(Default)]
struct Occupants {
    /// The next connection number; connections are numbered in order of arrival.
    next: u64,
    taken: HashMap<u64, Occupant>,
    /// Peers that have authenticated, latest last.
    known: VecDeque<IpAddr>,
}

struct Occupant {
    peer: IpAddr,
    watch: Arc<Watch>,
}

/// The outcome for a new connection.
pub(super) enum Admission {
    Admitted { slot: Slot, watch: Arc<Watch>, evicted: bool },
    Refused,
}

/// A slot, released when dropped.
pub(super) struct Slot {
    slots: Arc<Slots>,
    id: u64,
    peer: IpAddr,
}

impl Slot {
    /// Remembers that the peer has authenticated.
    pub(super) fn remember_peer(&self) {
        let known = &mut self.slots.lock().known;
        known.retain(|peer| *peer != self.peer);
        if known.len() == MAX_KNOWN_PEERS {
            known.pop_front();
        }
        known.push_back(self.peer);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.lock().taken.remove(&self.id);
        self.slots.freed.notify_one();
    }
}

impl Slots {
    pub(super) fn new(limits: Arc<Limits>) -> Arc<Self> {
        Arc::new(Self { limits, places: Mutex::default(), freed: Notify::new(), waiting: Mutex::default() })
    }

    /// Like [`Slots::admit`], but waits for a slot: up to [`Limits::admission`], or until too many newer connections
    /// are waiting.
    pub(super) async fn admit_or_wait(self: &Arc<Self>, address: IpAddr) -> Admission {
        let admission = self.admit(address);
        if matches!(admission, Admission::Admitted { .. }) {
            return admission;
        }
        let sent_away = self.queue();
        tokio::select! {
            biased;
            _ = sent_away => Admission::Refused,
            admission = self.wait(address) => admission,
        }
    }

    /// Enters the queue of waiting connections. The receiver resolves when this one must stop waiting.
    fn queue(&self) -> oneshot::Receiver<Infallible> {
        let (end, sent_away) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|end| !end.is_closed());
        waiting.push_back(end);
        if waiting.len() > self.limits.max_waiting {
            waiting.pop_front();
        }
        sent_away
    }

    async fn wait(self: &Arc<Self>, address: IpAddr) -> Admission {
        let deadline = Instant::now() + self.limits.admission;
        loop {
            // There is no notification for the end of a grace period.
            let _ = timeout(RETRY_INTERVAL, self.freed.notified()).await;
            let admission = self.admit(address);
            if matches!(admission, Admission::Admitted { .. }) || Instant::now() >= deadline {
                return admission;
            }
        }
    }

    /// Finds a slot for a connection from `address`.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Admission {
        let peer = peer_of(address);
        let mut places = self.lock();
        let own = places.taken.values().filter(|place| place.peer == peer).count();
        // Strangers behind the address of a known client must leave room for it.
        let max_own = self.limits.max_per_peer * if places.known.contains(&peer) { 2 } else { 1 };
        let victim = if own >= max_own {
            Some(places.victim(peer, true))
        } else if places.taken.len() >= self.limits.max_connections {
            Some(places.victim(peer, false))
        } else {
            None
        };
        let evicted = victim.is_some();
        match victim {
            Some(None) => return Admission::Refused,
            Some(Some(id)) => {
                // Its task releases the slot too, which then has no effect.
                if let Some(place) = places.taken.remove(&id) {
                    place.watch.evict();
                }
            }
            None => {}
        }
        let id = places.next;
        places.next += 1;
        let watch = Watch::new(self.limits.clone());
        places.taken.insert(id, Occupant { peer, watch: watch.clone() });
        Admission::Admitted { slot: Slot { slots: self.clone(), id, peer }, watch, evicted }
    }

    fn lock(&self) -> MutexGuard<'_, Occupants> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Occupants {
    /// Chooses the connection to evict in favor of `newcomer`: from the peer that holds the most (or `only_own`), the
    /// one that has done the least, then the oldest. Authenticated connections are chosen only if there are no others,
    /// and connections of peers that authenticated before only after those of all other peers. `None` if all are being
    /// served or too young.
    fn victim(&self, newcomer: IpAddr, only_own: bool) -> Option<u64> {
        let known = |peer: &IpAddr| self.known.contains(peer);
        let welcome = known(&newcomer);
        let mut held: HashMap<IpAddr, usize> = HashMap::new();
        for place in self.taken.values() {
            *held.entry(place.peer).or_default() += 1;
        }
        let safe = |place: &Occupant| (known(&place.peer) || !welcome) && place.watch.in_grace();
        self.taken
            .iter()
            .filter(|(_, place)| !only_own || place.peer == newcomer)
            .map(|(&id, place)| (place, place.watch.standing(), id))
            .filter(|&(_, standing, _)| standing != EvictionClass::Busy)
            .min_by_key(|&(place, standing, id)| {
                let trusted = standing == EvictionClass::Trusted;
                let held = std::cmp::Reverse(held[&place.peer]);
                // Better to wait for the end of a grace period than to evict an authenticated connection.
                (trusted, safe(place), known(&place.peer), held, standing, id)
            })
            .filter(|(place, _, _)| !safe(place))
            .map(|(_, _, id)| id)
    }
}

/// Returns the peer that an address belongs to: the address itself, or its IPv6 /64 network, which a single machine can
/// own entirely.
fn peer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use hyper::body::Bytes;

    use super::*;
    use crate::http::limits::Limits;
    use crate::http::watched::WatchedBody;

    struct Held {
        watch: Arc<Watch>,
        slot: Slot,
        evicted_another: bool,
    }

    fn slots(max_connections: usize, max_per_peer: usize) -> Arc<Slots> {
        let none = Duration::ZERO;
        Slots::new(Arc::new(Limits { max_connections, max_per_peer, grace: none, ..Limits::default() }))
    }

    fn connect(slots: &Arc<Slots>, address: &str) -> Option<Held> {
        match slots.admit(address.parse().unwrap()) {
            Admission::Admitted { slot, watch, evicted } => {
                Some(Held { watch, slot, evicted_another: evicted })
            }
            Admission::Refused => None,
        }
    }

    fn has_place(slots: &Arc<Slots>, held: &Held) -> bool {
        slots.lock().taken.contains_key(&held.slot.id)
    }

    #[test]
    fn silent_peer_loses_its_own_oldest_connections() {
        let slots = slots(8, 3);
        let other = connect(&slots, "10.0.0.2").unwrap();
        let silent: Vec<_> = (0..20).map(|_| connect(&slots, "10.0.0.1").unwrap()).collect();
        assert!(has_place(&slots, &other));
        let left: Vec<_> = silent.iter().map(|held| has_place(&slots, held)).collect();
        assert_eq!(left, [vec![false; 17], vec![true; 3]].concat());
        assert_eq!(silent.iter().filter(|held| held.evicted_another).count(), 17);
    }

    #[test]
    fn strangers_at_the_address_of_a_known_client_leave_room_for_it() {
        let hour = Duration::from_secs(3600);
        let limits = Limits { max_per_peer: 3, grace: hour, ..Limits::default() };
        let slots = Slots::new(Arc::new(limits));
        let scraper = connect(&slots, "10.0.0.1").unwrap();
        scraper.slot.remember_peer();
        let strangers: Vec<_> = (0..3).map(|_| connect(&slots, "10.0.0.1").unwrap()).collect();
        assert!(!connect(&slots, "10.0.0.1").expect("without waiting").evicted_another);
        assert!(strangers.iter().all(|stranger| has_place(&slots, stranger)));
        let others: Vec<_> = (0..3).map(|_| connect(&slots, "10.0.0.2").unwrap()).collect();
        assert!(connect(&slots, "10.0.0.2").is_none(), "{} are all it may have", others.len());
    }

    #[test]
    fn full_listener_evicts_from_the_largest_peer() {
        let slots = slots(4, 3);
        let scraper = connect(&slots, "10.0.0.9").unwrap();
        let hog: Vec<_> = (0..3).map(|_| connect(&slots, "10.0.0.1").unwrap()).collect();
        let newcomer = connect(&slots, "10.0.0.2").unwrap();
        assert!(newcomer.evicted_another && has_place(&slots, &scraper) && !has_place(&slots, &hog[0]));
        assert_eq!(slots.lock().taken.len(), 4);
    }

    #[test]
    fn active_requests_are_never_evicted() {
        let slots = slots(2, 2);
        let busy: Vec<_> = (0..2).map(|_| connect(&slots, "10.0.0.1").unwrap()).collect();
        busy.iter().for_each(|held| held.watch.enter_handling());
        assert!(connect(&slots, "10.0.0.2").is_none());
        assert!(connect(&slots, "10.0.0.1").is_none());
        drop(busy);
        assert!(!connect(&slots, "10.0.0.2").unwrap().evicted_another);
    }

    #[test]
    fn evicts_unproven_then_idle_then_stalled() {
        let limits = Limits {
            max_per_peer: 3,
            grace: Duration::ZERO,
            stall: Duration::from_millis(1),
            ..Limits::default()
        };
        let slots = Slots::new(Arc::new(limits));
        let stalled = connect(&slots, "10.0.0.1").unwrap();
        let _unsent = WatchedBody::whole(Bytes::new(), &stalled.watch);
        std::thread::sleep(Duration::from_millis(2));
        let resting = connect(&slots, "10.0.0.1").unwrap();
        drop(WatchedBody::whole(Bytes::new(), &resting.watch));
        resting.watch.flushed();
        let unproven = connect(&slots, "10.0.0.1").unwrap();
        let mut newcomers = Vec::new();
        for victim in [&unproven, &resting, &stalled] {
            let newcomer = connect(&slots, "10.0.0.1").unwrap();
            newcomer.watch.enter_handling();
            newcomers.push(newcomer);
            assert!(!has_place(&slots, victim));
        }
        assert!(connect(&slots, "10.0.0.1").is_none(), "all three are being served");
    }

    #[test]
    fn unauthenticated_never_evicts_authenticated() {
        let slots = slots(6, 4);
        let scraper = connect(&slots, "10.0.0.1").unwrap();
        scraper.watch.heard();
        scraper.watch.trust();
        drop(WatchedBody::whole(Bytes::new(), &scraper.watch));
        scraper.watch.flushed();
        // Guesses from the scraper's own address; their passwords are being checked all the time.
        let mut guesses = Vec::new();
        for _ in 0..20 {
            let guess =
                connect(&slots, "10.0.0.1").expect("the check of a stranger's password holds no place");
            guess.watch.heard();
            guess.watch.enter_checking();
            guesses.push(guess);
        }
        // And connections from more other addresses than there are slots.
        let others: Vec<_> =
            (0..20).map(|n| connect(&slots, &format!("10.0.1.{n}")).expect("a place")).collect();
        others.iter().for_each(|other| other.watch.heard());
        assert!(has_place(&slots, &scraper));
    }

    #[test]
    fn authenticated_peers_are_evicted_last() {
        let slots = slots(3, 2);
        let before = connect(&slots, "10.0.0.1").unwrap();
        before.slot.remember_peer();
        drop(before);
        let scrapers: Vec<_> = (0..2).map(|_| connect(&slots, "10.0.0.1").unwrap()).collect();
        let stranger = connect(&slots, "10.0.0.2").unwrap();
        assert!(connect(&slots, "10.0.0.3").unwrap().evicted_another);
        assert!(!has_place(&slots, &stranger), "though the other peer holds more");
        assert!(scrapers.iter().all(|scraper| has_place(&slots, scraper)));
    }

    #[test]
    fn silent_connections_are_evicted_first() {
        let slots = slots(9, 2);
        let speaks = connect(&slots, "10.0.0.1").unwrap();
        speaks.watch.heard();
        let silent = connect(&slots, "10.0.0.1").unwrap();
        connect(&slots, "10.0.0.1").unwrap();
        assert!(has_place(&slots, &speaks) && !has_place(&slots, &silent));
    }

    #[tokio::test]
    async fn flood_waits_for_the_grace_period() {
        let hour = Duration::from_secs(3600);
        let limits =
            Limits { max_connections: 2, max_per_peer: 2, grace: hour, admission: hour, ..Limits::default() };
        let slots = Slots::new(Arc::new(limits));
        let young: Vec<_> = (0..2).map(|_| connect(&slots, "10.0.0.1").unwrap()).collect();
        assert!(connect(&slots, "10.0.0.1").is_none() && connect(&slots, "10.0.0.2").is_none());
        let (admission, ()) =
            tokio::join!(slots.admit_or_wait("10.0.0.2".parse().unwrap()), async { drop(young) });
        assert!(matches!(admission, Admission::Admitted { evicted: false, .. }));
    }

    #[tokio::test]
    async fn full_queue_drops_the_oldest_waiter() {
        let hour = Duration::from_secs(3600);
        let limits =
            Limits { max_connections: 1, max_waiting: 1, grace: hour, admission: hour, ..Limits::default() };
        let slots = Slots::new(Arc::new(limits));
        let taken = connect(&slots, "10.0.0.1").unwrap();
        let address = "10.0.0.2".parse().unwrap();
        let mut older = Box::pin(slots.admit_or_wait(address));
        assert!(timeout(RETRY_INTERVAL * 2, &mut older).await.is_err());
        let (older, newer, ()) = tokio::join!(older, slots.admit_or_wait(address), async {
            tokio::task::yield_now().await;
            drop(taken);
        });
        assert!(matches!(older, Admission::Refused) && matches!(newer, Admission::Admitted { .. }));
    }

    #[test]
    fn one_ipv6_network_is_one_peer() {
        let same = peer_of("2001:db8::1".parse().unwrap());
        assert_eq!(same, peer_of("2001:db8::ffff:1".parse().unwrap()));
        assert_ne!(same, peer_of("2001:db8:0:1::1".parse().unwrap()));
        assert_eq!(peer_of("::ffff:10.0.0.1".parse().unwrap()), "10.0.0.1".parse::<IpAddr>().unwrap());
    }
}
