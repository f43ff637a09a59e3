//! Scheduling of password checks.
//!
//! A bcrypt hash takes a quarter of a second of a core, so only one is evaluated at a time, and requests with an
//! unknown pair of user and password wait. First come, first served would let a stranger with many connections make
//! everyone else wait. So each waiting peer has the same chance, however many connections it has, and so does each of a
//! peer's connections, however long the others have waited.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Grants one turn at a time.
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

/// A turn; dropping it passes the turn to the next waiter.
pub(super) struct Turn(Arc<Turns>);

impl Turns {
    /// Waits for a turn. Waiters whose future was dropped are skipped.
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
                // The waiter is gone; pass on the turn it did not take.
                Err(turn) => std::mem::forget(turn),
            }
        }
    }
}

impl Queue {
    /// Picks one of the waiters; if there are none, marks the turn as free.
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

    /// Returns a number below `n`, which must not be 0.
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

    /// Returns the future's result if it is ready.
    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn turns_are_fair_across_peers() {
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
        // One on average; first come, first served would give thirty.
        assert!(before < 200 * 4, "{before}");
    }

    #[test]
    fn cancelled_waiters_are_skipped() {
        let turns = Arc::<Turns>::default();
        let turn = now(turns.take(address(1))).flatten();
        let mut gone = Box::pin(turns.take(address(2)));
        assert!(now(gone.as_mut()).is_none());
        let mut called = Box::pin(turns.take(address(3)));
        assert!(now(called.as_mut()).is_none());
        drop(turn);
        // Either may have been picked; dropping the future passes an untaken turn to the other.
        drop(gone);
        let turn = now(called.as_mut()).flatten().expect("its turn");
        drop(turn);
        assert!(now(turns.take(address(1))).flatten().is_some(), "nobody has it now");
    }
}
