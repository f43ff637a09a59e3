//! Millions of frames through the kernel's test runs: the programs must count each as the model does.
//!
//! Needs root (CAP_BPF, CAP_NET_ADMIN). Touches no interface. The seed is fixed: every run sends the same frames.

include!(concat!(env!("OUT_DIR"), "/net.skel.rs"));

use std::collections::HashMap;
use std::mem::MaybeUninit;

use self::generated::types::net_fast;
use self::generated::{NetSkel, NetSkelBuilder, OpenNetSkel};
use exporter::net::{
    AddressFamily, Counters, Direction, FAST_BLOCKS, FlowKey, ParseError, Protocol, SIZE_BOUNDS, SIZES,
    TcpKind, Verdict, combinations, cpu_slots, read_flows, read_talkers, set_operand,
};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapImpl, Mut, ProgramInput, ProgramMut};

use crate::frames::Chance;
use crate::model::{Ends, Parsed};

/// Arbitrary hash keys.
const KEYS: [u64; 13] = {
    let mut keys = [0x9e37_79b9_7f4a_7c15u64; 13];
    let mut at = 1;
    while at < keys.len() {
        keys[at] = keys[at - 1].wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(at as u64);
        at += 1;
    }
    keys
};

/// Frames per program.
const FRAMES: u32 = 1_000_000;
/// Frames between two comparisons.
const BATCH: u32 = 2500;

/// The expected counts of a program.
#[derive(Debug, Default, Clone)]
struct Expected {
    packets: HashMap<(AddressFamily, Protocol), u64>,
    bytes: HashMap<(AddressFamily, Protocol), u64>,
    parse_errors: HashMap<ParseError, u64>,
    fragments: HashMap<AddressFamily, u64>,
    tcp: HashMap<TcpKind, u64>,
    sizes: [u64; SIZES],
}

impl Expected {
    fn add(&mut self, frame: &[u8], parsed: &Parsed) {
        let key = (parsed.family, parsed.protocol);
        *self.packets.entry(key).or_default() += 1;
        *self.bytes.entry(key).or_default() += frame.len() as u64;
        self.sizes[SIZE_BOUNDS.partition_point(|bound| *bound < frame.len() as u32)] += 1;
        if let Some(error) = parsed.error {
            *self.parse_errors.entry(error).or_default() += 1;
        }
        if parsed.fragment {
            *self.fragments.entry(parsed.family).or_default() += 1;
        }
        if let Some(kind) = parsed.tcp_kind() {
            *self.tcp.entry(kind).or_default() += 1;
        }
    }

    /// Describes the first difference.
    fn difference(&self, counters: &Counters) -> Option<String> {
        let differs = |what: String, expected: u64, found: u64| {
            (expected != found).then(|| format!("{what}: the model says {expected}, the program {found}"))
        };
        for (verdict, family, protocol) in combinations() {
            let of = |map: &HashMap<(AddressFamily, Protocol), u64>| {
                if verdict == Verdict::Pass { map.get(&(family, protocol)).copied().unwrap_or(0) } else { 0 }
            };
            let packets = counters.packets(verdict, family, protocol);
            let bytes = counters.bytes(verdict, family, protocol);
            let found = differs(
                format!("packets of {family:?} {protocol:?} {verdict:?}"),
                of(&self.packets),
                packets,
            )
            .or_else(|| differs(format!("bytes of {family:?} {protocol:?}"), of(&self.bytes), bytes));
            if found.is_some() {
                return found;
            }
        }
        let parse_errors = ParseError::ALL.iter().find_map(|error| {
            differs(
                format!("{error:?}"),
                self.parse_errors.get(error).copied().unwrap_or(0),
                counters.parse_errors(*error),
            )
        });
        let fragments = AddressFamily::ALL.iter().find_map(|family| {
            let expected = self.fragments.get(family).copied().unwrap_or(0);
            differs(format!("fragments of {family:?}"), expected, counters.fragments(*family))
        });
        let tcp = TcpKind::ALL.iter().find_map(|kind| {
            differs(format!("{kind:?}"), self.tcp.get(kind).copied().unwrap_or(0), counters.tcp(*kind))
        });
        let sizes = (0..SIZES).find_map(|size| {
            differs(format!("size bucket {size}"), self.sizes[size], counters.sizes()[size])
        });
        parse_errors.or(fragments).or(tcp).or(sizes)
    }
}

