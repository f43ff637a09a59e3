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
}
