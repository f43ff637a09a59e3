//! The packet counters on real interfaces: veth pairs in namespaces of their own, real senders, and a comparison with
//! the kernel's own statistics.
//!
//! Needs root, `ip`, `ping`, `nc`, `curl` and `python3`.

use std::process::{Command, Stdio};

use crate::counting::{
    NATIVE_VETH_OMITS, agrees_with_the_kernel, attached, config, number, send_datagrams, settle, start,
    tcp_info, totals, until,
};
use crate::namespace::{HERE, Namespace, pair, up};
use exporter::exposition::Family;
use exporter::net::{CidrGroup, Count, Hook, Mode, Prefix};

fn senders_and_kernel_agree(mode: Mode, expected: Hook, header: u64) {
    let (here, there) = pair();
    let (network, events) = start(&here, config(mode));
    assert_eq!(attached(&events), ("exn0".into(), Some(expected)));
    up(&here, &there);

    there.command(&format!("ping -c 20 -i 0.01 -s 100 -q {HERE}"));
    there.command("ping -6 -c 10 -i 0.01 -s 300 -q fd99::1");
    let families = network.collect();
    let xdp = |family, protocol| {
        number(
            &families,
            "xdp_packets_total",
            &[("interface", "exn0"), ("family", family), ("protocol", protocol), ("verdict", "pass")],
        )
    };
    assert_eq!(xdp("ipv4", "icmp"), 20);
    assert_eq!(number(&families, "xdp_bytes_total", &[("protocol", "icmp")]), 20 * (14 + 20 + 8 + 100));
    assert_eq!(number(&families, "tc_egress_packets_total", &[("protocol", "icmp")]), 20);
    // Neighbor discovery is ICMPv6 too: its messages are all below 128 bytes, the echoes are larger.
    assert!(xdp("ipv6", "icmpv6") >= 10);

    send_datagrams(&there, 1000, 200);
    let udp = [("family", "ipv4"), ("protocol", "udp")];
    until("all have come", || number(&network.collect(), "xdp_packets_total", &udp) == 1000);
    assert_eq!(number(&network.collect(), "xdp_bytes_total", &udp), 1000 * (14 + 20 + 8 + 200));
    agrees_with_the_kernel(&here, &network, header);

    // One TCP connection: nc sends a line and closes.
    let before = network.collect();
    let mut listener = here.run(|| {
        let nc = Command::new("nc")
            .args(["-l", "-N", "10.99.0.1", "7000"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        nc.expect("nc listens")
    });
    until("nc listens", || here.command("ss -Hltn").contains(":7000"));
    there.run(|| {
        let mut nc = Command::new("nc")
            .args(["-N", "10.99.0.1", "7000"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("nc connects");
        std::io::Write::write_all(&mut nc.stdin.take().unwrap(), b"a line\n").unwrap();
        assert!(nc.wait().unwrap().success());
    });
    listener.wait().unwrap();
    settle(&here);
    let after = network.collect();
    let grew = |direction: &str, flag: &str| {
        let labels = [("direction", direction), ("flag", flag)];
        number(&after, "xdp_tcp_flags_total", &labels) - number(&before, "xdp_tcp_flags_total", &labels)
    };
    assert_eq!(
        [grew("ingress", "syn"), grew("egress", "synack"), grew("ingress", "fin"), grew("egress", "fin")],
        [1, 1, 1, 1]
    );
    agrees_with_the_kernel(&here, &network, header);
    assert_eq!(
        number(&after, "xdp_packet_size_bytes", &[("direction", "ingress")]),
        number(&after, "xdp_packets_total", &[]),
    );
}

#[test]
fn generic_mode() {
    senders_and_kernel_agree(Mode::Generic, Hook::Generic, 0);
}

#[test]
fn tc_ingress() {
    senders_and_kernel_agree(Mode::Auto, Hook::Tcx, 0);
}

#[test]
fn native_mode() {
    senders_and_kernel_agree(Mode::Native, Hook::Native, NATIVE_VETH_OMITS);
}

/// Serves a file over HTTP from one namespace and downloads it with curl from the other; returns the number of bytes
/// received.
fn download(here: &Namespace, there: &Namespace, bytes: usize) -> usize {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("file"), vec![b'x'; bytes]).unwrap();
    let path = directory.path().to_owned();
    let mut server = here.run(move || {
        let mut python = Command::new("python3");
        python.args(["-m", "http.server", "8000", "--bind", "10.99.0.1", "--directory"]).arg(path);
        python.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("python3 serves")
    });
    until("python3 serves", || here.command("ss -Hltn").contains(":8000"));
    let got = there.output("curl -sf http://10.99.0.1:8000/file");
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(got.status.success(), "curl: {}", got.status);
    got.stdout.len()
}

/// What one end counts as sent, including packets that are yet to be segmented, equals what the other end receives.
#[test]
fn segments_are_counted_as_on_the_wire() {
    const BYTES: usize = 8 << 20;
    let (here, there) = pair();
    let (sending, _) = start(&here, config(Mode::Generic));
    // Native XDP at the far end only accepts whole frames: the kernel segments them after our egress program.
    let (receiving, _) = start(&there, config(Mode::Native));
    up(&here, &there);
    assert_eq!(download(&here, &there, BYTES), BYTES);
    settle(&here);
    let (sent, received) = (sending.collect(), receiving.collect());
    for protocol in ["tcp", "icmpv6"] {
        for (egress, ingress) in
            [("tc_egress_packets_total", "xdp_packets_total"), ("tc_egress_bytes_total", "xdp_bytes_total")]
        {
            let labels = [("protocol", protocol)];
            assert_eq!(
                number(&sent, egress, &labels),
                number(&received, ingress, &labels),
                "{egress} {protocol}"
            );
        }
    }
    assert!(number(&sent, "tc_egress_packets_total", &[("protocol", "tcp")]) > BYTES as u64 / 1460);
    assert_eq!(totals(&sent)[2], here.statistics("exn0").tx_packets);
    let sizes = |families: &[Family], direction: &str| {
        let family = families.iter().find(|family| family.name() == "xdp_packet_size_bytes").unwrap();
        let of = format!("direction=\"{direction}\"");
        let sample = family.samples().find(|sample| sample.key.ends_with(&of)).unwrap();
        format!("{:?}", sample.value)
    };
    assert_eq!(sizes(&sent, "egress"), sizes(&received, "ingress"));
}

#[test]
fn two_vlan_tags_from_a_raw_socket() {
    let (here, there) = pair();
    let (network, _) = start(&here, config(Mode::Generic));
    up(&here, &there);
    let before = number(&network.collect(), "xdp_packets_total", &[("family", "ipv4"), ("protocol", "udp")]);
    // Ethernet, 802.1ad tag, 802.1Q tag, IPv4, UDP of 12 bytes.
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 9, 0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0]);
    frame.extend([0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 99, 0, 2, 10, 99, 0, 1]);
    frame.extend([0, 7, 0, 8, 0, 12, 0, 0, 1, 2, 3, 4]);
    let length = frame.len() as u64;
    there.run(move || crate::namespace::send_raw("exn1", &frame, 100));
    settle(&here);
    let families = network.collect();
    let labels = [("family", "ipv4"), ("protocol", "udp")];
    assert_eq!(number(&families, "xdp_packets_total", &labels) - before, 100);
    // The kernel removes the outer tag from a received frame before generic XDP and restores it for the program.
    assert_eq!(number(&families, "xdp_bytes_total", &labels), 100 * length);
    assert_eq!(number(&families, "xdp_malformed_packets_total", &[]), 0);
    agrees_with_the_kernel(&here, &network, 0);
}

/// Segments of every kind from a raw socket, few of which count as trouble; and a real reader that stops reading.
#[test]
fn resets_and_zero_windows() {
    for mode in [Mode::Auto, Mode::Generic, Mode::Native] {
        let (here, there) = pair();
        let mut wanted = config(mode);
        wanted.count.statistics.insert("tcp_trouble");
        let (network, _) = start(&here, wanted);
        up(&here, &there);
        // Flags and window.
        for (flags, window, times) in [
            (0x10, 0u16, 5),
            (0x18, 0, 2),
            (0x10, 1, 20),
            (0x14, 0, 3),
            (0x04, 9, 4),
            (0x02, 0, 6),
            (0x11, 0, 8),
        ] {
            let mut frame = vec![0xff; 6];
            frame.extend([2, 0, 0, 0, 0, 9, 8, 0]);
            frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 99, 0, 2, 10, 99, 0, 9]);
            frame.extend([0, 7, 0, 8, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags]);
            frame.extend(window.to_be_bytes());
            frame.extend([0; 4]);
            there.run(move || crate::namespace::send_raw("exn1", &frame, times));
        }
        settle(&here);
        let families = network.collect();
        let counted = |name| number(&families, name, &[("direction", "ingress")]);
        assert_eq!(
            [counted("xdp_tcp_resets_total"), counted("xdp_tcp_zero_windows_total")],
            [7, 7],
            "{mode:?}"
        );
        assert_eq!(number(&families, "xdp_tcp_zero_windows_total", &[("direction", "egress")]), 0);
        let full = |network: &exporter::net::Network| {
            number(&network.collect(), "xdp_tcp_zero_windows_total", &[("direction", "egress")]) > 0
        };
        let listener = here.run(|| std::net::TcpListener::bind((HERE, 7001)).unwrap());
        let sender = there.run(|| {
            let stream = std::net::TcpStream::connect((HERE, 7001)).unwrap();
            stream.set_nonblocking(true).unwrap();
            stream
        });
        until("the reader has no room", || {
            let _ = std::io::Write::write(&mut &sender, &[0; 1 << 16]);
            full(&network)
        });
        drop(listener);
    }
}

