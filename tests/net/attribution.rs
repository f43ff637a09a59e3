//! Whose packets they are, and what becomes of DNS queries.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use exporter::exposition::Family;
use exporter::net::Mode;

use crate::counting::{config, number, observed, settle, start, until};
use crate::namespace::{THERE, pair, up};

/// A control group of its own; it is gone when this is dropped, and who was in it.
struct Group(PathBuf);

impl Group {
    fn new(name: &str) -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let root = mounts.lines().find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (at, kind) = (words.next()?, words.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(at))
        });
        let path = root.expect("a cgroup2 file system").join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let removed = std::fs::remove_dir(&self.0);
        assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
    }
}

/// Datagrams and a megabyte by TCP, whose other end is the last to say something.
const SENDER: &str = r#"
import socket, sys
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(50):
    udp.sendto(b"x" * 100, (sys.argv[1], 7300))
tcp = socket.create_connection((sys.argv[1], 7301))
tcp.sendall(b"x" * (1 << 20))
tcp.shutdown(socket.SHUT_WR)
while tcp.recv(4096):
    pass
"#;

#[test]
fn packets_are_those_of_the_sockets_unit() {
    let unit = format!("extest-{}.service", std::process::id());
    let group = Group::new(&unit);
    let (here, there) = pair();
    let mut wanted = config(Mode::Auto);
    wanted.count.cgroups = true;
    let (network, _) = start(&here, wanted);
    up(&here, &there);
    // Nobody reads what is sent, but it is taken.
    let taken = there.run(|| UdpSocket::bind((THERE, 7300)).unwrap());
    let listener = there.run(|| TcpListener::bind((THERE, 7301)).unwrap());
    let reader = std::thread::spawn(move || {
        std::io::copy(&mut listener.accept().unwrap().0, &mut std::io::sink()).unwrap()
    });
    let procs = group.0.join("cgroup.procs");
    let sent = here.run(move || {
        let enter = format!("echo $$ >{} && exec python3 -c '{SENDER}' {THERE}", procs.display());
        Command::new("sh").args(["-c", &enter]).output().expect("sh runs")
    });
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    assert_eq!(reader.join().unwrap(), 1 << 20);
    settle(&here);
    // All that crosses with these protocols is the sender's; the interface counts an Ethernet header with each.
    let counts = |families: &[Family], direction: &str, prefix: &str| {
        let ours = ["packets", "bytes"].map(|what| {
            let labels = [("unit", unit.as_str()), ("direction", direction)];
            number(families, &format!("network_cgroup_{what}_total"), &labels)
        });
        let interface = ["packets", "bytes"].map(|what| {
            let of = |protocol| {
                let labels = [("family", "ipv4"), ("protocol", protocol)];
                number(families, &format!("{prefix}_{what}_total"), &labels)
            };
            of("udp") + of("tcp")
        });
        (ours, [interface[0], interface[1] - 14 * interface[0]])
    };
    until("the unit is known and has all packets", || {
        let families = network.collect();
        let is_known = families.iter().any(|family| {
            family.name() == "network_cgroup_packets_total"
                && family.samples().any(|sample| family.head().labels(sample.key).contains(&unit))
        });
        is_known
            && [("egress", "tc_egress"), ("ingress", "xdp")].iter().all(|(direction, prefix)| {
                let (ours, interface) = counts(&families, direction, prefix);
                ours == interface
            })
    });
    let families = network.collect();
    assert!(counts(&families, "egress", "tc_egress").0[0] > 50 + (1 << 20) / 1460);
    drop((taken, group));
    // What is gone is counted on.
    let gone = number(&network.collect(), "network_cgroup_packets_total", &[("unit", &unit)]);
    assert_eq!(gone, number(&families, "network_cgroup_packets_total", &[("unit", &unit)]));
}

/// Answers until it is told to end by a datagram that is no query: with the query's last byte as the response code, and not at all
/// if that is 99.
fn serve(socket: UdpSocket) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut query = [0u8; 512];
        loop {
            let (length, from) = socket.recv_from(&mut query).unwrap();
            if length < 12 {
                return;
            }
            let code = query[length - 1];
            if code == 99 {
                continue;
            }
            std::thread::sleep(Duration::from_millis(5));
            query[2..4].copy_from_slice(&[0x81, 0x80 | code]);
            socket.send_to(&query[..length], from).unwrap();
        }
    })
}

#[test]
fn dns_queries_have_results_and_times() {
    let (here, there) = pair();
    let mut wanted = config(Mode::Auto);
    wanted.count.dns = true;
    let (network, _) = start(&here, wanted);
    up(&here, &there);
    let remote = serve(there.run(|| UdpSocket::bind((THERE, 53)).unwrap()));
    let local = serve(here.run(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).unwrap()));
    let ask = |to: Ipv4Addr, queries: &'static [(u16, u8)]| {
        here.run(move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            for (id, code) in queries {
                let mut query = vec![0; 30];
                query[..2].copy_from_slice(&id.to_be_bytes());
                query[29] = *code;
                socket.send_to(&query, (to, 53)).unwrap();
                if *code != 99 {
                    let mut answer = [0; 512];
                    socket.recv_from(&mut answer).unwrap();
                    assert_eq!(answer[..2], id.to_be_bytes());
                }
            }
            socket.send_to(&[0], (to, 53)).unwrap();
        });
    };
    // One is asked again, and is never answered; one has no answer at all.
    ask(THERE, &[(1, 0), (2, 0), (3, 3), (4, 2), (5, 5), (6, 9), (7, 99), (7, 99), (8, 99)]);
    ask(Ipv4Addr::LOCALHOST, &[(1, 0), (1, 3)]);
    remote.join().unwrap();
    local.join().unwrap();
    let queries = |server: &str, result: &str| {
        let labels = [("server", server), ("result", result)];
        number(&network.collect(), "network_dns_queries_total", &labels)
    };
    until("the unanswered are given up", || queries("remote", "timeout") == 3);
    let results = ["noerror", "formerr", "servfail", "nxdomain", "notimp", "refused", "other", "untracked"];
    assert_eq!(results.map(|result| queries("remote", result)), [2, 0, 1, 1, 0, 1, 1, 0]);
    assert_eq!(results.map(|result| queries("local", result)), [1, 0, 0, 1, 0, 0, 0, 0]);
    assert_eq!(queries("local", "timeout"), 0);
    let families = network.collect();
    for (server, count) in [("remote", 6), ("local", 2)] {
        let (answers, sum) = observed(&families, "network_dns_duration_seconds", server);
        assert_eq!(answers, count, "{server}");
        assert!(sum >= 5000 * answers, "{server}: {sum} microseconds");
    }
}
