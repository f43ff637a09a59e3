//! Packets that a program dropped.

use std::mem::offset_of;

use crate::exposition::{Family, Kind};

use super::super::abi::{Direction, named, net_stats};
use super::super::counters::Counters;
use super::{Counted, Statistic, of};

named!(
    /// Why a packet was dropped.
    Reason is net_reason, NET_REASON_COUNT from 0:
    Blocklist = NET_REASON_BLOCKLIST "blocklist", Cidr = NET_REASON_CIDR "cidr", SynFlood = NET_REASON_SYN_FLOOD "syn_flood",
    PortScan = NET_REASON_PORT_SCAN "port_scan", TcpAnomaly = NET_REASON_TCP_ANOMALY "tcp_anomaly",
    Malformed = NET_REASON_MALFORMED "malformed", RateLimit = NET_REASON_RATE_LIMIT "rate_limit"
);

pub(super) const STATISTIC: Statistic = Statistic { switch: None, families };

impl Counters {
    /// Frames dropped.
    pub fn drops(&self, reason: Reason) -> u64 {
        self.at(offset_of!(net_stats, drops), reason as usize)
    }
}

fn families(counted: &[Counted<'_>]) -> Vec<Family> {
    let help = "Dropped frames, by reason. Always 0: the exporter drops nothing yet.";
    let mut drops = Family::new("xdp_drops_total", Kind::Counter, help);
    for one in of(Direction::Ingress, counted) {
        for reason in Reason::ALL {
            drops.number_of(one.of, &[("reason", reason.label())], one.counters.drops(*reason));
        }
    }
    vec![drops]
}
