//! A plain model of what `bpf/packet.bpf.h` must make of a frame: slices, no tricks, one path for all frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use exporter::net::{AddressFamily, ParseError, Protocol, TcpKind};

const VLAN_TAGS: usize = 2;
const EXTENSIONS: usize = 8;

/// The result of parsing a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    pub family: AddressFamily,
    pub protocol: Protocol,
    pub error: Option<ParseError>,
    pub fragment: bool,
    pub tcp_flags: u8,
    /// For valid IP packets: addresses, IANA number, ports.
    pub ends: Option<Ends>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ends {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub number: u8,
    pub source_port: u16,
    pub destination_port: u16,
}

impl Parsed {
    pub fn tcp_kind(&self) -> Option<TcpKind> {
        let has = |flag: u8| self.tcp_flags & flag != 0;
        match () {
            () if has(4) => Some(TcpKind::Rst),
            () if has(2) && has(16) => Some(TcpKind::SynAck),
            () if has(2) => Some(TcpKind::Syn),
            () if has(1) => Some(TcpKind::Fin),
            () => None,
        }
    }
}

/// Parses a whole frame.
pub fn parse(frame: &[u8]) -> Parsed {
    let mut parsed = Parsed {
        family: AddressFamily::Other,
        protocol: Protocol::Other,
        error: None,
        fragment: false,
        tcp_flags: 0,
        ends: None,
    };
    if let Err(error) = ethernet(frame, &mut parsed) {
        parsed.error = Some(error);
        parsed.ends = None;
    }
    parsed
}

fn ethernet(frame: &[u8], parsed: &mut Parsed) -> Result<(), ParseError> {
    let mut kind = be16(frame, 12)?;
    let mut at = 14;
    for _ in 0..VLAN_TAGS {
        if kind == 0x8100 || kind == 0x88a8 {
            kind = be16(frame, at + 2)?;
            at += 4;
        }
    }
    match kind {
        0x0800 => ipv4(&frame[at..], parsed),
        0x86dd => ipv6(&frame[at..], parsed),
        _ => Ok(()),
    }
}

fn ipv4(packet: &[u8], parsed: &mut Parsed) -> Result<(), ParseError> {
    parsed.family = AddressFamily::Ipv4;
    let header = packet.get(..20).ok_or(ParseError::Truncated)?;
    if header[0] >> 4 != 4 {
        return Err(ParseError::Version);
    }
    parsed.protocol = match header[9] {
        1 => Protocol::Icmp,
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => Protocol::Other,
    };
    let header_length = usize::from(header[0] & 15) * 4;
    let mut total = usize::from(be16(header, 2)?);
    if total == 0 && packet.len() > 0xffff {
        total = packet.len();
    }
    if header_length < 20 {
        return Err(ParseError::HeaderLength);
    }
    if total < header_length || total > packet.len() {
        return Err(ParseError::Length);
    }
    let address =
        |at: usize| IpAddr::V4(Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]));
    let mut ends = Ends {
        source: address(12),
        destination: address(16),
        number: header[9],
        source_port: 0,
        destination_port: 0,
    };
    let fragment = be16(header, 6)?;
    let (more, offset) = (fragment & 0x2000 != 0, fragment & 0x1fff);
    parsed.fragment = more || offset != 0;
    if offset == 0 {
        transport(&packet[header_length..total], parsed, &mut ends)?;
    }
    parsed.ends = Some(ends);
    Ok(())
}

fn ipv6(packet: &[u8], parsed: &mut Parsed) -> Result<(), ParseError> {
    parsed.family = AddressFamily::Ipv6;
    let header = packet.get(..40).ok_or(ParseError::Truncated)?;
    if header[0] >> 4 != 6 {
        return Err(ParseError::Version);
    }
    let mut next = header[6];
    let room = packet.len() - 40;
    let mut length = usize::from(be16(header, 4)?);
    if length == 0 && (next == 0 || room > 0xffff) {
        length = room;
    }
    let named = |next: u8| match next {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        58 => Protocol::Icmpv6,
        _ => Protocol::Other,
    };
    parsed.protocol = named(next);
    if length > room {
        return Err(ParseError::Length);
    }
    let mut rest = &packet[40..40 + length];
    let mut later = false;
    let mut headers = 0;
    while matches!(next, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140) {
        if headers == EXTENSIONS {
            return Err(ParseError::Extensions);
        }
        headers += 1;
        let first = rest.get(..8).ok_or(ParseError::Truncated)?;
        let size = match next {
            44 => 8,
            51 => (usize::from(first[1]) + 2) * 4,
            _ => (usize::from(first[1]) + 1) * 8,
        };
        if next == 44 {
            let fragment = be16(first, 2)?;
            parsed.fragment |= fragment & 0xfff9 != 0;
            later = fragment & 0xfff8 != 0;
        }
        if size > rest.len() {
            return Err(ParseError::HeaderLength);
        }
        next = first[0];
        parsed.protocol = named(next);
        rest = &rest[size..];
        if later {
            break;
        }
    }
    let address = |at: usize| {
        let octets: [u8; 16] = header[at..at + 16].try_into().expect("sixteen bytes");
        Ipv6Addr::from(octets).to_canonical()
    };
    let mut ends = Ends {
        source: address(8),
        destination: address(24),
        number: next,
        source_port: 0,
        destination_port: 0,
    };
    if !later {
        transport(rest, parsed, &mut ends)?;
    }
    parsed.ends = Some(ends);
    Ok(())
}

fn transport(segment: &[u8], parsed: &mut Parsed, ends: &mut Ends) -> Result<(), ParseError> {
    let ports = |ends: &mut Ends| {
        ends.source_port = be16(segment, 0)?;
        ends.destination_port = be16(segment, 2)?;
        Ok(())
    };
    match parsed.protocol {
        Protocol::Tcp => {
            let header = segment.get(..20).ok_or(ParseError::Truncated)?;
            let length = usize::from(header[12] >> 4) * 4;
            if length < 20 || length > segment.len() {
                return Err(ParseError::HeaderLength);
            }
            parsed.tcp_flags = header[13];
            ports(ends)
        }
        Protocol::Udp => {
            let header = segment.get(..8).ok_or(ParseError::Truncated)?;
            let length = usize::from(be16(header, 4)?);
            let jumbo = length == 0 && segment.len() > 0xffff;
            if length < 8 && !jumbo || length > segment.len() && !parsed.fragment {
                return Err(ParseError::Length);
            }
            ports(ends)
        }
        Protocol::Icmp if segment.len() < 8 => Err(ParseError::Truncated),
        Protocol::Icmpv6 if segment.len() < 4 => Err(ParseError::Truncated),
        _ => Ok(()),
    }
}

fn be16(bytes: &[u8], at: usize) -> Result<u16, ParseError> {
    let part = bytes.get(at..at + 2).ok_or(ParseError::Truncated)?;
    Ok(u16::from_be_bytes([part[0], part[1]]))
}
