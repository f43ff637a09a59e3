//! The configuration of the blocklist.

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
    /// The default direction of entries.
    pub direction: BlockDirection,
    pub entries: Vec<BlockEntry>,
    pub files: Vec<BlockFile>,
    /// Lists that are downloaded. They are cached beside `file`.
    pub urls: Vec<UrlConfig>,
    /// CrowdSec, if its decisions are applied.
    pub crowdsec: Option<CrowdsecConfig>,
    /// Prefixes that are never dropped, whatever is blocked.
    pub allow: Vec<Prefix>,
    /// Where entries added at run time are stored; `None`: they are not.
    pub file: Option<PathBuf>,
    /// The control socket of the commands; `None`: the default path.
    pub socket: Option<PathBuf>,
    /// TCP ports on which the exporter itself listens; not from the configuration.
    pub own_ports: Vec<u16>,
}

/// Whether packets are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BlockMode {
    /// Packets that would be dropped are counted.
    #[default]
    Observe,
    Enforce,
}

/// Which packets an entry matches. Its prefix is compared with the remote address: the source of received packets, the
/// destination of sent ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BlockDirection {
    #[default]
    Ingress,
    Egress,
    Both,
}

/// An entry of the blocklist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockEntry {
    pub prefix: Prefix,
    pub rule: BlockRule,
}

/// What an entry matches, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockRule {
    pub reason: String,
    /// `None`: it does not expire.
    pub ttl: Option<Duration>,
    /// `None`: the default direction.
    pub direction: Option<BlockDirection>,
    /// `None`: all packets.
    pub scope: Option<BlockScope>,
}

/// Which packets of an address are matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockScope {
    pub protocol: BlockProtocol,
    /// The first and the last destination port. The range of all ports also matches packets without ports.
    pub ports: (u16, u16),
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockProtocol {
    Tcp,
    Udp,
    /// ICMPv6 for IPv6 addresses.
    Icmp,
}

/// The short form: `tcp`, `udp 53`, `tcp 1000-2000`.
impl fmt::Display for BlockScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.protocol.word())?;
        match self.port_range() {
            Some(ports) => write!(f, " {ports}"),
            None => Ok(()),
        }
    }
}

/// A file with entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockFile {
    pub path: PathBuf,
    pub reason: String,
}

/// The longest time to live of an entry: the kernel's side counts ticks in 32 bits.
pub const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 3600);

impl BlockScope {
    /// The range of all ports.
    const ALL_PORTS: (u16, u16) = (0, u16::MAX);

    /// Packets of this protocol, to these ports if any are given.
    pub fn new(protocol: BlockProtocol, ports: Option<(u16, u16)>) -> Self {
        Self { protocol, ports: ports.unwrap_or(Self::ALL_PORTS) }
    }

    /// The ports in text form; `None` if the scope covers all.
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

    /// Parses the word used in configuration and API.
    pub fn of(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, direction)| *direction)
    }

    /// The word used in configuration and API.
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

    /// Parses the word used in configuration and API.
    pub fn of(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, protocol)| *protocol)
    }

    /// The word used in configuration and API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }
}

/// Parses `90s`, `15min` (or `m`), `12h`, `7d`, or a number of seconds.
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
        _ => return Err(format!("{text:?} is not a duration: write 90s, 15min, 12h or 7d")),
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    let ttl = seconds.map(Duration::from_secs).filter(|ttl| !ttl.is_zero() && *ttl <= MAX_TTL);
    ttl.ok_or_else(|| format!("{text:?}: a time from 1s to 365d is possible; without one an entry stays"))
}

/// Parses a port, or a range of ports `FIRST-LAST`.
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
    fn parses_ttls_and_ports() {
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
