//! The blocklist: packets of real senders, and random packets checked with random lists against a simple model.
//!
//! Needs root, `ip` and `ping`.

include!(concat!(env!("OUT_DIR"), "/net.skel.rs"));

use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use self::generated::types::net_fast;
use self::generated::{NetSkel, NetSkelBuilder};
use exporter::net::{
    Asker, BlockConfig, BlockDirection, BlockEntry, BlockError, BlockFile, BlockMode, BlockProtocol,
    BlockRule, BlockScope, Blocklist, Counters, Direction, FAST_BLOCKS, Hook, Mode, Network, NetworkConfig,
    Prefix, Reason, Verdict, combinations, cpu_slots, set_operand,
};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, ProgramInput, ProgramMut};

use crate::counting::{attached, config, number, start, until};
use crate::frames::Chance;
use crate::model::{Ends, parse};
use crate::namespace::{HERE, Namespace, THERE, pair, up};
use crate::support::exporter::TIMEOUT;

pub fn prefix(text: &str) -> Prefix {
    Prefix::parse(text).unwrap()
}

pub fn entry(text: &str) -> BlockEntry {
    BlockEntry { prefix: prefix(text), rule: BlockRule::default() }
}

pub fn blocking(mode: Mode, block: BlockConfig) -> NetworkConfig {
    NetworkConfig { block: Some(block), ..config(mode) }
}

pub fn enforcing() -> BlockConfig {
    BlockConfig { mode: BlockMode::Enforce, ..BlockConfig::default() }
}

pub fn dropped(network: &Network, reason: &str) -> u64 {
    number(&network.collect(), "xdp_drops_total", &[("interface", "exn0"), ("reason", reason)])
}

/// Blocks from a thread in the namespace, like the one that serves requests.
pub fn block(here: &Namespace, network: &Network, entry: BlockEntry) {
    let list = Arc::clone(network.blocklist().unwrap());
    here.run(move || list.block(&entry, Asker::Api)).unwrap();
}

fn pings(from: &Namespace, to: &str) -> bool {
    from.output(&format!("ping -c 1 -W 1 -q {to}")).status.success()
}

/// Waits for an answer, which may be late on a busy machine.
#[track_caller]
fn answers(from: &Namespace, to: &str) {
    until("an answer", || pings(from, to));
}

/// Returns both ends of a connection from there to here.
fn connected(here: &Namespace, there: &Namespace, port: u16) -> (TcpStream, TcpStream) {
    let listener = here.run(move || TcpListener::bind((HERE, port)).unwrap());
    let client = there.run(move || TcpStream::connect((HERE, port)).unwrap());
    let (server, _) = listener.accept().unwrap();
    (client, server)
}

/// Returns whether a byte arrives within this time.
fn arrives(server: &mut TcpStream, within: Duration) -> bool {
    server.set_read_timeout(Some(within)).unwrap();
    loop {
        match server.read(&mut [0]) {
            Ok(0) => panic!("the connection was closed"),
            Ok(_) => return true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            // The kernel does not restart a call that has a timeout, whatever interrupted it.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("the connection broke: {error}"),
        }
    }
}

