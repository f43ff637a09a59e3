//! Parses addresses as applications write them. Pure.

use std::net::{IpAddr, Ipv6Addr};

/// The address of a peer, alone or with a port: `192.0.2.7`, `192.0.2.7:22`, `192.0.2.7#53`, `2001:db8::1`,
/// `[2001:db8::1]:22` or `fe80::1%eth0`. A mapped IPv4 address is returned as IPv4.
///
/// A port after an IPv6 address without brackets is ambiguous and is parsed as part of the address. Addresses that
/// belong to no host (`0.0.0.0`, `::`, multicast) yield `None`.
pub(super) fn address_in(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let (address, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, behind) = rest.split_once(']')?;
            let port = if behind.is_empty() { None } else { Some(behind.strip_prefix([':', '#'])?) };
            (v6(address)?, port)
        }
        None => match text.split_once('#') {
            Some((address, port)) => (plain(address)?, Some(port)),
            None => match plain(text) {
                Some(address) => (address, None),
                None => {
                    let (address, port) = text.rsplit_once(':')?;
                    (address.parse().ok().filter(IpAddr::is_ipv4)?, Some(port))
                }
            },
        },
    };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    if port.is_some_and(|port| !is_port(port)) {
        return None;
    }
    let address = address.to_canonical();
    (!address.is_unspecified() && !address.is_multicast()).then_some(address)
}

fn plain(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| v6(text))
}

/// An address with an optional interface, which is dropped.
fn v6(text: &str) -> Option<IpAddr> {
    let address = match text.split_once('%') {
        Some((address, scope)) if !scope.is_empty() => address,
        Some(_) => return None,
        None => text,
    };
    address.parse::<Ipv6Addr>().ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_peer_addresses_of_applications() {
        for (text, expected) in [
            ("192.0.2.7", "192.0.2.7"),
            (" 192.0.2.7\n", "192.0.2.7"),
            ("192.0.2.7:22", "192.0.2.7"),
            ("192.0.2.7:0", "192.0.2.7"),
            ("192.0.2.7#53", "192.0.2.7"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:65535", "2001:db8::1"),
            ("2001:db8::1#53", "2001:db8::1"),
            ("fe80::1%eth0", "fe80::1"),
            ("[fe80::1%eth0]:22", "fe80::1"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("[::ffff:192.0.2.7]:22", "192.0.2.7"),
        ] {
            assert_eq!(address_in(text), Some(expected.parse().unwrap()), "{text}");
        }
        for text in [
            "",
            "unreadable",
            "UNKNOWN",
            "unix",
            "localhost",
            "localhost:22",
            "example.org",
            "192.0.2",
            "192.0.2.7:",
            "192.0.2.7:65536",
            "192.0.2.7:+1",
            "192.0.2.7:ssh",
            "192.0.2.7#",
            "192.0.2.7 port 22",
            "192.0.2.07",
            "192.0.2.7/32",
            "3221225991",
            "[192.0.2.7]:22",
            "[2001:db8::1",
            "[2001:db8::1]22",
            "[2001:db8::1]:x",
            "2001:db8::1]",
            "fe80::1%",
            "0.0.0.0",
            "0.0.0.0:80",
            "::",
            "224.0.0.1",
            "ff02::1",
            "family 16",
        ] {
            assert_eq!(address_in(text), None, "{text:?}");
        }
    }
}
