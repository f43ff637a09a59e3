//! Server-sent events: each event is made once, at an interval, for all listeners, as long as there are any.
//!
//! A slow listener gets the latest event when it reads again and skips those in between, so nothing queues up for it. A
//! listener that receives nothing at all is closed ([`super::watch::Phase::Streaming`]).

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use tokio::sync::watch::{Receiver, Sender, channel};
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Makes the data of an event: one line of text.
type Make = Box<dyn Fn() -> String + Send + Sync>;

/// Events for all listeners.
pub struct Broadcast {
    every: Duration,
    /// The maximum number of concurrent listeners.
    most: usize,
    /// The maximum duration of a stream. Clients then reconnect, with the credentials valid by then.
    longest: Duration,
    make: Make,
    /// Present while there are listeners.
    sender: Mutex<Option<Sender<Bytes>>>,
}

impl fmt::Debug for Broadcast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broadcast").field("every", &self.every).finish_non_exhaustive()
    }
}

impl Broadcast {
    /// Makes an event every `every`, on a thread that may block.
    pub fn new(every: Duration, most: usize, longest: Duration, make: Make) -> Arc<Self> {
        Arc::new(Self { every, most, longest, make, sender: Mutex::new(None) })
    }

    /// Subscribes to the events from now on; `None` if the maximum number of listeners is reached. Must be called
    /// within the runtime.
    pub(super) fn listen(self: &Arc<Self>) -> Option<EventStream> {
        let mut sender = self.lock();
        let mut receiver = match &*sender {
            Some(running) if running.receiver_count() >= self.most => return None,
            Some(running) => running.subscribe(),
            None => {
                let (new, receiver) = channel(Bytes::new());
                *sender = Some(new);
                tokio::spawn(self.clone().run());
                receiver
            }
        };
        // Deliver the latest event at once, if there is one.
        receiver.mark_changed();
        Some(EventStream { next: Some(next(receiver)), end: Instant::now() + self.longest })
    }

