//! Packets and bytes by the named group of prefixes that the remote host's address is in.

use std::mem::offset_of;

use crate::exposition::{Family, Kind};

use super::super::abi::net_stats;
use super::super::cidr::{CidrGroup, OTHER};
use super::super::counters::{Counters, Sum};
use super::Counted;

impl Counters {
    /// IP packets by group of the remote address: groups are numbered from 1; 0 is for addresses in none.
    pub fn cidr(&self, group: usize) -> Sum {
        let word = |word: usize| self.at(offset_of!(net_stats, cidrs), 2 * group + word);
        Sum { packets: word(0), bytes: word(1) }
    }
}

/// Empty if there are no groups.
pub(crate) fn families(groups: &[CidrGroup], counted: &[Counted<'_>]) -> Vec<Family> {
    if groups.is_empty() {
        return vec![];
    }
    let help = "IP packets by group of prefixes (`cidrs`): of the source when received, of the destination when sent.";
    let mut packets = Family::new("network_cidr_packets_total", Kind::Counter, help);
    let help = "Bytes of those packets, including the link header.";
    let mut bytes = Family::new("network_cidr_bytes_total", Kind::Counter, help);
    let names = std::iter::once(OTHER).chain(groups.iter().map(|group| group.name.as_str()));
    for (group, name) in names.enumerate() {
        for one in counted {
            let labels = [("direction", one.direction.label()), ("cidr", name)];
            let sum = one.counters.cidr(group);
            packets.number_of(one.of, &labels, sum.packets);
            bytes.number_of(one.of, &labels, sum.bytes);
        }
    }
    vec![packets, bytes]
}
