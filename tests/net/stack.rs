//! What the network stack reports on drops and TCP connections, against the kernel's own counters.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};

use exporter::net::Mode;

use crate::counting::{config, number, observed, send_datagrams, start, tcp_info, until};
use crate::namespace::{HERE, Namespace, THERE, pair, up};

/// Returns a counter of `/proc/net/snmp` or `netstat` in a namespace.
fn kernel(inside: &Namespace, file: &str, protocol: &str, name: &str) -> u64 {
    let text = inside.command(&format!("cat /proc/self/net/{file}"));
    let lines: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with(&format!("{protocol}:")))
        .map(|line| line.split_whitespace().collect())
        .collect();
    let at = lines[0].iter().position(|one| *one == name).unwrap_or_else(|| panic!("no {name}: {text}"));
    lines[1][at].parse().unwrap()
}

/// Returns `tcpi_rtt` of a connection, in microseconds, once all that was sent has been acknowledged (`tcpi_unacked`): each
/// acknowledgement changes it.
fn smoothed(stream: &TcpStream) -> u64 {
    let field = |at: usize| u32::from_ne_bytes(tcp_info(stream)[at..at + 4].try_into().unwrap());
    until("all is acknowledged", || field(24) == 0);
    u64::from(field(68))
}

#[test]
fn connections_match_kernel_counters() {
    let (here, there) = pair();
    let mut wanted = config(Mode::Auto);
    wanted.count.tcp = true;
    let (network, _) = start(&here, wanted);
    up(&here, &there);

    // Opened by the other side, with some data each.
    let listener = here.run(|| TcpListener::bind((HERE, 7100)).unwrap());
    let mut rtt = 0;
    for _ in 0..10 {
        let mut client = there.run(|| TcpStream::connect((HERE, 7100)).unwrap());
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(&[7; 5000]).unwrap();
        server.read_exact(&mut [0; 5000]).unwrap();
        server.write_all(b"ok").unwrap();
        client.read_exact(&mut [0; 2]).unwrap();
        rtt += smoothed(&server);
        drop(server);
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    }
    // Opened by this side: five are accepted, three refused, one is reset by the other side.
    let theirs = there.run(|| TcpListener::bind((THERE, 7200)).unwrap());
    for _ in 0..5 {
        let client = here.run(|| TcpStream::connect((THERE, 7200)).unwrap());
        let (server, _) = theirs.accept().unwrap();
        rtt += smoothed(&client);
        drop(client);
        drop(server);
    }
    here.run(|| {
        for _ in 0..3 {
            TcpStream::connect((THERE, 7201)).expect_err("nobody listens");
        }
    });
    let mut client = here.run(|| TcpStream::connect((THERE, 7200)).unwrap());
    let (server, _) = theirs.accept().unwrap();
    client.write_all(b"never read").unwrap();
    rtt += smoothed(&client);
    drop(server);
    until("it is reset", || client.read(&mut [0; 1]).is_err());
    drop(client);

    let tcp = |name: &str| kernel(&here, "snmp", "Tcp", name);
    until("all are closed", || {
        let families = network.collect();
        observed(&families, "network_tcp_connection_duration_seconds", "").0 == 16
    });
    let families = network.collect();
    let change = |from: &str, to: &str| {
        let family =
            families.iter().find(|family| family.name() == "network_tcp_state_changes_total").unwrap();
        let wanted = [format!("from=\"{from}\""), format!("to=\"{to}\"")];
        let has = |key: &str| wanted.iter().all(|one| family.head().labels(key).contains(one.as_str()));
        if family.samples().any(|sample| has(sample.key)) {
            number(&families, family.name(), &[("from", from), ("to", to)])
        } else {
            0
        }
    };
    assert_eq!(change("close", "syn_sent"), tcp("ActiveOpens"));
    assert_eq!(change("syn_recv", "established"), tcp("PassiveOpens"));
    assert_eq!([change("syn_sent", "close"), tcp("AttemptFails")], [3, 3]);
    assert_eq!([change("established", "close"), tcp("EstabResets")], [1, 1]);
    assert_eq!(number(&families, "network_tcp_resets_total", &[("direction", "received")]), 4);
    assert_eq!(observed(&families, "network_tcp_handshake_duration_seconds", "peer").0, 10);
    assert_eq!(observed(&families, "network_tcp_handshake_duration_seconds", "self").0, 6);
    assert_eq!(observed(&families, "network_tcp_rtt_seconds", ""), (16, rtt));
}

#[test]
fn retransmissions_match_kernel_counters() {
    let (here, there) = pair();
    let mut wanted = config(Mode::Auto);
    wanted.count.tcp = true;
    let (network, _) = start(&here, wanted);
    up(&here, &there);
    let theirs = there.run(|| TcpListener::bind((THERE, 7200)).unwrap());
    let mut client = here.run(|| TcpStream::connect((THERE, 7200)).unwrap());
    let (mut server, _) = theirs.accept().unwrap();
    // Frames are lost: the other end knows no neighbor to answer, and accepts none as its own.
    there.command("ip link set exn1 address 02:00:00:00:99:77");
    client.write_all(&[7; 20_000]).unwrap();
    let again = || kernel(&here, "snmp", "Tcp", "RetransSegs");
    until("something is sent again", || again() >= 3);
    there.command("ip link set exn1 address 02:00:00:00:99:02");
    server.read_exact(&mut [0; 20_000]).unwrap();
    drop((client, server));
    until("both count the same", || {
        let before = again();
        let ours = number(&network.collect(), "network_tcp_retransmits_total", &[]);
        // The kernel's count includes retransmits that could not be sent; whether its tracepoint reports them depends
        // on the version.
        let failed = kernel(&here, "netstat", "TcpExt", "TCPRetransFail");
        eprintln!("the kernel counts {before}, {failed} of them failed; here are {ours}");
        (ours == before || ours + failed == before) && again() == before
    });
}

#[test]
fn drops_have_kernel_reasons() {
    let (here, there) = pair();
    let mut wanted = config(Mode::Auto);
    wanted.count.drop_reasons = true;
    let (network, _) = start(&here, wanted);
    up(&here, &there);
    let drops = |reason: &str| {
        let families = network.collect();
        let family = families.iter().find(|family| family.name() == "network_kernel_drops_total").unwrap();
        let label = format!("reason=\"{reason}\"");
        let is_there = family.samples().any(|sample| family.head().labels(sample.key) == label);
        if is_there { number(&families, family.name(), &[("reason", reason)]) } else { 0 }
    };
    send_datagrams(&there, 30, 100);
    let agrees = |reason: &str, name: &str| {
        until(&format!("drops with reason {reason} to be the kernel's {name}"), || {
            let before = kernel(&here, "snmp", "Udp", name);
            before > 0 && drops(reason) == before && kernel(&here, "snmp", "Udp", name) == before
        });
    };
    until("all have come", || kernel(&here, "snmp", "Udp", "NoPorts") >= 30);
    agrees("no_socket", "NoPorts");
    // A socket that is never read.
    let full = here.run(|| UdpSocket::bind((HERE, 7777)).unwrap());
    until("its buffer is full", || {
        send_datagrams(&there, 200, 1000);
        kernel(&here, "snmp", "Udp", "RcvbufErrors") > 0
    });
    agrees("socket_rcvbuff", "RcvbufErrors");
    drop(full);
}
