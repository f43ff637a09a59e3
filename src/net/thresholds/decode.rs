//! The section `network.detect:` of a configuration.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use super::super::block::parse_ttl;
use super::{BanTerms, DetectConfig, PortScan, Rates, SynFlood, TcpAnomalies};
use crate::config::ban::{BAN_MODES, MAX_TTL, MODE, TTL};
use crate::config::section::{Key, Schema, Section};
use crate::config::{Fields, Node};

const RATE: RangeInclusive<u32> = 1..=100_000_000;
const PORTS: RangeInclusive<u32> = 2..=1000;

/// A sum is stored for each second of it.
const MAX_AVERAGE: Duration = Duration::from_secs(600);
const MAX_SLOW: Duration = Duration::from_secs(24 * 3600);

/// A module: enabled with defaults, disabled, or configured.
macro_rules! module {
    ($section:ident) => {
        Schema::Either(&[Schema::Boolean, Schema::Section(|| &$section)])
    };
}

/// `network.detect:`.
pub(in super::super) static DETECT: Section = Section {
    name: "detect",
    what: "the detection",
    about: "Detection of attacks from the tables of talkers and flows, once a second. It enables these tables. `true` \
            enables a module with its defaults.",
    keys: Cow::Borrowed(&[
        Key::new(
            "syn_flood",
            module!(SYN_FLOOD),
            "TCP SYNs without a connection: per source, and in total, which leads to no ban.",
        )
        .or("false"),
        Key::new("port_scan", module!(PORT_SCAN), "Distinct destination ports that a source tried without a connection.")
            .or("false"),
        Key::new(
            "tcp_anomalies",
            module!(TCP_ANOMALIES),
            "TCP segments with flags that no connection has: none, FIN without ACK, FIN with PSH and URG, SYN with FIN.",
        )
        .or("false"),
        Key::new("rates", Schema::Section(|| &RATES), "Packets and bytes received by source and prefix."),
    ]),
    one_of: &[],
};

const fn rate(name: &'static str, about: &'static str) -> Key {
    Key::new(name, Schema::Integer(*RATE.start() as i64, *RATE.end() as i64), about)
}

const fn ports(name: &'static str, about: &'static str) -> Key {
    Key::new(name, Schema::Integer(*PORTS.start() as i64, *PORTS.end() as i64), about)
}

static SYN_FLOOD: Section = Section {
    name: "syn_flood",
    what: "the detection of SYN floods",
    about: "A source with working connections is not banned for a SYN flood: its address may be spoofed.",
    keys: Cow::Borrowed(&[
        MODE,
        rate("per_source", "SYNs per second from one source that led to no connection.").or("100"),
        rate("in_all", "SYNs per second from all sources, including those of real connections.").or("5000"),
        Key::new("within", Schema::LabelText, "The time that is averaged over, up to `10m`.").or("10s"),
        TTL,
        MAX_TTL,
    ]),
    one_of: &[],
};

static PORT_SCAN: Section = Section {
    name: "port_scan",
    what: "the detection of port scans",
    about: "Ports with a successful connection, or with answered UDP, do not count.",
    keys: Cow::Borrowed(&[
        MODE,
        ports("ports", "Different destination ports within a short time.").or("20"),
        Key::new("within", Schema::LabelText, "The short time.").or("60s"),
        ports("slow_ports", "Different destination ports within a long time.").or("60"),
        Key::new("slow_within", Schema::LabelText, "The long time, up to `1d`.").or("1h"),
        TTL,
        MAX_TTL,
    ]),
    one_of: &[],
};

static TCP_ANOMALIES: Section = Section {
    name: "tcp_anomalies",
    what: "the detection of TCP anomalies",
    about: "TCP segments with flags that no connection has.",
    keys: Cow::Borrowed(&[
        MODE,
        rate("packets", "Such segments from one source within this time.").or("5"),
        Key::new("within", Schema::LabelText, "The time, up to `10m`.").or("60s"),
        TTL,
        MAX_TTL,
    ]),
    one_of: &[],
};

