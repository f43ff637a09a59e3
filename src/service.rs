//! The service manager: what systemd is told of the process's life, by the protocol of `sd_notify(3)`.
//!
//! Without a manager that listens (`NOTIFY_SOCKET`), nothing is sent.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

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
    let Some(patience) =
        sd_notify::watchdog_enabled().filter(|patience| *patience >= Duration::from_millis(3))
    else {
        return std::future::pending().await;
    };
    let mut ticks = tokio::time::interval(patience / 3);
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
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let mut sockets = Vec::new();
    for fd in sd_notify::listen_fds()? {
        let socket = pidfd_getfd(&own, fd, PidfdGetfdFlags::empty())?;
        sockets.push((names.next().unwrap_or_default().to_owned(), socket));
    }
    if sockets.is_empty() {
        let why = "it has passed none (LISTEN_FDS); start the exporter by its socket unit";
        return Err(io::Error::other(why));
    }
    Ok(sockets)
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(err) = sd_notify::notify(states) {
        log::warn!("Failed to notify the service manager of {}: {err}", states[0]);
    }
}
