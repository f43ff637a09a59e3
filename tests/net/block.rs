//! The blocklist: packets of real senders.
//!
//! Needs root, `ip` and `ping`.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use exporter::net::{
    Asker, BlockConfig, BlockDirection, BlockEntry, BlockError, BlockFile, BlockMode, BlockProtocol,
    BlockRule, BlockScope, Hook, Mode, Network, NetworkConfig, Prefix,
};

use crate::counting::{attached, config, number, start, until};
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
    // On a busy machine, the neighbor may be found only after ping has given up.
    until("an echo request is dropped", || {
        assert!(!pings(&there, "fd99::1"));
        dropped(&network, "cidr") > before
    });
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

    let ttl = Duration::from_secs(2);
    let rule = BlockRule { ttl: Some(ttl), ..BlockRule::default() };
    let begun = Instant::now();
    block(&here, &network, BlockEntry { prefix: prefix("10.99.0.2"), rule });
    assert!(!pings(&there, "10.99.0.1") || begun.elapsed() >= ttl);
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

    assert!(try_out(3600).unwrap().is_new && !try_out(60).unwrap().is_new, "the time can be changed");
    let row = list.row(prefix("10.99.0.2")).unwrap();
    assert!(row.is_unconfirmed && row.expires_in.unwrap() <= 60.0, "{row:?}");
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
