//! Compares the cost of blocking: the exporter (native XDP and TC), nftables sets, ipset with iptables, and xdp-filter,
//! with 10,000 and 1,000,000 addresses.
//!
//! Usage: `cargo bench --bench blocklists -- [--rounds N] [--markdown FILE]`
//!
//! Needs root, nft, iptables, ipset and xdp-filter. A kernel test run sends packets through a veth into a network
//! namespace, where they traverse the stack to a UDP socket that is never read, unless a blocker drops them. The
//! sending thread does all of that work itself, so its CPU time is the cost of a packet. All blockers take turns in
//! each round and are compared within it; the table shows the medians.

include!(concat!(env!("OUT_DIR"), "/net_bench.skel.rs"));

#[path = "../tests/net/namespace.rs"]
mod namespace;
mod support;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use exporter::net::{BlockConfig, BlockFile, BlockMode, Mode, Network, NetworkConfig};
use generated::{NetBenchSkel, NetBenchSkelBuilder};
use libbpf_rs::query::MapInfoIter;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle, OpenObject};
use rustix::time::{ClockId, clock_gettime};

use namespace::Namespace;
use support::{Options, Result};

/// The number of source addresses.
const SOURCES: u32 = 262_144;
/// The number of the first address that is on no list.
const UNLISTED: u32 = 1 << 24;
const PACKETS: u32 = 100_000;
/// `BPF_F_TEST_XDP_LIVE_FRAMES`.
const LIVE_FRAMES: u32 = 2;

/// Returns the address of a number, as `bench_send` generates it.
fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(number.wrapping_mul(2_654_435_761) & 0x7fff_ffff)
}

/// A blocker, and how it is set up and removed in the receiving namespace.
#[derive(Clone, Copy, PartialEq)]
enum Blocker {
    Nobody,
    Native,
    Tcx,
    Nftables,
    /// The rules of CrowdSec's firewall bouncer: a set with timeouts.
    Bouncer,
    Ipset,
    XdpFilter,
}

impl Blocker {
    const ALL: [Self; 7] =
        [Self::Nobody, Self::Native, Self::Tcx, Self::Nftables, Self::Bouncer, Self::Ipset, Self::XdpFilter];

    fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Native => "this exporter, native XDP",
            Self::Tcx => "this exporter, TC ingress",
            Self::Nftables => "nftables: set, hook ingress",
            Self::Bouncer => "crowdsec-firewall-bouncer's rules: nftables set with timeouts, hook input",
            Self::Ipset => "iptables with ipset hash:ip, chain INPUT",
            Self::XdpFilter => "xdp-filter",
        }
    }
}

/// A blocker in place. Dropping it removes the blocker.
struct Placed<'a> {
    who: Blocker,
    there: &'a Namespace,
    _network: Option<Network>,
}

fn piped(there: &Namespace, program: &str, options: &[&str], input: PathBuf) {
    let (program, options): (_, Vec<String>) =
        (program.to_string(), options.iter().map(ToString::to_string).collect());
    there.run(move || {
        let file = File::open(&input).expect("the list");
        let status = Command::new(&program).args(&options).stdin(file).stdout(Stdio::null()).status();
        assert!(status.is_ok_and(|status| status.success()), "{program}");
    });
}

impl<'a> Placed<'a> {
    fn new(who: Blocker, there: &'a Namespace, lists: &Path) -> Self {
        let list = |name: &str| lists.join(name);
        let mut network = None;
        match who {
            Blocker::Nobody => {}
            Blocker::Native | Blocker::Tcx => {
                let files = vec![BlockFile { path: list("plain"), reason: "bench".into() }];
                let block = BlockConfig { mode: BlockMode::Enforce, files, ..BlockConfig::default() };
                let mode = if who == Blocker::Native { Mode::Native } else { Mode::Tcx };
                let config = NetworkConfig {
                    interfaces: vec!["exn0".into()],
                    mode,
                    block: Some(block),
                    ..NetworkConfig::default()
                };
                let started = there.run(move || Network::start(config, |_| {}));
                let started = started.expect("counting starts");
                assert!(started.attached().iter().all(|(_, hook)| hook.is_some()), "not attached");
                network = Some(started);
            }
            Blocker::Nftables => piped(there, "nft", &["-f", "-"], list("nft")),
            Blocker::Bouncer => piped(there, "nft", &["-f", "-"], list("bouncer")),
            Blocker::Ipset => {
                piped(there, "ipset", &["restore"], list("ipset"));
                there.command("iptables -I INPUT -m set --match-set listed src -j DROP");
            }
            Blocker::XdpFilter => {
                there.command("xdp-filter load --mode native --features ipv4 exn0");
                let path = list("plain");
                there.run(move || fill_xdp_filter(&path));
            }
        }
        Self { who, there, _network: network }
    }
}

