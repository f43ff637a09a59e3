//! The cost of a packet: test runs of the programs interleaved with runs of an empty program, in nanoseconds per
//! packet.
//!
//! Usage: `cargo bench --bench xdp -- [--markdown FILE]`
//!
//! Needs root. The kernel places a program's code wherever there is room, at multiples of four bytes, and the cost of
//! fetching it varies by 4 ns with the place. So all programs are loaded many times. In each load, the programs and an
//! empty one take turns, and the fastest turn of each counts, since other load on the machine can only slow them down.
//! Loads in which the empty program never came within a tenth of its best time are left out. The table shows the median
//! and the minimum of the remaining loads.

include!(concat!(env!("OUT_DIR"), "/net_bench.skel.rs"));

use std::fmt::Write;
use std::mem::MaybeUninit;
use std::path::PathBuf;

use exporter::net::{BlockConfig, BlockEntry, BlockMode, BlockRule, Blocklist, Prefix};
use generated::{NetBenchProgs, NetBenchSkel, NetBenchSkelBuilder};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, OpenObject, ProgramInput, ProgramMut};
use rustix::time::{ClockId, clock_gettime};

/// The number of loads that a row is made of.
const LOADS: usize = 20;
/// The maximum number of loads, on a machine so busy that many are left out.
const MOST_LOADS: usize = 60;
const ROUNDS: usize = 25;
const REPEAT: u32 = 50_000;
/// The target for each kind of program, in nanoseconds and in the order of `kinds`.
const TARGETS: [i64; 8] = [5, 50, 80, 50, 100, 5, 8, 200];
/// Sets in each of the talker and flow tables, which makes 4096 entries.
const SETS: u32 = 512;
/// Entries of the blocklist.
const BLOCKED: u16 = 10_000;
/// Prefixes of groups: this many IPv4 /24 networks, and as many IPv6 /64 networks.
const PREFIXES: u16 = 1000;

fn ipv4(number: u8, transport: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    let total = (20 + transport.len()) as u8;
    frame.extend([0x45, 0, 0, total, 0, 1, 0x40, 0, 64, number, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend(transport);
    frame
}

fn ipv6(number: u8, transport: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd];
    frame.extend([0x60, 0, 0, 0, 0, transport.len() as u8, number, 64]);
    frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    frame.extend(transport);
    frame
}

fn tcp() -> Vec<u8> {
    let mut segment = vec![0x30, 0x39, 1, 0xbb, 0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0x10, 0, 1, 0, 0, 0, 0];
    segment.extend([0; 12]);
    segment.extend([b'x'; 40]);
    segment
}

fn udp() -> Vec<u8> {
    let mut datagram = vec![0x30, 0x39, 0, 53, 0, 48, 0, 0];
    datagram.extend([b'x'; 40]);
    datagram
}

/// Expedites the kernel's RCU grace periods, for which it waits before and after every test run, while it lives. This
/// changes how long the benchmark takes, but not what it measures.
struct Expedited(Option<String>);

const EXPEDITED: &str = "/sys/kernel/rcu_expedited";

impl Expedited {
    fn start() -> Self {
        let before = std::fs::read_to_string(EXPEDITED).ok();
        Self(before.filter(|_| std::fs::write(EXPEDITED, "1").is_ok()))
    }
}

impl Drop for Expedited {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // A destructor cannot report an error.
            let _ = std::fs::write(EXPEDITED, before);
        }
    }
}

/// Returns the nanoseconds per packet from this thread's CPU time, as the kernel itself only reports whole nanoseconds.
/// Some of it is the overhead of the system call, which is the same for every program.
fn run(program: &ProgramMut<'_>, frame: &[u8]) -> f64 {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
    };
    let input = ProgramInput { data_in: Some(frame), repeat: REPEAT, ..ProgramInput::default() };
    let start = now();
    program.test_run(input).expect("the kernel refused a test run");
    (now() - start) / f64::from(REPEAT)
}