fn a_connection_stops_and_goes_on(mode: Mode, hook: Hook) {
    let (here, there) = pair();
    let (network, events) = start(&here, blocking(mode, enforcing()));
    assert_eq!(attached(&events), ("exn0".into(), Some(hook)));
    up(&here, &there);
    let (mut client, mut server) = connected(&here, &there, 7000);
    client.write_all(b"a").unwrap();
    assert!(arrives(&mut server, TIMEOUT));

    block(&here, &network, entry("10.99.0.2"));
    client.write_all(b"b").unwrap();
    until("it is dropped", || dropped(&network, "blocklist") > 0);
    assert!(!arrives(&mut server, Duration::from_millis(300)), "a blocked sender's data arrived");
    assert!(!pings(&there, "10.99.0.1"));
    let families = network.collect();
    assert!(number(&families, "xdp_packets_total", &[("verdict", "drop"), ("protocol", "tcp")]) > 0);
    assert_eq!(number(&families, "xdp_blocklist_entries", &[("source", "api")]), 1);
    let row = network.blocklist().unwrap().row(prefix("10.99.0.2")).unwrap();
    assert!(row.packets > 1 && row.bytes > row.packets && row.last_seen.is_some(), "{row:?}");

    let page: serde_json::Value = serde_json::from_str(&network.blocked("per_page=1").unwrap()).unwrap();
    assert_eq!((&page["total"], &page["enforced"]), (&1.into(), &true.into()), "{page}");
    assert_eq!(page["entries"][0]["prefix"], "10.99.0.2/32");
    assert!(page["entries"][0]["packets"].as_u64() >= Some(row.packets), "{page}");
    assert!(network.blocked("per_page=0").is_err() && network.blocked("sort=bytes").is_err());

    network.blocklist().unwrap().unblock(prefix("10.99.0.2")).unwrap();
    assert!(arrives(&mut server, TIMEOUT), "TCP sends it again");
    answers(&there, "10.99.0.1");

    // IPv6 by a prefix; neighbors are found all the same.
    answers(&there, "fd99::1");
    block(&here, &network, entry("fd99::/64"));
    there.command("ip neigh flush dev exn1 nud all");
    let before = dropped(&network, "cidr");
    assert!(!pings(&there, "fd99::1"));
    assert!(dropped(&network, "cidr") > before);
    network.blocklist().unwrap().unblock(prefix("fd99::/64")).unwrap();
    answers(&there, "fd99::1");
}

#[test]
fn tc_ingress_drops() {
    a_connection_stops_and_goes_on(Mode::Auto, Hook::Tcx);
}

#[test]
fn native_xdp_drops() {
    a_connection_stops_and_goes_on(Mode::Native, Hook::Native);
}

#[test]
fn generic_xdp_drops() {
    a_connection_stops_and_goes_on(Mode::Generic, Hook::Generic);
}

fn sent_and_dropped(network: &Network, what: &str) -> u64 {
    number(&network.collect(), what, &[("interface", "exn0"), ("reason", "blocklist")])
}

/// Sent packets are dropped by their destination address; received packets from it pass.
#[test]
fn egress_packets_are_dropped() {
    let (here, there) = pair();
    let observing = BlockConfig { mode: BlockMode::Observe, ..BlockConfig::default() };
    let (network, events) = start(&here, blocking(Mode::Auto, observing));
    attached(&events);
    up(&here, &there);
    let receiver = there.run(|| UdpSocket::bind((THERE, 7100)).unwrap());
    let sender = here.run(|| UdpSocket::bind((HERE, 7101)).unwrap());
    // The kernel reports to the sender that it has refused to send a dropped packet.
    let send = || sender.send_to(b"x", (THERE, 7100));
    let comes = |within: Duration| {
        receiver.set_read_timeout(Some(within)).unwrap();
        receiver.recv(&mut [0]).is_ok()
    };
    let rule = BlockRule { direction: Some(BlockDirection::Egress), ..BlockRule::default() };
    block(&here, &network, BlockEntry { prefix: prefix("10.99.0.2"), rule: rule.clone() });
    send().unwrap();
    assert!(comes(TIMEOUT), "nothing is dropped in mode observe");
    until("it is told", || sent_and_dropped(&network, "tc_egress_would_drop_total") == 1);

    network.change(&blocking(Mode::Auto, enforcing())).unwrap();
    let _ = send();
    until("it is dropped", || sent_and_dropped(&network, "tc_egress_drops_total") == 1);
    assert!(!comes(Duration::from_millis(300)));
    let families = network.collect();
    let sent = [("verdict", "drop"), ("protocol", "udp")];
    assert_eq!(number(&families, "tc_egress_packets_total", &sent), 1);
    assert_eq!(number(&families, "tc_egress_bytes_total", &sent), 14 + 20 + 8 + 1);
    // The other direction is open.
    assert_eq!(dropped(&network, "blocklist"), 0);
    there.run(|| UdpSocket::bind((THERE, 0)).unwrap().send_to(b"y", (HERE, 7101)).unwrap());
    sender.set_read_timeout(Some(TIMEOUT)).unwrap();
    sender.recv(&mut [0]).expect("what is received passes");
    let page: serde_json::Value = serde_json::from_str(&network.blocked("").unwrap()).unwrap();
    assert_eq!(page["entries"][0]["direction"], "egress", "{page}");
    let totals: serde_json::Value = serde_json::from_str(&network.statistics("").unwrap()).unwrap();
    assert_eq!(
        (&totals["egress"]["packets_dropped"], &totals["packets_dropped"]),
        (&1.into(), &0.into()),
        "{totals}"
    );

    // One protocol and one port only: other packets pass.
    let scope = Some(BlockScope { protocol: BlockProtocol::Udp, ports: (7100, 7100) });
    block(&here, &network, BlockEntry { prefix: prefix("10.99.0.2"), rule: BlockRule { scope, ..rule } });
    answers(&here, "10.99.0.2");
    let _ = send();
    until("it is dropped", || sent_and_dropped(&network, "tc_egress_drops_total") == 2);

    // Both directions by the list's own setting; neighbors are found all the same.
    network.blocklist().unwrap().unblock(prefix("10.99.0.2")).unwrap();
    let both =
        BlockConfig { direction: BlockDirection::Both, entries: vec![entry("fd99::2")], ..enforcing() };
    network.change(&blocking(Mode::Auto, both)).unwrap();
    here.command("ip neigh flush dev exn0");
    assert!(!pings(&here, "fd99::2") && !pings(&there, "fd99::1"));
    until("neighbours are found", || here.command("ip -6 neigh show fd99::2 dev exn0").contains("lladdr"));
    network.change(&blocking(Mode::Auto, enforcing())).unwrap();
    answers(&here, "fd99::2");
}

