//! Connections to ports from which the firewall redirects them (DNAT, REDIRECT): packets on an interface have these
//! ports, and the sockets others.
//!
//! Format: include/uapi/linux/netfilter/nfnetlink_conntrack.h.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::super::netlink::{attribute, attributes, get};
use super::super::sockets::Ends;
use super::maps::Connection;

const NETLINK_NETFILTER: isize = 12;
const CTNETLINK: u16 = 1 << 8;
const CT_GET: u16 = CTNETLINK | 1;
/// `struct nfgenmsg`.
const HEADER: usize = 4;
const NESTED: u16 = 0x8000;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// Those of these connections that the firewall redirects, as packets have them. None if connections are not tracked in
/// the calling thread's network namespace.
pub(super) fn redirected(connections: &BTreeSet<Ends>) -> Vec<Connection> {
    // The kernel would load a module for the question.
    let tracked = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap_or_default();
    if matches!(tracked.trim(), "" | "0") {
        return Vec::new();
    }
    let seen = |ends: &Ends| {
        let port = original_port(ends).ok()??;
        (port != ends.local.port()).then_some((ends.peer.ip(), ends.peer.port(), port))
    };
    connections.iter().filter_map(seen).collect()
}

/// The port to which the peer of a connection sends.
fn original_port(ends: &Ends) -> io::Result<Option<u16>> {
    Ok(destination_port(&get(NETLINK_NETFILTER, CT_GET, &request(ends))?))
}

/// Asks for a connection by what it replies: from the local end to the peer.
fn request(ends: &Ends) -> Vec<u8> {
    let (from, to) = (ends.local, ends.peer);
    let octets = |end: SocketAddr| match end.ip() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    // Sources of IPv4 and IPv6 have the attributes 1 and 3, destinations the next ones.
    let (family, source) = if from.is_ipv4() { (libc::AF_INET, 1) } else { (libc::AF_INET6, 3) };
    let addresses = [attribute(source, &octets(from)), attribute(source + 1, &octets(to))].concat();
    let transport = [
        attribute(CTA_PROTO_NUM, &[libc::IPPROTO_TCP as u8]),
        attribute(CTA_PROTO_SRC_PORT, &from.port().to_be_bytes()),
        attribute(CTA_PROTO_DST_PORT, &to.port().to_be_bytes()),
    ];
    let tuple = [
        attribute(NESTED | CTA_TUPLE_IP, &addresses),
        attribute(NESTED | CTA_TUPLE_PROTO, &transport.concat()),
    ];
    [vec![family as u8, 0, 0, 0], attribute(NESTED | CTA_TUPLE_REPLY, &tuple.concat())].concat()
}

fn destination_port(body: &[u8]) -> Option<u16> {
    let find = |all, wanted| attributes(all).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let transport = find(find(body.get(HEADER..)?, CTA_TUPLE_ORIG)?, CTA_TUPLE_PROTO)?;
    Some(u16::from_be_bytes(find(transport, CTA_PROTO_DST_PORT)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_port_to_which_the_peer_sends() {
        let ends = Ends { local: "10.0.0.1:22".parse().unwrap(), peer: "192.0.2.9:50000".parse().unwrap() };
        let asked = request(&ends);
        assert_eq!((asked.len(), asked[0]), (4 + 4 + (4 + 16) + (4 + 24), libc::AF_INET as u8));
        // A reply is no original.
        assert_eq!(destination_port(&asked), None);
        let port = attribute(CTA_PROTO_DST_PORT, &2222u16.to_be_bytes());
        let tuple = attribute(NESTED | CTA_TUPLE_ORIG, &attribute(NESTED | CTA_TUPLE_PROTO, &port));
        let answer = [vec![0; HEADER], tuple].concat();
        assert_eq!(destination_port(&answer), Some(2222));
        for length in 0..answer.len() {
            assert_eq!(destination_port(&answer[..length]), None);
        }
    }
}
