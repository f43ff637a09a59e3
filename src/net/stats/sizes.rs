//! Packets by size; always counted, because it costs nothing.

use crate::exposition::{Family, Kind};

use super::super::abi::SIZE_BOUNDS;
use super::{Counted, Statistic, Switch};

pub(super) const STATISTIC: Statistic = Statistic {
    switch: Some(Switch { key: "sizes", default: true, name: "packet sizes", bit: None }),
    families,
};

fn families(counted: &[Counted<'_>]) -> Vec<Family> {
    let help = "Frame sizes, including the link header.";
    let bounds = SIZE_BOUNDS.iter().copied().map(f64::from).collect();
    let mut sizes = Family::new("xdp_packet_size_bytes", Kind::Histogram(bounds), help);
    for one in counted {
        let labels = [("direction", one.direction.label())];
        sizes.histogram_of(one.of, &labels, &one.counters.sizes(), one.counters.total_bytes());
    }
    vec![sizes]
}
