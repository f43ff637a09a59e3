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
    /// Dropped frames.
    pub fn drops(&self, reason: Reason) -> u64 {
        self.at(offset_of!(net_stats, drops), reason as usize)
    }

    /// Passed frames that would be dropped if the blocklist were enforced.
    pub fn would_drop(&self, reason: Reason) -> u64 {
        self.at(offset_of!(net_stats, would_drop), reason as usize)
    }
}

fn families(counted: &[Counted<'_>]) -> Vec<Family> {
    let help = "Dropped frames, by reason: a blocked address (blocklist) or prefix (cidr). Always 0 unless network.block \
                enforces.";
    vec![by_reason("xdp_drops_total", help, Direction::Ingress, counted, Counters::drops)]
}

/// Sent packets that the blocklist drops or would drop.
pub(crate) fn sent_drops(counted: &[Counted<'_>]) -> [Family; 2] {
    let dropped = "Sent frames that were dropped, by reason as in xdp_drops_total.";
    let would = "Frames that were sent and would be dropped if network.block enforced, by reason.";
    let family = |name, help, number| by_reason(name, help, Direction::Egress, counted, number);
    [
        family("tc_egress_drops_total", dropped, Counters::drops),
        family("tc_egress_would_drop_total", would, Counters::would_drop),
    ]
}

/// Packets that a blocklist in observe mode would drop.
pub(crate) fn would_drop(counted: &[Counted<'_>]) -> Family {
    let help = "Frames that would be dropped if network.block enforced, by reason; they are passed on.";
    by_reason("xdp_would_drop_total", help, Direction::Ingress, counted, Counters::would_drop)
}

fn by_reason(
    name: &'static str,
    help: &'static str,
    direction: Direction,
    counted: &[Counted<'_>],
    number: fn(&Counters, Reason) -> u64,
) -> Family {
    let mut family = Family::new(name, Kind::Counter, help);
    for one in of(direction, counted) {
        for reason in Reason::ALL {
            family.number_of(one.of, &[("reason", reason.label())], number(one.counters, *reason));
        }
    }
    family
}
