//! What a packet costs: the programs in test runs beside an empty program, interleaved, in nanoseconds per packet.
//!
//! `cargo bench --bench xdp`, as root. Every round runs all programs one after the other, and a program's cost is its
//! difference to the empty program of the same round; shown are the smallest and the median of all rounds.
//! A busy machine slows all of them: the smallest says what the program costs, the median what it cost here and now.

// The generated skeleton is not ours to style.
#[allow(clippy::all, dead_code, non_camel_case_types, non_snake_case, unused_imports)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/net_bench.skel.rs"));
}

use std::mem::MaybeUninit;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{ProgramInput, ProgramMut};
use skeleton::NetBenchSkelBuilder;

const ROUNDS: usize = 60;
const REPEAT: u32 = 100_000;
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

fn main() {
    let mut storage = MaybeUninit::uninit();
    let mut open = NetBenchSkelBuilder::default().open(&mut storage).expect("failed to open the programs");
    let constants = open.maps.rodata_data.as_deref_mut().expect("constants");
    (constants.with_talkers, constants.with_flows) = (true, true);
    (constants.talker_sets_mask, constants.flow_sets_mask) = (SETS - 1, SETS - 1);
    open.maps.talkers.set_max_entries(SETS).expect("sets of talkers");
    open.maps.flows.set_max_entries(SETS).expect("sets of flows");
    let skel = open.load().expect("the kernel refused the programs; run as root");
    let programs = &skel.progs;

    let frames =
        [("IPv4 TCP", ipv4(6, &tcp())), ("IPv4 UDP", ipv4(17, &udp())), ("IPv6 TCP", ipv6(6, &tcp()))];
    let rows: [(&str, &ProgramMut<'_>, &ProgramMut<'_>); 4] = [
        ("statistics", &programs.net_ingress, &programs.bench_empty),
        ("statistics, talkers and flows", &programs.net_ingress_talkers, &programs.bench_empty),
        ("the same, 200,000 invented sources", &programs.bench_spoofed, &programs.bench_spoofed_empty),
        ("egress: statistics, talkers and flows", &programs.net_egress, &programs.bench_empty_tc),
    ];
    println!("{:<40} {:<10} {:>7} {:>9} {:>9}", "ns per packet", "", "empty", "least", "median");
    for (kind, frame) in &frames {
        let mut costs = vec![Vec::new(); rows.len()];
        let mut empties = vec![Vec::new(); rows.len()];
        for _ in 0..ROUNDS {
            for (row, (_, program, empty)) in rows.iter().enumerate() {
                let base = run(empty, frame);
                costs[row].push(run(program, frame) - base);
                empties[row].push(base);
            }
        }
        for (row, (name, _, _)) in rows.iter().enumerate() {
            costs[row].sort_unstable();
            empties[row].sort_unstable();
            let (costs, empties) = (&costs[row], &empties[row]);
            let (least, median) = (costs[ROUNDS / 20], costs[ROUNDS / 2]);
            println!("{name:<40} {kind:<10} {:>7} {least:>+9} {median:>+9}", empties[ROUNDS / 2]);
        }
    }
}
