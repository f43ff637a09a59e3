//! What a packet costs: the programs in test runs beside an empty program, interleaved, in nanoseconds per packet.
//!
//!     cargo bench --bench xdp -- [--markdown FILE]
//!
//! Needs root. Every round runs each program between two runs of the empty one. Rounds in which one of these was slower
//! than the fastest by more than a fifth are left out: others kept the processor busy then. Shown are the median of the
//! differences in the rounds that are left, and the fastest runs' difference.
//!
//! The kernel puts a program's code wherever there is room, at multiples of four bytes, and what it costs to fetch
//! depends on that by up to 2 ns. So all programs are loaded many times.

// The generated skeleton is not ours to style.
#[allow(clippy::all, dead_code, non_camel_case_types, non_snake_case, unused_imports)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/net_bench.skel.rs"));
}

use std::fmt::Write;
use std::mem::MaybeUninit;
use std::path::PathBuf;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{ProgramInput, ProgramMut};
use skeleton::{NetBenchProgs, NetBenchSkelBuilder};

const LOADS: usize = 20;
/// Where the machine is so busy that few rounds are left: up to so many loads, until there are so many rounds.
const MOST_LOADS: usize = 60;
const ENOUGH: usize = 40;
const ROUNDS: usize = 4;
const REPEAT: u32 = 50_000;
/// What is asked of each kind of program, in nanoseconds: see `kinds`.
const TARGETS: [i64; 4] = [5, 50, 80, 50];
/// Of each of the tables of talkers and flows: 4096 entries.
const SETS: u32 = 512;

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

/// Nanoseconds per packet, in whole numbers as the kernel says.
fn run(program: &ProgramMut<'_>, frame: &[u8]) -> i64 {
    let input = ProgramInput { data_in: Some(frame), repeat: REPEAT, ..ProgramInput::default() };
    program.test_run(input).expect("the kernel refused a test run").duration.as_nanos() as i64
}

/// Each kind of program with the empty one that it is compared with.
fn kinds<'a>(programs: &'a NetBenchProgs<'_>) -> [(&'static str, &'a ProgramMut<'a>, &'a ProgramMut<'a>); 4] {
    [
        ("statistics", &programs.net_ingress, &programs.bench_empty),
        ("statistics, talkers and flows", &programs.net_ingress_talkers, &programs.bench_empty),
        ("the same, 200,000 invented sources", &programs.bench_spoofed, &programs.bench_spoofed_empty),
        ("sent: statistics, talkers and flows", &programs.net_egress, &programs.bench_empty_tc),
    ]
}

/// What was measured of one kind of program and one frame.
#[derive(Default)]
struct Samples {
    name: &'static str,
    /// The slower run of the empty program and this one's, by round.
    rounds: Vec<(i64, i64)>,
}

impl Samples {
    fn quiet(&self) -> Vec<(i64, i64)> {
        let least = self.rounds.iter().map(|(empty, _)| *empty).min().unwrap_or(0);
        self.rounds.iter().copied().filter(|(empty, _)| empty * 5 <= least * 6).collect()
    }
}

/// One load of all programs.
fn measure(frames: &[(&str, Vec<u8>)], rows: &mut [Vec<Samples>]) {
    let mut storage = MaybeUninit::uninit();
    let mut open = NetBenchSkelBuilder::default().open(&mut storage).expect("failed to open the programs");
    let slots = exporter::net::cpu_slots().expect("possible CPUs");
    open.maps
        .bss_plain
        .set_value_size((slots * size_of::<skeleton::types::net_plain>()) as u32)
        .expect("plain");
    let constants = open.maps.rodata_data.as_deref_mut().expect("constants");
    constants.cpu_mask = slots as u64 - 1;
    (constants.with_talkers, constants.with_flows) = (true, true);
    (constants.talker_sets_mask, constants.flow_sets_mask) = (SETS - 1, SETS - 1);
    open.maps.talkers.set_max_entries(SETS).expect("sets of talkers");
    open.maps.flows.set_max_entries(SETS).expect("sets of flows");
    let skel = open.load().expect("the kernel refused the programs; run as root");
    for _ in 0..ROUNDS {
        for ((_, frame), row) in frames.iter().zip(&mut *rows) {
            for ((name, program, empty), samples) in kinds(&skel.progs).into_iter().zip(row) {
                samples.name = name;
                let (before, cost) = (run(empty, frame), run(program, frame));
                samples.rounds.push((before.max(run(empty, frame)), cost));
            }
        }
    }
}

/// The mean of the middle half, a median with a decimal place: the kernel says whole nanoseconds only.
fn middle(numbers: impl Iterator<Item = i64>) -> f64 {
    let mut sorted: Vec<i64> = numbers.collect();
    sorted.sort_unstable();
    let half = &sorted[sorted.len() / 4..(sorted.len() * 3).div_ceil(4)];
    half.iter().sum::<i64>() as f64 / half.len() as f64
}

fn table(frames: &[(&str, Vec<u8>)], rows: &[Vec<Samples>]) -> String {
    let mut to = String::from(
        "| packet program | frame | an empty one, ns | ns more: least | median | target |\n|---|---|---:|---:|---:|---:|\n",
    );
    for (kind, target) in TARGETS.iter().enumerate() {
        for ((frame, _), row) in frames.iter().zip(rows) {
            let quiet = row[kind].quiet();
            let least = |of: fn(&(i64, i64)) -> i64| quiet.iter().map(of).min().unwrap_or(0);
            let (name, fastest) = (row[kind].name, least(|round| round.1) - least(|round| round.0));
            let empty = middle(quiet.iter().map(|(empty, _)| *empty));
            let median = middle(quiet.iter().map(|(empty, program)| program - empty));
            let _ = writeln!(to, "| {name} | {frame} | {empty:.1} | {fastest} | {median:.1} | {target} |");
        }
    }
    to
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
    let frames = [
        ("IPv4 TCP", ipv4(6, &tcp())),
        ("IPv4 UDP", ipv4(17, &udp())),
        ("IPv6 TCP", ipv6(6, &tcp())),
        ("IPv6 UDP", ipv6(17, &udp())),
    ];
    let mut rows: Vec<Vec<Samples>> =
        frames.iter().map(|_| TARGETS.iter().map(|_| Samples::default()).collect()).collect();
    for load in 1..=MOST_LOADS {
        measure(&frames, &mut rows);
        if load >= LOADS && rows.iter().flatten().all(|samples| samples.quiet().len() >= ENOUGH) {
            break;
        }
    }
    let table = table(&frames, &rows);
    print!("{table}");
    if let Some(path) = markdown {
        std::fs::write(&path, &table).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    }
}
