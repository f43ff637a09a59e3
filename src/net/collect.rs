//! Converts counters into metric families.

use super::abi::Direction;
use super::block::{self, Summary};
use super::config::Count;
use super::counters::Counters;
use super::hook::Hook;
use super::sockets::STATES;
use super::stats::{self, Counted};
use crate::exposition::{Family, Kind};

/// One interface at the time of a scrape.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reading {
    pub labels: Vec<(&'static str, String)>,
    /// Counters and hook of received packets; `None` if not attached.
    pub ingress: Option<(Counters, Hook)>,
    /// Counters of sent packets; `None` if not attached.
    pub egress: Option<Counters>,
    /// The link speed in bytes per second.
    pub speed: Option<u64>,
    /// Direction and reason of what is not counted.
    pub refused: Vec<(&'static str, &'static str)>,
}

/// A source with the bytes that it sent on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TopSource {
    pub labels: Vec<(&'static str, String)>,
    pub address: String,
    pub bytes: u64,
}

/// All configured metrics of all interfaces.
pub(crate) fn families(
    count: &Count,
    readings: &[Reading],
    top: &[TopSource],
    connections: Option<&[u64]>,
    strays: u64,
    blocked: Option<&Summary>,
) -> Vec<Family> {
    let counted: Vec<Counted<'_>> = Direction::ALL
        .iter()
        .flat_map(|direction| {
            readings.iter().filter_map(|reading| {
                let counters = match direction {
                    Direction::Ingress => reading.ingress.as_ref().map(|(counters, _)| counters),
                    Direction::Egress => reading.egress.as_ref(),
                };
                Some(Counted { of: &reading.labels, direction: *direction, counters: counters? })
            })
        })
        .collect();
    let mut all = stats::families(&count.statistics, &counted);
    if count.talkers > 0 {
        all.extend(stats::tracked(count.flows > 0, &counted));
    }
    all.extend(stats::cidrs(&count.cidrs, &counted));
    if count.top_sources > 0 {
        let help = "Bytes received from the top sources, as far as they are tracked.";
        let mut sources = Family::new("xdp_top_source_bytes", Kind::Gauge, help);
        for source in top {
            sources.number_of(&source.labels, &[("source", &source.address)], source.bytes);
        }
        all.push(sources);
    }

    if let Some(blocked) = blocked {
        all.push(stats::would_drop(&counted));
        all.extend(stats::sent_drops(&counted));
        all.extend(block::families(blocked));
    }
    all.extend(states(readings));
    if strays > 0 {
        let help = "Packets seen on an interface unknown to the BPF programs; they are in no other metric.";
        let mut family = Family::new("network_stray_packets_total", Kind::Counter, help);
        family.number(&[], strays);
        all.push(family);
    }
    if let Some(connections) = connections {
        let help = "TCP sockets in the exporter's network namespace, by state.";
        let mut family = Family::new("network_tcp_connections", Kind::Gauge, help);
        for (state, number) in STATES.iter().zip(connections) {
            family.number(&[("state", state)], *number);
        }
        all.push(family);
    }
    all.retain(|family| !family.is_empty());
    all
}

/// The attach state of each interface.
fn states(readings: &[Reading]) -> [Family; 4] {
    let mut mode = Family::new(
        "xdp_mode",
        Kind::Gauge,
        "Hook that counts received packets: 1 for the mode in use, 0 for the others.",
    );
    let mut attached =
        Family::new("network_attached", Kind::Gauge, "Whether packets are counted in this direction.");
    let help = "Speed of the link in bytes per second, as its driver says.";
    let mut speed = Family::new("network_speed_bytes", Kind::Gauge, help);
    let mut refused = Family::new(
        "network_attach_failed",
        Kind::Gauge,
        "1 for each direction in which packets are not \
             counted, with the reason.",
    );
    for reading in readings {
        let of = &reading.labels;
        if let Some((_, now)) = &reading.ingress {
            for one in Hook::ALL {
                mode.number_of(of, &[("mode", one.label())], u64::from(*now == one));
            }
        }
        for (direction, is) in [("ingress", reading.ingress.is_some()), ("egress", reading.egress.is_some())]
        {
            // A program that is attached but does not see packets is shown as not attached.
            let is = is && !reading.refused.iter().any(|(of, _)| *of == direction);
            attached.number_of(of, &[("direction", direction)], u64::from(is));
        }
        if let Some(bytes) = reading.speed {
            speed.number_of(of, &[], bytes);
        }
        for (direction, reason) in &reading.refused {
            refused.number_of(of, &[("direction", direction), ("reason", reason)], 1u64);
        }
    }
    [mode, attached, refused, speed]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::{Format, SampleValue};

    fn names(families: &[Family]) -> Vec<&str> {
        families.iter().map(Family::name).collect()
    }

    #[test]
    fn collects_only_what_is_attached_and_enabled() {
        let reading = Reading {
            labels: vec![("interface", "eth0".into())],
            ingress: Some((Counters::default(), Hook::Generic)),
            ..Reading::default()
        };
        let count = Count { statistics: Default::default(), ..Count::default() };
        let all = families(&count, &[reading], &[], None, 0, None);
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
    fn histogram_has_one_more_bucket_than_bounds() {
        let reading = Reading {
            labels: vec![("interface", "eth0".into())],
            egress: Some(Counters::default()),
            ..Reading::default()
        };
        let all = families(&Count::default(), &[reading], &[], Some(&[0; STATES.len()]), 0, None);
        let sizes = all.iter().find(|family| family.name() == "xdp_packet_size_bytes").unwrap();
        let Some(SampleValue::Histogram { counts, .. }) = sizes.samples().next().map(|sample| sample.value)
        else {
            panic!("no histogram")
        };
        assert_eq!(counts.len(), super::super::abi::SIZES);
        assert!(names(&all).contains(&"network_tcp_connections"));
        assert!(!names(&all).contains(&"xdp_packets_total"));
    }
}
