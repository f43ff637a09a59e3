//! Random packets checked with random lists against a simple model. Needs root.

include!(concat!(env!("OUT_DIR"), "/net.skel.rs"));

use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use self::generated::types::net_fast;
use self::generated::{NetSkel, NetSkelBuilder};
use exporter::net::{
    BlockConfig, BlockDirection, BlockEntry, BlockProtocol, BlockRule, BlockScope, Blocklist, Counters,
    Direction, FAST_BLOCKS, Prefix, Reason, Verdict, combinations, cpu_slots, set_operand,
};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, ProgramInput, ProgramMut};

use crate::block::{enforcing, prefix};
use crate::frames::Chance;
use crate::model::{Ends, parse};
use crate::namespace::Namespace;

/// A simple list: the longest prefix whose rule applies decides, unless something lets the packet pass.
struct Model {
    entries: Vec<BlockEntry>,
    allow: Vec<Prefix>,
    own_port: u16,
}

impl Model {
    fn random(chance: &mut Chance) -> Self {
        let mut entries: Vec<BlockEntry> = Vec::new();
        while entries.len() < 48 {
            let prefix = Prefix::new(address(chance), length(chance));
            let scope = (chance.below(4) == 0).then(|| BlockScope {
                protocol: [BlockProtocol::Tcp, BlockProtocol::Udp, BlockProtocol::Icmp]
                    [chance.below(3) as usize],
                ports: [(0, 65535), (2001, 2001), (1, 2001), (2002, 2004)][chance.below(4) as usize],
            });
            if !entries.iter().any(|entry| entry.prefix == prefix) {
                let direction = match chance.below(4) {
                    0 => Some(BlockDirection::Egress),
                    1 => Some(BlockDirection::Both),
                    2 => Some(BlockDirection::Ingress),
                    _ => None,
                };
                entries.push(BlockEntry {
                    prefix,
                    rule: BlockRule { direction, scope, ..BlockRule::default() },
                });
            }
        }
        let allow = (0..12).map(|_| Prefix::new(address(chance), length(chance))).collect();
        Self { entries, allow, own_port: 2003 }
    }

    fn config(&self) -> BlockConfig {
        BlockConfig {
            entries: self.entries.clone(),
            allow: self.allow.clone(),
            own_ports: vec![self.own_port],
            ..enforcing()
        }
    }

    fn judge(&self, ends: &Ends, frame: &[u8], direction: Direction) -> Option<Reason> {
        let (peer, own_port) = match direction {
            Direction::Ingress => (Prefix::new(ends.source, 128), ends.destination_port),
            Direction::Egress => (Prefix::new(ends.destination, 128), ends.source_port),
        };
        let holds = |entry: &&BlockEntry| {
            let of = entry.rule.direction.unwrap_or(BlockDirection::Ingress);
            let other = match direction {
                Direction::Ingress => BlockDirection::Egress,
                Direction::Egress => BlockDirection::Ingress,
            };
            if of == other {
                return false;
            }
            let Some(scope) = entry.rule.scope else { return true };
            let number = match scope.protocol {
                BlockProtocol::Tcp => 6,
                BlockProtocol::Udp => 17,
                BlockProtocol::Icmp if ends.source.is_ipv4() => 1,
                BlockProtocol::Icmp => 58,
            };
            ends.number == number && (scope.ports.0..=scope.ports.1).contains(&ends.destination_port)
        };
        let found = self.entries.iter().filter(|entry| entry.prefix.contains(peer)).filter(holds);
        let found = found.max_by_key(|entry| entry.prefix.bits())?;
        let is_own = ends.number == 6 && own_port == self.own_port;
        let peer_port = ends.source_port ^ ends.destination_port ^ own_port;
        let is_dhcp = ends.number == 17 && matches!((peer_port, own_port), (67, 68) | (547, 546));
        let machine = ["127.0.0.0/8", "::1"].iter().map(|text| prefix(text));
        let is_allowed = self.allow.iter().copied().chain(machine).any(|allowed| allowed.contains(peer));
        if is_own || is_dhcp || is_allowed || is_neighbour_discovery(frame) {
            return None;
        }
        Some(if found.prefix.is_single() { Reason::Blocklist } else { Reason::Cidr })
    }
}

