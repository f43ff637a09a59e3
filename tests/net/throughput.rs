//! Counting must not slow a veth down, and dropping must cost less than passing.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use exporter::net::{Asker, BlockConfig, BlockEntry, BlockMode, BlockRule, Mode, NetworkConfig, Prefix};

use crate::counting::{attached, config, number, start, until};
use crate::namespace::{HERE, Namespace, pair, raw_socket, send_by, up};

const ROUND: Duration = Duration::from_millis(150);

/// Returns the CPU time of this thread in seconds, including what the network stack does on its behalf.
fn cpu_time() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call only writes to the given structure.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Returns the bytes received in one round per second of CPU time, which does not depend on how busy the CPUs are.
fn through(there: &Namespace, listener: &TcpListener) -> f64 {
    let mut sender = there.run(|| TcpStream::connect((HERE, 7300)).unwrap());
    let (mut receiver, _) = listener.accept().unwrap();
    let writer = std::thread::spawn(move || {
        let block = vec![7; 1 << 17];
        // Ends when the other end is closed.
        while sender.write_all(&block).is_ok() {}
        cpu_time()
    });
    let (mut got, mut block) = (0, vec![0; 1 << 17]);
    let (start, used) = (Instant::now(), cpu_time());
    while start.elapsed() < ROUND {
        got += receiver.read(&mut block).unwrap();
    }
    let used = cpu_time() - used;
    drop(receiver);
    got as f64 / (used + writer.join().unwrap())
}

/// Rounds with and without counting take turns, and each is compared with its neighbor, as the machine is shared: the
/// median of the ratios decides. If the result is close, more rounds are run.
#[test]
fn counting_does_not_slow_a_veth() {
    let (here, there) = pair();
    up(&here, &there);
    let listener = here.run(|| TcpListener::bind((HERE, 7300)).unwrap());
    through(&there, &listener);
    let mut ratios: Vec<f64> = Vec::new();
    for _ in 0..5 {
        for _ in 0..7 {
            let alone = through(&there, &listener);
            let (network, events) = start(&here, config(Mode::Auto));
            attached(&events);
            let counted = through(&there, &listener);
            drop(network);
            ratios.push(counted / alone);
        }
        ratios.sort_by(f64::total_cmp);
        if ratios[ratios.len() / 2] >= 0.9 {
            return;
        }
    }
    panic!("the median of {ratios:.2?} is below 0.9");
}

/// Returns a UDP datagram of 60 bytes from one of several sources that are routed to the interface on which it arrives.
fn datagram(source: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0x99, 1, 2, 0, 0, 0, 0x99, 2, 8, 0];
    let mut header = vec![0x45, 0, 0, 46, 0, 1, 0x40, 0, 64, 17, 0, 0, 198, 18, source, 7, 10, 99, 0, 1];
    let words = header.as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_be_bytes(*word)));
    let sum: u32 = words.sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(header);
    // No UDP checksum.
    frame.extend([0x30, 0x39, 0x1c, 0xe8, 0, 26, 0, 0]);
    frame.resize(60, 0);
    frame
}

/// Returns the cost of a flood, in seconds of CPU time of the sender, on whose thread the other end runs, too.
fn flood(there: &Namespace) -> f64 {
    there.run(|| {
        let (socket, frames): (_, Vec<_>) = (raw_socket(), (0..64).map(datagram).collect());
        let used = cpu_time();
        frames.iter().for_each(|frame| send_by(&socket, "exn1", frame, 100));
        cpu_time() - used
    })
}

/// Returns the cost of a flood of which at least half is counted: the rest may not fit into a busy machine's queue.
fn flood_that_comes(there: &Namespace, counted: &dyn Fn() -> u64) -> f64 {
    let mut cost = 0.0;
    until("half of a flood comes", || {
        let before = counted();
        cost = flood(there);
        counted() - before > 3200
    });
    cost
}

/// Rounds take turns on one machine, each compared with its neighbor, as above: the median of the ratios decides.
fn dropping_costs_less(mode: Mode) {
    let (here, there) = pair();
    let block = BlockConfig { mode: BlockMode::Enforce, ..BlockConfig::default() };
    let (network, events) = start(&here, NetworkConfig { block: Some(block), ..config(mode) });
    attached(&events);
    up(&here, &there);
    here.command("ip route add 198.18.0.0/16 dev exn0");
    // Never read from: packets that overflow its queue have traversed the stack all the same.
    let _socket = here.run(|| UdpSocket::bind((HERE, 7400)).unwrap());
    let prefix = Prefix::parse("198.18.0.0/16").unwrap();
    let passed =
        || number(&network.collect(), "xdp_packets_total", &[("protocol", "udp"), ("verdict", "pass")]);
    let dropped = || number(&network.collect(), "xdp_drops_total", &[("reason", "cidr")]);
    flood(&there);
    let mut ratios: Vec<f64> = Vec::new();
    for _ in 0..5 {
        for _ in 0..7 {
            let passing = flood_that_comes(&there, &passed);
            let list = Arc::clone(network.blocklist().unwrap());
            let entry = BlockEntry { prefix, rule: BlockRule::default() };
            here.run(move || list.block(&entry, Asker::Api)).unwrap();
            let dropping = flood_that_comes(&there, &dropped);
            network.blocklist().unwrap().unblock(prefix).unwrap();
            ratios.push(dropping / passing);
        }
        ratios.sort_by(f64::total_cmp);
        if ratios[ratios.len() / 2] < 1.0 {
            println!("{mode:?}: dropping costs {:.2} of passing", ratios[ratios.len() / 2]);
            return;
        }
    }
    panic!("{mode:?}: the median of {ratios:.2?} is not below 1");
}

#[test]
fn dropping_a_flood_costs_less_than_passing_it() {
    dropping_costs_less(Mode::Auto);
    dropping_costs_less(Mode::Native);
}
