//! Attribution of packets to cgroups and processes, and the results of DNS queries.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use exporter::exposition::Family;
use exporter::net::Mode;

use crate::counting::{config, number, numbers, observed, settle, start, until};
use crate::namespace::{HERE, Namespace, THERE, pair, up};

/// A cgroup of its own, removed when dropped, once its processes have ended.
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
        // Processes that have ended may still be in it for a moment.
        let removed = (0..500).any(|_| {
            std::fs::remove_dir(&self.0).is_ok() || {
                std::thread::sleep(Duration::from_millis(10));
                false
            }
        });
        assert!(removed || std::thread::panicking(), "{} is in use", self.0.display());
    }
}

/// Returns whether a series has this text in its labels.
fn has_label(families: &[Family], metric: &str, text: &str) -> bool {
    let mut of_metric = families.iter().filter(|family| family.name() == metric);
    of_metric.any(|family| family.samples().any(|sample| family.head().labels(sample.key).contains(text)))
}

/// A program that sends datagrams and a megabyte by TCP; the other end sends last.
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
fn packets_are_attributed_to_the_unit_of_the_socket() {
    let unit = format!("extest-{}.service", std::process::id());
    let group = Group::new(&unit);
    let (here, there) = pair();
    let mut wanted = config(Mode::Auto);
    wanted.count.cgroups = true;
    let (network, _) = start(&here, wanted);
    up(&here, &there);
    // Never read, but datagrams are accepted.
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
    // All packets with these protocols are the sender's; the interface counts an additional Ethernet header for each.
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
        let is_known = has_label(&families, "network_cgroup_packets_total", &unit);
        is_known
            && [("egress", "tc_egress"), ("ingress", "xdp")].iter().all(|(direction, prefix)| {
                let (ours, interface) = counts(&families, direction, prefix);
                ours == interface
            })
    });
    let families = network.collect();
    assert!(counts(&families, "egress", "tc_egress").0[0] > 50 + (1 << 20) / 1460);
    drop((taken, group));
    // A removed cgroup is still counted.
    let gone = number(&network.collect(), "network_cgroup_packets_total", &[("unit", &unit)]);
    assert_eq!(gone, number(&families, "network_cgroup_packets_total", &[("unit", &unit)]));
}

/// Starts a Python program in a cgroup, with these arguments; it renames itself with `name`.
fn spawn_in(here: &Namespace, group: &Group, program: &'static str, args: &[&str]) -> Child {
    const NAMES: &str =
        "import os, socket, sys\ndef name(it):\n    open(\"/proc/self/comm\", \"w\").write(it)\n";
    let procs = group.0.join("cgroup.procs");
    let args: Vec<String> = args.iter().map(ToString::to_string).collect();
    here.run(move || {
        let enter = format!("echo $$ >{} && exec python3 -c \"$0\" \"$@\"", procs.display());
        let mut command = Command::new("sh");
        command.args(["-c", &enter]).arg(format!("{NAMES}{program}")).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sh runs")
    })
}

/// Datagrams of two processes that share a socket, and a stream of two that share one. All of them end, the creator
/// first.
const SHARING: &str = r#"
there = sys.argv[1]
name("px-first")
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(10):
    udp.sendto(b"x", (there, 7300))
if os.fork() == 0:
    name("px-child")
    for _ in range(20):
        udp.sendto(b"x", (there, 7300))
    os._exit(0)
os.wait()
udp.sendto(b"x", (there, 7300))
if os.fork() == 0:
    name("px-caller")
    tcp = socket.create_connection((there, 7301))
    if os.fork() == 0:
        name("px-streamer")
        tcp.sendall(b"x" * (1 << 20))
        tcp.shutdown(socket.SHUT_WR)
        tcp.recv(1)
    os._exit(0)
os.wait()
"#;

/// A program that receives datagrams under a name of its own.
const EARLY: &str = r#"
name("px-early")
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind((sys.argv[1], 7302))
print(flush=True)
sys.stdin.read()
"#;

/// Uses MPTCP, which creates its own sockets below the process's one.
const MULTIPATH: &str = r#"
name("px-mptcp")
tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
tcp.connect((sys.argv[1], 7303))
tcp.sendall(b"x")
tcp.close()
"#;

/// Detaches this process's programs from the root cgroup by force, as `bpftool link detach` does; returns their number.
fn detach_own_links() -> usize {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let fds = fds.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_of_cgroup = |fd: &i32| {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
        info.lines().any(|line| line.starts_with("link_type") && line.ends_with("cgroup"))
    };
    // SAFETY: a system call on a descriptor, without pointers.
    fds.filter(is_of_cgroup).filter(|fd| unsafe { libbpf_sys::bpf_link_detach(*fd) } == 0).count()
}