/// Nothing is dropped unless the configuration says so; allowed addresses pass whatever is blocked; entries expire;
/// files count.
#[test]
fn observed_allowed_and_expired_entries_pass() {
    let (here, there) = pair();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drop.txt");
    std::fs::write(&path, "# a list\n10.99.0.0/24 ; us\n").unwrap();
    let files = vec![BlockFile { path: path.clone(), reason: "list".into() }];
    let observed = BlockConfig { files, ..BlockConfig::default() };
    let (network, events) = start(&here, blocking(Mode::Auto, observed.clone()));
    attached(&events);
    up(&here, &there);
    answers(&there, "10.99.0.1");
    let families = network.collect();
    assert!(number(&families, "xdp_would_drop_total", &[("reason", "cidr")]) > 0);
    assert_eq!(number(&families, "xdp_drops_total", &[]), 0);
    let change = |block: BlockConfig| network.change(&blocking(Mode::Auto, block)).unwrap();

    change(BlockConfig { mode: BlockMode::Enforce, ..observed.clone() });
    assert!(!pings(&there, "10.99.0.1"));
    let allow = vec![prefix("10.99.0.2")];
    change(BlockConfig { mode: BlockMode::Enforce, allow: allow.clone(), ..observed.clone() });
    answers(&there, "10.99.0.1");
    let list = network.blocklist().unwrap();
    let refused = list.block(&entry("10.99.0.2"), Asker::Api).unwrap_err();
    assert!(matches!(refused, BlockError::Protected(..)), "{refused}");
    let wider = list.block(&entry("10.0.0.0/8"), Asker::Api).unwrap();
    assert!(wider.is_new && wider.except.iter().any(|(except, _)| *except == allow[0]), "{wider:?}");
    answers(&there, "10.99.0.1");

    change(BlockConfig { mode: BlockMode::Enforce, ..observed.clone() });
    list.unblock(prefix("10.0.0.0/8")).unwrap();
    let elsewhere = list.unblock(prefix("10.99.0.0/24")).unwrap_err();
    assert!(elsewhere.to_string().contains("drop.txt"), "{elsewhere}");
    std::fs::write(&path, "192.0.2.0/24\n").unwrap();
    until("the file is read again", || pings(&there, "10.99.0.1"));

    let rule = BlockRule { ttl: Some(Duration::from_secs(2)), ..BlockRule::default() };
    block(&here, &network, BlockEntry { prefix: prefix("10.99.0.2"), rule });
    assert!(!pings(&there, "10.99.0.1"));
    until("its time is over", || pings(&there, "10.99.0.1"));
    until("it is taken off the list", || list.row(prefix("10.99.0.2")).is_none());
}