/// Returns each kind of program with the empty one that it is compared with. `groups` are the programs that count by
/// group of prefixes, `blocking` those with a blocklist: an empty one, one of other addresses, and one of other
/// addresses and the sender.
fn kinds<'a>(
    programs: &'a NetBenchProgs<'_>,
    groups: &'a NetBenchProgs<'_>,
    blocking: [&'a NetBenchProgs<'_>; 3],
) -> [(&'static str, &'a ProgramMut<'a>, &'a ProgramMut<'a>); TARGETS.len()] {
    [
        ("statistics", &programs.net_ingress, &programs.bench_empty),
        ("statistics, talkers and flows", &programs.net_ingress_talkers, &programs.bench_empty),
        ("the same, 200,000 spoofed sources", &programs.bench_spoofed, &programs.bench_spoofed_empty),
        ("sent: statistics, talkers and flows", &programs.net_egress, &programs.bench_empty_tc),
        ("statistics, 2,000 prefixes", &groups.net_ingress_slow, &groups.bench_empty),
        ("statistics, empty blocklist", &blocking[0].net_ingress_blocklist, &blocking[0].bench_empty),
        ("statistics, 10,000 blocked", &blocking[1].net_ingress_blocklist, &blocking[1].bench_empty),
        ("dropped, 10,000 blocked", &blocking[2].net_ingress_blocklist, &blocking[2].bench_empty),
    ]
}

/// The measurements of one kind of program with one frame.
#[derive(Default)]
struct Samples {
    name: &'static str,
    /// The fastest turns of the empty program and of this one, by load.
    loads: Vec<(f64, f64)>,
}

impl Samples {
    /// Returns the extra cost of a packet over the empty program in each load in which the empty program was fast, in
    /// ascending order.
    fn quiet(&self) -> Vec<f64> {
        let quickest = self.quickest_empty();
        let quiet = self.loads.iter().filter(|(empty, _)| *empty < quickest * 1.1);
        let mut more: Vec<f64> = quiet.map(|(empty, cost)| cost - empty).collect();
        more.sort_by(f64::total_cmp);
        more
    }

    fn quickest_empty(&self) -> f64 {
        self.loads.iter().map(|(empty, _)| *empty).fold(f64::INFINITY, f64::min)
    }
}

/// Returns a blocklist of `entries` prefixes, half of them IPv4 /24 and half IPv6 /64 networks, plus the sender if it
/// is blocked too.
fn blocklist(entries: u16, sender: bool) -> Blocklist {
    let others = (0..entries / 2).flat_map(|number| {
        let [high, low] = number.to_be_bytes();
        [format!("192.{high}.{low}.0/24"), format!("2001:db8:0:{number:x}::/64")]
    });
    let senders = ["10.0.0.1", "fd00::1"].iter().filter(|_| sender).map(ToString::to_string);
    let entry = |text: String| BlockEntry {
        prefix: Prefix::parse(&text).expect("a prefix"),
        rule: BlockRule::default(),
    };
    let entries = others.chain(senders).map(entry).collect();
    Blocklist::new(&BlockConfig { mode: BlockMode::Enforce, entries, ..BlockConfig::default() })
        .expect("a blocklist")
}

/// Loads all programs; with `groups`, those that count by group of prefixes; with a blocklist, those that look it up.
fn load<'a>(
    storage: &'a mut MaybeUninit<OpenObject>,
    groups: bool,
    blocking: Option<&Blocklist>,
) -> NetBenchSkel<'a> {
    let mut open = NetBenchSkelBuilder::default().open(storage).expect("failed to open the programs");
    let slots = exporter::net::cpu_slots().expect("possible CPUs");
    open.maps
        .bss_fast
        .set_value_size((slots * size_of::<generated::types::net_fast>()) as u32)
        .expect("fast");
    exporter::net::set_operand(&mut open.progs.net_ingress, exporter::net::FAST_BLOCKS, slots as i32 - 1)
        .expect("operand");
    let program = &mut open.progs.net_ingress_blocklist;
    exporter::net::set_operand(program, exporter::net::FAST_BLOCKS, slots as i32 - 1).expect("operand");
    let constants = open.maps.rodata_data.as_deref_mut().expect("constants");
    (constants.with_talkers, constants.with_flows) = (!groups, !groups);
    constants.with_cidrs = groups;
    constants.with_blocklist = blocking.is_some();
    constants.hash_keys = std::array::from_fn(|at| 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(2 * at as u64 + 1));
    (constants.talker_sets_mask, constants.flow_sets_mask) = (SETS - 1, SETS - 1);
    let shared = blocking.map(Blocklist::shared).into_iter().flatten();
    let shared: std::collections::BTreeMap<_, _> = shared.collect();
    for mut map in open.open_object_mut().maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        if let Some(fd) = shared.get(name.as_str()) {
            map.reuse_fd(*fd).expect("a map of the blocklist");
        }
    }
    open.maps.talkers.set_max_entries(SETS).expect("sets of talkers");
    open.maps.flows.set_max_entries(SETS).expect("sets of flows");
    open.maps.cidrs.set_max_entries(2 * u32::from(PREFIXES)).expect("prefixes");
    let skel = open.load().expect("the kernel refused the programs; run as root");
    for number in 0..PREFIXES {
        let [high, low] = number.to_be_bytes();
        for text in [format!("10.{high}.{low}.0/24"), format!("fd00:0:0:{number:x}::/64")] {
            let prefix = Prefix::parse(&text).expect("a prefix");
            skel.maps.cidrs.update(&prefix.key(), &1u32.to_ne_bytes(), MapFlags::ANY).expect("a prefix");
        }
    }
    skel
}

