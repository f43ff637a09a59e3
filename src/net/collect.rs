//! What was counted, as metrics.

use super::abi::{AddressFamily, Fault, Reason, SIZE_BOUNDS, TcpKind, Verdict};
use super::config::Count;
use super::counters::Counters;
use super::hook::Hook;
use super::sockets::STATES;
use crate::exposition::{Family, Kind};

/// What tells an interface from others: `interface`, and of another network namespace its name.
type Labels = [(&'static str, String)];

/// One interface at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reading {
    pub labels: Vec<(&'static str, String)>,
    /// Counts of what comes in, and where; `None` if not attached.
    pub ingress: Option<(Counters, Hook)>,
    /// Counts of what leaves; `None` if not attached.
    pub egress: Option<Counters>,
    /// Direction and reason of what is not counted.
    pub refused: Vec<(&'static str, &'static str)>,
}

/// A source with what it sent on an interface, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TopSource {
    pub labels: Vec<(&'static str, String)>,
    pub address: String,
    pub bytes: u64,
}

/// All metrics of all interfaces. Those that were not asked for are left out.
pub(crate) fn families(
    count: &Count,
    readings: &[Reading],
    top: &[TopSource],
    connections: Option<&[u64]>,
    strays: u64,
) -> Vec<Family> {
    let mut all = Vec::new();
    let ingress: Vec<_> = readings
        .iter()
        .filter_map(|reading| Some((&reading.labels[..], &reading.ingress.as_ref()?.0)))
        .collect();
    let egress: Vec<_> =
        readings.iter().filter_map(|reading| Some((&reading.labels[..], reading.egress.as_ref()?))).collect();
    let both: Vec<_> = ingress
        .iter()
        .map(|(of, counters)| (*of, "ingress", *counters))
        .chain(egress.iter().map(|(of, counters)| (*of, "egress", *counters)))
        .collect();

    all.push(cells("xdp_packets_total", "Frames received.", &ingress, Counters::packets));
    all.push(cells(
        "xdp_bytes_total",
        "Bytes of frames received, Ethernet header included.",
        &ingress,
        Counters::bytes,
    ));
    all.push(cells(
        "tc_egress_packets_total",
        "Frames sent; a packet that is yet to be cut into segments counts as those.",
        &egress,
        Counters::packets,
    ));
    all.push(cells(
        "tc_egress_bytes_total",
        "Bytes of frames sent, Ethernet header included.",
        &egress,
        Counters::bytes,
    ));

    let mut drops =
        Family::new("xdp_drops_total", Kind::Counter, "Frames dropped, by reason. Nothing drops frames yet.");
    for (of, counters) in &ingress {
        for reason in Reason::ALL {
            drops.number_of(of, &[("reason", reason.label())], counters.drops(*reason));
        }
    }
    all.push(drops);

    if count.sizes {
        let help = "Sizes of frames in bytes, Ethernet header included.";
        let bounds = SIZE_BOUNDS.iter().copied().map(f64::from).collect();
        let mut sizes = Family::new("xdp_packet_size_bytes", Kind::Histogram(bounds), help);
        for (of, direction, counters) in &both {
            sizes.histogram_of(of, &[("direction", direction)], &counters.sizes(), counters.total_bytes());
        }
        all.push(sizes);
    }
    if count.flags {
        let help = "TCP segments that open or close a connection; a segment with several flags counts once.";
        let mut flags = Family::new("xdp_tcp_flags_total", Kind::Counter, help);
        for (of, direction, counters) in &both {
            for kind in TcpKind::ALL {
                let labels = [("direction", *direction), ("flag", kind.label())];
                flags.number_of(of, &labels, counters.tcp(*kind));
            }
        }
        all.push(flags);
    }

    let help =
        "Frames whose headers are cut short or contradict each other; they are passed and counted above too.";
    let mut faults = Family::new("xdp_malformed_packets_total", Kind::Counter, help);
    let mut fragments = Family::new("xdp_fragments_total", Kind::Counter, "Fragments of larger datagrams.");
    for (of, direction, counters) in &both {
        for fault in Fault::ALL {
            let labels = [("direction", *direction), ("fault", fault.label())];
            faults.number_of(of, &labels, counters.faults(*fault));
        }
        for family in [AddressFamily::Ipv4, AddressFamily::Ipv6] {
            let labels = [("direction", *direction), ("family", family.label())];
            fragments.number_of(of, &labels, counters.fragments(family));
        }
    }
    all.push(faults);
    all.push(fragments);

    if count.talkers > 0 {
        let help = "Packets that belong to no tracked talker or flow, because its table was full of busier ones, or no longer.";
        let mut refused = Family::new("network_untracked_packets_total", Kind::Counter, help);
        let help = "Packets of talkers and flows that made room for others; they are untracked packets too.";
        let mut evicted = Family::new("network_evicted_packets_total", Kind::Counter, help);
        for (of, direction, counters) in &both {
            let labels = |table| [("direction", *direction), ("table", table)];
            refused.number_of(of, &labels("talkers"), counters.talkers_untracked());
            evicted.number_of(of, &labels("talkers"), counters.talkers_evicted());
            if count.flows > 0 {
                refused.number_of(of, &labels("flows"), counters.flows_untracked());
                evicted.number_of(of, &labels("flows"), counters.flows_evicted());
            }
        }
        all.push(refused);
        all.push(evicted);
    }
    if count.top_sources > 0 {
        let help = "Bytes received from the sources that sent most, as far as they are tracked.";
        let mut sources = Family::new("xdp_top_source_bytes", Kind::Gauge, help);
        for source in top {
            sources.number_of(&source.labels, &[("source", &source.address)], source.bytes);
        }
        all.push(sources);
    }

    all.extend(states(readings));
    if strays > 0 {
        let help =
            "Packets that a program saw on an interface that it does not know; they are in no other metric.";
        let mut family = Family::new("network_stray_packets_total", Kind::Counter, help);
        family.number(&[], strays);
        all.push(family);
    }
    if let Some(connections) = connections {
        let help = "TCP sockets of the exporter's network namespace, by state.";
        let mut family = Family::new("network_tcp_connections", Kind::Gauge, help);
        for (state, number) in STATES.iter().zip(connections) {
            family.number(&[("state", state)], *number);
        }
        all.push(family);
    }
    all.retain(|family| !family.is_empty());
    all
}

/// Which programs are in place.
fn states(readings: &[Reading]) -> [Family; 3] {
    let mut mode = Family::new(
        "xdp_mode",
        Kind::Gauge,
        "1 for where received packets are counted: XDP by its mode, or TC ingress; 0 for the others.",
    );
    let mut attached =
        Family::new("network_attached", Kind::Gauge, "1 if packets are counted in this direction.");
    let mut refused =
        Family::new("network_attach_refused", Kind::Gauge, "1 if a direction is not counted, and why.");
    for reading in readings {
        let of = &reading.labels;
        if let Some((_, now)) = &reading.ingress {
            for one in Hook::ALL {
                mode.number_of(of, &[("mode", one.label())], u64::from(*now == one));
            }
        }
        for (direction, is) in [("ingress", reading.ingress.is_some()), ("egress", reading.egress.is_some())]
        {
            // What is attached and does not see packets counts none.
            let is = is && !reading.refused.iter().any(|(of, _)| *of == direction);
            attached.number_of(of, &[("direction", direction)], u64::from(is));
        }
        for (direction, reason) in &reading.refused {
            refused.number_of(of, &[("direction", direction), ("reason", reason)], 1u64);
        }
    }
    [mode, attached, refused]
}

/// One family of counters for every cell that can be counted in; drops only where there are any.
fn cells(
    name: &'static str,
    help: &'static str,
    readings: &[(&Labels, &Counters)],
    number: fn(&Counters, Verdict, AddressFamily, super::abi::Protocol) -> u64,
) -> Family {
    let mut result = Family::new(name, Kind::Counter, help);
    for (of, counters) in readings {
        for family in AddressFamily::ALL {
            for protocol in family.protocols() {
                for verdict in Verdict::ALL {
                    let value = number(counters, *verdict, *family, *protocol);
                    if *verdict == Verdict::Pass || value > 0 {
                        let labels = [
                            ("family", family.label()),
                            ("protocol", protocol.label()),
                            ("verdict", verdict.label()),
                        ];
                        result.number_of(of, &labels, value);
                    }
                }
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::{Format, Value};

    fn names(families: &[Family]) -> Vec<&str> {
        families.iter().map(Family::name).collect()
    }

    #[test]
    fn only_what_is_attached_and_asked_for() {
        let reading = Reading {
            labels: vec![("interface", "eth0".into())],
            ingress: Some((Counters::default(), Hook::Generic)),
            ..Reading::default()
        };
        let count = Count { sizes: false, flags: false, ..Count::default() };
        let all = families(&count, &[reading], &[], None, 0);
        assert_eq!(
            names(&all),
            [
                "xdp_packets_total",
                "xdp_bytes_total",
                "xdp_drops_total",
                "xdp_malformed_packets_total",
                "xdp_fragments_total",
                "xdp_mode",
                "network_attached"
            ]
        );
        assert_eq!(all[0].samples().count(), 9);
        let mut text = Vec::new();
        all[5].write(Format::Text, &mut text);
        assert!(String::from_utf8(text).unwrap().contains("{interface=\"eth0\",mode=\"generic\"} 1\n"));
    }

    #[test]
    fn a_histogram_has_one_bucket_more_than_bounds() {
        let reading = Reading {
            labels: vec![("interface", "eth0".into())],
            egress: Some(Counters::default()),
            ..Reading::default()
        };
        let all = families(&Count::default(), &[reading], &[], Some(&[0; STATES.len()]), 0);
        let sizes = all.iter().find(|family| family.name() == "xdp_packet_size_bytes").unwrap();
        let Some(Value::Histogram { counts, .. }) = sizes.samples().next().map(|sample| sample.value) else {
            panic!("no histogram")
        };
        assert_eq!(counts.len(), SIZE_BOUNDS.len() + 1);
        assert!(names(&all).contains(&"network_tcp_connections"));
        assert!(!names(&all).contains(&"xdp_packets_total"));
    }
}
