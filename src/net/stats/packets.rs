//! Packets and bytes by direction, verdict, family and protocol.

use crate::exposition::{Family, Kind};

use super::super::abi::{AddressFamily, Direction, Protocol, Verdict};
use super::super::counters::Counters;
use super::{Counted, Statistic, of};

pub(super) const STATISTIC: Statistic = Statistic { switch: None, families };

fn families(counted: &[Counted<'_>]) -> Vec<Family> {
    let ingress: Vec<_> = of(Direction::Ingress, counted).collect();
    let egress: Vec<_> = of(Direction::Egress, counted).collect();
    vec![
        by_combination("xdp_packets_total", "Received frames.", &ingress, Counters::packets),
        by_combination(
            "xdp_bytes_total",
            "Received bytes, including the link header.",
            &ingress,
            Counters::bytes,
        ),
        by_combination(
            "tc_egress_packets_total",
            "Sent frames; a GSO packet counts as its segments.",
            &egress,
            Counters::packets,
        ),
        by_combination(
            "tc_egress_bytes_total",
            "Sent bytes, including the link header.",
            &egress,
            Counters::bytes,
        ),
    ]
}

/// One family of counters by verdict, address family and protocol; drops only where there are any.
fn by_combination(
    name: &'static str,
    help: &'static str,
    counted: &[&Counted<'_>],
    number: fn(&Counters, Verdict, AddressFamily, Protocol) -> u64,
) -> Family {
    let mut result = Family::new(name, Kind::Counter, help);
    for one in counted {
        for family in AddressFamily::ALL {
            for protocol in family.protocols() {
                for verdict in Verdict::ALL {
                    let value = number(one.counters, *verdict, *family, *protocol);
                    if *verdict == Verdict::Pass || value > 0 {
                        let labels = [
                            ("family", family.label()),
                            ("protocol", protocol.label()),
                            ("verdict", verdict.label()),
                        ];
                        result.number_of(one.of, &labels, value);
                    }
                }
            }
        }
    }
    result
}
