//! Detection from packets: nmap, hping3 and ordinary traffic in namespaces.
//!
//! Needs root, `ip`, `nmap` and `hping3`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use exporter::net::{
    BanOutcome, BanTerms, BlockConfig, BlockMode, Count, DetectConfig, Detection, Detections, Mode, Network,
    NetworkConfig, PortScan, Prefix, Rates, Source, SynFlood, TcpAnomalies,
};

use crate::counting::{config, number, settle, start, until};
use crate::namespace::{HERE, Namespace, THERE, pair, up};
use crate::support::exporter::TIMEOUT;

fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

fn terms(enforce: bool) -> BanTerms {
    BanTerms { enforce, ttl: seconds(3600), max_ttl: seconds(7200) }
}

fn scan(enforce: bool) -> Option<PortScan> {
    let (within, slow_within) = (seconds(600), seconds(3600));
    Some(PortScan { terms: terms(enforce), ports: 20, within, slow_ports: 60, slow_within })
}

pub fn flood(enforce: bool) -> Option<SynFlood> {
    Some(SynFlood { terms: terms(enforce), per_source: 10, in_all: 1_000_000, within: seconds(60) })
}

pub fn anomalies(enforce: bool) -> Option<TcpAnomalies> {
    Some(TcpAnomalies { terms: terms(enforce), packets: 5, within: seconds(600) })
}

/// A namespace with detection, and another one that is connected to it.
struct Watched {
    here: Namespace,
    there: Namespace,
    // Dropped before the network that it observes.
    detections: Arc<Detections>,
    network: Arc<Network>,
    found: Receiver<Detection>,
}

fn watched(detect: DetectConfig) -> Watched {
    let (here, there) = pair();
    let block = BlockConfig { mode: BlockMode::Enforce, ..BlockConfig::default() };
    let count = Count { talkers: 4096, flows: 4096, ..Count::default() };
    let wanted = NetworkConfig { count, block: Some(block), detect: detect.clone(), ..config(Mode::Auto) };
    let (network, _events) = start(&here, wanted);
    let (network, detections) = (Arc::new(network), Arc::new(Detections::default()));
    detections.configure(std::iter::empty(), Some(&detect));
    let (tell, found) = channel();
    let (of, by) = (network.clone(), detections.clone());
    here.run(move || {
        of.detect(&by, move |detection| {
            // The test may have ended before the last detection.
            let _ = tell.send(detection);
        });
    });
    up(&here, &there);
    Watched { here, there, detections, network, found }
}

impl Watched {
    /// Returns the next detection, which must be of this kind and caused by the other end.
    #[track_caller]
    fn next(&self, kind: &str) -> Detection {
        let found = self.found.recv_timeout(TIMEOUT).unwrap_or_else(|_| panic!("no {kind} was detected"));
        assert_eq!(found.kind, kind, "{found:?}");
        assert_eq!(found.source, Some(Prefix::new(THERE.into(), 32)), "{found:?}");
        found
    }

    fn events(&self, kind: &str) -> u64 {
        number(&self.detections.families(), "security_events_total", &[("kind", kind)])
    }

    fn bans(&self, kind: &str) -> u64 {
        number(&self.detections.families(), "xdp_autobans_total", &[("reason", kind)])
    }

    fn is_reached(&self) -> bool {
        self.there.run(|| TcpStream::connect_timeout(&(HERE, 7000).into(), seconds(2)).is_ok())
    }
}

