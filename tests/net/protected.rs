//! Changes of what must never be dropped are noticed at once while the exporter runs.
//!
//! Needs root and `ip`.

use std::time::{Duration, Instant};

use std::io::Write;
use std::net::{TcpListener, TcpStream};

use exporter::net::{
    Asker, BlockConfig, BlockEntry, BlockError, BlockMode, BlockRule, Mode, Network, NetworkConfig, Prefix,
    Space,
};

use crate::counting::{attached, config, number, start, until};
use crate::namespace::{HERE, Namespace, pair, up};

/// Much shorter than polling every five seconds would take for this many changes, and much longer than notifications
/// take.
const ALL_CHANGES: Duration = Duration::from_secs(30);

#[test]
fn protected_addresses_follow_changes_immediately() {
    let (here, there) = pair();
    let entry = |text: &str| BlockEntry { prefix: Prefix::parse(text).unwrap(), rule: BlockRule::default() };
    let block = BlockConfig {
        mode: BlockMode::Enforce,
        entries: vec![entry("10.99.0.0/24"), entry("fd99::/64")],
        ..BlockConfig::default()
    };
    let (network, _) = start(&here, NetworkConfig { block: Some(block), ..config(Mode::Auto) });
    // No automatic address appears late.
    here.command("ip link set exn0 addrgenmode none");
    up(&here, &there);
    let allowed = || number(&network.collect(), "xdp_allowlist_entries", &[]);
    let pings = |to: &str| there.output(&format!("ping -c 1 -W 1 -q {to}")).status.success();
    until("the addresses of the interface are known", || {
        let before = allowed();
        std::thread::sleep(Duration::from_secs(1));
        before > 3 && allowed() == before
    });
    assert!(!pings("10.99.0.1"));
    let begun = Instant::now();
    // Each change with the number of addresses that it protects.
    for (change, back, more) in [
        ("route add default via 10.99.0.2", "route del default", 1),
        ("-6 route add default via fd99::2", "-6 route del default", 1),
        (
            "route add default nexthop via 10.99.0.2 dev exn0 nexthop via 10.99.0.3 dev exn0",
            "route del default",
            2,
        ),
        ("route add default via inet6 fd99::3 dev exn0", "route del default via inet6 fd99::3 dev exn0", 1),
        ("addr add 10.98.0.1/32 dev exn0", "addr del 10.98.0.1/32 dev exn0", 1),
    ] {
        let before = allowed();
        here.command(&format!("ip {change}"));
        until(change, || allowed() == before + more);
        here.command(&format!("ip {back}"));
        until(back, || allowed() == before);
    }
    // A table counts if a rule leads to it.
    let before = allowed();
    for (change, more) in [
        ("rule add from all table 4000 pref 900", 0),
        ("route add default via 10.99.0.4 table 4000", 1),
        ("route append default via 10.99.0.5 table 4000 metric 9", 2),
        ("rule del pref 900", 0),
    ] {
        here.command(&format!("ip {change}"));
        until(change, || allowed() == before + more);
    }
    assert!(begun.elapsed() < ALL_CHANGES, "{:?}", begun.elapsed());
    // The protection also applies to packets.
    here.command("ip route add default via 10.99.0.2");
    until("the gateway's packets pass", || pings("10.99.0.1"));
}

fn enforcing(entries: &[&str]) -> BlockConfig {
    let entry = |text: &&str| BlockEntry { prefix: Prefix::parse(text).unwrap(), rule: BlockRule::default() };
    BlockConfig {
        mode: BlockMode::Enforce,
        entries: entries.iter().map(entry).collect(),
        ..BlockConfig::default()
    }
}

/// Returns whether blocking an address is refused because it is protected. Called in the exporter's namespace.
fn is_protected(from: &Namespace, network: &Network, address: &str) -> bool {
    let entry = BlockEntry { prefix: Prefix::parse(address).unwrap(), rule: BlockRule::default() };
    let list = std::sync::Arc::clone(network.blocklist().unwrap());
    from.run(move || match list.block(&entry, Asker::Api) {
        Err(BlockError::Protected(..)) => true,
        done => {
            done.unwrap();
            list.unblock(entry.prefix).unwrap();
            false
        }
    })
}

