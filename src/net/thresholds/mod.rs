//! Thresholds and the terms of bans: `ban:` of a probe and `network.detect`.

mod ban;
mod decode;

use std::time::Duration;

pub use ban::{BanRule, BanTerms};
pub(super) use decode::{DETECT, decode};

/// `network.detect`: the traffic modules; `None` if disabled.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DetectConfig {
    pub syn_flood: Option<SynFlood>,
    pub port_scan: Option<PortScan>,
    pub tcp_anomalies: Option<TcpAnomalies>,
    pub rates: Option<Rates>,
}

/// TCP segments that request connections which are never established.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SynFlood {
    pub terms: BanTerms,
    /// Per source and second.
    pub per_source: u32,
    /// Of all sources per second, including those of real connections. It leads to no ban.
    pub in_all: u32,
    /// The time that is averaged over.
    pub within: Duration,
}

/// The number of destination ports that a source tried without success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortScan {
    pub terms: BanTerms,
    pub ports: u32,
    pub within: Duration,
    pub slow_ports: u32,
    pub slow_within: Duration,
}

/// TCP segments with flags that occur in no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpAnomalies {
    pub terms: BanTerms,
    pub packets: u32,
    pub within: Duration,
}

/// Received traffic per second; 0: no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rates {
    pub terms: BanTerms,
    pub packets: u64,
    pub bytes: u64,
    pub prefix_packets: u64,
    pub prefix_bytes: u64,
    /// Lengths of the prefixes that sources are aggregated by.
    pub ipv4_prefix: u8,
    pub ipv6_prefix: u8,
    /// The time that is averaged over.
    pub within: Duration,
}

impl DetectConfig {
    /// The modules by name: `None` if disabled, otherwise whether they ban.
    pub(crate) fn modules(&self) -> [(&'static str, Option<bool>); 4] {
        [
            ("syn_flood", self.syn_flood.as_ref().map(|module| module.terms.enforce)),
            ("port_scan", self.port_scan.as_ref().map(|module| module.terms.enforce)),
            ("tcp_anomalies", self.tcp_anomalies.as_ref().map(|module| module.terms.enforce)),
            ("rates", self.rates.as_ref().map(|module| module.terms.enforce)),
        ]
    }

    /// Whether any module bans.
    pub(crate) fn enforces(&self) -> bool {
        self.modules().iter().any(|(_, mode)| *mode == Some(true))
    }

    /// Whether any module is enabled.
    pub(crate) fn is_on(&self) -> bool {
        self.modules().iter().any(|(_, mode)| mode.is_some())
    }

    /// Whether any module needs talkers.
    pub(crate) fn needs_talkers(&self) -> bool {
        self.rates.is_some()
    }

    /// Whether any module needs flows.
    pub(crate) fn needs_flows(&self) -> bool {
        self.syn_flood.is_some() || self.port_scan.is_some() || self.tcp_anomalies.is_some()
    }
}