/// Users who lock themselves out are let in again, unless they confirm the entry.
#[test]
fn unconfirmed_block_is_reverted() {
    let (here, there) = pair();
    let (network, events) = start(&here, blocking(Mode::Auto, enforcing()));
    attached(&events);
    up(&here, &there);
    let list = Arc::clone(network.blocklist().unwrap());
    let try_out = |within: u64| {
        let list = Arc::clone(&list);
        let within = Duration::from_secs(within);
        here.run(move || list.block_unless_unconfirmed(&entry("10.99.0.2"), Asker::Command, within))
    };
    assert!(try_out(1).unwrap().is_new);
    until("it is taken back", || pings(&there, "10.99.0.1"));
    until("it is taken off the list", || list.row(prefix("10.99.0.2")).is_none());

    assert!(try_out(3600).unwrap().is_new && !try_out(2).unwrap().is_new, "the time can be changed");
    let row = list.row(prefix("10.99.0.2")).unwrap();
    assert!(row.is_unconfirmed && row.expires_in.unwrap() <= 2.0, "{row:?}");
    block(&here, &network, entry("10.99.0.2"));
    let row = list.row(prefix("10.99.0.2")).unwrap();
    assert!(!row.is_unconfirmed && row.expires_in.is_none(), "{row:?}");
    assert!(!pings(&there, "10.99.0.1"));
    let settled = try_out(1).unwrap_err();
    assert!(matches!(settled, BlockError::Settled(_)), "{settled}");
    assert!(!pings(&there, "10.99.0.1"));
}

