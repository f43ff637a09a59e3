//! What was counted, as metrics.

use super::abi::{AddressFamily, Fault, Reason, SIZE_BOUNDS, TcpKind, Verdict};
use super::attach::XdpMode;
use super::config::Count;
use super::counters::Counters;
use super::family::{Family, Kind, Value};
use super::sockets::STATES;

/// One interface at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reading {
    pub name: String,
    /// Counts and mode of what comes in; `None` if XDP is not attached.
    pub ingress: Option<(Counters, Option<XdpMode>)>,
    /// Counts of what leaves; `None` if not attached.
    pub egress: Option<Counters>,
    /// Direction and reason of what could not be attached.
    pub refused: Vec<(&'static str, &'static str)>,
}

/// A source with what it sent on an interface, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TopSource {
    pub interface: String,
    pub address: String,
    pub bytes: u64,
}

/// All metrics of all interfaces. Those that were not asked for are left out.
pub(crate) fn families(
    count: &Count,
    readings: &[Reading],
    top: &[TopSource],
    connections: Option<&[u64]>,
) -> Vec<Family> {
    let mut all = Vec::new();
    let ingress: Vec<_> = readings
        .iter()
        .filter_map(|reading| Some((reading.name.as_str(), &reading.ingress.as_ref()?.0)))
        .collect();
    let egress: Vec<_> = readings
        .iter()
        .filter_map(|reading| Some((reading.name.as_str(), reading.egress.as_ref()?)))
        .collect();
    let both: Vec<_> = ingress
        .iter()
        .map(|(name, counters)| (*name, "ingress", *counters))
        .chain(egress.iter().map(|(name, counters)| (*name, "egress", *counters)))
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
    for (name, counters) in &ingress {
        for reason in Reason::ALL {
            drops.number(&[("interface", name), ("reason", reason.label())], counters.drops(*reason));
        }
    }
    all.push(drops);

    if count.sizes {
        let help = "Sizes of frames in bytes, Ethernet header included.";
        let mut sizes = Family::new("xdp_packet_size_bytes", Kind::Histogram, help);
        for (name, direction, counters) in &both {
            let value = Value::Histogram {
                bounds: SIZE_BOUNDS,
                counts: counters.sizes().to_vec(),
                sum: counters.total_bytes(),
            };
            sizes.push(&[("interface", name), ("direction", direction)], value);
        }
        all.push(sizes);
    }
    if count.flags {
        let help = "TCP segments that open or close a connection; a segment with several flags counts once.";
        let mut flags = Family::new("xdp_tcp_flags_total", Kind::Counter, help);
        for (name, direction, counters) in &both {
            for kind in TcpKind::ALL {
                let labels = [("interface", *name), ("direction", *direction), ("flag", kind.label())];
                flags.number(&labels, counters.tcp(*kind));
            }
        }
        all.push(flags);
    }

    let help =
        "Frames whose headers are cut short or contradict each other; they are passed and counted above too.";
    let mut faults = Family::new("xdp_malformed_packets_total", Kind::Counter, help);
    let mut fragments = Family::new("xdp_fragments_total", Kind::Counter, "Fragments of larger datagrams.");
    for (name, direction, counters) in &both {
        for fault in Fault::ALL {
            let labels = [("interface", *name), ("direction", *direction), ("fault", fault.label())];
            faults.number(&labels, counters.faults(*fault));
        }
        for family in [AddressFamily::Ipv4, AddressFamily::Ipv6] {
            let labels = [("interface", *name), ("direction", *direction), ("family", family.label())];
            fragments.number(&labels, counters.fragments(family));
        }
    }
    all.push(faults);
    all.push(fragments);

    if count.talkers > 0 {
        let help =
            "Packets that belong to no tracked talker or flow, because its table was full of busier ones.";
        let mut refused = Family::new("network_untracked_packets_total", Kind::Counter, help);
        for (name, direction, counters) in &both {
            let labels = [("interface", *name), ("direction", *direction)];
            refused.number(&[labels[0], labels[1], ("table", "talkers")], counters.talkers_refused());
            if count.flows > 0 {
                refused.number(&[labels[0], labels[1], ("table", "flows")], counters.flows_refused());
            }
        }
        all.push(refused);
    }
    if count.top_sources > 0 {
        let help = "Bytes received from the sources that sent most, as far as they are tracked.";
        let mut sources = Family::new("xdp_top_source_bytes", Kind::Gauge, help);
        for source in top {
            sources.number(&[("interface", &source.interface), ("source", &source.address)], source.bytes);
        }
        all.push(sources);
    }

    all.extend(states(readings));
    if let Some(connections) = connections {
        let help = "TCP sockets of the exporter's network namespace, by state.";
        let mut family = Family::new("network_tcp_connections", Kind::Gauge, help);
        for (state, number) in STATES.iter().zip(connections) {
            family.number(&[("state", state)], *number);
        }
        all.push(family);
    }
    all.retain(|family| !family.samples.is_empty());
    all
}

