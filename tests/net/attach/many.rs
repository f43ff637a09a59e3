//! Many interfaces, and scrapes meanwhile.

use std::time::{Duration, Instant};

use exporter::net::{Event, Mode, NetworkConfig};

use super::foreign::before_others;
use crate::counting::{attached, config, number, start, until};
use crate::namespace::Namespace;

/// Scrapes go on while interfaces are attached to, and tell which are not counted yet.
#[test]
fn a_scrape_waits_for_no_interface() {
    const INTERFACES: u64 = 40;
    let here = Namespace::new();
    for pair in 0..INTERFACES / 2 {
        here.command(&format!("ip link add exn{pair} type veth peer name exp{pair}"));
    }
    let wanted = NetworkConfig { interfaces: vec!["ex??".into(), "ex?*".into()], ..config(Mode::Auto) };
    let (network, events) = start(&here, wanted);
    let (mut attached, mut pending) = (0, 0);
    while attached < INTERFACES {
        let why = network.not_ready().join("\n");
        let families = network.collect();
        let directions = number(&families, "network_attached", &[]);
        if directions < 2 * INTERFACES {
            let waiting = number(&families, "network_attach_failed", &[("reason", "pending")]);
            assert_eq!(directions + waiting, 2 * INTERFACES, "each is counted or not yet");
            assert!(why.contains("not attached yet"), "{why}");
            pending += 1;
        }
        attached += events.try_iter().filter(|event| matches!(event, Event::Attached { .. })).count() as u64;
    }
    assert!(pending > 20, "only {pending} scrapes while interfaces were attached to");
    assert!(network.not_ready().is_empty(), "{:?}", network.not_ready());
}

/// Of several tries the quickest, for the machine may be busy. The kernel itself needs two RCU grace periods: what it takes
/// for two programs of somebody else is the measure.
#[test]
fn a_new_interface_is_counted_at_once() {
    let here = Namespace::new();
    here.command("ip link add exn0 type veth peer name exp0");
    let (network, events) = start(&here, config(Mode::Auto));
    attached(&events);
    let (mut ours, mut bare) = (Duration::MAX, Duration::MAX);
    for number in 1..=12 {
        here.command(&format!("ip link add exn{number} type veth peer name exp{number}"));
        let made = Instant::now();
        attached(&events);
        ours = ours.min(made.elapsed());
        let kinds = [libbpf_sys::BPF_TCX_INGRESS, libbpf_sys::BPF_TCX_EGRESS];
        let (took, others) = here.run(move || {
            let start = Instant::now();
            let others = kinds.map(|kind| before_others(1, kind, -1));
            (start.elapsed(), others)
        });
        drop(others);
        bare = bare.min(took);
    }
    until("all are shown", || number(&network.collect(), "network_attached", &[]) == 2 * 13);
    assert!(ours < Duration::from_millis(50).max(3 * bare), "{ours:?}, two other programs {bare:?}");
}
