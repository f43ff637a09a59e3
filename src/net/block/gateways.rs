//! Gateways of default routes in all tables, from rtnetlink, in the calling thread's network namespace.
//!
//! Format: `man 7 rtnetlink`, RTM_GETROUTE and RTM_GETRULE; include/uapi/linux/nexthop.h.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use super::super::links::vrf_tables;
use super::super::netlink::{NETLINK_ROUTE, attribute, attributes, dump, dump_while, u16_at, u32_at};

pub(super) const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_GETRULE: u16 = 34;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_GETNEXTHOP: u16 = 106;
const RTA_DST: u16 = 1;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_GATEWAY: u16 = 6;
/// `struct rtmsg`; `struct fib_rule_hdr` has the same size.
const HEADER: usize = 12;
/// `struct rtnexthop`, `struct nexthop_grp` and `struct nhmsg`.
const NEXT_HOP: usize = 8;
const MAIN: u32 = 254;
const LOCAL: u32 = 255;

/// Routes read at most: a full Internet routing table is not read to its end.
const ROUTES: usize = 100_000;

/// The gateways of default routes. What cannot be read is left out.
pub(super) fn gateways() -> BTreeSet<IpAddr> {
    let mut found = BTreeSet::new();
    let (vrfs, next_hops) = (vrf_tables().unwrap_or_default(), OnceCell::new());
    let mut add = |reached: Reached| {
        found.extend(reached.gateways);
        let objects = || next_hops.get_or_init(|| NextHops::read().unwrap_or_default());
        found.extend(reached.objects.into_iter().flat_map(|id| objects().gateways(id)));
    };
    for family in [libc::AF_INET, libc::AF_INET6] {
        let rules = tables(family).unwrap_or_default();
        for table in BTreeSet::from([MAIN]).iter().chain(&rules).chain(&vrfs).collect::<BTreeSet<_>>() {
            let _ = of_table(family, *table, &mut add);
        }
    }
    found
}

/// Where a route leads.
#[derive(Debug, Default, PartialEq, Eq)]
struct Reached {
    gateways: Vec<IpAddr>,
    /// Ids of nexthop objects, of which the kernel lists the gateways only with `net.ipv4.nexthop_compat_mode`.
    objects: Vec<u32>,
}

/// The gateways of nexthop objects (`ip nexthop`), and the members of groups of them.
#[derive(Debug, Default)]
struct NextHops(BTreeMap<u32, Reached>);

impl NextHops {
    fn read() -> io::Result<Self> {
        let mut all = Self::default();
        dump(NETLINK_ROUTE, RTM_GETNEXTHOP, &[0; NEXT_HOP], |kind, body| {
            if kind == RTM_NEWNEXTHOP {
                all.0.extend(next_hop(body));
            }
        })?;
        Ok(all)
    }

    /// A group has no groups as members.
    fn gateways(&self, id: u32) -> BTreeSet<IpAddr> {
        let object = self.0.get(&id).into_iter();
        let members = object.clone().flat_map(|object| &object.objects).filter_map(|id| self.0.get(id));
        object.chain(members).flat_map(|object| object.gateways.iter().copied()).collect()
    }
}

/// The id of a nexthop object, and where it leads.
fn next_hop(body: &[u8]) -> Option<(u32, Reached)> {
    let (mut id, mut reached) = (None, Reached::default());
    for (kind, value) in attributes(body.get(NEXT_HOP..)?) {
        match kind {
            NHA_ID => id = u32_at(value, 0),
            NHA_GATEWAY => reached.gateways.extend(address(value)),
            NHA_GROUP => {
                reached.objects.extend(value.chunks_exact(NEXT_HOP).filter_map(|member| u32_at(member, 0)));
            }
            _ => {}
        }
    }
    Some((id?, reached))
}

/// The tables that rules refer to.
fn tables(family: i32) -> io::Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
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