/// Only a few bits of the addresses vary, so that prefixes of every length overlap.
fn address(chance: &mut Chance) -> IpAddr {
    let mut bits = |of: u32| chance.below(1 << of);
    if bits(1) == 0 {
        let host = (bits(2) as u32) << 30
            | (bits(1) as u32) << 23
            | (bits(1) as u32) << 12
            | (bits(2) as u32) << 7
            | bits(1) as u32;
        Ipv4Addr::from_bits(host).into()
    } else {
        let host = (bits(1) as u128) << 125
            | (bits(1) as u128) << 112
            | (bits(1) as u128) << 95
            | (bits(2) as u128) << 63
            | (bits(1) as u128) << 20
            | bits(1) as u128;
        Ipv6Addr::from_bits(host).into()
    }
}

fn length(chance: &mut Chance) -> u8 {
    // The shortest prefixes match everything, so generate only a few.
    match chance.below(8) {
        0 => chance.below(129) as u8,
        1 => 128,
        2 => 32,
        _ => 8 + chance.below(121) as u8,
    }
}

/// Returns the offset of the IP header in a frame.
fn ip_at(frame: &[u8]) -> usize {
    let mut at = 12;
    while at < 20 && matches!(frame.get(at..at + 2), Some([0x81, 0] | [0x88, 0xa8])) {
        at += 4;
    }
    at + 2
}

fn is_neighbour_discovery(frame: &[u8]) -> bool {
    let ip = &frame[ip_at(frame)..];
    ip[0] >> 4 == 6 && ip[6] == 58 && ip[7] == 255 && (133..=137).contains(&ip[40])
}

fn set_peer(frame: &mut [u8], peer: IpAddr, direction: Direction) {
    let (at, egress) = (ip_at(frame), direction as usize);
    match (peer, frame.get(at).map(|first| first >> 4)) {
        (IpAddr::V4(peer), Some(4)) if frame.len() >= at + 20 => {
            frame[at + 12 + 4 * egress..][..4].copy_from_slice(&peer.octets())
        }
        (IpAddr::V6(peer), Some(6)) if frame.len() >= at + 40 => {
            frame[at + 8 + 16 * egress..][..16].copy_from_slice(&peer.octets())
        }
        _ => {}
    }
}

/// Loads the programs with the maps of a blocklist.
fn load<'a>(storage: &'a mut MaybeUninit<libbpf_rs::OpenObject>, list: &Blocklist) -> NetSkel<'a> {
    let mut open = NetSkelBuilder::default().open(storage).expect("failed to open the packet programs");
    let slots = cpu_slots().expect("possible CPUs");
    open.maps.bss_fast.set_value_size((slots * size_of::<net_fast>()) as u32).expect("the counters' size");
    set_operand(&mut open.progs.net_ingress, FAST_BLOCKS, slots as i32 - 1).expect("the operand");
    set_operand(&mut open.progs.net_ingress_blocklist, FAST_BLOCKS, slots as i32 - 1).expect("the operand");
    open.maps.rodata_data.as_deref_mut().expect("constants").with_blocklist = true;
    for mut map in open.open_object_mut().maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        if let Some((_, fd)) = list.shared().iter().find(|(known, _)| *known == name) {
            map.reuse_fd(*fd).expect("a map of the list");
        }
    }
    open.load().expect("the kernel refused the programs; run as root")
}

fn counters(skel: &NetSkel<'_>, direction: Direction) -> Counters {
    let key = (direction as u32).to_ne_bytes();
    let sum =
        Counters::sum(&skel.maps.strays.lookup_percpu(&key, MapFlags::ANY).unwrap().expect("one value"));
    if direction == Direction::Egress {
        return sum;
    }
    let fast = skel.maps.bss_fast.lookup(&0u32.to_ne_bytes(), MapFlags::ANY).unwrap().expect("one value");
    sum.with_fast(fast.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)))
}

