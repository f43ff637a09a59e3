//! Gateways of default routes in all tables, from rtnetlink, in the calling thread's network namespace.
//!
//! Format: `man 7 rtnetlink`, RTM_GETROUTE and RTM_GETRULE.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use super::super::netlink::{NETLINK_ROUTE, attributes, dump, dump_while, u16_at};

pub(super) const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_GETRULE: u16 = 34;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
/// `struct rtmsg`; `struct fib_rule_hdr` has the same size.
const HEADER: usize = 12;
/// `struct rtnexthop`.
const NEXT_HOP: usize = 8;
const MAIN: u32 = 254;
const LOCAL: u32 = 255;

/// Routes read at most: a full Internet routing table is not read to its end.
const ROUTES: usize = 100_000;

/// The gateways of default routes. What cannot be read is left out.
pub(super) fn gateways() -> BTreeSet<IpAddr> {
    let mut found = BTreeSet::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for table in tables(family).unwrap_or_else(|_| BTreeSet::from([MAIN])) {
            let _ = of_table(family, table, &mut found);
        }
    }
    found
}

/// The main table and those that rules refer to.
fn tables(family: i32) -> io::Result<BTreeSet<u32>> {
    let mut found = BTreeSet::from([MAIN]);
    let mut header = [0; HEADER];
    header[0] = family as u8;
    dump(NETLINK_ROUTE, RTM_GETRULE, &header, |kind, body| {
        if kind == RTM_NEWRULE {
            found.extend(table_of(body).filter(|table| *table != 0 && *table != LOCAL));
        }
    })?;
    Ok(found)
}

fn table_of(body: &[u8]) -> Option<u32> {
    let attribute = attributes(body.get(HEADER..)?).find(|(kind, _)| *kind == RTA_TABLE);
    let written = attribute.and_then(|(_, value)| Some(u32::from_ne_bytes(value.try_into().ok()?)));
    written.or_else(|| body.get(4).copied().map(u32::from))
}

fn of_table(family: i32, table: u32, found: &mut BTreeSet<IpAddr>) -> io::Result<()> {
    let mut request = vec![0; HEADER];
    request[0] = family as u8;
    request.extend_from_slice(&8u16.to_ne_bytes());
    request.extend_from_slice(&RTA_TABLE.to_ne_bytes());
    request.extend_from_slice(&table.to_ne_bytes());
    let mut seen = 0;
    dump_while(NETLINK_ROUTE, RTM_GETROUTE, &request, |kind, body| {
        // Kernels that ignore the filter return all routes.
        if kind != RTM_NEWROUTE || table_of(body) != Some(table) {
            return true;
        }
        seen += 1;
        let is_default = body.get(1) == Some(&0);
        if is_default {
            found.extend(leads_to(body));
        }
        // Default routes come first in IPv4.
        seen < ROUTES && (is_default || family != libc::AF_INET)
    })?;
    Ok(())
}

/// The gateways of one route.
fn leads_to(body: &[u8]) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for (kind, value) in attributes(body.get(HEADER..).unwrap_or_default()) {
        found.extend(gateway(kind, value));
        if kind != RTA_MULTIPATH {
            continue;
        }
        let mut rest = value;
        while let Some(length) = u16_at(rest, 0).map(usize::from).filter(|length| *length >= NEXT_HOP) {
            let Some(hop) = rest.get(NEXT_HOP..length) else { break };
            found.extend(attributes(hop).filter_map(|(kind, value)| gateway(kind, value)));
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
    found
}

/// RTA_VIA has a family before the address.
fn gateway(kind: u16, value: &[u8]) -> Option<IpAddr> {
    let octets = match kind {
        RTA_GATEWAY => value,
        RTA_VIA => value.get(2..)?,
        _ => return None,
    };
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from).ok();
    let address = v4.or_else(|| <[u8; 16]>::try_from(octets).map(IpAddr::from).ok())?;
    (!address.is_unspecified()).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn finds_all_gateways_of_a_route() {
        let hop = |inside: Vec<u8>| {
            let mut hop = ((NEXT_HOP + inside.len()) as u16).to_ne_bytes().to_vec();
            hop.extend([0; 6]);
            hop.extend(inside);
            hop
        };
        let via = attribute(RTA_VIA, &[&[10, 0][..], &[0xfe; 16]].concat());
        let hops = [hop(attribute(RTA_GATEWAY, &[192, 0, 2, 1])), hop(Vec::new()), hop(via)].concat();
        let body =
            [vec![0; HEADER], attribute(RTA_TABLE, &[7, 1, 0, 0]), attribute(RTA_MULTIPATH, &hops)].concat();
        let expected: [IpAddr; 2] = [[192, 0, 2, 1].into(), [0xfe; 16].into()];
        assert_eq!(leads_to(&body), expected);
        assert_eq!(table_of(&body), Some(263));
        // No truncation makes it read out of bounds.
        for length in 0..body.len() {
            leads_to(&body[..length]);
            table_of(&body[..length]);
        }
    }
}
