//! The deadlines of one connection: how long its client may take for the current phase.
//!
//! hyper has a timeout for headers only, which also closes a connection that waits for its next request. So each
//! connection has a [`Watch`] that tracks the current phase. The layers around hyper (stream, service, body) report to
//! it, the connection's task closes the connection when [`Watch::close_reason`] resolves, and the slot table asks it
//! whether the connection can be evicted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::budget::{Charge, Evictable};
use super::limits::Limits;

/// What a connection is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The end of the TLS handshake.
    Handshake,
    /// The end of a request's headers.
    Header,
    /// The first byte of the next request.
    Idle,
    /// The server's check of a request's credentials. Until it succeeds, the client is a stranger, whose work may not
    /// hold a slot.
    Checking,
    /// The handler.
    Handling,
    /// The client receiving the response.
    Writing,
    /// The next event of a stream, and the client receiving it.
    Streaming,
}

/// Why a connection must be closed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CloseReason {
    /// The deadline of this phase has passed.
    Timeout(Phase),
    /// Its slot was given to another connection.
    Evicted,
    /// The current response is the last one.
    LastAnswer,
}

/// How readily a connection is evicted, most readily first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum EvictionClass {
    /// Has not sent a byte yet.
    Silent,
    /// No request is being answered, and none has been before.
    Unproven,
    /// Credentials are being checked.
    Checking,
    /// Idle between requests.
    Resting,
    /// The client does not receive its response.
    Stalled,
    /// Authenticated and not being served, or receiving a stream.
    Trusted,
    /// A request is being processed.
    Busy,
}

pub(super) struct Watch {
    limits: Arc<Limits>,
    begun: Instant,
    state: Mutex<ConnectionState>,
    /// Wakes [`Watch::close_reason`] when the deadline has changed or the connection is evicted.
    changed: Notify,
}

struct ConnectionState {
    phase: Phase,
    deadline: Option<Instant>,
    /// When the response last made progress.
    progress: Instant,
    /// hyper has dropped the response's body: all of it is buffered, or it is not needed.
    body_taken: bool,
    /// The client has sent something.
    heard: bool,
    /// A request was completed before.
    proven: bool,
    /// A request had valid credentials.
    trusted: bool,
    evicted: bool,
    is_last: bool,
    /// HTTP/2: incoming data may be frames other than requests, which can arrive at any time.
    has_frames: bool,
    /// The memory charge of the response being sent.
    charge: Option<Charge>,
}

impl Watch {
    /// Creates the watch of a connection that starts with a TLS handshake. [`Watch::enter_header`] follows it.
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

    /// Like [`Self::enter_header`], for a client that speaks HTTP/2.
    pub(super) fn enter_frames(&self) {
        self.lock().has_frames = true;
        self.enter_header();
    }

    /// Makes the current response the last one: HTTP/2 has no header for that.
    pub(super) fn end_with_answer(&self) {
        self.lock().is_last = true;
        self.changed.notify_one();
    }

    /// Records that the client has sent its first byte.
    pub(super) fn heard(&self) {
        self.lock().heard = true;
    }

    /// A whole request has arrived; its credentials have not been verified.
    pub(super) fn enter_checking(&self) {
        self.enter(&mut self.lock(), Phase::Checking);
    }

    /// Records that a request had valid credentials.
    pub(super) fn trust(&self) {
        self.lock().trusted = true;
    }

    pub(super) fn is_trusted(&self) -> bool {
        self.lock().trusted
    }

    /// Holds the response's memory charge until all of it is sent or the connection ends.
    pub(super) fn carry(&self, charge: Charge) {
        self.lock().charge = Some(charge);
    }

    /// A whole request has arrived and may be handled.
    pub(super) fn enter_handling(&self) {
        self.enter(&mut self.lock(), Phase::Handling);
    }

    /// The response is ready; its body reports to this watch.
    pub(super) fn enter_writing(&self) {
        self.enter_answering(Phase::Writing);
    }

    /// Events follow, for as long as the client receives them.
    pub(super) fn enter_streaming(&self) {
        self.enter_answering(Phase::Streaming);
    }

    fn enter_answering(&self, phase: Phase) {
        let mut state = self.lock();
        state.body_taken = false;
        self.enter(&mut state, phase);
    }

    /// Records that hyper has dropped the response's body.
    pub(super) fn release_body(&self) {
        self.lock().body_taken = true;
    }

    /// Evicts the connection.
    pub(super) fn evict(&self) {
        self.lock().evicted = true;
        self.changed.notify_one();
    }

    /// Whether the connection is too young to be evicted. One that has sent nothing has less time.
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

    /// Whether a request is being processed.
    pub(super) fn answering(&self) -> bool {
        matches!(self.lock().phase, Phase::Checking | Phase::Handling | Phase::Writing)
    }

    /// Resolves when the connection must be closed. For a single task.
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
            // Both have a timeout of their own, which results in a response.
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
            // The deadline moves later only, so no wakeup is needed.
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

    /// Takes limits far enough apart that the order in which they expire does not depend on speed.
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
    async fn earlier_deadline_takes_effect() {
        let watch = watch(Limits { write: Duration::from_millis(1), ..Limits::default() });
        watch.enter_handling();
        let (over, _body) = tokio::join!(end(&watch), async {
            tokio::task::yield_now().await;
            WatchedBody::whole(Bytes::new(), &watch)
        });
        assert_eq!(over, CloseReason::Timeout(Phase::Writing));
    }

    #[tokio::test]
    async fn response_ends_when_its_body_is_flushed() {
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
    fn response_without_progress_is_stalled() {
        let watch = watch(Limits { stall: Duration::ZERO, ..Limits::default() });
        let _body = WatchedBody::whole(Bytes::new(), &watch);
        assert_eq!(watch.standing(), EvictionClass::Stalled);
    }
}
