//! Whose password is checked next.
//!
//! A bcrypt hash takes a quarter of a second of a core, so only one is evaluated at a time, and whoever comes with an
//! unknown pair of user and password waits. First come, first served would let a stranger with many connections
//! keep everybody else waiting. So each waiting peer has the same chance, however many connections it has, and
//! so has each of a peer's connections, however long the others have waited.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Gives one turn at a time.
#[derive(Default)]
pub(super) struct Turns {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    taken: bool,
    waiting: Vec<Waiter>,
    drawn: u64,
    random: RandomState,
}

struct Waiter {
    peer: IpAddr,
    call: oneshot::Sender<Turn>,
}

/// The turn; the next one waiting has it when this is dropped.
pub(super) struct Turn(Arc<Turns>);

impl Turns {
    /// Waits for a turn. Who stops waiting is passed over.
    pub(super) async fn take(self: &Arc<Self>, peer: IpAddr) -> Option<Turn> {
        let called = {
            let mut queue = self.lock();
            if !queue.taken {
                queue.taken = true;
                return Some(Turn(self.clone()));
            }
            let (call, called) = oneshot::channel();
            queue.waiting.push(Waiter { peer, call });
            called
        };
        called.await.ok()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        loop {
            let Some(waiter) = self.0.lock().next() else { return };
            match waiter.call.send(Turn(self.0.clone())) {
                Ok(()) => return,
                // It has stopped waiting; the turn that it did not take is still to be given.
                Err(turn) => std::mem::forget(turn),
            }
        }
    }
}

impl Queue {
    /// One of those waiting, or none, and then the turn is free.
    fn next(&mut self) -> Option<Waiter> {
        self.waiting.retain(|waiter| !waiter.call.is_closed());
        let mut peers: Vec<_> = self.waiting.iter().map(|waiter| waiter.peer).collect();
        peers.sort_unstable();
        peers.dedup();
        if peers.is_empty() {
            self.taken = false;
            return None;
        }
        let peer = peers[self.draw(peers.len())];
        let of_peer: Vec<_> = (0..self.waiting.len()).filter(|&at| self.waiting[at].peer == peer).collect();
        let at = of_peer[self.draw(of_peer.len())];
        Some(self.waiting.swap_remove(at))
    }

    /// A number below `n`, which is not 0.
    fn draw(&mut self, n: usize) -> usize {
        self.drawn += 1;
        (self.random.hash_one(self.drawn) % n as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn address(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    /// The future's result if it has one now.
    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_peer_with_one_connection_waits_as_long_as_one_with_many() {
        let turns = Arc::<Turns>::default();
        let mut before = 0;
        for _ in 0..200 {
            let mut turn = now(turns.take(address(1))).flatten();
            let mut many: Vec<_> = (0..30).map(|_| Box::pin(turns.take(address(1)))).collect();
            for waiting in &mut many {
                assert!(now(waiting.as_mut()).is_none());
            }
            let mut one = Box::pin(turns.take(address(2)));
            assert!(now(one.as_mut()).is_none());
            loop {
                drop(turn.take());
                if let Some(called) = now(one.as_mut()) {
                    drop(called);
                    break;
                }
                let called = (0..many.len()).find_map(|at| now(many[at].as_mut()).map(|turn| (at, turn)));
                let (at, next) = called.expect("somebody has the turn");
                drop(many.swap_remove(at));
                turn = next;
                before += 1;
            }
        }
        // One on average; in the order in which they came it would be thirty.
        assert!(before < 200 * 4, "{before}");
    }

    #[test]
    fn who_stopped_waiting_is_passed_over() {
        let turns = Arc::<Turns>::default();
        let turn = now(turns.take(address(1))).flatten();
        let mut gone = Box::pin(turns.take(address(2)));
        assert!(now(gone.as_mut()).is_none());
        let mut called = Box::pin(turns.take(address(3)));
        assert!(now(called.as_mut()).is_none());
        drop(turn);
        // Either of them may have been called; dropping what was not taken gives it to the other.
        drop(gone);
        let turn = now(called.as_mut()).flatten().expect("its turn");
        drop(turn);
        assert!(now(turns.take(address(1))).flatten().is_some(), "nobody has it now");
    }
}
