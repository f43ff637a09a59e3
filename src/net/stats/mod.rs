//! Packet statistics per interface. Each is a pair of files in this directory, `NAME.rs` and (its code in the programs)
//! `NAME.bpf.h`, and a line in the lists here and in `all.bpf.h`.

mod cidrs;
mod drops;
mod fragments;
mod packets;
mod parse_errors;
mod sizes;
mod tcp_flags;
mod tcp_trouble;
mod tracked;

use std::collections::BTreeSet;

use crate::exposition::Family;

use super::abi::Direction;
use super::counters::Counters;

pub use drops::Reason;
pub use tcp_flags::TcpKind;

/// A statistic: its metrics, and whether it is optional.
pub(crate) struct Statistic {
    /// `None` if it is always counted.
    pub switch: Option<Switch>,
    pub families: fn(&[Counted<'_>]) -> Vec<Family>,
}

/// How the configuration enables an optional statistic.
#[derive(Debug)]
pub(crate) struct Switch {
    /// The key in `network.count`.
    pub key: &'static str,
    pub default: bool,
    /// The name in the output of `check`.
    pub name: &'static str,
    /// Its `enum net_switch`, if the programs do extra work for it.
    pub bit: Option<u32>,
}

/// The counters of an interface in one direction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counted<'a> {
    /// The labels that identify the interface: `interface`, and the name of the network namespace unless it is the own
    /// one.
    pub of: &'a [(&'static str, String)],
    pub direction: Direction,
    pub counters: &'a Counters,
}

/// All statistics, in the order of output.
pub(crate) const ALL: &[Statistic] = &[
    packets::STATISTIC,
    drops::STATISTIC,
    sizes::STATISTIC,
    tcp_flags::STATISTIC,
    tcp_trouble::STATISTIC,
    parse_errors::STATISTIC,
    fragments::STATISTIC,
];

/// Packets missing from the tables of talkers and flows; shown if these tables exist.
pub(crate) use tracked::families as tracked;

/// Packets that would be dropped; shown if there is a blocklist.
pub(crate) use drops::{sent_drops, would_drop};

/// By prefix group; shown if there are any.
pub(crate) use cidrs::families as cidrs;

/// All optional statistics.
pub(crate) fn switches() -> impl Iterator<Item = &'static Switch> {
    ALL.iter().filter_map(|statistic| statistic.switch.as_ref())
}

/// The mask of enabled statistics for the programs (`switches` in `all.bpf.h`).
pub(crate) fn program_switches(on: &BTreeSet<&'static str>) -> u32 {
    let bits = switches().filter(|switch| on.contains(switch.key)).filter_map(|switch| switch.bit);
    bits.fold(0, |all, bit| all | 1 << bit)
}

/// The metrics of the enabled statistics.
pub(crate) fn families(on: &BTreeSet<&'static str>, counted: &[Counted<'_>]) -> Vec<Family> {
    let is_on =
        |statistic: &&Statistic| statistic.switch.as_ref().is_none_or(|switch| on.contains(switch.key));
    ALL.iter().filter(is_on).flat_map(|statistic| (statistic.families)(counted)).collect()
}

/// The counters of one direction.
fn of<'a>(direction: Direction, counted: &'a [Counted<'a>]) -> impl Iterator<Item = &'a Counted<'a>> {
    counted.iter().filter(move |one| one.direction == direction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_bits_are_unique() {
        let keys: Vec<_> = switches().map(|switch| switch.key).collect();
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len());
        let bits: Vec<_> = switches().filter_map(|switch| switch.bit).collect();
        assert_eq!(bits.iter().collect::<BTreeSet<_>>().len(), bits.len());
        assert!(bits.iter().all(|bit| *bit < 32));
    }
}