fn verdict(program: &ProgramMut<'_>, frame: &[u8]) -> u32 {
    let input = ProgramInput { data_in: Some(frame), ..ProgramInput::default() };
    program.test_run(input).expect("a test run").return_value
}

const XDP_DROP: u32 = 1;
const TC_ACT_SHOT: u32 = 2;

/// A million packets, each run through all programs.
const ROUNDS: u32 = 16;
const PACKETS: u32 = 1_000_000 / ROUNDS;

#[test]
fn verdicts_of_random_lists_match_the_model() {
    let mut chance = Chance::new(0x5eed_b10c);
    let mut judgements = [[0u64; 2]; Direction::ALL.len()];
    for round in 0..ROUNDS {
        let model = Model::random(&mut chance);
        // A namespace in which no address is the machine's own.
        let config = model.config();
        let list = Namespace::new().run(move || Blocklist::new(&config)).expect("this test needs root");
        let mut storage = MaybeUninit::uninit();
        let skel = load(&mut storage, &list);
        let programs: [(&str, &ProgramMut<'_>, u32, Direction); 4] = [
            ("fast path", &skel.progs.net_ingress_blocklist, XDP_DROP, Direction::Ingress),
            ("slow path", &skel.progs.net_ingress_slow, XDP_DROP, Direction::Ingress),
            ("TC", &skel.progs.net_tc_ingress, TC_ACT_SHOT, Direction::Ingress),
            ("sent", &skel.progs.net_egress, TC_ACT_SHOT, Direction::Egress),
        ];
        let mut expected = [([0u64; 2], 0); Direction::ALL.len()];
        let mut packets = 0;
        while packets < PACKETS {
            let mut frame = if chance.below(4) == 0 {
                crate::frames::any(&mut chance)
            } else {
                crate::frames::sound(&mut chance)
            };
            frame.resize(frame.len().max(60), 0);
            for direction in Direction::ALL {
                let near = match chance.below(2) {
                    0 => address(&mut chance),
                    _ => model.entries[chance.below(model.entries.len() as u64) as usize].prefix.address(),
                };
                set_peer(&mut frame, near, *direction);
            }
            let Some(ends) = parse(&frame).ends else { continue };
            packets += 1;
            let judged = [Direction::Ingress, Direction::Egress].map(|of| model.judge(&ends, &frame, of));
            for (name, program, drop, direction) in &programs {
                let judged = judged[*direction as usize];
                let is_dropped = verdict(program, &frame) == *drop;
                assert_eq!(
                    is_dropped,
                    judged.is_some(),
                    "round {round}, {name}: {ends:?}\n{:?}\n{frame:02x?}",
                    model.entries
                );
                let (dropped, total) = &mut expected[*direction as usize];
                *total += 1;
                if let Some(reason) = judged {
                    dropped[reason as usize] += 1;
                }
            }
            for (judged, of) in judged.iter().zip(&mut judgements) {
                of[usize::from(judged.is_some())] += 1;
            }
        }
        let mut dropped = 0;
        for direction in Direction::ALL {
            let found = counters(&skel, *direction);
            let (expected, total) = expected[*direction as usize];
            assert_eq!([found.drops(Reason::Blocklist), found.drops(Reason::Cidr)], expected);
            let rows = |wanted: Verdict| -> u64 {
                let counted = combinations().filter(|(verdict, ..)| *verdict == wanted);
                counted.map(|(v, f, p)| found.packets(v, f, p)).sum()
            };
            let drops = expected.iter().sum::<u64>();
            assert_eq!((rows(Verdict::Drop), rows(Verdict::Pass)), (drops, total - drops), "{direction:?}");
            dropped += drops;
        }
        let hits: u64 = list.rows(0, usize::MAX).iter().map(|row| row.packets).sum();
        assert_eq!(hits, dropped, "each packet dropped is a hit of one entry");
    }
    assert!(judgements.as_flattened().iter().all(|number| *number > 100_000), "{judgements:?}");
}
