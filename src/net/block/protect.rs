//! What is never dropped, so that nobody locks themselves out: found on the machine, in the thread's network namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::cidr::Prefix;
use super::super::netlink::{attributes, dump};
use super::super::sockets::established;
use super::maps::Connection;

const NETLINK_ROUTE: isize = 0;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// `struct ifaddrmsg`.
const ADDRESS: usize = 8;

/// Routes of a table of the Internet's size are not all read.
const ROUTES: usize = 100_000;

/// What is protected.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Protected {
    /// Addresses, and why.
    pub prefixes: BTreeMap<Prefix, &'static str>,
    /// Administrative connections. Others from the same address are not protected, or whoever tries passwords would be.
    pub connections: BTreeSet<Connection>,
}

impl Protected {
    /// What there is now. What cannot be read is left out.
    pub fn find() -> Self {
        let mut prefixes = BTreeMap::new();
        let mut add = |address: IpAddr, why| {
            prefixes.entry(Prefix::new(address, 128)).or_insert(why);
        };
        resolvers(&read("/etc/resolv.conf")).for_each(|address| add(address, "DNS server"));
        gateways4(&read_first("/proc/thread-self/net/route", |line| {
            line.split_whitespace().nth(1).is_some_and(|to| to == "00000000" || to == "Destination")
        }))
        .for_each(|address| add(address, "default gateway"));
        gateways6(&read_first("/proc/thread-self/net/ipv6_route", |_| true))
            .for_each(|address| add(address, "default gateway"));
        // Should the kernel not say, they are left out.
        own_addresses().unwrap_or_default().into_iter().for_each(|address| add(address, "own address"));
        prefixes.insert(Prefix::new(Ipv4Addr::LOCALHOST.into(), 8), "loopback");
        prefixes.insert(Prefix::new(Ipv6Addr::LOCALHOST.into(), 128), "loopback");
        let session = std::env::var("SSH_CONNECTION").unwrap_or_default();
        let mut ports = ssh_ports(&read("/etc/ssh/sshd_config"));
        let own = session_of(&session);
        ports.extend(own.map(|(_, _, port)| port));
        let connections = established(|port| ports.contains(&port)).unwrap_or_default();
        Self { prefixes, connections: connections.into_iter().chain(own).collect() }
    }

    /// Lists it in the log.
    pub fn say(&self, own_ports: &[u16]) {
        let ports: Vec<String> = own_ports.iter().map(ToString::to_string).collect();
        if !ports.is_empty() {
            log::info!("blocklist: never dropped: TCP to the exporter's own ports {}", ports.join(", "));
        }
        let mut by_reason: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (prefix, why) in &self.prefixes {
            by_reason.entry(why).or_default().push(prefix.to_string());
        }
        for (why, prefixes) in by_reason {
            log::info!("blocklist: never dropped: {} ({why})", prefixes.join(", "));
        }
        for (peer, from, to) in &self.connections {
            log::info!("blocklist: never dropped: the SSH connection from {peer} port {from} to port {to}");
        }
        log::info!("blocklist: never dropped: ARP and IPv6 neighbour discovery");
    }
}

fn read(path: &str) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Lines as long as they are wanted.
fn read_first(path: &str, wanted: impl Fn(&str) -> bool) -> String {
    let Ok(file) = std::fs::File::open(path) else { return String::new() };
    let lines =
        BufReader::new(file).lines().map_while(Result::ok).take(ROUTES).take_while(|line| wanted(line));
    lines.map(|line| line + "\n").collect()
}

/// `man 5 resolv.conf`.
fn resolvers(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let is_server = words.next() == Some("nameserver");
        // Of a link-local one, the interface is named behind it.
        let address = words.next().filter(|_| is_server)?.split('%').next()?;
        address.parse().ok()
    })
}

/// Gateways of default routes in `/proc/net/route`, which has them first: hexadecimal words in the order of the CPU.
fn gateways4(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| u32::from_str_radix(words.get(at)?, 16).ok();
        let gateway =
            number(2).filter(|gateway| *gateway != 0 && number(1) == Some(0) && number(7) == Some(0))?;
        Some(Ipv4Addr::from(gateway.to_ne_bytes()).into())
    })
}

