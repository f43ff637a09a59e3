//! TCP resets, and segments with a zero window.

use std::mem::offset_of;

use crate::exposition::{Family, Kind};

use super::super::abi::{generated, net_stats};
use super::super::counters::Counters;
use super::{Counted, Statistic, Switch};

pub(super) const STATISTIC: Statistic = Statistic {
    switch: Some(Switch {
        key: "tcp_trouble",
        default: false,
        name: "TCP resets and zero windows",
        bit: Some(generated::types::net_switch::NET_SWITCH_TCP_TROUBLE.0),
    }),
    families,
};

impl Counters {
    /// Segments with RST.
    pub fn tcp_resets(&self) -> u64 {
        self.at(offset_of!(net_stats, trouble), 0)
    }

    /// Segments with a zero window.
    pub fn tcp_zero_windows(&self) -> u64 {
        self.at(offset_of!(net_stats, trouble), 1)
    }
}

fn families(counted: &[Counted<'_>]) -> Vec<Family> {
    let mut resets = Family::new("xdp_tcp_resets_total", Kind::Counter, "TCP segments with RST.");
    let help = "TCP segments that advertise a zero receive window.";
    let mut windows = Family::new("xdp_tcp_zero_windows_total", Kind::Counter, help);
    for one in counted {
        let labels = [("direction", one.direction.label())];
        resets.number_of(one.of, &labels, one.counters.tcp_resets());
        windows.number_of(one.of, &labels, one.counters.tcp_zero_windows());
    }
    vec![resets, windows]
}