/// An administrator's established connection survives, while new ones from the same address are blocked.
#[test]
fn established_ssh_connection_survives_a_block() {
    let (here, there) = pair();
    let (network, events) =
        start(&here, blocking(Mode::Auto, BlockConfig { own_ports: vec![9999], ..enforcing() }));
    attached(&events);
    up(&here, &there);
    let (mut client, mut server) = connected(&here, &there, 22);
    until("the connection is seen", || number(&network.collect(), "xdp_spared_connections", &[]) == 1);
    block(&here, &network, entry("10.99.0.0/24"));
    client.write_all(b"a").unwrap();
    assert!(arrives(&mut server, TIMEOUT));
    // The exporter's own port answers too: here, that there is no listener.
    let to = |port: u16, within: Duration| {
        there.run(move || TcpStream::connect_timeout(&SocketAddr::from((HERE, port)), within).map(drop))
    };
    assert_eq!(to(9999, TIMEOUT).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    for port in [22, 9998] {
        assert_eq!(
            to(port, Duration::from_secs(2)).unwrap_err().kind(),
            std::io::ErrorKind::TimedOut,
            "port {port}"
        );
    }
}

/// A connection that was opened a moment before its peer is blocked loses no packet.
#[test]
fn ssh_connection_is_protected_from_its_first_moment() {
    let (here, there) = pair();
    let (network, events) = start(&here, blocking(Mode::Auto, enforcing()));
    attached(&events);
    up(&here, &there);
    // What is protected was determined for this entry, before the connection exists.
    block(&here, &network, entry("192.0.2.1"));
    let (mut client, mut server) = connected(&here, &there, 22);
    let list = Arc::clone(network.blocklist().unwrap());
    let blocked = here.run(move || list.block(&entry("10.99.0.0/24"), Asker::Api)).unwrap();
    let told =
        blocked.except.iter().any(|(except, why)| *except == prefix("10.99.0.2") && why.contains("SSH"));
    assert!(told, "{blocked:?}");
    client.write_all(b"a").unwrap();
    assert!(arrives(&mut server, TIMEOUT));
    assert_eq!(dropped(&network, "cidr"), 0);
    // The same if the list begins to drop only now.
    network.blocklist().unwrap().unblock(prefix("10.99.0.0/24")).unwrap();
    let change = |mode| {
        let config = BlockConfig { mode, entries: vec![entry("10.99.0.0/24")], ..enforcing() };
        let list = Arc::clone(network.blocklist().unwrap());
        here.run(move || list.change(&config)).unwrap();
    };
    change(BlockMode::Observe);
    let (mut client, mut server) = connected(&here, &there, 22);
    change(BlockMode::Enforce);
    client.write_all(b"a").unwrap();
    assert!(arrives(&mut server, TIMEOUT));
    assert_eq!(dropped(&network, "cidr"), 0);
}

/// A simple list: the longest prefix whose rule applies decides, unless something lets the packet pass.
struct Model {
    entries: Vec<BlockEntry>,
    allow: Vec<Prefix>,
    own_port: u16,
}

impl Model {
    fn random(chance: &mut Chance) -> Self {
        let mut entries: Vec<BlockEntry> = Vec::new();
        while entries.len() < 48 {
            let prefix = Prefix::new(address(chance), length(chance));
            let scope = (chance.below(4) == 0).then(|| BlockScope {
                protocol: [BlockProtocol::Tcp, BlockProtocol::Udp, BlockProtocol::Icmp]
                    [chance.below(3) as usize],
                ports: [(0, 65535), (2001, 2001), (1, 2001), (2002, 2004)][chance.below(4) as usize],
            });
            if !entries.iter().any(|entry| entry.prefix == prefix) {
                let direction = match chance.below(4) {
                    0 => Some(BlockDirection::Egress),
                    1 => Some(BlockDirection::Both),
                    2 => Some(BlockDirection::Ingress),
                    _ => None,
                };
                entries.push(BlockEntry {
                    prefix,
                    rule: BlockRule { direction, scope, ..BlockRule::default() },
                });
            }
        }
        let allow = (0..12).map(|_| Prefix::new(address(chance), length(chance))).collect();
        Self { entries, allow, own_port: 2003 }
    }

    fn config(&self) -> BlockConfig {
        BlockConfig {
            entries: self.entries.clone(),
            allow: self.allow.clone(),
            own_ports: vec![self.own_port],
            ..enforcing()
        }
    }

    fn judge(&self, ends: &Ends, frame: &[u8], direction: Direction) -> Option<Reason> {
        let (peer, own_port) = match direction {
            Direction::Ingress => (Prefix::new(ends.source, 128), ends.destination_port),
            Direction::Egress => (Prefix::new(ends.destination, 128), ends.source_port),
        };
        let holds = |entry: &&BlockEntry| {
            let of = entry.rule.direction.unwrap_or(BlockDirection::Ingress);
            let other = match direction {
                Direction::Ingress => BlockDirection::Egress,
                Direction::Egress => BlockDirection::Ingress,
            };
            if of == other {
                return false;
            }
            let Some(scope) = entry.rule.scope else { return true };
            let number = match scope.protocol {
                BlockProtocol::Tcp => 6,
                BlockProtocol::Udp => 17,
                BlockProtocol::Icmp if ends.source.is_ipv4() => 1,
                BlockProtocol::Icmp => 58,
            };
            ends.number == number && (scope.ports.0..=scope.ports.1).contains(&ends.destination_port)
        };
        let found = self.entries.iter().filter(|entry| entry.prefix.contains(peer)).filter(holds);
        let found = found.max_by_key(|entry| entry.prefix.bits())?;
        let is_own = ends.number == 6 && own_port == self.own_port;
        let peer_port = ends.source_port ^ ends.destination_port ^ own_port;
        let is_dhcp = ends.number == 17 && matches!((peer_port, own_port), (67, 68) | (547, 546));
        let machine = ["127.0.0.0/8", "::1"].iter().map(|text| prefix(text));
        let is_allowed = self.allow.iter().copied().chain(machine).any(|allowed| allowed.contains(peer));
        if is_own || is_dhcp || is_allowed || is_neighbour_discovery(frame) {
            return None;
        }
        Some(if found.prefix.is_single() { Reason::Blocklist } else { Reason::Cidr })
    }
}

/// Only a few bits of the addresses vary, so that prefixes of every length overlap.
fn address(chance: &mut Chance) -> IpAddr {
    let mut bits = |of: u32| chance.below(1 << of);
    if bits(1) == 0 {
        let host = (bits(2) as u32) << 30
            | (bits(1) as u32) << 23
            | (bits(1) as u32) << 12
            | (bits(2) as u32) << 7
            | bits(1) as u32;
        Ipv4Addr::from_bits(host).into()
    } else {
        let host = (bits(1) as u128) << 125
            | (bits(1) as u128) << 112
            | (bits(1) as u128) << 95
            | (bits(2) as u128) << 63
            | (bits(1) as u128) << 20
            | bits(1) as u128;
        Ipv6Addr::from_bits(host).into()
    }
}

fn length(chance: &mut Chance) -> u8 {
    // The shortest prefixes match everything, so generate only a few.
    match chance.below(8) {
        0 => chance.below(129) as u8,
        1 => 128,
        2 => 32,
        _ => 8 + chance.below(121) as u8,
    }
}

/// Returns the offset of the IP header in a frame.
fn ip_at(frame: &[u8]) -> usize {
    let mut at = 12;
    while at < 20 && matches!(frame.get(at..at + 2), Some([0x81, 0] | [0x88, 0xa8])) {
        at += 4;
    }
    at + 2
}

fn is_neighbour_discovery(frame: &[u8]) -> bool {
    let ip = &frame[ip_at(frame)..];
    ip[0] >> 4 == 6 && ip[6] == 58 && ip[7] == 255 && (133..=137).contains(&ip[40])
}

fn set_peer(frame: &mut [u8], peer: IpAddr, direction: Direction) {
    let (at, egress) = (ip_at(frame), direction as usize);
    match (peer, frame.get(at).map(|first| first >> 4)) {
        (IpAddr::V4(peer), Some(4)) if frame.len() >= at + 20 => {
            frame[at + 12 + 4 * egress..][..4].copy_from_slice(&peer.octets())
        }
        (IpAddr::V6(peer), Some(6)) if frame.len() >= at + 40 => {
            frame[at + 8 + 16 * egress..][..16].copy_from_slice(&peer.octets())
        }
        _ => {}
    }
}

/// Loads the programs with the maps of a blocklist.
fn load<'a>(storage: &'a mut MaybeUninit<libbpf_rs::OpenObject>, list: &Blocklist) -> NetSkel<'a> {
    let mut open = NetSkelBuilder::default().open(storage).expect("failed to open the packet programs");
    let slots = cpu_slots().expect("possible CPUs");
    open.maps.bss_fast.set_value_size((slots * size_of::<net_fast>()) as u32).expect("the counters' size");
    set_operand(&mut open.progs.net_ingress, FAST_BLOCKS, slots as i32 - 1).expect("the operand");
    set_operand(&mut open.progs.net_ingress_blocklist, FAST_BLOCKS, slots as i32 - 1).expect("the operand");
    open.maps.rodata_data.as_deref_mut().expect("constants").with_blocklist = true;
    for mut map in open.open_object_mut().maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        if let Some((_, fd)) = list.shared().iter().find(|(known, _)| *known == name) {
            map.reuse_fd(*fd).expect("a map of the list");
        }
    }
    open.load().expect("the kernel refused the programs; run as root")
}