/// Runs a command at the other end for a limited time, however many of its packets are dropped.
fn attack(from: &Namespace, line: &str) {
    let output = from.output(&format!("timeout 100 {line}"));
    println!(
        "{line}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    // 127: the program does not exist.
    assert_ne!(output.status.code(), Some(127), "{line}; scripts/install-deps.sh --tests installs it");
}

#[test]
fn scans_are_detected_banned_and_released() {
    let watched = watched(DetectConfig { port_scan: scan(true), ..DetectConfig::default() });
    let listener = watched.here.run(|| TcpListener::bind((HERE, 7000)).unwrap());
    until("it is reached", || watched.is_reached());
    let source = Prefix::new(THERE.into(), 32);
    let list = watched.network.blocklist().unwrap();
    for kind in ["-sS", "-sT", "-sN", "-sF", "-sX", "-sA", "-sU"] {
        attack(
            &watched.there,
            &format!(
                "nmap {kind} -n -Pn --max-retries 0 --min-rate 200 --host-timeout 90s -p 6990-7011 {HERE}"
            ),
        );
        let found = watched.next("port_scan");
        assert!(found.count >= 20.0 && matches!(found.outcome, BanOutcome::Banned(_)), "{kind}: {found:?}");
        until("it is banned", || !watched.is_reached());
        assert_eq!(list.row(source).map(|row| row.source), Some(Source::named("detection")), "{kind}");
        list.unblock(source).unwrap();
        until("it is released", || watched.is_reached());
    }
    assert_eq!(watched.bans("port_scan"), 7);
    drop(listener);
}

#[test]
fn syn_flood_is_detected_banned_and_released() {
    let watched = watched(DetectConfig { syn_flood: flood(true), ..DetectConfig::default() });
    // Without an established connection: an address that has one is not banned, because the flood may be spoofed by
    // another.
    attack(&watched.there, &format!("hping3 -q -S -p 7000 -i u1000 -c 2000 {HERE}"));
    let found = watched.next("syn_flood");
    assert!(found.count >= 10.0 && matches!(found.outcome, BanOutcome::Banned(_)), "{found:?}");
    let source = Prefix::new(THERE.into(), 32);
    let list = watched.network.blocklist().unwrap();
    assert_eq!(list.row(source).map(|row| row.reason).as_deref(), Some("syn_flood"));
    let names: Vec<_> =
        watched.detections.families().iter().map(|family| family.name().to_string()).collect();
    assert!(names.iter().any(|name| name == "network_tcp_syncookies_mode"), "{names:?}");
    list.unblock(source).unwrap();

    // Now with an established connection.
    let listener = watched.here.run(|| TcpListener::bind((HERE, 7000)).unwrap());
    let mut client = None;
    until("a connection", || {
        client = watched.there.run(|| TcpStream::connect_timeout(&(HERE, 7000).into(), seconds(2)).ok());
        client.is_some()
    });
    let (mut client, (mut server, _)) = (client.unwrap(), listener.accept().unwrap());
    server.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    attack(&watched.there, &format!("hping3 -q -S -p 7001 -i u1000 -c 2000 {HERE}"));
    let found = watched.next("syn_flood");
    assert!(matches!(found.outcome, BanOutcome::Refused("connected", _)), "{found:?}");
    assert!(list.row(source).is_none());
    assert_eq!((watched.bans("syn_flood"), watched.events("syn_flood")), (1, 2));
}

/// Spoofed addresses cause no bans and are reported together.
#[test]
fn spoofed_flood_is_reported_without_bans() {
    let mut flood = flood(true).unwrap();
    (flood.in_all, flood.within) = (20, seconds(60));
    let watched = watched(DetectConfig { syn_flood: Some(flood), ..DetectConfig::default() });
    attack(&watched.there, &format!("hping3 -q -S -p 7000 --rand-source -i u1000 -c 3000 {HERE}"));
    let found = watched.found.recv_timeout(TIMEOUT).expect("a flood");
    assert_eq!((found.kind.as_str(), found.source), ("syn_flood_in_all", None), "{found:?}");
    assert!(found.details.iter().any(|(name, _)| *name == "syncookies"), "{found:?}");
    assert_eq!(watched.bans("syn_flood") + watched.bans("syn_flood_in_all"), 0);
    assert!(watched.network.blocklist().unwrap().is_empty());
}

#[test]
fn tcp_anomalies_are_counted_by_kind() {
    let watched = watched(DetectConfig { tcp_anomalies: anomalies(false), ..DetectConfig::default() });
    // Each kind goes to its own port: for a flow with several kinds, only the combined flags are known.
    for (port, flags, kind) in [
        (7001, "", "null"),
        (7002, "-F", "fin"),
        (7003, "-F -P -U", "xmas"),
        (7004, "-S -F", "syn_fin"),
        (7005, "-P", "no_ack"),
    ] {
        attack(&watched.there, &format!("hping3 -q {flags} -p {port} -i u1000 -c 20 {HERE}"));
        until(kind, || {
            number(&watched.detections.families(), "security_tcp_anomalies_total", &[("kind", kind)]) == 20
        });
    }
    let found = watched.next("tcp_anomaly");
    assert!(matches!(found.outcome, BanOutcome::Observed(_)), "{found:?}");
    assert_eq!(watched.events("tcp_anomaly"), 1, "once, as long as the ban would hold");
    assert!(watched.network.blocklist().unwrap().is_empty(), "nothing acts unless it is asked to");
}

#[test]
fn excessive_sender_is_banned() {
    let rates = Rates {
        terms: terms(true),
        packets: 20,
        bytes: 0,
        prefix_packets: 0,
        prefix_bytes: 0,
        ipv4_prefix: 24,
        ipv6_prefix: 64,
        within: seconds(60),
    };
    let watched = watched(DetectConfig { rates: Some(rates), ..DetectConfig::default() });
    crate::counting::send_datagrams(&watched.there, 3000, 100);
    let found = watched.next("rate");
    assert!(found.count >= 20.0 && matches!(found.outcome, BanOutcome::Banned(_)), "{found:?}");
}

/// Answered traffic is no attack: many users behind one address, pages with many connections, connections to many
/// ports, downloads, and responses to requests from here.
#[test]
fn ordinary_traffic_raises_no_detection() {
    let watched = watched(DetectConfig {
        syn_flood: flood(true),
        port_scan: scan(true),
        tcp_anomalies: anomalies(true),
        rates: None,
    });
    let (here, there) = (&watched.here, &watched.there);
    // 100 services, each of which answers every client, for as long as the test runs.
    here.run(|| {
        for port in 7000..7100 {
            let listener = TcpListener::bind((HERE, port)).unwrap();
            std::thread::spawn(move || {
                let answer = vec![0x55; 1000];
                listener
                    .incoming()
                    .map_while(Result::ok)
                    .for_each(|mut client| drop(client.write_all(&answer)));
            });
        }
        let download = TcpListener::bind((HERE, 8000)).unwrap();
        std::thread::spawn(move || {
            let answer = vec![0x55; 1 << 20];
            for mut client in download.incoming().map_while(Result::ok) {
                (0..20).for_each(|_| drop(client.write_all(&answer)));
            }
        });
        // DNS queries from here, each from its own port.
        let server = UdpSocket::bind((HERE, 5353)).unwrap();
        std::thread::spawn(move || {
            let mut asked = [0; 64];
            while let Ok((length, from)) = server.recv_from(&mut asked) {
                drop(server.send_to(&asked[..length], from));
            }
        });
    });
    let fetch = |port: u16| {
        let mut connection = TcpStream::connect((HERE, port)).unwrap();
        let mut all = Vec::new();
        connection.read_to_end(&mut all).map(|_| all.len()).unwrap_or(0)
    };
    there.run(move || {
        // 500 users behind one address, each with two connections; then a page with 60; then each port; then a
        // download.
        for round in 0..1000u16 {
            fetch(7000 + round % 2);
        }
        let page: Vec<_> = (0..60).map(|_| std::thread::spawn(move || fetch(7000))).collect();
        page.into_iter().for_each(|one| assert_eq!(one.join().unwrap(), 1000));
        (7000..7100).for_each(|port| assert_eq!(fetch(port), 1000));
        assert_eq!(fetch(8000), 20 << 20);
        for _ in 0..100 {
            let socket = UdpSocket::bind((THERE, 0)).unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            socket.send_to(b"name", (HERE, 5353)).unwrap();
            socket.recv(&mut [0; 64]).unwrap();
        }
    });
    // A scan after all of it is reported, and nothing before it.
    attack(
        there,
        &format!("nmap -sS -n -Pn --max-retries 0 --min-rate 200 --host-timeout 90s -p 1-60 {HERE}"),
    );
    watched.next("port_scan");
    for kind in ["syn_flood", "syn_flood_in_all", "tcp_anomaly"] {
        assert_eq!(watched.events(kind), 0, "{kind}");
    }
    assert_eq!(watched.events("port_scan"), 1);
}

/// Sends TCP SYN segments from an interface, from `sources` addresses of each family, each to `ports` ports.
fn spoof(from: &Namespace, target: [u8; 6], sources: u16, ports: u16) {
    from.run(move || {
        // SAFETY: the system call takes no pointers; the descriptor is owned from here on.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            std::os::fd::OwnedFd::from_raw_fd(fd)
        };
        // SAFETY: all fields are plain numbers, for which zero is valid; the name is NUL-terminated.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        // SAFETY: as above.
        to.sll_ifindex = unsafe { libc::if_nametoindex(c"exn1".as_ptr()) } as i32;
        let ethernet = |kind: [u8; 2]| [&target[..], &[2, 0, 0, 0, 0, 9], &kind].concat();
        let tcp = |port: u16| {
            let mut tcp = [0x30, 0x39, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 2, 0, 0, 0, 0, 0];
            tcp[2..4].copy_from_slice(&port.to_be_bytes());
            tcp
        };
        for port in 1..=ports {
            for source in 0..sources {
                let [high, low] = source.to_be_bytes();
                let v4 = [0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0, 198, 18, high, low, 10, 99, 0, 1];
                let mut v6 = vec![0x60, 0, 0, 0, 0, 20, 6, 64];
                v6.extend([0x20, 1, 0xd, 0xb8, 0, 1, high, low, 0, 0, 0, 0, 0, 0, 0, 1]);
                v6.extend([0xfd, 0x99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
                for frame in [
                    [&ethernet([8, 0])[..], &v4, &tcp(port)].concat(),
                    [&ethernet([0x86, 0xdd])[..], &v6, &tcp(port)].concat(),
                ] {
                    // SAFETY: the pointers are to live values, with their lengths.
                    let sent = unsafe {
                        libc::sendto(
                            socket.as_raw_fd(),
                            frame.as_ptr().cast(),
                            frame.len(),
                            0,
                            (&raw const to).cast(),
                            size_of_val(&to) as u32,
                        )
                    };
                    assert_eq!(sent, frame.len() as isize, "{}", std::io::Error::last_os_error());
                }
            }
        }
    });
}

#[test]
fn ten_thousand_sources_stay_bounded_and_balanced() {
    let detect = DetectConfig {
        syn_flood: Some(SynFlood { per_source: 1, within: seconds(5), ..flood(true).unwrap() }),
        port_scan: scan(true),
        tcp_anomalies: anomalies(true),
        ..DetectConfig::default()
    };
    let watched = watched(detect);
    let listener = watched.here.run(|| TcpListener::bind((HERE, 7000)).unwrap());
    until("it is reached", || watched.is_reached());
    let shown = watched.here.command("ip -br link show dev exn0");
    let address = shown.split_whitespace().nth(2).unwrap();
    let mut octets = address.split(':').map(|octet| u8::from_str_radix(octet, 16).unwrap());
    let target = std::array::from_fn(|_| octets.next().unwrap());
    for _ in 0..2 {
        spoof(&watched.there, target, 5_000, 12);
        // A real client is still served amid all this.
        until("it is still reached", || watched.is_reached());
    }
    settle(&watched.here);
    let list = watched.network.blocklist().unwrap();
    // A hundred bans per minute, however many sources there are; this takes less than two minutes.
    assert!(list.len() <= 300, "{} are banned", list.len());
    let spoofed = ["198.18.0.0/15", "2001:db8::/32"].map(|range| Prefix::parse(range).unwrap());
    let rows = list.rows(0, 1000);
    assert!(rows.iter().all(|row| spoofed.iter().any(|range| range.contains(row.prefix))), "{rows:?}");
    // The accounting: the tracked packets and those without room add up to everything that was not dropped.
    until("the books balance", || {
        let families = watched.network.collect();
        let all: u64 = ["xdp_packets_total", "tc_egress_packets_total"]
            .iter()
            .flat_map(|name| ["ipv4", "ipv6"].map(|family| (*name, family)))
            .map(|(name, family)| number(&families, name, &[("family", family), ("verdict", "pass")]))
            .sum();
        let rows = watched.network.top_talkers(usize::MAX);
        let known: u64 = rows.iter().map(|row| row.packets).sum();
        let untracked = number(&families, "network_untracked_packets_total", &[("table", "talkers")]);
        println!("{all} packets, {known} of {} talkers, {untracked} untracked", rows.len());
        all > 100_000 && all == known + untracked
    });
    assert!(watched.is_reached());
    drop(listener);
}
