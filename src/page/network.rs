//! Interfaces and their traffic, from the network's metrics.

use std::collections::HashMap;

use super::families::{ByName, Row, cut};
use super::history::History;
use super::model::{InterfaceSummary, NetworkSummary, TalkerSummary};
use super::targets::sum;
use crate::exposition::Family;
use crate::net::TalkerRow;

/// Interfaces that are shown, each in two directions.
const MAX_INTERFACES: usize = 48;

/// The labels that identify an interface.
type InterfaceKey = Vec<(String, String)>;

fn place(row: &Row) -> InterfaceKey {
    let is_place = |name: &str| ["interface", "netns", "container"].contains(&name);
    row.labels.iter().filter(|(name, _)| is_place(name)).cloned().collect()
}

/// Adds up the series of each interface; empty if the metric is not counted.
fn by_place(
    families: &ByName<'_>,
    name: &str,
    is_meant: impl Fn(&Row) -> bool,
) -> HashMap<InterfaceKey, f64> {
    let mut sums = HashMap::new();
    for row in families.rows(name).iter().filter(|row| is_meant(row)) {
        *sums.entry(place(row)).or_default() += row.value;
    }
    sums
}

struct Direction {
    word: &'static str,
    bytes: HashMap<InterfaceKey, f64>,
    packets: HashMap<InterfaceKey, f64>,
    malformed: HashMap<InterfaceKey, f64>,
}

impl Direction {
    fn of(families: &ByName<'_>, word: &'static str, prefix: &str) -> Self {
        let is_it = |row: &Row| row.label("direction") == word;
        Self {
            word,
            bytes: by_place(families, &format!("{prefix}_bytes_total"), |_| true),
            packets: by_place(families, &format!("{prefix}_packets_total"), |_| true),
            malformed: by_place(families, "xdp_malformed_packets_total", is_it),
        }
    }
}

/// What is counted about packets.
pub(super) fn network(families: &ByName<'_>, talkers: &[TalkerRow], history: &mut History) -> NetworkSummary {
    let directions =
        [Direction::of(families, "ingress", "xdp"), Direction::of(families, "egress", "tc_egress")];
    let speed = by_place(families, "network_speed_bytes", |_| true);
    let mut modes = HashMap::new();
    for row in families.rows("xdp_mode").iter().filter(|row| row.value == 1.0) {
        modes.insert(place(row), row.label("mode"));
    }
    let failed: HashMap<(InterfaceKey, String), String> = families
        .rows("network_attach_failed")
        .iter()
        .map(|row| ((place(row), row.label("direction")), row.label("reason")))
        .collect();
    let mut interfaces = Vec::new();
    for row in families.rows("network_attached") {
        let here = place(&row);
        let Some(direction) = directions.iter().find(|direction| direction.word == row.label("direction"))
        else {
            continue;
        };
        let mut trend = |what: &str, values: &HashMap<InterfaceKey, f64>| {
            let value = *values.get(&here)?;
            Some((value, history.trend(format!("{what}\0{}\0{here:?}", direction.word), value)))
        };
        let bytes = trend("bytes", &direction.bytes);
        let packets = trend("packets", &direction.packets);
        let hook = match failed.get(&(here.clone(), direction.word.to_owned())) {
            Some(reason) => reason.clone(),
            None if direction.word == "egress" => "tc".to_owned(),
            None => modes.get(&here).cloned().unwrap_or_default(),
        };
        interfaces.push(InterfaceSummary {
            direction: direction.word,
            is_counted: row.value == 1.0,
            hook,
            bytes: bytes.as_ref().map(|(value, _)| *value),
            bytes_per_second: bytes.as_ref().and_then(|(_, trend)| trend.per_second),
            packets: packets.as_ref().map(|(value, _)| *value),
            packets_per_second: packets.and_then(|(_, trend)| trend.per_second),
            recent: bytes.map(|(_, trend)| trend.recent).unwrap_or_default(),
            speed_bytes_per_second: speed.get(&here).copied(),
            malformed: direction.malformed.get(&here).copied().unwrap_or(0.0),
            labels: here,
        });
    }
    let rate = |word: &str| {
        let there = interfaces.iter().filter(|interface| interface.direction == word && interface.is_counted);
        sum(there.map(|interface| interface.bytes_per_second))
    };
    let (received, sent) = (rate("ingress"), rate("egress"));
    // Uncounted interfaces first, then the busiest; ties keep their order.
    let weight = |interface: &InterfaceSummary| match interface.is_counted {
        true => interface.bytes.unwrap_or(0.0),
        false => f64::INFINITY,
    };
    let left_out = interfaces.len().saturating_sub(2 * MAX_INTERFACES);
    if left_out > 0 {
        interfaces.sort_by(|a, b| weight(b).total_cmp(&weight(a)));
        interfaces.truncate(2 * MAX_INTERFACES);
    }
    NetworkSummary {
        received_bytes_per_second: received,
        sent_bytes_per_second: sent,
        interfaces,
        left_out,
        talkers: talkers.iter().map(talker).collect(),
    }
}

/// What is counted on each interface.
pub(crate) fn interfaces(families: &[Family]) -> Vec<InterfaceSummary> {
    network(&ByName::of(families), &[], &mut History::default()).interfaces
}

fn talker(row: &TalkerRow) -> TalkerSummary {
    TalkerSummary {
        address: row.address.to_string(),
        interface: cut(&row.place.interface),
        received_bytes: row.received_bytes,
        sent_bytes: row.sent_bytes,
        packets: row.packets,
        last_seen: row.last_seen,
    }
}
