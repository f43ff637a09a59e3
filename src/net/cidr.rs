//! Named groups of IP prefixes.

use std::collections::HashMap;
use std::mem::offset_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::abi::generated::types::net_family;
use super::abi::{CIDRS, net_cidr_key};

/// The number of groups; the first counter is for addresses outside of all groups.
pub const GROUPS: usize = CIDRS - 1;

/// Prefixes of all groups together.
pub const PREFIXES: usize = 1 << 16;

/// The label value for addresses outside of all groups.
pub const OTHER: &str = "other";

/// Prefixes that are counted under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CidrGroup {
    pub name: String,
    pub prefixes: Vec<Prefix>,
}

/// An address prefix; the bits after its length are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    bits: u8,
}

impl Prefix {
    /// Parses `ADDRESS/BITS`, or an address alone (RFC 4632, RFC 4291 2.3).
    ///
    /// # Errors
    /// What is wrong with it, and what may have been intended.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr =
            address.parse().map_err(|_| format!("{text:?} is neither an IP address nor a prefix"))?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => width,
            Some(bits) => Some(bits)
                .filter(|bits| bits.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|bits| bits.parse().ok())
                .filter(|bits| *bits <= width)
                .ok_or_else(|| format!("{text:?}: the prefix length is a number from 0 to {width}"))?,
        };
        let whole = Self { address: masked(address, bits), bits };
        if whole.address != address {
            return Err(format!(
                "{text:?} has bits set beyond its prefix length (did you mean \"{whole}\"?)"
            ));
        }
        Ok(whole)
    }

    /// The prefix of an address; a length that exceeds the address is clamped.
    pub fn new(address: IpAddr, bits: u8) -> Self {
        let bits = bits.min(if address.is_ipv4() { 32 } else { 128 });
        Self { address: masked(address, bits), bits }
    }

    /// Converts a mapped IPv4 prefix to IPv4, because its packets are IPv4.
    pub fn canonical(self) -> Self {
        let mapped = match self.address {
            IpAddr::V6(address) if self.bits >= 96 => address.to_ipv4_mapped(),
            _ => None,
        };
        mapped.map_or(self, |address| Self::new(address.into(), self.bits - 96))
    }

    /// The first address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// The prefix length.
    pub fn bits(self) -> u8 {
        self.bits
    }

    /// Whether it is a single address.
    pub fn is_single(self) -> bool {
        self.bits == if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// Whether it contains all addresses of another prefix.
    pub fn contains(self, other: Self) -> bool {
        self.bits <= other.bits
            && self.address.is_ipv4() == other.address.is_ipv4()
            && masked(other.address, self.bits) == self.address
    }

    /// The key in the kernel's table: the bytes of `struct net_cidr_key`.
    pub fn key(self) -> [u8; size_of::<net_cidr_key>()] {
        let mut key = [0; size_of::<net_cidr_key>()];
        let mut put = |at: usize, bytes: &[u8]| key[at..][..bytes.len()].copy_from_slice(bytes);
        let address = offset_of!(net_cidr_key, address);
        let family = match self.address {
            IpAddr::V4(octets) => {
                put(address, &octets.octets());
                net_family::NET_FAMILY_IPV4
            }
            IpAddr::V6(octets) => {
                put(address, &octets.octets());
                net_family::NET_FAMILY_IPV6
            }
        };
        put(offset_of!(net_cidr_key, bits), &(32 + u32::from(self.bits)).to_ne_bytes());
        put(offset_of!(net_cidr_key, family), &family.0.to_ne_bytes());
        key
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// The address with the bits after the prefix cleared.
fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

/// The first prefix that is in two groups or twice in one, with the names of both groups.
pub fn duplicate(groups: &[CidrGroup]) -> Option<(Prefix, &str, &str)> {
    let mut seen = HashMap::new();
    let all =
        groups.iter().flat_map(|group| group.prefixes.iter().map(|prefix| (*prefix, group.name.as_str())));
    all.into_iter().find_map(|(prefix, name)| Some((prefix, seen.insert(prefix, name)?, name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_round_trip() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "192.0.2.7/32", "2001:db8::/32", "::/0", "fe80::1/128"] {
            assert_eq!(Prefix::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Prefix::parse("192.0.2.7").unwrap().to_string(), "192.0.2.7/32");
        assert_eq!(Prefix::parse("2001:db8::1").unwrap().to_string(), "2001:db8::1/128");
    }

    #[test]
    fn rejects_invalid_prefixes_with_a_reason() {
        for (text, expected) in [
            ("10.0.0.1/8", "did you mean \"10.0.0.0/8\"?"),
            ("2001:db8::1/32", "did you mean \"2001:db8::/32\"?"),
            ("10.0.0.0/33", "from 0 to 32"),
            ("10.0.0.0/+8", "from 0 to 32"),
            ("10.0.0.0/", "from 0 to 32"),
            ("::/129", "from 0 to 128"),
            ("10.0.0/8", "neither an IP address nor a prefix"),
            ("010.0.0.0/8", "neither an IP address nor a prefix"),
            ("office", "neither an IP address nor a prefix"),
        ] {
            let wrong = Prefix::parse(text).unwrap_err();
            assert!(wrong.contains(expected), "{text}: {wrong}");
        }
    }

    #[test]
    fn address_families_have_distinct_keys() {
        let key = |text: &str| Prefix::parse(text).unwrap().key();
        let bits = |key: &[u8]| u32::from_ne_bytes(key[..4].try_into().unwrap());
        let (v4, v6) = (key("0.0.0.0/0"), key("::/0"));
        assert_eq!((bits(&v4), bits(&v6)), (32, 32), "the family counts");
        assert_ne!(v4, v6);
        assert_eq!(key("192.0.2.0/24")[8..13], [192, 0, 2, 0, 0]);
        assert_eq!(bits(&key("2001:db8::1")), 160);
    }

    #[test]
    fn prefix_in_two_groups_is_detected() {
        let group = |name: &str, prefixes: &[&str]| CidrGroup {
            name: name.to_string(),
            prefixes: prefixes.iter().map(|text| Prefix::parse(text).unwrap()).collect(),
        };
        let apart = [group("a", &["10.0.0.0/8"]), group("b", &["10.0.0.0/16"])];
        assert_eq!(duplicate(&apart), None);
        let twice = [group("a", &["10.0.0.0/8", "::1"]), group("b", &["::1/128"])];
        assert_eq!(duplicate(&twice), Some((Prefix::parse("::1").unwrap(), "a", "b")));
    }
}
