//! What a packet costs where many sources are blocked, beside what others offer for it, in one interleaved run.
//!
//!     cargo bench --bench blocking -- [--markdown FILE]
//!
//! Needs root, nftables and xdp-filter (Debian's xdp-tools). Each program is on the end of a veth pair of its own. One thread
//! sends from the other end, in whose place the kernel receives, drops, or passes the packet through its stack to a socket that
//! nobody reads. All programs take turns; of each the least of all turns is shown, as CPU time of that thread per packet, so
//! that sending is in it, the same for all. Sources that are blocked are random IPv4 addresses; those that are not, too.

#[path = "../tests/net/namespace.rs"]
mod namespace;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use exporter::net::{BlockConfig, BlockFile, BlockMode, Count, Mode, Network, NetworkConfig};
use libbpf_rs::{MapCore, MapFlags, MapHandle};
use namespace::{HERE, Namespace, pair, raw_socket, up};

/// Entries of the lists.
const SIZES: [usize; 2] = [10_000, 1_000_000];
/// Sources that packets come from, of either kind.
const SOURCES: usize = 16_384;
const ROUNDS: usize = 15;

/// Numbers that look random, and are the same in each run.
struct Numbers(u64);

impl Numbers {
    /// An address of the Internet.
    fn address(&mut self) -> u32 {
        loop {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let address = (self.0 >> 32) as u32;
            if (1..=223).contains(&(address >> 24)) && ![10, 127].contains(&(address >> 24)) {
                return address;
            }
        }
    }
}

fn text(address: u32) -> String {
    std::net::Ipv4Addr::from_bits(address).to_string()
}

/// UDP datagrams of 60 bytes, one from each source.
fn frames(sources: &[u32]) -> Vec<Vec<u8>> {
    let frame = |source: &u32| {
        let mut frame = vec![2, 0, 0, 0, 0x99, 1, 2, 0, 0, 0, 0x99, 2, 8, 0];
        let mut header = vec![0x45, 0, 0, 46, 0, 1, 0x40, 0, 64, 17, 0, 0];
        header.extend(source.to_be_bytes());
        header.extend(HERE.octets());
        let sum: u32 =
            header.as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        frame.extend(header);
        frame.extend([0x30, 0x39, 0x1c, 0xe8, 0, 26, 0, 0]);
        frame.resize(60, 0);
        frame
    };
    sources.iter().map(frame).collect()
}

/// What decides on packets.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Nothing,
    Exporter(Mode),
    /// A set at the ingress hook of the device.
    NftIngress,
    /// As crowdsec-firewall-bouncer makes them: a set with time-outs, at the input hook.
    NftInput,
    XdpFilter,
}

const KINDS: [(Kind, &str); 6] = [
    (Kind::Nothing, "nothing"),
    (Kind::Exporter(Mode::Tcx), "exporter, TC ingress"),
    (Kind::Exporter(Mode::Native), "exporter, native XDP"),
    (Kind::NftIngress, "nftables set, ingress hook"),
    (Kind::NftInput, "nftables set, input hook (CrowdSec's firewall bouncer)"),
    (Kind::XdpFilter, "xdp-filter, native XDP (at most 10,000)"),
];

/// A pair of interfaces with one of them.
struct Ends {
    here: Namespace,
    there: Namespace,
    network: Option<Network>,
    _socket: std::net::UdpSocket,
}

fn nft(here: &Namespace, directory: &Path, head: &str, set: &str, chain: &str, entries: &[u32]) {
    let file = directory.join("nft");
    let mut rules =
        format!("table {head} bench {{ set s {{ {set} size {}; elements = {{ ", 2 * entries.len());
    for address in entries {
        let _ = write!(rules, "{}, ", text(*address));
    }
    let _ = write!(rules, "}}\n}}\nchain c {{ {chain}\nip saddr @s counter drop\n}}\n}}\n");
    std::fs::write(&file, rules).expect("write rules");
    here.command(&format!("nft -f {}", file.display()));
}

/// The program puts in one address itself; the others are as it puts them in.
fn xdp_filter(here: &Namespace, entries: &[u32]) {
    here.command("xdp-filter load -m native -p allow -f ipv4 exn0");
    here.command(&format!("xdp-filter ip -m src {}", text(entries[0])));
    let map = MapHandle::from_pinned_path("/sys/fs/bpf/xdp-filter/filter_ipv4").expect("its map");
    let value =
        map.lookup_percpu(&entries[0].to_be_bytes(), MapFlags::ANY).expect("its map").expect("an entry");
    for address in entries {
        map.update_percpu(&address.to_be_bytes(), &value, MapFlags::ANY).expect("an entry");
    }
}