static RATES: Section = Section {
    name: "rates",
    what: "the limits of rates",
    about: "What a source, or all tracked sources of a prefix, may send; without a number there is no limit.",
    keys: Cow::Borrowed(&[
        MODE,
        rate("packets", "Packets per second of a source."),
        Key::new("bytes", Schema::Integer(1, i64::MAX), "Bytes per second of a source."),
        rate("prefix_packets", "Packets per second of a prefix, which is banned as a whole."),
        Key::new("prefix_bytes", Schema::Integer(1, i64::MAX), "Bytes per second of a prefix."),
        Key::new("ipv4_prefix", Schema::Integer(8, 31), "Length of IPv4 prefixes.").or("24"),
        Key::new("ipv6_prefix", Schema::Integer(16, 127), "Length of IPv6 prefixes.").or("64"),
        Key::new("within", Schema::LabelText, "The time that is averaged over, up to `10m`.").or("10s"),
        TTL,
        MAX_TTL,
    ]),
    one_of: &[],
};

/// Decodes the section; errors are added to the node's list.
pub(in super::super) fn decode(node: &Node<'_>) -> Option<DetectConfig> {
    let fields = node.fields(&DETECT)?;
    let module = |key: &str, section: &'static Section| Module::of(fields.get(key), section);
    let syn_flood = module("syn_flood", &SYN_FLOOD).map(|module| {
        let terms = module.terms();
        let per_source = module.integer("per_source", "a number of SYNs", RATE);
        let in_all = module.integer("in_all", "a number of SYNs", RATE);
        let within = module.time("within", MAX_AVERAGE);
        Some(SynFlood { terms: terms?, per_source: per_source?, in_all: in_all?, within: within? })
    });
    let port_scan = module("port_scan", &PORT_SCAN).map(|module| {
        let terms = module.terms();
        let ports = module.integer("ports", "a number of ports", PORTS);
        let within = module.time("within", MAX_SLOW);
        let slow_ports = module.integer("slow_ports", "a number of ports", PORTS);
        let slow_within = module.time("slow_within", MAX_SLOW);
        Some(PortScan {
            terms: terms?,
            ports: ports?,
            within: within?,
            slow_ports: slow_ports?,
            slow_within: slow_within?,
        })
    });
    let tcp_anomalies = module("tcp_anomalies", &TCP_ANOMALIES).map(|module| {
        let terms = module.terms();
        let packets = module.integer("packets", "a number of segments", RATE);
        let within = module.time("within", MAX_AVERAGE);
        Some(TcpAnomalies { terms: terms?, packets: packets?, within: within? })
    });
    let rates = module("rates", &RATES).map(|module| {
        let most = 1..=i64::MAX as u64;
        let limit = |key: &str| match module.has(key) {
            true => module.integer(key, "a number per second", most.clone()),
            false => Some(0),
        };
        let terms = module.terms();
        let packets = limit("packets");
        let bytes = limit("bytes");
        let prefix_packets = limit("prefix_packets");
        let prefix_bytes = limit("prefix_bytes");
        let ipv4_prefix = module.integer("ipv4_prefix", "a length", 8..=31);
        let ipv6_prefix = module.integer("ipv6_prefix", "a length", 16..=127);
        let within = module.time("within", MAX_AVERAGE);
        if [packets, bytes, prefix_packets, prefix_bytes] == [Some(0); 4] {
            module
                .error("no limit is set", "write packets: 100000, or bytes, prefix_packets or prefix_bytes");
        }
        Some(Rates {
            terms: terms?,
            packets: packets?,
            bytes: bytes?,
            prefix_packets: prefix_packets?,
            prefix_bytes: prefix_bytes?,
            ipv4_prefix: ipv4_prefix?,
            ipv6_prefix: ipv6_prefix?,
            within: within?,
        })
    });
    // Errors have been reported, all of them.
    Some(DetectConfig {
        syn_flood: syn_flood.flatten(),
        port_scan: port_scan.flatten(),
        tcp_anomalies: tcp_anomalies.flatten(),
        rates: rates.flatten(),
    })
}

