//! Fragments of larger datagrams.

use std::mem::offset_of;

use crate::exposition::{Family, Kind};

use super::super::abi::{AddressFamily, net_stats};
use super::super::counters::Counters;
use super::{Counted, Statistic};

pub(super) const STATISTIC: Statistic = Statistic { switch: None, families };

impl Counters {
    /// Fragments of larger datagrams.
    pub fn fragments(&self, family: AddressFamily) -> u64 {
        self.at(offset_of!(net_stats, fragments), family as usize)
    }
}

fn families(counted: &[Counted<'_>]) -> Vec<Family> {
    let mut fragments = Family::new("xdp_fragments_total", Kind::Counter, "IP fragments.");
    for one in counted {
        for family in [AddressFamily::Ipv4, AddressFamily::Ipv6] {
            let labels = [("direction", one.direction.label()), ("family", family.label())];
            fragments.number_of(one.of, &labels, one.counters.fragments(family));
        }
    }
    vec![fragments]
}
