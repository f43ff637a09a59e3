//! The service manager: what systemd is told of the process's life, by the protocol of `sd_notify(3)`.
//!
//! Without a manager that listens (`NOTIFY_SOCKET`), nothing is sent.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use sd_notify::NotifyState;

/// That metrics are served now, and where: `systemctl start` returns, `systemctl status` shows it.
pub(crate) fn ready(address: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(&format!("Serving metrics at {address}"))]);
}

/// That the configuration is read anew. The protocol wants the time, to tell this message from earlier ones.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(err) => log::warn!("Failed to read the clock for the service manager: {err}"),
    }
}

/// That it has been read, whatever came of it.
pub(crate) fn reloaded() {
    notify(&[NotifyState::Ready]);
}

/// That the end has begun.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("Detaching the probes")]);
}

/// Tells the manager's watchdog, if it wants to know (`WatchdogSec=`), that the exporter works, for as long as `alive`
/// says so. Never returns.
///
/// `alive` may block; it is called on a thread for that, three times within the manager's patience.
pub(crate) async fn watchdog<F>(alive: F)
where
    F: Fn() -> bool + Clone + Send + 'static,
{
    let Some(timeout) = sd_notify::watchdog_enabled().filter(|timeout| *timeout >= Duration::from_millis(3))
    else {
        return std::future::pending().await;
    };
    let mut ticks = tokio::time::interval(timeout / 3);
    // After a stop (SIGSTOP, a suspended machine) one beat is enough.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        if tokio::task::spawn_blocking(alive.clone()).await.unwrap_or(false) {
            notify(&[NotifyState::Watchdog]);
        } else {
            log::error!(
                "The drain thread does not respond; if this continues, the service manager's watchdog \
                 restarts the exporter"
            );
        }
    }
}

/// The sockets that the manager has opened for this process (`sd_listen_fds(3)`), with their names
/// (`FileDescriptorName=`). They are duplicates: the manager keeps its own open anyway.
///
/// # Errors
/// If there are none.
pub(crate) fn sockets() -> io::Result<Vec<(String, OwnedFd)>> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let is_kept = |name: &str| name.starts_with(KEPT);
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let mut sockets = Vec::new();
    for fd in sd_notify::listen_fds()? {
        let name = names.next().unwrap_or_default();
        if !is_kept(name) {
            sockets.push((name.to_owned(), pidfd_getfd(&own, fd, PidfdGetfdFlags::empty())?));
        }
    }
    if sockets.is_empty() {
        let reason = "it has passed none (LISTEN_FDS); start the exporter by its socket unit";
        return Err(io::Error::other(reason));
    }
    Ok(sockets)
}

/// How names of sockets begin that the manager keeps for the exporter.
const KEPT: &str = "kept-port-";

/// How long the manager may take to close what it is asked to.
const CLOSING: Duration = Duration::from_secs(5);

/// Sockets that the manager has kept over a restart of the service (`FileDescriptorStoreMax=`): whoever connects meanwhile waits
/// instead of being refused, so that a restart is no gap for a scraper.
#[derive(Debug)]
pub(crate) struct StoredSockets {
    listeners: Vec<TcpListener>,
    /// Since when the manager closes others, of which one may be in the way.
    closing: Option<Instant>,
}

impl StoredSockets {
    /// Takes those for these addresses, and has the manager close the others. Called once.
    pub fn take(addresses: &[SocketAddr]) -> Self {
        let passed = match sd_notify::listen_fds_with_names() {
            Ok(passed) => passed.filter(|(_, name)| name.starts_with(KEPT)).collect(),
            Err(err) => {
                // The log is not there yet.
                eprintln!("exporter: failed to take the service manager's sockets: {err}");
                Vec::new()
            }
        };
        let mut kept = Self { listeners: Vec::new(), closing: None };
        for (fd, name) in passed {
            // SAFETY: the manager has opened it for this process, as LISTEN_PID says, and nobody else takes one of this name.
            #[allow(unsafe_code)]
            let listener = TcpListener::from(unsafe { OwnedFd::from_raw_fd(fd) });
            if listener.local_addr().is_ok_and(|of| addresses.contains(&of)) {
                kept.listeners.push(listener);
            } else {
                notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name)]);
                kept.closing = Some(Instant::now());
            }
        }
        kept
    }

    /// The one for this address, or another one.
    ///
    /// # Errors
    /// What `take` and `bind` say.
    pub fn listener<T, E>(
        &mut self,
        address: SocketAddr,
        take: impl FnOnce(OwnedFd) -> Result<T, E>,
        bind: impl Fn(SocketAddr) -> Result<T, E>,
    ) -> Result<T, E> {
        let is_it = |listener: &TcpListener| listener.local_addr().is_ok_and(|of| of == address);
        if let Some(at) = self.listeners.iter().position(is_it) {
            return take(self.listeners.swap_remove(at).into());
        }
        loop {
            let socket = bind(address);
            if socket.is_ok() || self.closing.is_none_or(|since| since.elapsed() > CLOSING) {
                return socket;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Has the manager keep a socket, if it can.
pub(crate) fn keep(address: SocketAddr, listener: BorrowedFd<'_>) {
    let name = format!("{KEPT}{}", address.port());
    if let Err(err) =
        sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(&name)], &[listener])
    {
        eprintln!("exporter: failed to hand a socket to the service manager: {err}");
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(err) = sd_notify::notify(states) {
        log::warn!("Failed to notify the service manager of {}: {err}", states[0]);
    }
}