fn of_table(family: i32, table: u32, add: &mut impl FnMut(Reached)) -> io::Result<()> {
    let mut request = vec![0; HEADER];
    request[0] = family as u8;
    request.extend(attribute(RTA_TABLE, &table.to_ne_bytes()));
    let mut seen = 0;
    dump_while(NETLINK_ROUTE, RTM_GETROUTE, &request, |kind, body| {
        // Kernels that ignore the filter return all routes.
        if kind != RTM_NEWROUTE || table_of(body) != Some(table) {
            return true;
        }
        seen += 1;
        if body.get(1) == Some(&0) {
            add(leads_to(body));
        }
        // IPv4 routes are sorted by destination, and before the default route may be others to 0.0.0.0 (0.0.0.0/1).
        seen < ROUTES && (family != libc::AF_INET || begins_at_zero(body))
    })?;
    Ok(())
}

fn begins_at_zero(body: &[u8]) -> bool {
    let mut all = attributes(body.get(HEADER..).unwrap_or_default());
    all.find(|(kind, _)| *kind == RTA_DST).is_none_or(|(_, octets)| octets.iter().all(|octet| *octet == 0))
}

/// Where one route leads.
fn leads_to(body: &[u8]) -> Reached {
    let mut found = Reached::default();
    for (kind, value) in attributes(body.get(HEADER..).unwrap_or_default()) {
        found.gateways.extend(gateway(kind, value));
        if kind == RTA_NH_ID {
            found.objects.extend(u32_at(value, 0));
        }
        if kind != RTA_MULTIPATH {
            continue;
        }
        let mut rest = value;
        while let Some(length) = u16_at(rest, 0).map(usize::from).filter(|length| *length >= NEXT_HOP) {
            let Some(hop) = rest.get(NEXT_HOP..length) else { break };
            found.gateways.extend(attributes(hop).filter_map(|(kind, value)| gateway(kind, value)));
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
    found
}

/// RTA_VIA has a family before the address.
fn gateway(kind: u16, value: &[u8]) -> Option<IpAddr> {
    match kind {
        RTA_GATEWAY => address(value),
        RTA_VIA => address(value.get(2..)?),
        _ => None,
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from).ok();
    let address = v4.or_else(|| <[u8; 16]>::try_from(octets).map(IpAddr::from).ok())?;
    (!address.is_unspecified()).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(leads_to(&body), Reached { gateways: expected.to_vec(), objects: Vec::new() });
        assert_eq!(table_of(&body), Some(263));
        // No truncation makes it read out of bounds.
        for length in 0..body.len() {
            leads_to(&body[..length]);
            table_of(&body[..length]);
        }
    }

    #[test]
    fn nexthop_objects_and_groups_are_followed() {
        let object = |id: u32, more: Vec<u8>| {
            next_hop(&[vec![0; NEXT_HOP], attribute(NHA_ID, &id.to_ne_bytes()), more].concat()).unwrap()
        };
        let member = |id: u32| [&id.to_ne_bytes()[..], &[0; 4]].concat();
        let all = NextHops(BTreeMap::from([
            object(1, attribute(NHA_GATEWAY, &[192, 0, 2, 1])),
            object(2, attribute(NHA_GATEWAY, &[0xfe; 16])),
            object(3, Vec::new()),
            object(9, attribute(NHA_GROUP, &[member(1), member(2), member(3), member(4)].concat())),
        ]));
        let (first, second) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([0xfe; 16]));
        assert_eq!(all.gateways(9), BTreeSet::from([first, second]));
        assert_eq!((all.gateways(1), all.gateways(3).len(), all.gateways(4).len()), ([first].into(), 0, 0));
        let body = [vec![0; HEADER], attribute(RTA_NH_ID, &9u32.to_ne_bytes())].concat();
        assert_eq!(leads_to(&body), Reached { gateways: Vec::new(), objects: vec![9] });
    }
}