/// Gateways that routes name by nexthop objects, which the kernel does not list with the route in this mode; and default
/// routes behind others to 0.0.0.0.
#[test]
fn gateways_are_found_however_routes_name_them() {
    let (here, there) = pair();
    let (network, _) =
        start(&here, NetworkConfig { block: Some(enforcing(&["192.0.2.0/24"])), ..config(Mode::Auto) });
    up(&here, &there);
    let is_protected = |address: &str| is_protected(&here, &network, address);
    for compatible in [0, 1] {
        here.command(&format!("sysctl -qw net.ipv4.nexthop_compat_mode={compatible}"));
        for (change, now, no_longer) in [
            ("nexthop add id 1 via 10.99.0.6 dev exn0", "", "10.99.0.6"),
            ("nexthop add id 2 via 10.98.0.7 dev exn0 onlink", "", "10.98.0.7"),
            ("nexthop add id 3 group 1/2", "", ""),
            ("route add default nhid 3", "10.99.0.6 10.98.0.7", ""),
            ("nexthop replace id 1 via 10.99.0.8 dev exn0", "10.99.0.8", "10.99.0.6"),
            ("nexthop add id 4 via fd99::6 dev exn0", "", "fd99::6"),
            ("-6 route add default nhid 4", "fd99::6", ""),
            ("route replace default nhid 4", "fd99::6", "10.99.0.8"),
            ("route del default", "fd99::6", ""),
            ("-6 route del default", "", "fd99::6"),
            ("nexthop flush", "", ""),
            // The kernel lists these first.
            ("route add blackhole 0.0.0.0/8", "", ""),
            ("route add 0.0.0.0/1 via 10.99.0.9", "", ""),
            ("route add default via 10.99.0.2", "10.99.0.2", ""),
            ("route add default via 10.99.0.3 table 4000", "", "10.99.0.3"),
            ("rule add from all table 4000 pref 900", "10.99.0.2 10.99.0.3", ""),
            ("rule del pref 900", "", "10.99.0.3"),
            ("route flush table 4000", "", ""),
            ("route del default", "", "10.99.0.2"),
            ("route del 0.0.0.0/1", "", ""),
            ("route del blackhole 0.0.0.0/8", "", ""),
        ] {
            here.command(&format!("ip {change}"));
            until(change, || {
                now.split(' ').filter(|address| !address.is_empty()).all(is_protected)
                    && no_longer.split(' ').all(|address| address.is_empty() || !is_protected(address))
            });
        }
    }
}

/// What another namespace depends on is protected there, from its first packet on.
#[test]
fn gateways_and_sessions_in_other_namespaces_are_protected() {
    let home = Namespace::new();
    let (here, there) = pair();
    let path = format!("/proc/{}/task/{}/ns/net", std::process::id(), here.id());
    here.command("ip link set lo up");
    here.command("ip link set exn0 up");
    here.command("ip route add default via 10.99.0.2");
    let (network, events) = start(
        &home,
        NetworkConfig {
            interfaces: Vec::new(),
            elsewhere: vec![(Space::Netns(path.clone()), vec!["exn0".into()])],
            block: Some(enforcing(&["10.99.0.0/24", "10.97.0.0/24"])),
            ..config(Mode::Auto)
        },
    );
    assert_eq!(attached(&events).0, format!("exn0 (netns {path})"));
    up(&here, &there);
    let pings = |from: &Namespace, to: &str| from.output(&format!("ping -c 1 -W 1 -q {to}")).status.success();
    until("the gateway's packets pass", || pings(&there, "10.99.0.1"));
    let dropped = || number(&network.collect(), "xdp_drops_total", &[]);
    assert_eq!(dropped(), 0);
    assert!(is_protected(&home, &network, "10.99.0.2") && is_protected(&home, &network, "10.99.0.1"));

    // A session is protected at the moment of a block, and goes on when its peer is no longer the gateway.
    let listener = here.run(|| TcpListener::bind((HERE, 22)).unwrap());
    let mut client = there.run(|| TcpStream::connect((HERE, 22)).unwrap());
    let (mut server, _) = listener.accept().unwrap();
    here.command("ip route del default");
    until("the gateway is one no longer", || !is_protected(&home, &network, "10.99.0.2"));
    assert!(!pings(&there, "10.99.0.1"));
    client.write_all(b"a").unwrap();
    server.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    std::io::Read::read_exact(&mut server, &mut [0]).expect("the session goes on");
    assert_eq!(number(&network.collect(), "xdp_spared_connections", &[]), 1);

    here.command("ip route add default via 10.99.0.2");
    until("the gateway's packets pass again", || pings(&there, "10.99.0.1"));
    here.command("ip addr add 10.97.0.1/24 dev exn0");
    until("an address is known", || is_protected(&home, &network, "10.97.0.1"));
    // The namespace ends, and with it what it needed.
    drop((client, server, listener, here, there));
    until("nothing of it is protected", || !is_protected(&home, &network, "10.97.0.1"));
}