/// Puts all addresses directly into xdp-filter's map: a command per address would take minutes.
fn fill_xdp_filter(path: &Path) {
    // The latest map of that name: without a BPF file system the map is not pinned.
    let ids = MapInfoIter::default().filter(|map| map.name == "filter_ipv4").map(|map| map.id);
    let map = MapHandle::from_map_id(ids.last().expect("a map of xdp-filter")).expect("its map");
    for line in fs::read_to_string(path).expect("the list").lines() {
        let address: Ipv4Addr = line.parse().expect("an address");
        // The lowest flag: match as a source address.
        let cpus = libbpf_rs::num_possible_cpus().expect("CPUs");
        let values = vec![1u64.to_ne_bytes().to_vec(); cpus];
        map.update_percpu(&address.octets(), &values, MapFlags::ANY).expect("an address");
    }
}

impl Drop for Placed<'_> {
    fn drop(&mut self) {
        match self.who {
            Blocker::Nobody | Blocker::Native | Blocker::Tcx => {}
            Blocker::Nftables | Blocker::Bouncer => drop(self.there.command("nft flush ruleset")),
            Blocker::Ipset => {
                self.there.command("iptables -F INPUT");
                self.there.command("ipset destroy listed");
            }
            Blocker::XdpFilter => drop(self.there.command("xdp-filter unload exn0")),
        }
    }
}

/// Writes the list in the file format of each blocker.
fn write_lists(directory: &Path, entries: u32) -> Result<()> {
    // Some blockers do not accept 0.0.0.0 as an address.
    let all = || (1..=entries).map(address);
    let join = |separator: &str, end: &str| {
        let mut text = String::new();
        for address in all() {
            let _ = write!(text, "{address}{end}{separator}");
        }
        text
    };
    fs::write(directory.join("plain"), join("\n", ""))?;
    fs::write(
        directory.join("nft"),
        format!(
            "table netdev t {{ set listed {{ type ipv4_addr; elements = {{ {} }}; }}\n\
             chain c {{ type filter hook ingress device exn0 priority 0; ip saddr @listed drop; }}\n}}\n",
            join(",", "")
        ),
    )?;
    fs::write(
        directory.join("bouncer"),
        format!(
            "table ip crowdsec {{ set listed {{ type ipv4_addr; flags timeout; elements = {{ {} }}; }}\n\
             chain c {{ type filter hook input priority -10; ip saddr @listed drop; }}\n}}\n",
            join(",", " timeout 4h")
        ),
    )?;
    let mut ipset = format!("create listed hash:ip hashsize 4096 maxelem {}\n", 2 * entries);
    for address in all() {
        let _ = writeln!(ipset, "add listed {address}");
    }
    fs::write(directory.join("ipset"), ipset)?;
    Ok(())
}

/// Returns a UDP datagram of 60 bytes to the receiver's socket.
fn frame() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0x99, 1, 2, 0, 0, 0, 0x99, 2, 8, 0];
    frame.extend([0x45, 0, 0, 46, 0, 1, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0, 10, 99, 0, 1]);
    frame.extend([0x30, 0x39, 0x1c, 0xe8, 0, 26, 0, 0]);
    frame.resize(60, 0);
    frame
}

/// The sending side.
struct Sender<'a> {
    here: Namespace,
    index: u32,
    skel: NetBenchSkel<'a>,
}

