//! TCP segments that open or close a connection.

use std::mem::offset_of;

use crate::exposition::{Family, Kind};

use super::super::abi::{named, net_stats};
use super::super::counters::Counters;
use super::{Counted, Statistic, Switch};

named!(
    /// TCP segments that open or close a connection.
    TcpKind is net_tcp_kind, NET_TCP_KINDS from 0:
    Rst = NET_TCP_RST "rst", SynAck = NET_TCP_SYNACK "synack", Syn = NET_TCP_SYN "syn", Fin = NET_TCP_FIN "fin"
);

pub(super) const STATISTIC: Statistic = Statistic {
    switch: Some(Switch { key: "flags", default: true, name: "TCP flags", bit: None }),
    families,
};

impl Counters {
    /// TCP segments.
    pub fn tcp(&self, kind: TcpKind) -> u64 {
        self.at(offset_of!(net_stats, tcp), kind as usize)
    }
}

fn families(counted: &[Counted<'_>]) -> Vec<Family> {
    let help = "TCP segments with SYN, FIN or RST; a segment with several flags counts once.";
    let mut flags = Family::new("xdp_tcp_flags_total", Kind::Counter, help);
    for one in counted {
        for kind in TcpKind::ALL {
            let labels = [("direction", one.direction.label()), ("flag", kind.label())];
            flags.number_of(one.of, &labels, one.counters.tcp(*kind));
        }
    }
    vec![flags]
}
