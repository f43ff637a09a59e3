//! The server: accepts connections and serves them.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, watch as signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::answer::Answerer;
use super::budget::Budget;
use super::error::HttpError;
use super::limits::Limits;
use super::listener::{Accepting, Listener, Peer, Stream};
use super::rate::Limiter;
use super::route::Router;
use super::security::Security;
use super::slots::{Admission, Slot, Slots};
use super::stats::{HttpStats, count};
use super::tls::{HTTP2, Tls};
use super::watch::{CloseReason, Phase, Watch};
use super::watched::Watched;
use super::{Level, Report, notify};

/// How long to pause after accepting a connection failed (because no descriptors are left, for example).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The maximum number of HTTP/2 requests that a client may reset before they are processed.
const MAX_RESET: usize = 8;

/// The interval of warnings about a certificate that expires soon, after the one when it was loaded.
const WARN_AGAIN: Duration = Duration::from_secs(24 * 3600);

/// A listener and what it serves.
pub struct Endpoint {
    pub listener: Listener,
    pub router: Router,
    /// Shared with the caller, who reads it.
    pub stats: Arc<HttpStats>,
    pub kind: EndpointKind,
}

/// The intended clients of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointKind {
    /// Clients admitted by the [`Security`].
    Public,
    /// Processes of root and of the exporter's own user, on a Unix socket: the kernel tells who they are. They need no
    /// other authorization.
    Control,
}

/// Options shared by all endpoints.
#[derive(Default)]
pub struct ServerOptions {
    pub security: Arc<Security>,
    pub limits: Limits,
    /// Called every [`Limits::reload`] to update the security if necessary.
    pub refresh: Option<Refresh>,
}

/// Runs on a thread that may block. Returns false if there is nothing to check until the security is set again.
pub type Refresh = Arc<dyn Fn() -> bool + Send + Sync>;

/// Serves all endpoints until `shutdown` resolves. Then no more connections are accepted, responses in progress may
/// take [`Limits::drain`] to finish, and the rest is aborted. A handler still running by then continues in the
/// runtime's blocking pool; the caller bounds that with `Runtime::shutdown_timeout`.
///
/// # Errors
/// [`HttpError::Listener`] if a listener cannot be registered with the runtime, [`HttpError::Stopped`] if a part of the
/// server failed. Never because of a client.
pub async fn serve(
    endpoints: Vec<Endpoint>,
    options: ServerOptions,
    report: Report,
    shutdown: impl Future<Output = ()>,
) -> Result<(), HttpError> {
    let limits = Arc::new(options.limits);
    // Nothing is ever sent: dropping the sender is the signal.
    let (running, stopped) = signal::channel(());
    let mut servers = JoinSet::new();
    let stats: Vec<_> = endpoints.iter().map(|endpoint| endpoint.stats.clone()).collect();
    for endpoint in endpoints {
        let listener = Accepting::new(endpoint.listener).map_err(HttpError::Listener)?;
        let is_control = endpoint.kind == EndpointKind::Control;
        let server = Server {
            answerer: Answerer {
                router: endpoint.router,
                security: if is_control { Arc::default() } else { options.security.clone() },
                is_control,
                limits: limits.clone(),
                stats: endpoint.stats,
                report: report.clone(),
                handlers: Arc::new(Semaphore::new(limits.max_handlers)),
                budget: Budget::new(limits.max_answer_bytes),
                limiter: Limiter::default(),
            },
        };
        servers.spawn(Arc::new(server).run(listener, stopped.clone()));
    }
    servers.spawn(follow(options.security, options.refresh, limits.reload, stats, report, stopped));
    tokio::select! {
        () = shutdown => {},
        Some(_) = servers.join_next() => return Err(HttpError::Stopped),
    }
    drop(running);
    while servers.join_next().await.is_some() {}
    Ok(())
}

