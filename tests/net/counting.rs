//! Counting in a namespace, and the comparison with the kernel's own statistics.

use std::net::{TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use exporter::exposition::{Family, Number, SampleValue};
use exporter::net::{Event, Hook, Mode, Network, NetworkConfig};

use crate::namespace::{HERE, Namespace, THERE};
use crate::support::exporter::TIMEOUT;

/// The Ethernet header, which a veth in native mode omits from its received bytes; it counts frames as we do.
pub const NATIVE_VETH_OMITS: u64 = 14;

pub fn config(mode: Mode) -> NetworkConfig {
    NetworkConfig { interfaces: vec!["exn*".to_string()], mode, ..NetworkConfig::default() }
}

/// Starts counting in a namespace; events are sent to the receiver.
pub fn start(inside: &Namespace, config: NetworkConfig) -> (Network, Receiver<Event>) {
    let (tell, events) = channel();
    let network = inside.run(move || {
        Network::start(config, move |event| {
            // The test may have ended before the last event.
            let _ = tell.send(event);
        })
    });
    (network.expect("counting starts"), events)
}

/// Expects the next event to report that an interface such as `exn0` is counted, and returns it with its ingress hook.
pub fn attached(events: &Receiver<Event>) -> (String, Option<Hook>) {
    match events.recv_timeout(TIMEOUT).expect("an event") {
        Event::Attached { interface, hook, .. } => (interface, hook),
        other => panic!("{other}"),
    }
}

/// Returns the sum of a metric's series that have all these labels.
pub fn number(families: &[Family], name: &str, labels: &[(&str, &str)]) -> u64 {
    numbers(families, name, labels).unwrap_or_else(|| panic!("{name} has no series {labels:?}"))
}

/// Like [`number`], but returns `None` if there are no such series.
pub fn numbers(families: &[Family], name: &str, labels: &[(&str, &str)]) -> Option<u64> {
    let family =
        families.iter().find(|family| family.name() == name).unwrap_or_else(|| panic!("no metric {name}"));
    // No label value in these tests contains a comma or a quote.
    let fits = |have: &str| {
        labels.iter().all(|(key, value)| have.split(',').any(|one| one == format!("{key}=\"{value}\"")))
    };
    let head = family.head();
    let samples: Vec<_> = family.samples().filter(|sample| fits(head.labels(sample.key))).collect();
    let numbers = samples
        .iter()
        .map(|sample| match sample.value {
            SampleValue::Number(Number::Int(number)) => u64::try_from(number).unwrap(),
            SampleValue::Number(Number::Real(number)) => panic!("{name}: {number}"),
            SampleValue::Histogram { counts, .. } => counts.iter().sum(),
        })
        .sum();
    (!samples.is_empty()).then_some(numbers)
}

/// Returns the number of observations of a histogram's series with a label, and their sum in microseconds.
pub fn observed(families: &[Family], name: &str, label: &str) -> (u64, u64) {
    let family = families.iter().find(|family| family.name() == name).unwrap();
    let sample = family.samples().find(|sample| family.head().labels(sample.key).contains(label)).unwrap();
    let SampleValue::Histogram { counts, sum, .. } = sample.value else { panic!("no histogram") };
    let Number::Real(sum) = sum else { panic!("not in seconds") };
    (counts.iter().sum(), (sum * 1e6).round() as u64)
}

/// Waits until a condition is true, with a timeout.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < TIMEOUT, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until no frame has crossed for a moment: late neighbor discovery would make two readings differ.
pub fn settle(here: &Namespace) {
    let mut last = here.statistics("exn0");
    until("the pair is quiet", || {
        std::thread::sleep(Duration::from_millis(300));
        let now = here.statistics("exn0");
        let quiet = now == last;
        last = now;
        quiet
    });
}

/// Returns the totals of both directions, frames and bytes.
pub fn totals(families: &[Family]) -> [u64; 4] {
    ["xdp_packets_total", "xdp_bytes_total", "tc_egress_packets_total", "tc_egress_bytes_total"]
        .map(|name| number(families, name, &[]))
}

/// Asserts that we have counted what the kernel has. `header` is the number of bytes per frame that the kernel's
/// received bytes lack.
pub fn agrees_with_the_kernel(here: &Namespace, network: &Network, header: u64) {
    // Neighbors are probed again after some seconds: only readings with no traffic in between can be compared.
    let (mut kernel, mut ours) = (here.statistics("exn0"), [0; 4]);
    until("nothing crossed between two readings", || {
        let before = kernel;
        ours = totals(&network.collect());
        std::thread::sleep(Duration::from_millis(20));
        kernel = here.statistics("exn0");
        kernel == before
    });
    assert_eq!(kernel.tx_dropped, 0, "what the device drops has passed the egress program");
    assert_eq!(
        ours,
        [kernel.rx_packets, kernel.rx_bytes + header * kernel.rx_packets, kernel.tx_packets, kernel.tx_bytes],
        "{kernel:?}"
    );
}

pub fn send_datagrams(from: &Namespace, datagrams: u64, bytes: usize) {
    from.run(move || {
        let socket = UdpSocket::bind((THERE, 0)).unwrap();
        let payload = vec![0x55; bytes];
        for _ in 0..datagrams {
            // There is no listener: a later send reports the refusals that came back, and sends nothing itself.
            while socket.send_to(&payload, (HERE, 7777)).is_err() {}
        }
    });
}

/// Returns the kernel's information on a connection: `struct tcp_info` of linux/tcp.h.
pub fn tcp_info(stream: &TcpStream) -> [u8; 256] {
    let mut info = [0u8; 256];
    let mut length = info.len() as u32;
    // SAFETY: the kernel writes at most the given number of bytes.
    let got = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut length,
        )
    };
    assert_eq!(got, 0, "{}", std::io::Error::last_os_error());
    info
}
