//! Takes snapshots for detection: the tables and counters of all interfaces.

use std::sync::Arc;

use super::counter_maps::CounterMaps;
use super::detect::{FirstClientPort, Snapshot, SynCookies};
use super::stats::TcpKind;
use super::status::NetworkStatus;
use super::sys::monotonic;
use super::tables::{read_flows, read_talkers};
use super::thresholds::DetectConfig;

/// The tables and counters that snapshots are taken from.
#[derive(Debug, Clone)]
pub(crate) struct TrafficReader {
    pub counter_maps: Arc<CounterMaps>,
    pub status: Arc<NetworkStatus>,
}

impl TrafficReader {
    /// Takes a snapshot with the tables that the enabled modules need; `None` if there are no tables or they cannot be
    /// read.
    pub fn read(&self, wanted: &DetectConfig) -> Option<Snapshot> {
        let tables = self.counter_maps.tables.as_ref()?;
        // Counters are read before tables: what is not tracked in between shows in the next snapshot.
        let (mut syns, mut untracked) = (0, 0);
        for reading in self.status.readings() {
            if let Some((received, _)) = &reading.ingress {
                syns += received.tcp(TcpKind::Syn);
                untracked += received.talkers_untracked() + received.flows_untracked();
            }
            if let Some(sent) = &reading.egress {
                untracked += sent.talkers_untracked() + sent.flows_untracked();
            }
        }
        let (with_flows, with_talkers) = (tables.with_flows && wanted.needs_flows(), wanted.needs_talkers());
        let flows = if with_flows { read_flows(&tables.flows).ok()? } else { Default::default() };
        let talkers = if with_talkers { read_talkers(&tables.talkers).ok()? } else { Default::default() };
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let first_client_port = FirstClientPort::parse(&range);
        let (now, cookies) = (monotonic(), SynCookies::read());
        Some(Snapshot { now, flows, talkers, syns, untracked, cookies, first_client_port })
    }
}
