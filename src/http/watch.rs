//! One connection's deadlines: how long its client may take for what it is doing now.
//!
//! hyper has a time-out for headers only, which also ends a connection that waits for its next request. So
//! each connection has a [`Watch`] that knows what is being waited for. The pieces around hyper tell it (the
//! stream, the service, the body), the connection's task ends the connection when [`Watch::close_reason`] resolves,
//! and the table of connections asks it whether the connection can be thrown out.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::budget::{Charge, Evictable};
use super::limits::Limits;

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The end of the TLS handshake.
    Handshake,
    /// The end of a request's headers.
    Header,
    /// The first byte of the next request.
    Idle,
    /// Our own check of a request's credentials. Until it has passed the client is a stranger, whose work may
    /// not hold a place.
    Checking,
    /// Our own handler.
    Handling,
    /// The client's taking of the answer.
    Writing,
    /// The next event of a stream, and the client's taking of it.
    Streaming,
}

/// Why a connection must end now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CloseReason {
    /// The deadline of this phase has passed.
    Timeout(Phase),
    /// Its place was given to another connection.
    Evicted,
    /// The answer that is being sent is its last one.
    LastAnswer,
}

/// How readily a connection is evicted; the first goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum EvictionClass {
    /// Has not sent a byte yet.
    Silent,
    /// No request is being answered, and none has been before.
    Unproven,
    /// Credentials are being checked.
    Checking,
    /// No request is being answered.
    Resting,
    /// An answer is not being taken.
    Stalled,
    /// Has authenticated, and no request is being answered, or a stream goes on.
    Trusted,
    /// A request is being answered.
    Busy,
}

pub(super) struct Watch {
    limits: Arc<Limits>,
    begun: Instant,
    state: Mutex<ConnectionState>,
    /// Wakes [`Watch::close_reason`] when the deadline has moved or the connection is evicted.
    changed: Notify,
}

struct ConnectionState {
    phase: Phase,
    deadline: Option<Instant>,
    /// The last time that the answer moved.
    progress: Instant,
    /// hyper has let go of the answer's body: all of it is in a buffer, or none is wanted.
    body_taken: bool,
    /// The client has sent something.
    heard: bool,
    /// A request was answered before.
    proven: bool,
    /// A request's credentials were right.
    trusted: bool,
    evicted: bool,
    is_last: bool,
    /// What comes is not only requests, but frames of HTTP/2, which can come at any time.
    has_frames: bool,
    /// What the answer that is being sent takes of the listener's memory.
    charge: Option<Charge>,
}

impl Watch {
    /// A connection that begins with a TLS handshake. [`Watch::enter_header`] follows it.
    pub(super) fn new(limits: Arc<Limits>) -> Arc<Self> {
        let now = Instant::now();
        let state = ConnectionState {
            phase: Phase::Handshake,
            deadline: Some(now + limits.handshake),
            progress: now,
            body_taken: false,
            heard: false,
            proven: false,
            trusted: false,
            evicted: false,
            is_last: false,
            has_frames: false,
            charge: None,
        };
        Arc::new(Self { limits, begun: now, state: Mutex::new(state), changed: Notify::new() })
    }

    pub(super) fn enter_header(&self) {
        self.enter(&mut self.lock(), Phase::Header);
    }

    /// As [`Self::enter_header`], where the client speaks HTTP/2.
    pub(super) fn enter_frames(&self) {
        self.lock().has_frames = true;
        self.enter_header();
    }

    /// The answer that is being sent is the last one: HTTP/2 has no header that says so.
    pub(super) fn end_with_answer(&self) {
        self.lock().is_last = true;
        self.changed.notify_one();
    }

    /// The client has sent its first byte.
    pub(super) fn heard(&self) {
        self.lock().heard = true;
    }

    /// A whole request is here, whose credentials are not known to be right.
    pub(super) fn enter_checking(&self) {
        self.enter(&mut self.lock(), Phase::Checking);
    }

