//! Packets missing from the tables of talkers and flows.

use std::mem::offset_of;

use crate::exposition::{Family, Kind};

use super::super::abi::{net_stats, net_tracked};
use super::super::counters::Counters;
use super::Counted;

impl Counters {
    fn tracked(&self, offset: usize) -> u64 {
        self.at(offset_of!(net_stats, tracked) + offset, 0)
    }

    /// Packets whose remote host is not tracked, or no longer.
    pub fn talkers_untracked(&self) -> u64 {
        self.tracked(offset_of!(net_tracked, talkers_refused)) + self.talkers_evicted()
    }

    /// Packets of tracked hosts whose flow is not tracked, or no longer.
    pub fn flows_untracked(&self) -> u64 {
        self.tracked(offset_of!(net_tracked, flows_refused)) + self.flows_evicted()
    }

    /// Packets of evicted hosts.
    pub fn talkers_evicted(&self) -> u64 {
        self.tracked(offset_of!(net_tracked, talkers_evicted))
    }

    /// Packets of evicted flows.
    pub fn flows_evicted(&self) -> u64 {
        self.tracked(offset_of!(net_tracked, flows_evicted))
    }
}

/// With `flows` if flows are tracked beside talkers.
pub(crate) fn families(flows: bool, counted: &[Counted<'_>]) -> Vec<Family> {
    let help = "Packets of talkers and flows that are not tracked, because the table is full.";
    let mut refused = Family::new("network_untracked_packets_total", Kind::Counter, help);
    let help = "Untracked packets of talkers and flows that were tracked and then evicted.";
    let mut evicted = Family::new("network_evicted_packets_total", Kind::Counter, help);
    for one in counted {
        let labels = |table| [("direction", one.direction.label()), ("table", table)];
        refused.number_of(one.of, &labels("talkers"), one.counters.talkers_untracked());
        evicted.number_of(one.of, &labels("talkers"), one.counters.talkers_evicted());
        if flows {
            refused.number_of(one.of, &labels("flows"), one.counters.flows_untracked());
            evicted.number_of(one.of, &labels("flows"), one.counters.flows_evicted());
        }
    }
    vec![refused, evicted]
}