/// Returns a connection from there to this port here, once a program listens.
fn session(there: &Namespace, port: u16) -> TcpStream {
    let mut client = None;
    until("the server listens", || {
        client = there.run(move || TcpStream::connect((HERE, port)).ok());
        client.is_some()
    });
    client.unwrap()
}

/// The port of a running SSH server counts, whatever its configuration says, and so do those from which the firewall
/// redirects.
#[test]
fn sessions_of_running_and_redirected_servers_are_protected() {
    let (here, there) = pair();
    let (network, _) = start(&here, NetworkConfig { block: Some(enforcing(&[])), ..config(Mode::Auto) });
    up(&here, &there);
    here.command("nft add table ip exn");
    here.command("nft add chain ip exn before { type nat hook prerouting priority -100 ; }");
    here.command("nft add rule ip exn before tcp dport 2201 redirect to :2200");
    let dropped = || number(&network.collect(), "xdp_drops_total", &[]);
    let spared = || number(&network.collect(), "xdp_spared_connections", &[]);
    // A program of this name that shows what it receives, and sends what it is given.
    let directory = tempfile::tempdir().unwrap();
    let server = directory.path().join("sshd");
    std::fs::copy(std::fs::canonicalize("/bin/nc").unwrap(), &server).unwrap();
    for to in [2200, 2201] {
        let mut sshd = here.run({
            let server = server.clone();
            move || {
                let mut nc = std::process::Command::new(server);
                nc.args(["-lk", "10.99.0.1", "2200"]).stdin(std::process::Stdio::piped());
                nc.stdout(std::process::Stdio::piped()).spawn().expect("nc listens")
            }
        });
        let mut client = session(&there, to);
        until("the session is known", || spared() > 0);
        let list = std::sync::Arc::clone(network.blocklist().unwrap());
        let entry = enforcing(&["10.99.0.0/24"]).entries.remove(0);
        here.run(move || list.block(&entry, Asker::Api)).unwrap();
        let before = dropped();
        client.write_all(b"a").unwrap();
        let mut sent = [0];
        std::io::Read::read_exact(sshd.stdout.as_mut().unwrap(), &mut sent).unwrap();
        assert_eq!(&sent, b"a");
        sshd.stdin.as_mut().unwrap().write_all(b"b").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        std::io::Read::read_exact(&mut client, &mut sent).expect("the session goes on");
        assert_eq!(dropped(), before, "port {to}");
        let other = there.run(|| {
            TcpStream::connect_timeout(&(HERE, 2200).into(), Duration::from_secs(2)).unwrap_err().kind()
        });
        assert_eq!(other, std::io::ErrorKind::TimedOut, "a new connection is dropped");
        sshd.kill().unwrap();
        sshd.wait().unwrap();
        network.blocklist().unwrap().unblock(Prefix::parse("10.99.0.0/24").unwrap()).unwrap();
        drop(client);
        until("the session is known to have ended", || spared() == 0);
    }
}