/// The longest prefix counts, the prefixes of one family do not affect the other, and every IP packet is in one group.
#[test]
fn packets_by_prefix_group() {
    for mode in [Mode::Auto, Mode::Generic, Mode::Native] {
        for talkers in [0, 1024] {
            let (here, there) = pair();
            let mut wanted = config(mode);
            wanted.count.talkers = talkers;
            let groups = [
                ("wide", vec!["10.0.0.0/8"]),
                ("ipv6", vec!["::/0"]),
                ("narrow", vec!["10.99.0.2", "fd99::2/128"]),
                ("unused", vec!["10.99.0.1/32"]),
            ];
            wanted.count.cidrs = groups
                .map(|(name, prefixes)| CidrGroup {
                    name: name.to_string(),
                    prefixes: prefixes.iter().map(|text| Prefix::parse(text).unwrap()).collect(),
                })
                .into();
            let (network, _) = start(&here, wanted);
            up(&here, &there);
            settle(&here);
            let before = network.collect();
            // From three sources: one in the narrow group, one in the wide group, one in none. Eight packets of the
            // last are malformed.
            for (source, length, times) in [
                ([10, 99, 0, 2], 32, 5),
                ([10, 1, 2, 3], 32, 6),
                ([192, 0, 2, 1], 32, 7),
                ([192, 0, 2, 1], 99, 8),
            ] {
                let mut frame = vec![0xff; 6];
                frame.extend([2, 0, 0, 0, 0, 9, 8, 0]);
                frame.extend([0x45, 0, 0, length, 0, 0, 0, 0, 64, 17, 0, 0]);
                frame.extend(source);
                frame.extend([10, 99, 0, 9, 0, 7, 0, 8, 0, 12, 0, 0, 1, 2, 3, 4]);
                there.run(move || crate::namespace::send_raw("exn1", &frame, times));
            }
            // Sent in large pieces, counted as on the wire.
            let bytes = 1 << 20;
            let listener =
                there.run(|| std::net::TcpListener::bind((crate::namespace::THERE, 7002)).unwrap());
            let mut sender =
                here.run(|| std::net::TcpStream::connect((crate::namespace::THERE, 7002)).unwrap());
            let reader = std::thread::spawn(move || {
                let mut read = Vec::new();
                std::io::Read::read_to_end(&mut listener.accept().unwrap().0, &mut read).unwrap();
                read.len()
            });
            std::io::Write::write_all(&mut sender, &vec![7; bytes]).unwrap();
            sender.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(reader.join().unwrap(), bytes);
            // `tcpi_bytes_sent`: a loaded machine retransmits some of them.
            let payload = u64::from_ne_bytes(tcp_info(&sender)[200..208].try_into().unwrap());
            drop(sender);
            settle(&here);
            let after = network.collect();
            let grew = |name: &str, labels: &[(&str, &str)]| {
                number(&after, name, labels) - number(&before, name, labels)
            };
            let received =
                |cidr| grew("network_cidr_packets_total", &[("direction", "ingress"), ("cidr", cidr)]);
            assert_eq!(
                (received("wide"), received("other"), received("unused")),
                (6, 7, 0),
                "{mode:?} {talkers}"
            );
            assert_eq!(
                grew("network_cidr_bytes_total", &[("direction", "ingress"), ("cidr", "other")]),
                7 * 46
            );
            let sent = grew("network_cidr_bytes_total", &[("direction", "egress"), ("cidr", "narrow")]);
            assert!(payload >= bytes as u64 && sent > payload, "{mode:?} {talkers}: {sent} of {payload}");
            assert!(sent < payload * 11 / 10, "{mode:?} {talkers}: {sent} of {payload}");
            for (direction, prefix) in [("ingress", "xdp"), ("egress", "tc_egress")] {
                for unit in ["packets", "bytes"] {
                    let of =
                        |family| number(&after, &format!("{prefix}_{unit}_total"), &[("family", family)]);
                    let malformed = if (direction, unit) == ("ingress", "packets") {
                        number(&after, "xdp_malformed_packets_total", &[])
                    } else if direction == "ingress" {
                        8 * 46
                    } else {
                        0
                    };
                    let groups =
                        number(&after, &format!("network_cidr_{unit}_total"), &[("direction", direction)]);
                    assert_eq!(
                        of("ipv4") + of("ipv6") - malformed,
                        groups,
                        "{mode:?} {talkers} {direction} {unit}"
                    );
                }
            }
        }
    }
}

