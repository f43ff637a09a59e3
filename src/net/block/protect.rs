//! Addresses that are never dropped, so that nobody is locked out: determined from the machine's state in the calling
//! thread's network namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use super::super::cidr::Prefix;
use super::super::namespace::Namespace;
use super::super::netlink::{NETLINK_ROUTE, attributes, dump};
use super::gateways::gateways;
use super::maps::Connection;
use super::sessions::{served_ports, session_of, ssh_ports};
use crate::regular::open_inside;

const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// `struct ifaddrmsg`.
const ADDRESS: usize = 8;

/// Files with DNS servers: that of the C library, and those with the servers that a local resolver forwards to, of
/// systemd-resolved, NetworkManager and dnsmasq.
const RESOLVERS: [&str; 4] = [
    "/etc/resolv.conf",
    "/run/systemd/resolve/resolv.conf",
    "/run/NetworkManager/no-stub-resolv.conf",
    "/run/dnsmasq/resolv.conf",
];

/// Larger files of DNS servers are not read to their end.
const MAX_RESOLVER_FILE: u64 = 1 << 16;

/// DNS servers, and addresses in all, that are protected for another namespace: a container may write its own files, and
/// must not be able to lift the whole blocklist.
const MAX_SERVERS_ELSEWHERE: usize = 8;
const MAX_ADDRESSES_ELSEWHERE: usize = 1024;

/// Protected addresses, and what is needed to find protected connections.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Protected {
    /// Addresses with the reason.
    pub prefixes: BTreeMap<Prefix, &'static str>,
    /// Established connections to these ports are protected. Other connections from the same address are not, so that
    /// password guessing from there can still be blocked.
    pub ssh_ports: BTreeSet<u16>,
    /// The connection in which the exporter was started.
    pub own_session: Option<Connection>,
}

/// The same of another network namespace.
#[derive(Debug)]
pub(super) struct Elsewhere {
    /// How the configuration calls it, as a continuation of a reason: ` in netns blue`.
    pub name: String,
    pub namespace: Arc<Namespace>,
    pub protected: Protected,
}

impl Protected {
    /// Determines what is protected now. What cannot be read is left out.
    pub fn find() -> Self {
        let mut found = Self::with_servers(dns_servers(&ResolverFiles::own()));
        found.own_session = session_of(&std::env::var("SSH_CONNECTION").unwrap_or_default());
        found.ssh_ports = ssh_ports(found.own_session);
        found.ssh_ports.extend(served_ports(false));
        found
    }

    /// The same for another namespace, in which the calling thread is.
    pub fn find_in(namespace: &Namespace) -> Self {
        let mut servers = dns_servers(&ResolverFiles::of(namespace));
        servers.truncate(MAX_SERVERS_ELSEWHERE);
        let mut found = Self::with_servers(servers);
        found.prefixes = found.prefixes.into_iter().take(MAX_ADDRESSES_ELSEWHERE).collect();
        found.ssh_ports = ssh_ports(None);
        found.ssh_ports.extend(served_ports(true));
        found
    }

    fn with_servers(servers: Vec<IpAddr>) -> Self {
        let mut prefixes = BTreeMap::new();
        let mut add = |address: IpAddr, why| {
            prefixes.entry(Prefix::new(address, 128)).or_insert(why);
        };
        servers.into_iter().for_each(|address| add(address, "DNS server"));
        gateways().into_iter().for_each(|address| add(address, "default gateway"));
        // If the kernel does not list them, they are left out.
        own_addresses().unwrap_or_default().into_iter().for_each(|address| add(address, "own address"));
        prefixes.insert(Prefix::new(Ipv4Addr::LOCALHOST.into(), 8), "loopback");
        prefixes.insert(Prefix::new(Ipv6Addr::LOCALHOST.into(), 128), "loopback");
        Self { prefixes, ..Self::default() }
    }

    /// Logs what was not allowed before. `place` is empty, or names the namespace.
    pub fn log_new(&self, allowed: &BTreeSet<Prefix>, place: &str) {
        for (prefix, why) in self.prefixes.iter().filter(|(prefix, _)| !allowed.contains(prefix)) {
            log::info!("blocklist: now protected, never dropped: {prefix} ({why}{place})");
        }
    }

    /// Logs everything.
    pub fn log(&self, own_ports: &[u16], sessions: &BTreeSet<Connection>) {
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
        for (peer, from, to) in sessions {
            log::info!("blocklist: never dropped: the SSH connection from {peer} port {from} to port {to}");
        }
        log::info!("blocklist: never dropped: ARP, IPv6 neighbour discovery and the answers of DHCP servers");
    }
}

/// Files that list DNS servers, below a root directory that no link in it leads out of.
#[derive(Debug)]
pub(super) struct ResolverFiles {
    root: PathBuf,
    files: Vec<PathBuf>,
}

