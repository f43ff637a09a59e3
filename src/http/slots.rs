//! The places for connections of one listener, and who loses one when they are all taken.
//!
//! A newcomer never waits for a place: it gets one, or it is refused at once. When its peer holds as many
//! as a peer may, one of that peer's own connections is thrown out; when the listener is full, one of the
//! peer's that holds the most. Only a connection which is not being served can be thrown out. So silent
//! connections, however many, cost other peers nothing and their own peer only the oldest of them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::watch::{Standing, Watch};

pub(super) struct Slots {
    max: usize,
    max_per_peer: usize,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    /// Numbers connections in the order they came.
    next: u64,
    taken: HashMap<u64, Place>,
}

struct Place {
    peer: IpAddr,
    watch: Arc<Watch>,
}

/// What became of a newcomer.
pub(super) enum Admission {
    Admitted { slot: Slot, evicted: bool },
    Refused,
}

/// A place, given back when dropped.
pub(super) struct Slot {
    slots: Arc<Slots>,
    id: u64,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.lock().taken.remove(&self.id);
    }
}

impl Slots {
    pub(super) fn new(max: usize, max_per_peer: usize) -> Arc<Self> {
        Arc::new(Self { max, max_per_peer, places: Mutex::default() })
    }

    /// Finds a place for a connection from `address`, which `watch` watches.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr, watch: &Arc<Watch>) -> Admission {
        let peer = peer_of(address);
        let mut places = self.lock();
        let own = places.taken.values().filter(|place| place.peer == peer).count();
        let victim = if own >= self.max_per_peer {
            Some(places.victim(Some(peer)))
        } else if places.taken.len() >= self.max {
            Some(places.victim(None))
        } else {
            None
        };
        let evicted = victim.is_some();
        match victim {
            Some(None) => return Admission::Refused,
            Some(Some(id)) => {
                // Its task gives the place back too, which then does nothing.
                if let Some(place) = places.taken.remove(&id) {
                    place.watch.evict();
                }
            }
            None => {}
        }
        let id = places.next;
        places.next += 1;
        places.taken.insert(id, Place { peer, watch: watch.clone() });
        Admission::Admitted { slot: Slot { slots: self.clone(), id }, evicted }
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    /// The connection to throw out: of the peer that holds the most (or of `only`), the one that has done
    /// least, and of those the oldest. `None` when all of them are being served.
    fn victim(&self, only: Option<IpAddr>) -> Option<u64> {
        let mut held: HashMap<IpAddr, usize> = HashMap::new();
        for place in self.taken.values() {
            *held.entry(place.peer).or_default() += 1;
        }
        self.taken
            .iter()
            .filter(|(_, place)| only.is_none_or(|only| place.peer == only))
            .map(|(&id, place)| (held[&place.peer], place.watch.standing(), id))
            .filter(|&(_, standing, _)| standing != Standing::Busy)
            .min_by_key(|&(held, standing, id)| (std::cmp::Reverse(held), standing, id))
            .map(|(_, _, id)| id)
    }
}

/// Whom an address belongs to: itself, or the IPv6 network of 64 bits that one machine can have to itself.
fn peer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper::body::Bytes;

    use super::*;
    use crate::http::limits::Limits;

    struct Held {
        watch: Arc<Watch>,
        slot: Slot,
        evicted_another: bool,
    }

    fn new_watch(stall: Duration) -> Arc<Watch> {
        Watch::new(Arc::new(Limits { stall, ..Limits::default() }))
    }

    fn admit(slots: &Arc<Slots>, address: &str, stall: Duration) -> Option<Held> {
        let watch = new_watch(stall);
        match slots.admit(address.parse().unwrap(), &watch) {
            Admission::Admitted { slot, evicted } => Some(Held { watch, slot, evicted_another: evicted }),
            Admission::Refused => None,
        }
    }

    fn connect(slots: &Arc<Slots>, address: &str) -> Option<Held> {
        admit(slots, address, Duration::from_secs(3600))
    }

    fn has_place(slots: &Arc<Slots>, held: &Held) -> bool {
        slots.lock().taken.contains_key(&held.slot.id)
    }

    #[test]
    fn a_silent_peer_pays_with_its_own_oldest() {
        let slots = Slots::new(8, 3);
        let other = connect(&slots, "10.0.0.2").unwrap();
        let silent: Vec<_> = (0..20).map(|_| connect(&slots, "10.0.0.1").unwrap()).collect();
        assert!(has_place(&slots, &other));
        let left: Vec<_> = silent.iter().map(|held| has_place(&slots, held)).collect();
        assert_eq!(left, [vec![false; 17], vec![true; 3]].concat());
        assert_eq!(silent.iter().filter(|held| held.evicted_another).count(), 17);
    }

    #[test]
    fn a_full_listener_takes_from_the_peer_that_holds_the_most() {
        let slots = Slots::new(4, 3);
        let scraper = connect(&slots, "10.0.0.9").unwrap();
        let hog: Vec<_> = (0..3).map(|_| connect(&slots, "10.0.0.1").unwrap()).collect();
        let newcomer = connect(&slots, "10.0.0.2").unwrap();
        assert!(newcomer.evicted_another && has_place(&slots, &scraper) && !has_place(&slots, &hog[0]));
        assert_eq!(slots.lock().taken.len(), 4);
    }

    #[test]
    fn what_is_being_served_stays_and_a_newcomer_is_refused() {
        let slots = Slots::new(2, 2);
        let busy: Vec<_> = (0..2).map(|_| connect(&slots, "10.0.0.1").unwrap()).collect();
        busy.iter().for_each(|held| held.watch.enter_handling());
        assert!(connect(&slots, "10.0.0.2").is_none());
        assert!(connect(&slots, "10.0.0.1").is_none());
        drop(busy);
        assert!(!connect(&slots, "10.0.0.2").unwrap().evicted_another);
    }

    #[test]
    fn unproven_goes_before_resting_before_stalled() {
        let slots = Slots::new(9, 3);
        let stalled = admit(&slots, "10.0.0.1", Duration::ZERO).unwrap();
        let _unsent = stalled.watch.enter_writing(Bytes::new());
        let resting = connect(&slots, "10.0.0.1").unwrap();
        drop(resting.watch.enter_writing(Bytes::new()));
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
    fn one_ipv6_network_is_one_peer() {
        let same = peer_of("2001:db8::1".parse().unwrap());
        assert_eq!(same, peer_of("2001:db8::ffff:1".parse().unwrap()));
        assert_ne!(same, peer_of("2001:db8:0:1::1".parse().unwrap()));
        assert_eq!(peer_of("::ffff:10.0.0.1".parse().unwrap()), "10.0.0.1".parse::<IpAddr>().unwrap());
    }
}
