//! A snapshot of the traffic. Pure.

use std::collections::HashMap;

use super::super::tables::{Flow, FlowKey, Talker, TalkerKey};
use super::cookies::SynCookies;

/// The input of all traffic modules.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    /// Nanoseconds of the monotonic clock.
    pub now: u64,
    pub flows: HashMap<FlowKey, Flow>,
    pub talkers: HashMap<TalkerKey, Talker>,
    /// Received TCP segments with SYN and without ACK, on all interfaces.
    pub syns: u64,
    /// Packets whose flow is missing from the table because it is full.
    pub untracked: u64,
    /// `None` if the kernel does not report it.
    pub cookies: Option<SynCookies>,
    pub first_client_port: FirstClientPort,
}

/// The first port that is no well-known service's.
pub(super) const FIRST_USER_PORT: u16 = 1024;

/// The lowest port from which programs of this machine connect if they do not choose one
/// (`net.ipv4.ip_local_port_range`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FirstClientPort(pub u16);

impl Default for FirstClientPort {
    /// The kernel's own default.
    fn default() -> Self {
        Self(32_768)
    }
}

impl FirstClientPort {
    /// From the text of the setting, which has the range's ends. Ports of well-known services are never among them.
    pub fn parse(text: &str) -> Self {
        let first = text.split_whitespace().next().and_then(|port| port.parse().ok());
        first.map_or_else(Self::default, |port: u16| Self(port.max(FIRST_USER_PORT)))
    }
}
