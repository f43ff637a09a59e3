//! What packets show at one moment. Pure.

use std::collections::HashMap;

use super::super::tables::{Flow, FlowKey, Talker, TalkerKey};
use super::cookies::SynCookies;

/// All that detection looks at.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    /// Nanoseconds of the monotonic clock.
    pub now: u64,
    pub flows: HashMap<FlowKey, Flow>,
    pub talkers: HashMap<TalkerKey, Talker>,
    /// TCP segments with SYN and without ACK that were received, on all interfaces.
    pub syns: u64,
    /// Packets whose flow is not in the table, because it is full.
    pub untracked: u64,
    /// `None` if the kernel does not say.
    pub cookies: Option<SynCookies>,
}