#[test]
fn programs_detached_by_force_are_attached_again() {
    let (here, there) = pair();
    let mut config = config(Mode::Auto);
    config.count.processes = true;
    let (network, _) = start(&here, config);
    up(&here, &there);
    assert_eq!(detach_own_links(), 9);
    let own = std::fs::read_to_string("/proc/self/comm").unwrap();
    let labels = [("direction", "egress"), ("process", own.trim_end())];
    let sent = || numbers(&network.collect(), "network_process_packets_total", &labels).unwrap_or(0);
    let before = sent();
    until("packets are attributed again", || {
        here.run(|| std::net::UdpSocket::bind((HERE, 0)).unwrap().send_to(b"x", (THERE, 9)).unwrap());
        sent() > before
    });
}

#[test]
fn packets_are_attributed_to_the_process_of_the_socket() {
    let unit = format!("exproc-{}.service", std::process::id());
    let group = Group::new(&unit);
    let (here, there) = pair();
    up(&here, &there);
    // Open before counting starts, and not used afterwards.
    let mut early = spawn_in(&here, &group, EARLY, &[&HERE.to_string()]);
    early.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    let mut wanted = config(Mode::Auto);
    (wanted.count.cgroups, wanted.count.processes) = (true, true);
    let (network, _) = start(&here, wanted);
    let taken = there.run(|| UdpSocket::bind((THERE, 7300)).unwrap());
    let listener = there.run(|| TcpListener::bind((THERE, 7301)).unwrap());
    let reader = std::thread::spawn(move || {
        std::io::copy(&mut listener.accept().unwrap().0, &mut std::io::sink()).unwrap()
    });
    there.run(|| {
        let socket = UdpSocket::bind((THERE, 0)).unwrap();
        (0..7).for_each(|_| assert_eq!(socket.send_to(b"x", (HERE, 7302)).unwrap(), 1));
    });
    let mut sharing = spawn_in(&here, &group, SHARING, &[&THERE.to_string()]);
    assert!(sharing.wait().unwrap().success());
    assert_eq!(reader.join().unwrap(), 1 << 20);
    let other = there.run(|| TcpListener::bind((THERE, 7303)).unwrap());
    let mut multipath = spawn_in(&here, &group, MULTIPATH, &[&THERE.to_string()]);
    assert!(multipath.wait().unwrap().success());
    drop(other.accept().unwrap());
    settle(&here);
    let of = |families: &[Family], process: &str, direction: &str| {
        let labels = [("unit", unit.as_str()), ("process", process), ("direction", direction)];
        number(families, "network_process_packets_total", &labels)
    };
    let all = |families: &[Family], what: &str, direction: &str| {
        let labels = [("unit", unit.as_str()), ("direction", direction)];
        number(families, &format!("network_{what}_total"), &labels)
    };
    until("all names are known, and the processes' sums are those of the unit", || {
        let families = network.collect();
        ["px-first", "px-child", "px-caller", "px-early", "px-mptcp"]
            .iter()
            .all(|process| has_label(&families, "network_process_packets_total", process))
            && ["packets", "bytes"].iter().all(|what| {
                ["ingress", "egress"].iter().all(|direction| {
                    let group = all(&families, &format!("cgroup_{what}"), direction);
                    group > 0 && group == all(&families, &format!("process_{what}"), direction)
                })
            })
    });
    let families = network.collect();
    let sent = ["px-first", "px-child", "px-early"].map(|process| of(&families, process, "egress"));
    assert_eq!(sent, [11, 20, 0]);
    assert_eq!(of(&families, "px-early", "ingress"), 7);
    // A connection belongs to the process that created it, even if another process uses it and continues to after the
    // creator has ended.
    assert!(of(&families, "px-caller", "egress") > (1 << 20) / 1460);
    assert!(of(&families, "px-caller", "ingress") > 0);
    assert!(!has_label(&families, "network_process_packets_total", "px-streamer"));
    assert!(of(&families, "px-mptcp", "egress") >= 3);
    drop((early.stdin.take(), taken));
    assert!(early.wait().unwrap().success());
}

/// Answers until a datagram that is not a query ends it: with the query's last byte as the response code, or not at all
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
fn dns_queries_have_results_and_latencies() {
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
    // One query is repeated and never answered; another one is not answered at all.
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