/// Refreshes the security, reloads the certificate when its files change, and warns once a day if it expires soon.
pub(super) async fn follow(
    security: Arc<Security>,
    refresh: Option<Refresh>,
    every: Duration,
    stats: Vec<Arc<HttpStats>>,
    report: Report,
    mut stopped: signal::Receiver<()>,
) {
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut warned, mut may_refresh) = (Instant::now(), refresh.is_some());
    loop {
        let tls = security.tls();
        let not_after = tls.as_ref().and_then(|tls| tls.not_after()).unwrap_or(0);
        let failed = tls.as_ref().is_some_and(|tls| tls.reload_failed());
        for stats in &stats {
            stats.certificate_not_after.store(not_after, Ordering::Relaxed);
            stats.certificate_reload_failed.store(failed, Ordering::Relaxed);
        }
        if warned.elapsed() >= WARN_AGAIN {
            warned = Instant::now();
            tls.iter()
                .filter_map(|tls| tls.validity())
                .for_each(|warning| notify(&report, Level::Warning, warning));
        }
        tokio::select! {
            _ = ticks.tick(), if may_refresh || tls.is_some() => {},
            () = security.changed() => {
                may_refresh = refresh.is_some();
                continue;
            },
            _ = stopped.changed() => return,
        }
        if let Some(refresh) = refresh.clone() {
            // It reports the outcome itself.
            may_refresh = tokio::task::spawn_blocking(move || refresh()).await.unwrap_or(true);
        }
        // Another certificate may have been configured meanwhile.
        let Some(tls) = security.tls() else { continue };
        let again = tls.clone();
        let display = tls.name();
        match tokio::task::spawn_blocking(move || again.refresh()).await {
            Ok(Some(Ok(warnings))) => {
                notify(&report, Level::Info, format!("the certificate {display} was reloaded"));
                warnings.into_iter().for_each(|warning| notify(&report, Level::Warning, warning));
            }
            Ok(Some(Err(reason))) => {
                let text =
                    format!("failed to reload the certificate; the previous one stays in use: {reason}");
                notify(&report, Level::Error, text);
            }
            Ok(None) | Err(_) => {}
        }
    }
}

struct Server {
    answerer: Answerer,
}

impl Server {
    async fn run(self: Arc<Self>, listener: Accepting, mut stopped: signal::Receiver<()>) {
        let limits = &self.answerer.limits;
        let slots = Slots::new(limits.clone());
        let mut connections = JoinSet::new();
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                _ = stopped.changed() => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    failing = false;
                    let newcomer = PendingConnection {
                        server: self.clone(),
                        slots: slots.clone(),
                        peer,
                        stopped: stopped.clone(),
                    };
                    connections.spawn(newcomer.run(stream));
                }
                // The client disconnected before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if !failing {
                        let text = format!("failed to accept a connection: {error}");
                        notify(&self.answerer.report, Level::Error, text);
                    }
                    failing = true;
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        let all = async { while connections.join_next().await.is_some() {} };
        let _ = timeout(limits.drain, all).await;
        connections.shutdown().await;
    }
}

/// An accepted connection that has no slot yet.
struct PendingConnection {
    server: Arc<Server>,
    slots: Arc<Slots>,
    peer: Peer,
    stopped: signal::Receiver<()>,
}

impl PendingConnection {
    async fn run(self, stream: Stream) {
        let Answerer { stats, limits, .. } = &self.server.answerer;
        count(&stats.connections_accepted);
        let mut stopped = self.stopped.clone();
        let admission = tokio::select! {
            admission = self.slots.admit_or_wait(self.peer.address) => admission,
            _ = stopped.changed() => return,
        };
        let Admission::Admitted { slot, watch, evicted } = admission else {
            return count(&stats.connections_refused);
        };
        if evicted {
            count(&stats.connections_evicted);
        }
        stream.prepare(limits.write);
        let Self { server, peer, stopped, .. } = self;
        Connection { server, slot: Arc::new(slot), watch, peer, stopped }.run(stream).await;
    }
}

/// A connection that has a slot, until it ends.
struct Connection {
    server: Arc<Server>,
    slot: Arc<Slot>,
    watch: Arc<Watch>,
    peer: Peer,
    stopped: signal::Receiver<()>,
}

impl Connection {
    async fn run(mut self, stream: Stream) {
        let Some(tls) = self.server.answerer.security.tls() else {
            return self.speak(stream).await;
        };
        let secured = tokio::select! {
            secured = secure(stream, &tls, &self.watch) => secured,
            reason = self.watch.close_reason() => return self.count_timeout(reason),
            _ = self.stopped.changed() => return,
        };
        match secured {
            Ok(stream) => {
                if tls.verifies_clients() && stream.get_ref().1.peer_certificates().is_some() {
                    self.watch.trust();
                    self.slot.remember_peer();
                }
                if stream.get_ref().1.alpn_protocol() == Some(HTTP2) {
                    return self.speak_http2(stream).await;
                }
                self.speak(stream).await;
            }
            Err(error) => {
                let Answerer { stats, report, .. } = &self.server.answerer;
                count(&stats.handshake_failures);
                notify(report, Level::Debug, format!("{}: TLS handshake failed: {error}", self.peer.address));
            }
        }
    }