/// Measures one load of all programs.
fn measure(frames: &[(&str, Vec<u8>)], rows: &mut [Vec<Samples>]) {
    let [mut storage, mut other, mut empty, mut full, mut met] = [const { MaybeUninit::uninit() }; 5];
    let (skel, groups) = (load(&mut storage, false, None), load(&mut other, true, None));
    let lists = [blocklist(0, false), blocklist(BLOCKED, false), blocklist(BLOCKED, true)];
    let blocking = [(&mut empty, &lists[0]), (&mut full, &lists[1]), (&mut met, &lists[2])]
        .map(|(to, list)| load(to, false, Some(list)));
    let blocking = [&blocking[0].progs, &blocking[1].progs, &blocking[2].progs];
    let mut turns = vec![vec![(f64::INFINITY, f64::INFINITY); TARGETS.len()]; frames.len()];
    for _ in 0..ROUNDS {
        for ((_, frame), row) in frames.iter().zip(&mut turns) {
            for ((_, program, empty), best) in
                kinds(&skel.progs, &groups.progs, blocking).into_iter().zip(row)
            {
                *best = (best.0.min(run(empty, frame)), best.1.min(run(program, frame)));
            }
        }
    }
    for (row, turns) in rows.iter_mut().zip(turns) {
        for ((samples, turn), (name, ..)) in
            row.iter_mut().zip(turns).zip(kinds(&skel.progs, &groups.progs, blocking))
        {
            samples.name = name;
            samples.loads.push(turn);
        }
    }
}

fn table(frames: &[(&str, Vec<u8>)], rows: &[Vec<Samples>]) -> String {
    let mut to = String::from(
        "| packet program | frame | an empty one, ns | ns more: least | median | target |\n|---|---|---:|---:|---:|---:|\n",
    );
    for (kind, target) in TARGETS.iter().enumerate() {
        for ((frame, _), row) in frames.iter().zip(rows) {
            let (empty, more) = (row[kind].quickest_empty(), row[kind].quiet());
            let (name, least, median) = (row[kind].name, more[0], more[more.len() / 2]);
            let _ = writeln!(to, "| {name} | {frame} | {empty:.1} | {least:.1} | {median:.1} | {target} |");
        }
    }
    to
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut markdown = None;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // Cargo passes this to every benchmark.
            "--bench" => {}
            "--markdown" => markdown = arguments.next().map(PathBuf::from),
            other => panic!("unknown option {other}"),
        }
    }
    let frames = [
        ("IPv4 TCP", ipv4(6, &tcp())),
        ("IPv4 UDP", ipv4(17, &udp())),
        ("IPv6 TCP", ipv6(6, &tcp())),
        ("IPv6 UDP", ipv6(17, &udp())),
    ];
    let mut rows: Vec<Vec<Samples>> =
        frames.iter().map(|_| TARGETS.iter().map(|_| Samples::default()).collect()).collect();
    let expedited = Expedited::start();
    for _ in 0..MOST_LOADS {
        measure(&frames, &mut rows);
        if rows.iter().flatten().all(|samples| samples.quiet().len() >= LOADS) {
            break;
        }
    }
    drop(expedited);
    let table = table(&frames, &rows);
    print!("{table}");
    if let Some(path) = markdown {
        std::fs::write(&path, &table).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    }
}
