//! The service manager: notifies systemd about the state of the process, by the protocol of `sd_notify(3)`.
//!
//! Without a manager that listens (`NOTIFY_SOCKET`), nothing is sent.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use sd_notify::NotifyState;

/// Notifies that metrics are served, and where: `systemctl start` returns, `systemctl status` shows it.
pub(crate) fn ready(address: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(&format!("Serving metrics at {address}"))]);
}

/// Notifies that a reload has started. The protocol requires the time, to distinguish this message from earlier ones.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(err) => log::warn!("Failed to read the clock for the service manager: {err}"),
    }
}

/// Notifies that the reload has finished, whatever its outcome.
pub(crate) fn reloaded() {
    notify(&[NotifyState::Ready]);
}

/// Notifies that the process is stopping.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("Detaching the probes")]);
}

/// Sends keep-alive messages to the manager's watchdog, if enabled (`WatchdogSec=`), for as long as `alive` returns
/// true. Never returns.
///
/// `alive` may block; it is called on a thread for blocking tasks, three times per watchdog timeout.
pub(crate) async fn watchdog<F>(alive: F)
where
    F: Fn() -> bool + Clone + Send + 'static,
{
    let Some(timeout) = sd_notify::watchdog_enabled().filter(|timeout| *timeout >= Duration::from_millis(3))
    else {
        return std::future::pending().await;
    };
    let mut ticks = tokio::time::interval(timeout / 3);
    // After a stop (SIGSTOP, a suspended machine) one message is enough.
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
    let is_kept = |name: &str| name.starts_with(STORED_PREFIX);
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

/// Prefix of the names of sockets in the service manager's file descriptor store.
const STORED_PREFIX: &str = "kept-port-";

/// How long the service manager may take to close a stored descriptor.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Sockets that the manager has stored across a restart of the service (`FileDescriptorStoreMax=`): clients that
/// connect meanwhile wait instead of being refused, so that a restart causes no gap for a scraper.
#[derive(Debug)]
pub(crate) struct StoredSockets {
    listeners: Vec<TcpListener>,
    /// When the manager was asked to close others, one of which may be in the way.
    closing: Option<Instant>,
}

impl StoredSockets {
    /// Takes the sockets for these addresses, and makes the manager close the others. Must be called only once.
    pub fn take(addresses: &[SocketAddr]) -> Self {
        let passed = match sd_notify::listen_fds_with_names() {
            Ok(passed) => passed.filter(|(_, name)| name.starts_with(STORED_PREFIX)).collect(),
            Err(err) => {
                // The log is not installed yet.
                eprintln!("exporter: failed to take the service manager's sockets: {err}");
                Vec::new()
            }
        };
        let mut kept = Self { listeners: Vec::new(), closing: None };
        for (fd, name) in passed {
            // SAFETY: the manager has opened it for this process, as LISTEN_PID says, and no other code takes one with
            // this name.
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

    /// The stored socket for this address, or a new one.
    ///
    /// # Errors
    /// Those of `take` and `bind`.
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
            if socket.is_ok() || self.closing.is_none_or(|since| since.elapsed() > CLOSE_TIMEOUT) {
                return socket;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Stores a socket in the manager, if possible.
pub(crate) fn keep(address: SocketAddr, listener: BorrowedFd<'_>) {
    let name = format!("{STORED_PREFIX}{}", address.port());
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
