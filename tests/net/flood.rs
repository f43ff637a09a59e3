//! A million packets from spoofed sources must neither evict the real talkers nor keep a new one out.
//!
//! Needs root. Touches no interface.

include!(concat!(env!("OUT_DIR"), "/net_bench.skel.rs"));

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::net::IpAddr;

use self::generated::NetBenchSkelBuilder;
use exporter::net::{Counters, read_flows, read_talkers};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle, ProgramInput, ProgramMut};

const SETS: u32 = 64;
const FLOOD: u32 = 1_000_000;

/// Returns a UDP datagram from 192.0.2.`host`, of 60 bytes.
fn frame(host: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 46, 0, 1, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, host, 10, 0, 0, 2]);
    frame.extend([0x30, 0x39, 0, 53, 0, 26, 0, 0]);
    frame.resize(60, 0);
    frame
}

fn run(program: &ProgramMut<'_>, frame: &[u8], repeat: u32) {
    // A single CPU: test runs are not spread as NICs spread packets, and it is this CPU's own table that is flooded.
    let input = ProgramInput { data_in: Some(frame), repeat, ..ProgramInput::default() };
    program.test_run(input).expect("the kernel refused a test run");
}

#[test]
fn spoofed_flood_neither_evicts_nor_excludes_real_hosts() {
    pin_to_one_cpu();
    let mut storage = MaybeUninit::uninit();
    let mut open = NetBenchSkelBuilder::default().open(&mut storage).expect("failed to open the programs");
    let constants = open.maps.rodata_data.as_deref_mut().expect("constants");
    (constants.with_talkers, constants.with_flows) = (true, true);
    constants.hash_keys = std::array::from_fn(|at| 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(2 * at as u64 + 1));
    (constants.talker_sets_mask, constants.flow_sets_mask) = (SETS - 1, SETS - 1);
    open.maps.talkers.set_max_entries(SETS).unwrap();
    open.maps.flows.set_max_entries(SETS).unwrap();
    // Without resizing, its counters have no room for all CPUs.
    open.progs.net_ingress.set_autoload(false);
    open.progs.net_ingress_blocklist.set_autoload(false);
    let skel = open.load().expect("the kernel refused the programs; this test needs root");
    let handle = |map| MapHandle::try_from(map).unwrap();
    let (talkers, flows) = (handle(&skel.maps.talkers), handle(&skel.maps.flows));
    let sent = || -> HashMap<IpAddr, u64> {
        let all = read_talkers(&talkers).unwrap();
        all.into_iter().map(|(key, talker)| (key.address, talker.received.packets)).collect()
    };
    let host = |number: u8| IpAddr::from([192, 0, 2, number]);

    for number in 1..=50 {
        run(&skel.progs.net_ingress_talkers, &frame(number), 3);
    }
    assert_eq!(sent().len(), 50, "neighbours' addresses meet in too few sets");
    run(&skel.progs.bench_spoofed, &frame(99), FLOOD);
    let after = sent();
    for number in 1..=50 {
        assert_eq!(after.get(&host(number)), Some(&3), "192.0.2.{number} was pushed out");
    }
    assert_eq!(after.len() as u32, SETS * 8, "the flood fills what was free, and no more");

    // The accounting balance: every packet is either in the table or counted as refused.
    let values = skel.maps.strays.lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY).unwrap().unwrap();
    let counters = Counters::sum(&values);
    assert_eq!(after.values().sum::<u64>() + counters.talkers_untracked(), u64::from(FLOOD) + 150);
    let in_flows: u64 = read_flows(&flows).unwrap().values().map(|flow| flow.sum.packets).sum();
    assert_eq!(in_flows + counters.flows_untracked() + counters.talkers_untracked(), u64::from(FLOOD) + 150);

    // A real new host is admitted amid the flood, at the latest with its packet number NET_ADMIT.
    for _ in 0..8 {
        run(&skel.progs.net_ingress_talkers, &frame(200), 1);
        run(&skel.progs.bench_spoofed, &frame(99), 100);
    }
    run(&skel.progs.net_ingress_talkers, &frame(200), 10);
    assert!(sent()[&host(200)] >= 10, "a new host was kept out");
}

/// Pins the thread: tables are per CPU, and a test that migrates would fill two of them.
fn pin_to_one_cpu() {
    // SAFETY: the set is initialized, and its size is given.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set), 0);
    }
}