impl Ends {
    fn new(kind: Kind, entries: &[u32], directory: &Path) -> Self {
        let (here, there) = pair();
        let mut network = None;
        match kind {
            Kind::Nothing => {}
            Kind::Exporter(mode) => {
                let path = directory.join("list");
                let lines: String = entries.iter().map(|address| text(*address) + "\n").collect();
                std::fs::write(&path, lines).expect("write a list");
                let files = vec![BlockFile { path, reason: String::new() }];
                let block = BlockConfig { mode: BlockMode::Enforce, files, ..BlockConfig::default() };
                let config = NetworkConfig {
                    interfaces: vec!["exn0".into()],
                    mode,
                    count: Count::default(),
                    block: Some(block),
                    ..NetworkConfig::default()
                };
                network = Some(here.run(move || Network::start(config, |_| {}).expect("run as root")));
            }
            Kind::NftIngress => {
                let chain = "type filter hook ingress device exn0 priority -500;";
                nft(&here, directory, "netdev", "type ipv4_addr;", chain, entries);
            }
            Kind::NftInput => {
                let chain = "type filter hook input priority -10; policy accept;";
                nft(&here, directory, "ip", "type ipv4_addr; flags timeout; timeout 4h;", chain, entries);
            }
            Kind::XdpFilter => xdp_filter(&here, entries),
        }
        up(&here, &there);
        for setting in ["all", "exn0"] {
            here.command(&format!("sysctl -qw net.ipv4.conf.{setting}.rp_filter=0"));
        }
        here.command("ip route add default dev exn0");
        let socket = here.run(|| std::net::UdpSocket::bind((HERE, 7400)).expect("a port"));
        Self { here, there, network, _socket: socket }
    }

    /// Nanoseconds of CPU time for each of these frames.
    fn send(&self, frames: &Arc<Vec<Vec<u8>>>) -> f64 {
        let frames = frames.clone();
        self.there.run(move || {
            let socket = bound();
            let now = || {
                let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
                time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
            };
            let begun = now();
            for frame in frames.iter() {
                // SAFETY: the bytes outlive the call.
                let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
                assert_eq!(sent, frame.len() as isize, "{}", std::io::Error::last_os_error());
            }
            (now() - begun) / frames.len() as f64
        })
    }
}

/// A packet socket that sends out of the pair.
fn bound() -> std::os::fd::OwnedFd {
    let socket = raw_socket();
    // SAFETY: the structure is plain numbers, and outlives the call, which is told its size.
    let done = unsafe {
        let mut to: libc::sockaddr_ll = std::mem::zeroed();
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = libc::if_nametoindex(c"exn1".as_ptr()) as i32;
        let size = size_of::<libc::sockaddr_ll>() as u32;
        libc::bind(socket.as_raw_fd(), std::ptr::from_ref(&to).cast(), size)
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    socket
}

/// Rows of one size: what is dropped and what passes, by kind.
fn measure(size: usize) -> Vec<(Kind, &'static str, [f64; 2])> {
    let directory = tempfile::tempdir().expect("a directory");
    let mut numbers = Numbers(size as u64);
    let mut entries = BTreeSet::new();
    while entries.len() < size {
        entries.insert(numbers.address());
    }
    let mut others = BTreeSet::new();
    while others.len() < SOURCES {
        others.insert(numbers.address());
    }
    let passed: Vec<u32> = others.difference(&entries).copied().collect();
    let entries: Vec<u32> = entries.into_iter().collect();
    // Spread over all of them, in no order.
    let step = (size / SOURCES).max(1);
    let mut blocked: Vec<u32> = entries.iter().step_by(step).take(SOURCES).copied().collect();
    blocked.sort_by_key(|address| address.wrapping_mul(0x9e37_79b1));
    let frames = [Arc::new(frames(&blocked)), Arc::new(frames(&passed))];
    let kinds = KINDS.iter().filter(|(kind, _)| *kind != Kind::XdpFilter || size <= 10_000);
    let paths: Vec<_> =
        kinds.map(|(kind, name)| (*kind, *name, Ends::new(*kind, &entries, directory.path()))).collect();
    let mut rows: Vec<_> = paths.iter().map(|(kind, name, _)| (*kind, *name, [f64::INFINITY; 2])).collect();
    // What is attached and filled has settled.
    std::thread::sleep(Duration::from_secs(1));
    for _ in 0..ROUNDS {
        for ((_, _, path), (_, _, best)) in paths.iter().zip(&mut rows) {
            for (best, frames) in best.iter_mut().zip(&frames) {
                *best = best.min(path.send(frames));
            }
        }
    }
    for (kind, name, path) in paths {
        if kind == Kind::XdpFilter {
            path.here.command("xdp-filter unload exn0");
        }
        if let Some(network) = path.network {
            let families = network.collect();
            let drops = families.iter().find(|family| family.name() == "xdp_drops_total").expect("drops");
            assert!(!drops.is_empty(), "{name} dropped nothing");
        }
    }
    rows
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut markdown = None;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // Cargo says this to every benchmark.
            "--bench" => {}
            "--markdown" => markdown = arguments.next().map(PathBuf::from),
            other => panic!("unknown option {other}"),
        }
    }
    let mut table = String::from(
        "| blocklist | entries | a packet that is dropped, ns | one that passes, ns |\n|---|---:|---:|---:|\n",
    );
    for size in SIZES {
        for (kind, name, [dropped, passed]) in measure(size) {
            let dropped = if kind == Kind::Nothing { "-".to_string() } else { format!("{dropped:.0}") };
            let _ = writeln!(table, "| {name} | {size} | {dropped} | {passed:.0} |");
        }
    }
    print!("{table}");
    if let Some(path) = markdown {
        std::fs::write(&path, &table).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    }
}