    /// A request's credentials were right.
    pub(super) fn trust(&self) {
        self.lock().trusted = true;
    }

    pub(super) fn is_trusted(&self) -> bool {
        self.lock().trusted
    }

    /// Keeps what the answer takes of the listener's memory until all of it is sent, or the connection ends.
    pub(super) fn carry(&self, charge: Charge) {
        self.lock().charge = Some(charge);
    }

    /// A whole request is here, and may be answered.
    pub(super) fn enter_handling(&self) {
        self.enter(&mut self.lock(), Phase::Handling);
    }

    /// The answer is ready; its body reports to this watch.
    pub(super) fn enter_writing(&self) {
        self.enter_answering(Phase::Writing);
    }

    /// Events follow, as long as the client takes them.
    pub(super) fn enter_streaming(&self) {
        self.enter_answering(Phase::Streaming);
    }

    fn enter_answering(&self, phase: Phase) {
        let mut state = self.lock();
        state.body_taken = false;
        self.enter(&mut state, phase);
    }

    /// hyper has let go of the answer's body.
    pub(super) fn let_go_of_body(&self) {
        self.lock().body_taken = true;
    }

    /// Throws the connection out.
    pub(super) fn evict(&self) {
        self.lock().evicted = true;
        self.changed.notify_one();
    }

    /// Whether it is too young to be evicted. Who says nothing has less time.
    pub(super) fn in_grace(&self) -> bool {
        let grace = if self.lock().heard { self.limits.grace } else { self.limits.grace / 5 };
        self.begun.elapsed() < grace
    }

    pub(super) fn standing(&self) -> EvictionClass {
        let state = self.lock();
        match state.phase {
            Phase::Handshake | Phase::Header if !state.heard => EvictionClass::Silent,
            Phase::Handshake | Phase::Header | Phase::Idle | Phase::Checking if state.trusted => {
                EvictionClass::Trusted
            }
            Phase::Checking => EvictionClass::Checking,
            Phase::Handshake | Phase::Header | Phase::Idle if !state.proven => EvictionClass::Unproven,
            Phase::Handshake | Phase::Header | Phase::Idle => EvictionClass::Resting,
            Phase::Writing if state.progress.elapsed() >= self.limits.stall => EvictionClass::Stalled,
            Phase::Streaming => EvictionClass::Trusted,
            Phase::Handling | Phase::Writing => EvictionClass::Busy,
        }
    }

    /// True while a request is being answered.
    pub(super) fn answering(&self) -> bool {
        matches!(self.lock().phase, Phase::Checking | Phase::Handling | Phase::Writing)
    }