impl Sender<'_> {
    /// Returns the nanoseconds of CPU time per packet, with `count` source addresses from number `first` on.
    fn send(&mut self, first: u32, count: u32) -> f64 {
        let sending = self.skel.maps.data_data.as_deref_mut().expect("variables");
        (sending.sending.first, sending.sending.count) = (first, count);
        let (program, index) = (self.skel.progs.bench_send.as_fd().as_raw_fd(), self.index);
        self.here.run(move || {
            let frame = frame();
            // The fields of struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
            let mut context = [0, frame.len() as u32, 0, index, 0, 0];
            let mut options: libbpf_sys::bpf_test_run_opts = Default::default();
            options.sz = size_of_val(&options) as _;
            options.data_in = frame.as_ptr().cast();
            options.data_size_in = frame.len() as u32;
            options.ctx_in = context.as_mut_ptr().cast();
            options.ctx_size_in = size_of_val(&context) as u32;
            options.repeat = PACKETS as i32;
            options.flags = LIVE_FRAMES;
            let now = || {
                let time = clock_gettime(ClockId::ThreadCPUTime);
                time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
            };
            let start = now();
            // SAFETY: the program lives as long as the skeleton, and everything that the options point to lives until
            // the call returns.
            let done = unsafe { libbpf_sys::bpf_prog_test_run_opts(program, &raw mut options) };
            assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
            (now() - start) / f64::from(PACKETS)
        })
    }
}

/// Returns the median.
fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn main() -> Result<()> {
    let options = Options::from_args()?;
    let (there, here) = namespace::pair();
    let mut storage = MaybeUninit::<OpenObject>::uninit();
    let mut open = NetBenchSkelBuilder::default().open(&mut storage)?;
    for mut program in open.open_object_mut().progs_mut() {
        let is_sender = program.name() == "bench_send";
        program.set_autoload(is_sender);
    }
    let skel = open.load()?;
    namespace::up(&there, &here);
    // A veth end only accepts its peer's XDP frames with GRO or an XDP program.
    there.command("ethtool -K exn0 gro on");
    there.command("ip route add default dev exn0");
    there.command("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.exn0.rp_filter=0");
    // Never read from: packets that overflow its queue have traversed the stack all the same.
    let _socket = there.run(|| UdpSocket::bind((namespace::HERE, 7400)))?;
    let shown: serde_json::Value = serde_json::from_str(&here.command("ip -j link show dev exn1"))?;
    let index = shown[0]["ifindex"].as_u64().ok_or("no index")? as u32;
    let mut sender = Sender { here, index, skel };
    let directory = tempfile::tempdir()?;
    let mut text = String::from(
        "| who blocks | entries | not listed: ns more than nobody | listed: ns in all | listed, of passing |\n\
         |---|---:|---:|---:|---:|\n",
    );
    for entries in [10_000, 1_000_000] {
        write_lists(directory.path(), entries)?;
        let mut all: Vec<Vec<(f64, f64)>> = vec![Vec::new(); Blocker::ALL.len()];
        for _ in 0..options.rounds {
            for (who, times) in Blocker::ALL.into_iter().zip(&mut all) {
                // xdp-filter's map has room for 10,000.
                if who == Blocker::XdpFilter && entries > 10_000 {
                    continue;
                }
                let _placed = Placed::new(who, &there, directory.path());
                let before = there.statistics("exn0").rx_packets;
                // A warm-up run.
                sender.send(UNLISTED, SOURCES);
                let pass = sender.send(UNLISTED, SOURCES);
                let hit = sender.send(1, entries.min(SOURCES));
                let came = there.statistics("exn0").rx_packets - before;
                if came < u64::from(3 * PACKETS) * 99 / 100 {
                    eprintln!("{}: only {came} of {} packets came", who.name(), 3 * PACKETS);
                }
                times.push((pass, hit));
            }
        }
        let nobody: Vec<f64> = all[0].iter().map(|(pass, _)| *pass).collect();
        for (who, times) in Blocker::ALL.iter().zip(&all) {
            if times.is_empty() {
                let _ = writeln!(text, "| {} | {entries} | no room | | |", who.name());
                continue;
            }
            let more = median(times.iter().zip(&nobody).map(|((pass, _), nobody)| pass - nobody).collect());
            let hit = median(times.iter().map(|(_, hit)| *hit).collect());
            let ratio = median(times.iter().zip(&nobody).map(|((_, hit), nobody)| hit / nobody).collect());
            let _ = writeln!(text, "| {} | {entries} | {more:.0} | {hit:.0} | {ratio:.2} |", who.name());
        }
    }
    print!("{text}");
    if let Some(path) = options.markdown {
        fs::write(path, &text)?;
    }
    Ok(())
}