/// The same of `/proc/net/ipv6_route`: destination, its length, source, its length, gateway.
fn gateways6(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let gateway = u128::from_str_radix(words.get(4)?, 16).ok().filter(|gateway| *gateway != 0)?;
        (words[1] == "00").then(|| Ipv6Addr::from_bits(gateway).into())
    })
}

/// Ports of the SSH server, by its configuration.
fn ssh_ports(text: &str) -> BTreeSet<u16> {
    let ports = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let is_port = words.next().is_some_and(|word| word.eq_ignore_ascii_case("port"));
        words.next().filter(|_| is_port)?.parse().ok()
    });
    let ports: BTreeSet<u16> = ports.collect();
    if ports.is_empty() { BTreeSet::from([22]) } else { ports }
}

/// `SSH_CONNECTION`: the client's address and port, the server's address and port.
fn session_of(text: &str) -> Option<Connection> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [client, from, _, to] = words[..] else { return None };
    let client: IpAddr = client.split('%').next()?.parse().ok()?;
    Some((client.to_canonical(), from.parse().ok()?, to.parse().ok()?))
}

/// Addresses of the interfaces.
fn own_addresses() -> std::io::Result<Vec<IpAddr>> {
    let mut found = Vec::new();
    dump(NETLINK_ROUTE, RTM_GETADDR, &[0; ADDRESS], |kind, message| {
        let Some(rest) = message.get(ADDRESS..).filter(|_| kind == RTM_NEWADDR) else { return };
        // Of a point-to-point link, IFA_ADDRESS is the other end's.
        let (mut address, mut local) = (None, None);
        for (kind, value) in attributes(rest) {
            match kind {
                IFA_ADDRESS => address = Some(value),
                IFA_LOCAL => local = Some(value),
                _ => {}
            }
        }
        let octets = local.or(address).unwrap_or_default();
        found.extend(<[u8; 4]>::try_from(octets).map(IpAddr::from).ok());
        found.extend(<[u8; 16]>::try_from(octets).map(IpAddr::from).ok());
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_the_system_has_them() {
        let text = "# x\nnameserver 192.0.2.53\nsearch a\nnameserver fe80::1%eth0\nnameserver\n";
        let found: Vec<String> = resolvers(text).map(|address| address.to_string()).collect();
        assert_eq!(found, ["192.0.2.53", "fe80::1"]);
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
                    eth0\t00000000\t0102000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                    wg0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0\n\
                    eth0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(gateways4(text).collect::<Vec<_>>(), ["10.0.2.1".parse::<IpAddr>().unwrap()]);
        let none = "0".repeat(32);
        let text = format!(
            "{none} 00 {none} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n\
             fe800000000000000000000000000000 40 {none} 00 {none} 00000100 00000001 00000000 00000001 eth0\n\
             {none} 00 {none} 00 {none} ffffffff 00000001 00000000 00200200 lo\n"
        );
        assert_eq!(gateways6(&text).collect::<Vec<_>>(), ["fe80::1".parse::<IpAddr>().unwrap()]);
        assert_eq!(ssh_ports("#Port 23\nPort 2222\nport 2200\n"), BTreeSet::from([2200, 2222]));
        assert_eq!(ssh_ports(""), BTreeSet::from([22]));
        let session = session_of("192.0.2.9 50000 10.0.0.1 22").unwrap();
        assert_eq!(session, ("192.0.2.9".parse().unwrap(), 50000, 22));
        assert_eq!(session_of(""), None);
    }

    #[test]
    fn a_connection_to_a_port_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let _server = listener.accept().unwrap();
        let found = established(|to| to == port).unwrap();
        let peer = client.local_addr().unwrap();
        assert_eq!(found, BTreeSet::from([(peer.ip(), peer.port(), port)]));
        let protected = Protected::find();
        assert!(protected.prefixes.contains_key(&Prefix::parse("127.0.0.0/8").unwrap()));
    }
}