fn counters(skel: &NetSkel<'_>, direction: Direction) -> Counters {
    let key = (direction as u32).to_ne_bytes();
    let sum =
        Counters::sum(&skel.maps.strays.lookup_percpu(&key, MapFlags::ANY).unwrap().expect("one value"));
    if direction == Direction::Egress {
        return sum;
    }
    let fast = skel.maps.bss_fast.lookup(&0u32.to_ne_bytes(), MapFlags::ANY).unwrap().expect("one value");
    sum.with_fast(fast.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)))
}

fn verdict(program: &ProgramMut<'_>, frame: &[u8]) -> u32 {
    let input = ProgramInput { data_in: Some(frame), ..ProgramInput::default() };
    program.test_run(input).expect("a test run").return_value
}

const XDP_DROP: u32 = 1;
const TC_ACT_SHOT: u32 = 2;

/// A million packets, each run through all programs.
const ROUNDS: u32 = 16;
const PACKETS: u32 = 1_000_000 / ROUNDS;

#[test]
fn verdicts_of_random_lists_match_the_model() {
    let mut chance = Chance::new(0x5eed_b10c);
    let mut judgements = [[0u64; 2]; Direction::ALL.len()];
    for round in 0..ROUNDS {
        let model = Model::random(&mut chance);
        // A namespace in which no address is the machine's own.
        let config = model.config();
        let list = Namespace::new().run(move || Blocklist::new(&config)).expect("this test needs root");
        let mut storage = MaybeUninit::uninit();
        let skel = load(&mut storage, &list);
        let programs: [(&str, &ProgramMut<'_>, u32, Direction); 4] = [
            ("fast path", &skel.progs.net_ingress_blocklist, XDP_DROP, Direction::Ingress),
            ("slow path", &skel.progs.net_ingress_slow, XDP_DROP, Direction::Ingress),
            ("TC", &skel.progs.net_tc_ingress, TC_ACT_SHOT, Direction::Ingress),
            ("sent", &skel.progs.net_egress, TC_ACT_SHOT, Direction::Egress),
        ];
        let mut expected = [([0u64; 2], 0); Direction::ALL.len()];
        let mut packets = 0;
        while packets < PACKETS {
            let mut frame = if chance.below(4) == 0 {
                crate::frames::any(&mut chance)
            } else {
                crate::frames::sound(&mut chance)
            };
            frame.resize(frame.len().max(60), 0);
            for direction in Direction::ALL {
                let near = match chance.below(2) {
                    0 => address(&mut chance),
                    _ => model.entries[chance.below(model.entries.len() as u64) as usize].prefix.address(),
                };
                set_peer(&mut frame, near, *direction);
            }
            let Some(ends) = parse(&frame).ends else { continue };
            packets += 1;
            let judged = [Direction::Ingress, Direction::Egress].map(|of| model.judge(&ends, &frame, of));
            for (name, program, drop, direction) in &programs {
                let judged = judged[*direction as usize];
                let is_dropped = verdict(program, &frame) == *drop;
                assert_eq!(
                    is_dropped,
                    judged.is_some(),
                    "round {round}, {name}: {ends:?}\n{:?}\n{frame:02x?}",
                    model.entries
                );
                let (dropped, total) = &mut expected[*direction as usize];
                *total += 1;
                if let Some(reason) = judged {
                    dropped[reason as usize] += 1;
                }
            }
            for (judged, of) in judged.iter().zip(&mut judgements) {
                of[usize::from(judged.is_some())] += 1;
            }
        }
        let mut dropped = 0;
        for direction in Direction::ALL {
            let found = counters(&skel, *direction);
            let (expected, total) = expected[*direction as usize];
            assert_eq!([found.drops(Reason::Blocklist), found.drops(Reason::Cidr)], expected);
            let rows = |wanted: Verdict| -> u64 {
                let counted = combinations().filter(|(verdict, ..)| *verdict == wanted);
                counted.map(|(v, f, p)| found.packets(v, f, p)).sum()
            };
            let drops = expected.iter().sum::<u64>();
            assert_eq!((rows(Verdict::Drop), rows(Verdict::Pass)), (drops, total - drops), "{direction:?}");
            dropped += drops;
        }
        let hits: u64 = list.rows(0, usize::MAX).iter().map(|row| row.packets).sum();
        assert_eq!(hits, dropped, "each packet dropped is a hit of one entry");
    }
    assert!(judgements.as_flattened().iter().all(|number| *number > 100_000), "{judgements:?}");
}
