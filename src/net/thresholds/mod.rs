//! What is allowed, and what happens to whoever does more: `ban:` of a probe and `network.detect`.

mod ban;
mod decode;

use std::time::Duration;

pub use ban::{BanRule, BanTerms};
pub(super) use decode::{DETECT, decode};

/// `network.detect`: modules that look at packets; `None` for those that are off.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DetectConfig {
    pub syn_flood: Option<SynFlood>,
    pub port_scan: Option<PortScan>,
    pub tcp_anomalies: Option<TcpAnomalies>,
    pub rates: Option<Rates>,
}

/// TCP segments that ask for connections that never come about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SynFlood {
    pub terms: BanTerms,
    /// By a single source, each second.
    pub per_source: u32,
    /// Of all sources together, each second, those of real connections included. Nobody is banned for it.
    pub in_all: u32,
    /// The time that this is the average of.
    pub within: Duration,
}

/// Destination ports of a source that nothing came of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortScan {
    pub terms: BanTerms,
    pub ports: u32,
    pub within: Duration,
    pub slow_ports: u32,
    pub slow_within: Duration,
}

/// TCP segments with flags that no connection has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpAnomalies {
    pub terms: BanTerms,
    pub packets: u32,
    pub within: Duration,
}

/// What is received each second; 0 for no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rates {
    pub terms: BanTerms,
    pub packets: u64,
    pub bytes: u64,
    pub prefix_packets: u64,
    pub prefix_bytes: u64,
    /// Lengths of the prefixes that sources are summed up in.
    pub ipv4_prefix: u8,
    pub ipv6_prefix: u8,
    /// The time that this is the average of.
    pub within: Duration,
}

impl DetectConfig {
    /// By name, whether each module is on, and whether it bans.
    pub(crate) fn modules(&self) -> [(&'static str, Option<bool>); 4] {
        [
            ("syn_flood", self.syn_flood.as_ref().map(|module| module.terms.enforce)),
            ("port_scan", self.port_scan.as_ref().map(|module| module.terms.enforce)),
            ("tcp_anomalies", self.tcp_anomalies.as_ref().map(|module| module.terms.enforce)),
            ("rates", self.rates.as_ref().map(|module| module.terms.enforce)),
        ]
    }

    /// Whether a module bans.
    pub(crate) fn enforces(&self) -> bool {
        self.modules().iter().any(|(_, mode)| *mode == Some(true))
    }

    /// Whether anything is looked for.
    pub(crate) fn is_on(&self) -> bool {
        self.modules().iter().any(|(_, mode)| mode.is_some())
    }

    /// Whether talkers are looked at.
    pub(crate) fn needs_talkers(&self) -> bool {
        self.rates.is_some()
    }

    /// Whether flows are looked at.
    pub(crate) fn needs_flows(&self) -> bool {
        self.syn_flood.is_some() || self.port_scan.is_some() || self.tcp_anomalies.is_some()
    }
}