    async fn run(self: Arc<Self>) {
        let mut ticks = interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let maker = self.clone();
            let made = tokio::task::spawn_blocking(move || (maker.make)()).await;
            let mut sender = self.lock();
            let running = sender.as_ref().filter(|running| running.receiver_count() > 0);
            match (running, made) {
                (Some(running), Ok(data)) => {
                    running.send_replace(format!("event: stats\ndata: {data}\n\n").into());
                }
                // There are no listeners left; or `make` panicked, which ends all streams.
                _ => {
                    *sender = None;
                    return;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Sender<Bytes>>> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Next = Pin<Box<dyn Future<Output = Option<(Receiver<Bytes>, Bytes)>> + Send>>;

/// The body of a streaming response.
pub(super) struct EventStream {
    /// `None` at the end of the stream.
    next: Option<Next>,
    end: Instant,
}

/// Returns the next event; `None` if there are no more.
fn next(mut receiver: Receiver<Bytes>) -> Next {
    Box::pin(async move {
        loop {
            receiver.changed().await.ok()?;
            let event = receiver.borrow_and_update().clone();
            if !event.is_empty() {
                return Some((receiver, event));
            }
        }
    })
}

impl Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(pending) = &mut self.next else { return Poll::Ready(None) };
        let event = ready!(pending.as_mut().poll(cx)).filter(|_| Instant::now() < self.end);
        let (following, frame) = match event {
            Some((receiver, event)) => (Some(next(receiver)), Some(Ok(Frame::data(event)))),
            None => (None, None),
        };
        self.next = following;
        Poll::Ready(frame)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use std::io::{Read, Write};
    use std::net::TcpStream;

    use http_body_util::BodyExt;
    use hyper::Method;

    use super::*;
    use crate::http::limits::Limits;
    use crate::http::{
        Access, EVENTS, Endpoint, EndpointKind, HttpStats, Listener, Reply, Route, Router, ServerOptions,
        serve,
    };

    const HOUR: Duration = Duration::from_secs(3600);

    fn counting(every: Duration, most: usize, longest: Duration) -> (Arc<Broadcast>, Arc<AtomicUsize>) {
        let made = Arc::new(AtomicUsize::new(0));
        let counted = made.clone();
        let make = move || counted.fetch_add(1, Ordering::Relaxed).to_string();
        (Broadcast::new(every, most, longest, Box::new(make)), made)
    }

    async fn event(stream: &mut EventStream) -> Option<String> {
        let frame = tokio::time::timeout(Duration::from_secs(60), stream.frame()).await.expect("no event");
        Some(String::from_utf8(frame?.unwrap().into_data().unwrap().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn subscribers_share_events_and_idle_streams_stop() {
        let (events, made) = counting(Duration::from_millis(5), 2, HOUR);
        let (mut one, mut other) = (events.listen().unwrap(), events.listen().unwrap());
        assert!(events.listen().is_none(), "only so many");
        assert_eq!(event(&mut one).await.unwrap(), "event: stats\ndata: 0\n\n");
        event(&mut other).await.unwrap();
        drop((one, other));
        while events.lock().is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let before = made.load(Ordering::Relaxed);
        let mut again = events.listen().unwrap();
        assert_eq!(event(&mut again).await.unwrap(), format!("event: stats\ndata: {before}\n\n"));
        // A later listener gets the latest event at once.
        let (slow, _) = counting(HOUR, 2, HOUR);
        event(&mut slow.listen().unwrap()).await.unwrap();
        let first = slow.listen().unwrap();
        drop(first);
    }

    #[tokio::test]
    async fn slow_subscriber_gets_the_latest_event() {
        let (events, made) = counting(Duration::from_millis(1), 1, HOUR);
        let mut stream = events.listen().unwrap();
        event(&mut stream).await.unwrap();
        while made.load(Ordering::Relaxed) < 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let late = event(&mut stream).await.unwrap();
        let number: usize = late.trim().rsplit(' ').next().unwrap().parse().unwrap();
        assert!(number > 10, "{late}");
    }

    #[tokio::test]
    async fn stream_ends_at_its_deadline_or_on_panic() {
        let (events, _) = counting(Duration::from_millis(1), 1, Duration::ZERO);
        assert_eq!(event(&mut events.listen().unwrap()).await, None);
        let failing = Broadcast::new(HOUR, 1, HOUR, Box::new(|| panic!("a test")));
        assert_eq!(event(&mut failing.listen().unwrap()).await, None);
        assert!(failing.listen().is_some());
    }

    /// Uses a server whose clients time out after a few seconds without receiving anything.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn only_the_stalled_subscriber_is_closed() {
        let make = || "x".repeat(1 << 20);
        let events = Broadcast::new(Duration::from_millis(50), 8, HOUR, Box::new(make));
        let route = Route {
            path: "/stream",
            about: "",
            access: Access::Open,
            method: Method::GET,
            content_type: EVENTS,
            visitors: None,
            handler: Arc::new(move |_| Reply::events(events.clone())),
        };
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.socket_address().unwrap();
        let (router, stats) = (Router::new("", vec![route]), Arc::new(HttpStats::default()));
        let endpoint = Endpoint { listener, router, stats: stats.clone(), kind: EndpointKind::Public };
        let limits = Limits { write: Duration::from_secs(10), ..Limits::default() };
        let options = ServerOptions { limits, ..ServerOptions::default() };
        tokio::spawn(serve(vec![endpoint], options, Arc::new(|_| {}), std::future::pending()));
        let ask = || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            stream
        };
        let (silent, mut reader) = (ask(), ask());
        let read = Arc::new(AtomicUsize::new(0));
        let counted = read.clone();
        std::thread::spawn(move || {
            let mut block = vec![0; 1 << 16];
            while let Ok(bytes @ 1..) = reader.read(&mut block) {
                counted.fetch_add(bytes, Ordering::Relaxed);
            }
        });
        let until = async |what: &str, condition: &dyn Fn() -> bool| {
            for _ in 0..12_000 {
                if condition() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("in vain: {what}");
        };
        until("the silent one is closed", &|| stats.streams_dropped.load(Ordering::Relaxed) == 1).await;
        let before = read.load(Ordering::Relaxed);
        until("the other one goes on", &|| read.load(Ordering::Relaxed) > before + (8 << 20)).await;
        drop(silent);
        assert_eq!(stats.streams_dropped.load(Ordering::Relaxed), 1);
    }
}