/// An enabled module, with its section if it has one.
struct Module<'a> {
    section: &'static Section,
    fields: Option<Fields<'a>>,
}

impl<'a> Module<'a> {
    fn of(node: Option<Node<'a>>, section: &'static Section) -> Option<Self> {
        let node = node?;
        if node.value.is_mapping() {
            return Some(Self { section, fields: Some(node.fields(section)?) });
        }
        node.boolean()?.then_some(Self { section, fields: None })
    }

    fn get(&self, key: &str) -> Option<Node<'a>> {
        self.fields.as_ref().and_then(|fields| fields.get(key))
    }

    fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    fn error(&self, text: &str, help: &str) {
        if let Some(fields) = &self.fields {
            fields.error(text).help(help);
        }
    }

    fn integer<T>(&self, key: &str, what: &str, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i128> + FromStr + PartialOrd + std::fmt::Display,
    {
        match self.get(key) {
            Some(node) => node.integer(what, range),
            None => self.section.default(key, |text| text.parse().ok()),
        }
    }

    fn time(&self, key: &str, longest: Duration) -> Option<Duration> {
        let Some(node) = self.get(key) else {
            return self.section.default(key, |text| parse_ttl(text).ok());
        };
        let time = parse_ttl(&node.label_text()?).map_err(|error| node.error(error)).ok()?;
        if time > longest {
            node.error(format!("{}s: at most {}s is possible", time.as_secs(), longest.as_secs()));
            return None;
        }
        Some(time)
    }

    fn terms(&self) -> Option<BanTerms> {
        let enforce = self.get("mode").map_or(Some(false), |node| node.one_of("mode", BAN_MODES));
        let (ttl, max_ttl) = (self.time("ttl", Duration::MAX), self.time("max_ttl", Duration::MAX));
        let (enforce, ttl, max_ttl) = (enforce?, ttl?, max_ttl?);
        if max_ttl < ttl && self.has("max_ttl") {
            self.error("`max_ttl` is shorter than `ttl`", "");
        }
        Some(BanTerms { enforce, ttl, max_ttl: max_ttl.max(ttl) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::decode_text;

    fn read(text: &str) -> Result<DetectConfig, String> {
        decode_text(text, decode)
    }

    #[test]
    fn detections_only_observe_by_default() {
        let config =
            read("{ syn_flood: true, port_scan: { ports: 9 }, tcp_anomalies: false, rates: { packets: 7 } }");
        let config = config.unwrap();
        assert_eq!(config.port_scan.as_ref().map(|scan| (scan.ports, scan.slow_ports)), Some((9, 60)));
        assert_eq!(config.modules().map(|(_, mode)| mode), [Some(false), Some(false), None, Some(false)]);
        assert!(!config.enforces() && config.needs_flows());
        assert!(read("{ syn_flood: { mode: enforce } }").unwrap().enforces());
        assert!(!read("{ port_scan: false }").unwrap().is_on());
    }

    #[test]
    fn rejects_invalid_config() {
        for (text, expected) in [
            ("{ port_scan: { ports: 1 } }", "from 2 to 1000"),
            ("{ port_scan: { slow_within: 2d } }", "at most 86400s"),
            ("{ syn_flood: { within: 1h } }", "at most 600s"),
            ("{ syn_flood: { ttl: 2h, max_ttl: 1h } }", "shorter than `ttl`"),
            ("{ syn_flood: { mode: drop } }", "unknown mode"),
            ("{ rates: {} }", "no limit is set"),
            ("{ portscan: true }", "did you mean \"port_scan\""),
        ] {
            let wrong = read(text).unwrap_err();
            assert!(wrong.contains(expected), "{text}: {wrong}");
        }
        let all = "{ port_scan: { mode: drop, ttl: x, max_ttl: y, ports: 1, within: 2d, slow_ports: 1, slow_within: z }, \
                   rates: { mode: drop, packets: 0, bytes: 0, ipv4_prefix: 7, within: 1h } }";
        let all = read(all).unwrap_err();
        assert_eq!(all.lines().filter(|line| !line.starts_with(' ')).count(), 12, "{all}");
    }
}