    /// Resolves when the connection must end. For one task only.
    pub(super) async fn close_reason(&self) -> CloseReason {
        loop {
            let deadline = {
                let state = self.lock();
                if state.evicted {
                    return CloseReason::Evicted;
                }
                if state.is_last {
                    return CloseReason::LastAnswer;
                }
                if state.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                    return CloseReason::Timeout(state.phase);
                }
                state.deadline
            };
            let late = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = late => {},
                () = self.changed.notified() => {},
            }
        }
    }

    fn enter(&self, state: &mut ConnectionState, phase: Phase) {
        let now = Instant::now();
        state.phase = phase;
        state.progress = now;
        state.deadline = match phase {
            Phase::Handshake => Some(now + self.limits.handshake),
            Phase::Header => Some(now + self.limits.header),
            Phase::Idle => Some(now + self.limits.idle),
            // Both have a time limit of their own, which ends in an answer.
            Phase::Checking | Phase::Handling => None,
            Phase::Writing => Some(now + self.limits.write),
            Phase::Streaming => Some(now + self.limits.stream()),
        };
        self.changed.notify_one();
    }

    pub(super) fn received(&self) {
        let mut state = self.lock();
        state.heard = true;
        if state.phase == Phase::Idle && !state.has_frames {
            self.enter(&mut state, Phase::Header);
        }
    }

    pub(super) fn sent(&self) {
        let mut state = self.lock();
        state.progress = Instant::now();
        if state.phase == Phase::Streaming {
            // It comes later, so that nobody has to be woken for it.
            state.deadline = Some(state.progress + self.limits.stream());
        }
    }

    pub(super) fn flushed(&self) {
        let mut state = self.lock();
        if matches!(state.phase, Phase::Writing | Phase::Streaming) && state.body_taken {
            state.proven = true;
            state.charge = None;
            self.enter(&mut state, Phase::Idle);
        }
    }

    fn lock(&self) -> MutexGuard<'_, ConnectionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Evictable for Watch {
    fn is_stalled(&self) -> bool {
        self.standing() == EvictionClass::Stalled
    }

    fn evict(&self) {
        Watch::evict(self);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper::body::Bytes;

    use super::*;
    use crate::http::watched::WatchedBody;

    /// Limits far enough apart that the order of what ends first is not a matter of speed.
    fn watch(limits: Limits) -> Arc<Watch> {
        Watch::new(Arc::new(limits))
    }

    async fn end(watch: &Watch) -> CloseReason {
        tokio::time::timeout(Duration::from_secs(60), watch.close_reason()).await.expect("never over")
    }

    #[tokio::test]
    async fn each_phase_has_its_own_deadline() {
        let short = Duration::from_millis(1);
        let (handshake, header) = (
            watch(Limits { handshake: short, ..Limits::default() }),
            watch(Limits { header: short, ..Limits::default() }),
        );
        assert_eq!(end(&handshake).await, CloseReason::Timeout(Phase::Handshake));
        header.enter_header();
        assert_eq!(end(&header).await, CloseReason::Timeout(Phase::Header));
        let writing = watch(Limits { write: short, ..Limits::default() });
        writing.enter_handling();
        let _body = WatchedBody::whole(Bytes::new(), &writing);
        assert_eq!(end(&writing).await, CloseReason::Timeout(Phase::Writing));
    }

    #[tokio::test]
    async fn a_deadline_that_moves_nearer_is_noticed() {
        let watch = watch(Limits { write: Duration::from_millis(1), ..Limits::default() });
        watch.enter_handling();
        let (over, _body) = tokio::join!(end(&watch), async {
            tokio::task::yield_now().await;
            WatchedBody::whole(Bytes::new(), &watch)
        });
        assert_eq!(over, CloseReason::Timeout(Phase::Writing));
    }

    #[tokio::test]
    async fn the_answer_is_over_only_when_its_body_is_gone_and_flushed() {
        let watch = watch(Limits { stall: Duration::from_secs(3600), ..Limits::default() });
        assert_eq!(watch.standing(), EvictionClass::Silent);
        watch.heard();
        assert_eq!(watch.standing(), EvictionClass::Unproven);
        watch.enter_header();
        watch.enter_handling();
        assert_eq!(watch.standing(), EvictionClass::Busy);
        let body = WatchedBody::whole(Bytes::from_static(b"x"), &watch);
        watch.flushed();
        assert_eq!(watch.standing(), EvictionClass::Busy, "flushed, but the body is still to come");
        drop(body);
        assert!(watch.answering());
        watch.flushed();
        assert_eq!((watch.standing(), watch.answering()), (EvictionClass::Resting, false));
        watch.received();
        assert_eq!(watch.lock().phase, Phase::Header);
        watch.evict();
        assert_eq!(end(&watch).await, CloseReason::Evicted);
    }

    #[test]
    fn an_answer_that_does_not_move_is_stalled() {
        let watch = watch(Limits { stall: Duration::ZERO, ..Limits::default() });
        let _body = WatchedBody::whole(Bytes::new(), &watch);
        assert_eq!(watch.standing(), EvictionClass::Stalled);
    }
}
