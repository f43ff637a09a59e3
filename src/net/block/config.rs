//! What is blocked, by the configuration.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::super::cidr::Prefix;
use super::crowdsec::CrowdsecConfig;
use super::fetch::UrlConfig;

/// `network.block`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockConfig {
    pub mode: BlockMode,
    /// Of entries that do not say in which themselves.
    pub direction: BlockDirection,
    pub entries: Vec<BlockEntry>,
    pub files: Vec<BlockFile>,
    /// Lists that other machines publish. They are kept beside `file`.
    pub urls: Vec<UrlConfig>,
    /// Whose decisions are blocked; `None`: nobody's.
    pub crowdsec: Option<CrowdsecConfig>,
    /// Never dropped, whatever is blocked.
    pub allow: Vec<Prefix>,
    /// Where entries that are asked for at run time are kept; `None`: nowhere.
    pub file: Option<PathBuf>,
    /// Where commands are taken; `None` for the usual place.
    pub socket: Option<PathBuf>,
    /// TCP ports on which the exporter itself serves: not of the configuration.
    pub own_ports: Vec<u16>,
}

/// Whether packets are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BlockMode {
    /// What would be dropped is counted.
    #[default]
    Observe,
    Enforce,
}

/// Packets that an entry is about, by the address of the other end: the source of what is received, the destination of what is
/// sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BlockDirection {
    #[default]
    Ingress,
    Egress,
    Both,
}

/// Something that is blocked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockEntry {
    pub prefix: Prefix,
    pub rule: BlockRule,
}

/// How.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockRule {
    pub reason: String,
    /// For how long; `None` for good.
    pub ttl: Option<Duration>,
    /// `None` for that of the list.
    pub direction: Option<BlockDirection>,
    /// `None` for every packet.
    pub scope: Option<BlockScope>,
}

/// The packets of an address that are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockScope {
    pub protocol: BlockProtocol,
    /// The first and the last destination port. Of all ports, packets that have none are meant too.
    pub ports: (u16, u16),
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockProtocol {
    Tcp,
    Udp,
    /// Of IPv6 addresses it is ICMPv6.
    Icmp,
}

/// As it is written in short: `tcp`, `udp 53`, `tcp 1000-2000`.
impl fmt::Display for BlockScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.protocol.word())?;
        match self.port_range() {
            Some(ports) => write!(f, " {ports}"),
            None => Ok(()),
        }
    }
}

/// A file that lists what is blocked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockFile {
    pub path: PathBuf,
    pub reason: String,
}

/// The longest time that an entry can have: the kernel's side counts ticks in 32 bits.
pub const LONGEST_TTL: Duration = Duration::from_secs(365 * 24 * 3600);

impl BlockScope {
    /// All ports of a protocol.
    const ALL_PORTS: (u16, u16) = (0, u16::MAX);

    /// Packets of this protocol, to these ports only if some are named.
    pub fn new(protocol: BlockProtocol, ports: Option<(u16, u16)>) -> Self {
        Self { protocol, ports: ports.unwrap_or(Self::ALL_PORTS) }
    }

    /// The ports as they are written; `None` if all are meant.
    pub fn port_range(&self) -> Option<String> {
        match self.ports {
            Self::ALL_PORTS => None,
            (first, last) if first == last => Some(first.to_string()),
            (first, last) => Some(format!("{first}-{last}")),
        }
    }
}

impl BlockDirection {
    pub const WORDS: &'static [(&'static str, Self)] =
        &[("ingress", Self::Ingress), ("egress", Self::Egress), ("both", Self::Both)];

    /// The one that is written so.
    pub fn of(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, direction)| *direction)
    }

    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
            Self::Both => "both",
        }
    }
}

impl BlockProtocol {
    pub const WORDS: &'static [(&'static str, Self)] =
        &[("tcp", Self::Tcp), ("udp", Self::Udp), ("icmp", Self::Icmp)];

    /// The one that is written so.
    pub fn of(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, protocol)| *protocol)
    }

    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }
}

/// Reads `90s`, `15m` (or `min`), `12h`, `7d`, or a number of seconds.
///
/// # Errors
/// What is wrong with it.
pub fn parse_ttl(text: &str) -> Result<Duration, String> {
    let at = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let unit = match unit {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(format!("{text:?} is not a duration: write 90s, 15m, 12h or 7d")),
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    let ttl = seconds.map(Duration::from_secs).filter(|ttl| !ttl.is_zero() && *ttl <= LONGEST_TTL);
    ttl.ok_or_else(|| format!("{text:?}: a time from 1s to 365d is possible; without one an entry stays"))
}

/// Reads a port, or a range of ports `FIRST-LAST`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_ports(text: &str) -> Result<(u16, u16), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
    let ports = port(first).zip(port(last)).filter(|(first, last)| first <= last);
    ports.ok_or_else(|| format!("{text:?} is neither a port nor a range of ports (1000-2000)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_ports_are_read() {
        for (text, seconds) in
            [("90", 90), ("90s", 90), ("15m", 900), ("15min", 900), ("12h", 43_200), ("7d", 604_800)]
        {
            assert_eq!(parse_ttl(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "s", "0", "1w", "-1s", "1.5h", "366d", "99999999999999999999s", "1 h"] {
            assert!(parse_ttl(text).is_err(), "{text}");
        }
        assert_eq!((parse_ports("22"), parse_ports("1000-2000")), (Ok((22, 22)), Ok((1000, 2000))));
        for text in ["", "0", "65536", "9-8", "a", "1-", "-1"] {
            assert!(parse_ports(text).is_err(), "{text}");
        }
    }
}