/// Which programs are in place.
fn states(readings: &[Reading]) -> [Family; 3] {
    let mut mode =
        Family::new("xdp_mode", Kind::Gauge, "1 for the mode that XDP is attached in, 0 for the others.");
    let mut attached =
        Family::new("network_attached", Kind::Gauge, "1 if packets are counted in this direction.");
    let mut refused =
        Family::new("network_attach_refused", Kind::Gauge, "1 if a program is not attached, and why.");
    for reading in readings {
        if let Some((_, now)) = &reading.ingress {
            for one in XdpMode::ALL {
                let labels = [("interface", reading.name.as_str()), ("mode", one.label())];
                mode.number(&labels, u64::from(*now == Some(one)));
            }
        }
        for (direction, is) in [("ingress", reading.ingress.is_some()), ("egress", reading.egress.is_some())]
        {
            attached.number(&[("interface", &reading.name), ("direction", direction)], u64::from(is));
        }
        for (direction, reason) in &reading.refused {
            refused.number(&[("interface", &reading.name), ("direction", direction), ("reason", reason)], 1);
        }
    }
    [mode, attached, refused]
}

/// One family of counters for every cell that can be counted in; drops only where there are any.
fn cells(
    name: &'static str,
    help: &'static str,
    readings: &[(&str, &Counters)],
    number: fn(&Counters, Verdict, AddressFamily, super::abi::Protocol) -> u64,
) -> Family {
    let mut result = Family::new(name, Kind::Counter, help);
    for (interface, counters) in readings {
        for family in AddressFamily::ALL {
            for protocol in family.protocols() {
                for verdict in Verdict::ALL {
                    let value = number(counters, *verdict, *family, *protocol);
                    if *verdict == Verdict::Pass || value > 0 {
                        let labels = [
                            ("interface", *interface),
                            ("family", family.label()),
                            ("protocol", protocol.label()),
                            ("verdict", verdict.label()),
                        ];
                        result.number(&labels, value);
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

    fn names(families: &[Family]) -> Vec<&str> {
        families.iter().map(|family| family.name).collect()
    }

    #[test]
    fn only_what_is_attached_and_asked_for() {
        let reading = Reading {
            name: "eth0".into(),
            ingress: Some((Counters::default(), Some(XdpMode::Generic))),
            ..Reading::default()
        };
        let count = Count { sizes: false, flags: false, ..Count::default() };
        let all = families(&count, &[reading], &[], None);
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
        assert_eq!(all[0].samples.len(), 9);
        let generic = all[5].samples.iter().find(|sample| sample.labels[1].1 == "generic").unwrap();
        assert_eq!(generic.value, Value::Number(1));
    }

    #[test]
    fn a_histogram_has_one_bucket_more_than_bounds() {
        let reading =
            Reading { name: "eth0".into(), egress: Some(Counters::default()), ..Reading::default() };
        let all = families(&Count::default(), &[reading], &[], Some(&[0; STATES.len()]));
        let sizes = all.iter().find(|family| family.kind == Kind::Histogram).unwrap();
        let Value::Histogram { bounds, counts, .. } = &sizes.samples[0].value else { panic!("no histogram") };
        assert_eq!(counts.len(), bounds.len() + 1);
        assert!(names(&all).contains(&"network_tcp_connections"));
        assert!(!names(&all).contains(&"xdp_packets_total"));
    }
}
