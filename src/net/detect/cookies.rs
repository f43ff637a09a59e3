//! The kernel's own defence against SYN floods: SYN cookies, in the calling thread's network namespace.

use super::super::stack::netstat;

/// The setting, and the counters since the namespace was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SynCookies {
    /// `net.ipv4.tcp_syncookies`: 0 never, 1 when a listener's queue is full, 2 always.
    pub mode: Option<u8>,
    pub sent: u64,
    pub received: u64,
    pub failed: u64,
}

impl SynCookies {
    /// The current state; `None` if the kernel does not report it.
    pub fn read() -> Option<Self> {
        let counters = std::fs::read_to_string("/proc/thread-self/net/netstat").ok()?;
        let mode = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_syncookies").ok();
        let mode = mode.and_then(|mode| mode.trim().parse().ok());
        let of = |name| netstat(&counters, name).unwrap_or(0);
        Some(Self {
            mode,
            sent: of("SyncookiesSent"),
            received: of("SyncookiesRecv"),
            failed: of("SyncookiesFailed"),
        })
    }

    pub fn mode_word(&self) -> &'static str {
        match self.mode {
            Some(0) => "off",
            Some(1) => "when a queue is full",
            Some(2) => "always",
            _ => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_counters_by_name() {
        let text =
            "TcpExt: SyncookiesSent SyncookiesRecv Other\nTcpExt: 7 8 9\nIpExt: SyncookiesSent\nIpExt: 1\n";
        assert_eq!(
            [netstat(text, "SyncookiesSent"), netstat(text, "Other"), netstat(text, "None")],
            [Some(7), Some(9), None]
        );
        let here = SynCookies::read().expect("the kernel tells");
        assert!(here.mode.is_none_or(|mode| mode <= 2), "{here:?}");
    }
}
