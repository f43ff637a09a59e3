//! Counting must not slow a veth down.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use exporter::net::Mode;

use crate::counting::{attached, config, start};
use crate::namespace::{HERE, Namespace, pair, up};

const ROUND: Duration = Duration::from_millis(150);

/// What this thread has used of a CPU, in seconds; what the network stack does in its place included.
fn cpu_time() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to the structure that it is given.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Bytes that come through in one round, by second of CPU time: however many others want the CPUs, packets take as long.
fn through(there: &Namespace, listener: &TcpListener) -> f64 {
    let mut sender = there.run(|| TcpStream::connect((HERE, 7300)).unwrap());
    let (mut receiver, _) = listener.accept().unwrap();
    let writer = std::thread::spawn(move || {
        let block = vec![7; 1 << 17];
        // Ends when the other end is gone.
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

/// Rounds with and without take turns, and each is compared with its neighbour, for the machine is shared: the median of the
/// ratios. If it is a near thing, more rounds decide.
#[test]
fn a_counted_veth_is_as_fast_as_another() {
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