impl ResolverFiles {
    pub fn own() -> Self {
        Self { root: "/".into(), files: RESOLVERS.map(PathBuf::from).to_vec() }
    }

    /// Those that processes in a namespace see.
    pub fn of(namespace: &Namespace) -> Self {
        let mut all = Self::own();
        match namespace.root() {
            Some(root) => all.root = root,
            None => all.files.push(namespace.own_etc().join("resolv.conf")),
        }
        all
    }

    /// Their paths from outside.
    pub fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.files.iter().map(|file| self.root.join(file.strip_prefix("/").unwrap_or(file)))
    }
}

/// The DNS servers that these files list. What cannot be read is left out.
fn dns_servers(from: &ResolverFiles) -> Vec<IpAddr> {
    let read = |file: &PathBuf| {
        let mut bytes = Vec::new();
        let file = open_inside(&from.root, file).ok()?;
        file.take(MAX_RESOLVER_FILE).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    };
    let read = from.files.iter().filter_map(read);
    read.flat_map(|bytes| resolvers(&String::from_utf8_lossy(&bytes)).collect::<Vec<_>>()).collect()
}

/// `man 5 resolv.conf`. In a container of Docker, a comment lists the servers that its resolver forwards to from there:
/// `# ExtServers: [192.0.2.53 host(127.0.0.53)]`.
fn resolvers(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().flat_map(|line| {
        let forwards =
            line.strip_prefix("# ExtServers:").map(|servers| servers.trim_matches([' ', '[', ']']));
        let servers = forwards.or_else(|| line.trim_start().strip_prefix("nameserver")).unwrap_or_default();
        let count = if forwards.is_some() { usize::MAX } else { 1 };
        // A link-local address is followed by `%` and the interface.
        let addresses = servers.split_whitespace().take(count);
        addresses.filter_map(|address| address.split('%').next()?.parse().ok())
    })
}

/// The addresses of all interfaces.
fn own_addresses() -> std::io::Result<Vec<IpAddr>> {
    let mut found = Vec::new();
    dump(NETLINK_ROUTE, RTM_GETADDR, &[0; ADDRESS], |kind, message| {
        let Some(rest) = message.get(ADDRESS..).filter(|_| kind == RTM_NEWADDR) else { return };
        // On a point-to-point link, IFA_ADDRESS is the peer's.
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
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn parses_resolv_conf() {
        let text = "# x\nnameserver 192.0.2.53\nsearch a\nnameserver fe80::1%eth0\nnameserver\n";
        let found: Vec<String> = resolvers(text).map(|address| address.to_string()).collect();
        assert_eq!(found, ["192.0.2.53", "fe80::1"]);
        let text = "nameserver 127.0.0.11\n# Based on host file\n# ExtServers: [192.0.2.54 host(127.0.0.53) 2001:db8::1]\n";
        let found: Vec<String> = resolvers(text).map(|address| address.to_string()).collect();
        assert_eq!(found, ["127.0.0.11", "192.0.2.54", "2001:db8::1"]);
    }

    #[test]
    fn servers_behind_a_local_resolver_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let [stub, absent, upstream] = ["stub", "absent", "upstream"].map(|name| directory.path().join(name));
        std::fs::write(&stub, "nameserver 127.0.0.53\noptions edns0\n").unwrap();
        std::fs::write(&upstream, "nameserver 192.0.2.53\nnameserver 2001:db8::53\n").unwrap();
        let from = ResolverFiles { root: "/".into(), files: vec![stub, absent, upstream] };
        let found: Vec<String> = dns_servers(&from).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.53", "192.0.2.53", "2001:db8::53"]);
        assert_eq!(from.paths().collect::<Vec<_>>(), from.files);
    }

    /// What a container has in their place must neither stop the exporter nor name files outside.
    #[test]
    fn files_of_a_container_are_not_trusted() {
        let directory = tempfile::tempdir().unwrap();
        let (root, outside) = (directory.path().join("root"), directory.path().join("outside"));
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::create_dir(root.join("run")).unwrap();
        std::fs::write(&outside, "nameserver 192.0.2.1\n").unwrap();
        std::fs::write(root.join("run/resolv.conf"), "nameserver 192.0.2.53\n").unwrap();
        symlink(&outside, root.join("etc/out")).unwrap();
        symlink("/run/resolv.conf", root.join("etc/in")).unwrap();
        mknodat(CWD, root.join("etc/pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let files = ["/etc/out", "/etc/in", "/etc/pipe"].map(PathBuf::from).to_vec();
        let found = dns_servers(&ResolverFiles { root, files });
        assert_eq!(found, [IpAddr::from([192, 0, 2, 53])]);
    }

    #[test]
    fn loopback_is_protected() {
        let protected = Protected::find();
        assert!(protected.prefixes.contains_key(&Prefix::parse("127.0.0.0/8").unwrap()));
    }
}