#[test]
fn flood_is_counted_without_loss() {
    const DATAGRAMS: u64 = 200_000;
    let (here, there) = pair();
    let mut wanted = config(Mode::Native);
    (wanted.count.talkers, wanted.count.flows) = (1024, 1024);
    let (network, _) = start(&here, wanted);
    up(&here, &there);
    let dropped = there.statistics("exn1").tx_dropped;
    send_datagrams(&there, DATAGRAMS, 18);
    settle(&here);
    let (families, sender) = (network.collect(), there.statistics("exn1"));
    // A full queue between the two ends drops packets before any program runs; the sender's statistics show how many.
    assert_eq!(
        number(&families, "xdp_packets_total", &[("family", "ipv4"), ("protocol", "udp")]),
        DATAGRAMS - (sender.tx_dropped - dropped)
    );
    agrees_with_the_kernel(&here, &network, NATIVE_VETH_OMITS);
}

#[test]
fn talkers_flows_and_connections() {
    let (here, there) = pair();
    let mut wanted = config(Mode::Generic);
    wanted.count =
        Count { talkers: 512, flows: 512, top_sources: 1, tcp_connections: true, ..Count::default() };
    let (network, _) = start(&here, wanted);
    up(&here, &there);
    there.command("ip addr add 10.99.0.3/24 dev exn1");
    send_datagrams(&there, 50, 400);
    there.command("ping -c 3 -i 0.01 -q -I 10.99.0.3 10.99.0.1");
    assert_eq!(download(&here, &there, 100_000), 100_000);
    settle(&here);

    let json = |text: String| -> serde_json::Value { serde_json::from_str(&text).unwrap() };
    let talkers = json(network.talkers("address=10.99.0.3").unwrap());
    assert_eq!(talkers["total"], 1);
    let row = &talkers["rows"][0];
    assert_eq!([&row["received_packets"], &row["received_bytes"], &row["sent_packets"]], [3, 3 * 98, 3]);
    assert_eq!(row["interface"], "exn0");
    let (first, last) = (row["first_seen"].as_f64().unwrap(), row["last_seen"].as_f64().unwrap());
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert!(first <= last && last <= now && now - first < 600.0, "{first} {last} {now}");

    let flows = json(network.flows("sort=packets&per_page=1000").unwrap());
    let flow = |direction: &str, protocol: &str, port: &str, number: u64| {
        let rows = flows["rows"].as_array().unwrap();
        let mut fits = rows.iter().filter(|row| {
            row["direction"] == direction
                && row["protocol"] == protocol
                && (port.is_empty() || row[port] == number)
        });
        fits.next()
            .unwrap_or_else(|| panic!("no flow {direction} {protocol} {port} {number} in {flows}"))
            .clone()
    };
    let udp = flow("ingress", "udp", "destination_port", 7777);
    assert_eq!([&udp["packets"], &udp["bytes"]], [50, 50 * 442]);
    assert_eq!([&udp["source"], &udp["destination"]], ["10.99.0.2", "10.99.0.1"]);
    assert!(udp["tcp_state"].is_null());
    let tcp = flow("egress", "tcp", "source_port", 8000);
    assert!(tcp["bytes"].as_u64().unwrap() > 100_000);
    assert_eq!(tcp["tcp_state"], "closing");
    assert_eq!(flow("ingress", "icmp", "", 0)["packets"], 3);
    assert!(network.flows("sort=colour").is_err());

    let families = network.collect();
    assert_eq!(
        number(&families, "xdp_top_source_bytes", &[("source", "10.99.0.2")]),
        json(network.talkers("address=10.99.0.2").unwrap())["rows"][0]["received_bytes"]
    );
    assert_eq!(number(&families, "network_untracked_packets_total", &[]), 0);
    // Socket diagnostics cover the network namespace of the collecting thread.
    let (listen, families) = here.run(move || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        (listener, network.collect())
    });
    assert_eq!(number(&families, "network_tcp_connections", &[("state", "listen")]), 1);
    drop(listen);
}