fn open(storage: &mut MaybeUninit<libbpf_rs::OpenObject>) -> OpenNetSkel<'_> {
    let mut open = NetSkelBuilder::default().open(storage).expect("failed to open the packet programs");
    let slots = cpu_slots().expect("possible CPUs");
    open.maps.bss_fast.set_value_size((slots * size_of::<net_fast>()) as u32).unwrap();
    set_operand(&mut open.progs.net_ingress, FAST_BLOCKS, slots as i32 - 1).unwrap();
    set_operand(&mut open.progs.net_ingress_blocklist, FAST_BLOCKS, slots as i32 - 1).unwrap();
    open
}

fn load(open: OpenNetSkel<'_>) -> NetSkel<'_> {
    open.load().expect("the kernel refused the packet programs; this test needs root")
}

/// Where a program counts when no interface is registered: the per-CPU map, the direction, and the map of the fast
/// path, if any.
type Stats<'a> = (&'a MapImpl<'a, Mut>, Direction, Option<&'a MapImpl<'a, Mut>>);

fn counters((by_cpu, direction, fast): Stats<'_>) -> Counters {
    let key = (direction as u32).to_ne_bytes();
    let sum = Counters::sum(&by_cpu.lookup_percpu(&key, MapFlags::ANY).unwrap().expect("one value"));
    let fast = fast.map(|map| map.lookup(&0u32.to_ne_bytes(), MapFlags::ANY).unwrap().expect("one value"));
    let words = fast.iter().flat_map(|bytes| bytes.as_chunks::<8>().0);
    sum.with_fast(words.map(|word| u64::from_ne_bytes(*word)))
}

/// Runs a program once over a frame.
fn run(program: &ProgramMut<'_>, frame: &[u8]) {
    let input = ProgramInput { data_in: Some(frame), ..ProgramInput::default() };
    program
        .test_run(input)
        .unwrap_or_else(|error| panic!("test run of {} bytes {frame:02x?}: {error:#}", frame.len()));
}

/// Sends the frames, compares in batches, and if a batch differs, reports its first differing frame.
fn compare(program: &ProgramMut<'_>, stats: Stats<'_>, seed: u64, shortest: usize, pieces: u32) {
    let mut chance = Chance::new(seed);
    let mut expected = Expected::default();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..pieces / BATCH {
        let start = (chance.clone(), expected.clone(), counters(stats));
        for _ in 0..BATCH {
            let frame = frame_of(&mut chance, shortest);
            let parsed = crate::model::parse(&frame);
            seen.insert((parsed.family, parsed.protocol, parsed.error, parsed.fragment));
            expected.add(&frame, &parsed);
            run(program, &frame);
        }
        if let Some(text) = expected.difference(&counters(stats)) {
            panic!("{text}\n{}", find(program, stats, start, shortest));
        }
    }
    // Every case must have occurred, or the comparison says little.
    for error in ParseError::ALL {
        for family in [AddressFamily::Ipv4, AddressFamily::Ipv6] {
            let possible = *error != ParseError::Extensions || family == AddressFamily::Ipv6;
            let met = seen.iter().any(|one| one.0 == family && one.2 == Some(*error));
            assert_eq!(met, possible, "{error:?} in {family:?}");
        }
    }
    assert!(seen.len() > 30, "only {} kinds of frames", seen.len());
}

fn frame_of(chance: &mut Chance, shortest: usize) -> Vec<u8> {
    let mut frame = crate::frames::any(chance);
    if frame.len() < shortest {
        frame.resize(shortest, 0);
    }
    frame
}

/// Returns the frame of a batch that was counted differently, found by sending the batch again frame by frame.
fn find(
    program: &ProgramMut<'_>,
    stats: Stats<'_>,
    (mut chance, _, _): (Chance, Expected, Counters),
    shortest: usize,
) -> String {
    for _ in 0..BATCH {
        let frame = frame_of(&mut chance, shortest);
        let before = counters(stats);
        run(program, &frame);
        let after = counters(stats);
        let parsed = crate::model::parse(&frame);
        let grew = |number: &dyn Fn(&Counters) -> u64| number(&after) - number(&before);
        let cell = grew(&|counters| counters.packets(Verdict::Pass, parsed.family, parsed.protocol)) == 1;
        let error = ParseError::ALL.iter().all(|error| {
            grew(&|counters| counters.parse_errors(*error)) == u64::from(parsed.error == Some(*error))
        });
        let fragment = grew(&|counters| counters.fragments(parsed.family)) == u64::from(parsed.fragment);
        let tcp = TcpKind::ALL
            .iter()
            .all(|kind| grew(&|counters| counters.tcp(*kind)) == u64::from(parsed.tcp_kind() == Some(*kind)));
        if !(cell && error && fragment && tcp) {
            return format!("the frame {frame:02x?}\nis, says the model, {parsed:?}");
        }
    }
    "no single frame differs: sizes or bytes do".to_string()
}

#[test]
fn ingress_matches_the_model() {
    let mut storage = MaybeUninit::uninit();
    let skel = load(open(&mut storage));
    compare(
        &skel.progs.net_ingress,
        (&skel.maps.strays, Direction::Ingress, Some(&skel.maps.bss_fast)),
        0x5eed_0001,
        14,
        2 * FRAMES,
    );
}

/// Valid TCP segments and UDP datagrams of every size, beyond both limits of the fast path. Random frames are rarely
/// long.
#[test]
fn every_frame_size_is_counted() {
    let mut storage = MaybeUninit::uninit();
    let skel = load(open(&mut storage));
    let mut tcp = vec![0; 20];
    (tcp[12], tcp[13]) = (0x50, 0x10);
    {
        let program = &skel.progs.net_ingress;
        let stats = (&skel.maps.strays, Direction::Ingress, Some(&skel.maps.bss_fast));
        let mut expected = 0;
        for (ethertype, header, shortest) in [(0x0800u16, 20, 54), (0x86dd, 40, 74)] {
            for (number, protocol) in [(6, Protocol::Tcp), (17, Protocol::Udp)] {
                let family = if header == 20 { AddressFamily::Ipv4 } else { AddressFamily::Ipv6 };
                let before = counters(stats);
                let (mut frames, mut bytes) = (0, 0);
                for size in (shortest - 12..shortest + 2100).filter(|size| number == 17 || *size >= shortest)
                {
                    let mut frame = vec![0; 12];
                    frame.extend(ethertype.to_be_bytes());
                    frame.resize(14 + header, 0);
                    let transport = size - 14 - header;
                    if header == 20 {
                        (frame[14], frame[23]) = (0x45, number);
                        frame[16..18].copy_from_slice(&(transport as u16 + 20).to_be_bytes());
                    } else {
                        (frame[14], frame[20]) = (0x60, number);
                        frame[18..20].copy_from_slice(&(transport as u16).to_be_bytes());
                    }
                    let mut datagram = vec![0; 8];
                    datagram[4..6].copy_from_slice(&(transport as u16).to_be_bytes());
                    frame.extend(if number == 6 { &tcp } else { &datagram });
                    frame.resize(size, 0x5a);
                    run(program, &frame);
                    (frames, bytes) = (frames + 1, bytes + size as u64);
                }
                let after = counters(stats);
                let grew = |of: fn(&Counters, Verdict, AddressFamily, Protocol) -> u64| {
                    of(&after, Verdict::Pass, family, protocol) - of(&before, Verdict::Pass, family, protocol)
                };
                assert_eq!((grew(Counters::packets), grew(Counters::bytes)), (frames, bytes), "{protocol:?}");
                assert_eq!(after.total_packets() - before.total_packets(), frames, "{family:?} {protocol:?}");
                expected += frames;
            }
        }
        assert!(expected > 4 * 2100);
        assert_eq!(ParseError::ALL.iter().map(|error| counters(stats).parse_errors(*error)).sum::<u64>(), 0);
    }
}

#[test]
fn slow_path_ingress_matches_the_model() {
    let mut storage = MaybeUninit::uninit();
    let skel = load(open(&mut storage));
    compare(
        &skel.progs.net_ingress_slow,
        (&skel.maps.strays, Direction::Ingress, None),
        0x5eed_0007,
        14,
        FRAMES / 2,
    );
}

#[test]
fn multi_buffer_ingress_matches_the_model() {
    let mut storage = MaybeUninit::uninit();
    let skel = load(open(&mut storage));
    compare(
        &skel.progs.net_ingress_frags,
        (&skel.maps.strays, Direction::Ingress, None),
        0x5eed_0002,
        14,
        FRAMES / 4,
    );
}

#[test]
fn egress_matches_the_model() {
    let mut storage = MaybeUninit::uninit();
    let skel = load(open(&mut storage));
    // TC programs' test runs reject frames shorter than an Ethernet and an IP header.
    compare(&skel.progs.net_egress, (&skel.maps.strays, Direction::Egress, None), 0x5eed_0003, 54, FRAMES);
}

#[test]
fn tc_ingress_matches_the_model() {
    let mut storage = MaybeUninit::uninit();
    let skel = load(open(&mut storage));
    let stats = (&skel.maps.strays, Direction::Ingress, None);
    compare(&skel.progs.net_tc_ingress, stats, 0x5eed_0008, 54, FRAMES / 2);
}

/// Few hosts and ports, so that the tables have room for every valid packet.
#[test]
fn talkers_and_flows_match_the_model() {
    let mut storage = MaybeUninit::uninit();
    let mut open = open(&mut storage);
    let constants = open.maps.rodata_data.as_deref_mut().expect("constants");
    (constants.with_talkers, constants.with_flows) = (true, true);
    (constants.talker_sets_mask, constants.flow_sets_mask) = (255, 1023);
    constants.hash_keys = KEYS;
    open.maps.talkers.set_max_entries(256).unwrap();
    open.maps.flows.set_max_entries(1024).unwrap();
    let skel = load(open);

    let mut chance = Chance::new(0x5eed_0004);
    let mut expected = Expected::default();
    let mut flows: HashMap<Ends, (u64, u64)> = HashMap::new();
    for _ in 0..200_000 {
        let frame = crate::frames::sound(&mut chance);
        let parsed = crate::model::parse(&frame);
        expected.add(&frame, &parsed);
        if let Some(ends) = parsed.ends {
            let sum = flows.entry(ends).or_default();
            sum.0 += 1;
            sum.1 += frame.len() as u64;
        }
        run(&skel.progs.net_ingress_talkers, &frame);
    }
    let found = counters((&skel.maps.strays, Direction::Ingress, None));
    assert_eq!(expected.difference(&found), None);
    assert_eq!(
        (found.talkers_untracked(), found.flows_untracked()),
        (0, 0),
        "the tables were too small for this test"
    );
    assert!(flows.len() > 300, "only {} flows", flows.len());

    let handle = |map| libbpf_rs::MapHandle::try_from(map).unwrap();
    let kernel: HashMap<Ends, (u64, u64)> = read_flows(&handle(&skel.maps.flows))
        .unwrap()
        .into_iter()
        .map(|(key, flow)| {
            let FlowKey { source, destination, source_port, destination_port, protocol: number, .. } = key;
            (
                Ends { source, destination, number, source_port, destination_port },
                (flow.sum.packets, flow.sum.bytes),
            )
        })
        .collect();
    assert_eq!(kernel, flows);
    let mut sources: HashMap<std::net::IpAddr, (u64, u64)> = HashMap::new();
    for (ends, (packets, bytes)) in &flows {
        let sum = sources.entry(ends.source).or_default();
        sum.0 += packets;
        sum.1 += bytes;
    }
    let talkers: HashMap<_, _> = read_talkers(&handle(&skel.maps.talkers))
        .unwrap()
        .into_iter()
        .map(|(key, talker)| (key.address, (talker.received.packets, talker.received.bytes)))
        .collect();
    assert_eq!(talkers, sources);
}