    /// Speaks HTTP/1 on a stream that is ready for it.
    async fn speak<S: AsyncRead + AsyncWrite + Unpin>(mut self, stream: S) {
        self.watch.enter_header();
        let (answerer, watch, peer, slot) = (&self.server.answerer, &self.watch, self.peer, &self.slot);
        let service = service_fn(|request| async move {
            let answer = answerer.answer(request, peer, watch).await;
            if watch.is_trusted() {
                slot.remember_peer();
            }
            Ok::<_, std::convert::Infallible>(answer)
        });
        let io = TokioIo::new(Watched { stream, watch: watch.clone() });
        let mut connection = pin!(
            http1::Builder::new()
                // The watch enforces this timeout and the one for idle connections.
                .header_read_timeout(None)
                // A client that closes its sending side after the request (`nc -N`) still expects a response.
                .half_close(true)
                .max_header_size(answerer.limits.max_header_bytes)
                .serve_connection(io, service)
        );
        tokio::select! {
            // An error here is caused by the client: a malformed request, to which hyper has responded, or a broken
            // connection.
            ended = connection.as_mut() => return self.count_malformed(ended),
            reason = watch.close_reason() => return self.count_timeout(reason),
            _ = self.stopped.changed() => {},
        }
        if watch.answering() {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }

    /// Speaks HTTP/2 with one request at a time, so that the limits on connections limit requests, too.
    async fn speak_http2<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(mut self, stream: S) {
        self.watch.enter_frames();
        let limits = self.server.answerer.limits.clone();
        let watch = self.watch.clone();
        let (server, slot, peer) = (self.server.clone(), self.slot.clone(), self.peer);
        let io = TokioIo::new(Watched { stream, watch: watch.clone() });
        let of_requests = watch.clone();
        let service = service_fn(move |request| {
            let (server, slot, watch) = (server.clone(), slot.clone(), of_requests.clone());
            async move {
                let answer = server.answerer.answer(request, peer, &watch).await;
                if watch.is_trusted() {
                    slot.remember_peer();
                }
                Ok::<_, std::convert::Infallible>(answer)
            }
        });
        let mut connection = pin!(
            http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(1)
                .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX))
                // Streams that a client resets before they are processed: beyond this number the connection ends.
                .max_pending_accept_reset_streams(MAX_RESET)
                .max_local_error_reset_streams(MAX_RESET)
                .serve_connection(io, service)
        );
        tokio::select! {
            // An error here is caused by the client.
            _ = connection.as_mut() => return,
            reason = watch.close_reason() => match reason {
                CloseReason::LastAnswer => {}
                reason => return self.count_timeout(reason),
            },
            _ = self.stopped.changed() => {},
        }
        if watch.answering() {
            connection.as_mut().graceful_shutdown();
            // The timeout is the same as for other responses.
            let _ = timeout(limits.write, connection).await;
        }
    }

    fn count_malformed(&self, ended: hyper::Result<()>) {
        let stats = &self.server.answerer.stats;
        match ended {
            Err(error) if error.is_parse_too_large() => count(&stats.headers_too_large),
            Err(error) if error.is_parse() => count(&stats.malformed),
            _ => {}
        }
    }

    fn count_timeout(&self, reason: CloseReason) {
        let stats = &self.server.answerer.stats;
        match reason {
            CloseReason::Timeout(Phase::Handshake) => count(&stats.handshake_timeouts),
            CloseReason::Timeout(Phase::Header) => count(&stats.header_timeouts),
            CloseReason::Timeout(Phase::Writing) => count(&stats.write_timeouts),
            CloseReason::Timeout(Phase::Streaming) => count(&stats.streams_dropped),
            // Normal ends: idle connections, and evicted ones, which were counted on eviction.
            CloseReason::Timeout(Phase::Idle | Phase::Checking | Phase::Handling)
            | CloseReason::Evicted
            | CloseReason::LastAnswer => {}
        }
    }
}

/// Performs the TLS handshake. A client that speaks plain HTTP gets an error response in plain HTTP.
async fn secure(
    mut stream: Stream,
    tls: &Tls,
    watch: &Watch,
) -> io::Result<tokio_rustls::server::TlsStream<Stream>> {
    let first = stream.peek().await?;
    watch.heard();
    if first.is_some_and(|first| first.is_ascii_uppercase()) {
        // Closing with unread data would reset the connection and discard the response.
        let _ = stream.read(&mut [0; 4096]).await?;
        let text = "this port requires HTTPS: use an https:// URL\n";
        let head = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8";
        let answer = format!("{head}\r\nContent-Length: {}\r\n\r\n{text}", text.len());
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        return Err(io::Error::other("the client speaks plain HTTP"));
    }
    TlsAcceptor::from(tls.current()).accept(stream).await
}
