//! Many interfaces, with scrapes in the meantime.

use std::time::{Duration, Instant};

use exporter::net::{Event, Mode, NetworkConfig};

use super::foreign::before_others;
use crate::counting::{attached, config, number, start, until};
use crate::namespace::Namespace;

/// Scrapes continue while interfaces are being attached, and report which are not counted yet.
#[test]
fn scrapes_do_not_wait_for_interfaces() {
    const INTERFACES: u64 = 40;
    let here = Namespace::new();
    for pair in 0..INTERFACES / 2 {
        here.command(&format!("ip link add exn{pair} type veth peer name exp{pair}"));
    }
    let wanted = NetworkConfig { interfaces: vec!["ex??".into(), "ex?*".into()], ..config(Mode::Auto) };
    let (network, events) = start(&here, wanted);
    let (mut attached, mut pending) = (0, 0);
    while attached < INTERFACES {
        let reason = network.not_ready().join("\n");
        let families = network.collect();
        let directions = number(&families, "network_attached", &[]);
        if directions < 2 * INTERFACES {
            let waiting = number(&families, "network_attach_failed", &[("reason", "pending")]);
            assert_eq!(directions + waiting, 2 * INTERFACES, "each is counted or not yet");
            assert!(reason.contains("not attached yet"), "{reason}");
            pending += 1;
        }
        attached += events.try_iter().filter(|event| matches!(event, Event::Attached { .. })).count() as u64;
    }
    // If scrapes waited, there would be one at most.
    assert!(pending > 4, "only {pending} scrapes while interfaces were attached to");
    assert!(network.not_ready().is_empty(), "{:?}", network.not_ready());
}

/// The kernel itself needs two RCU grace periods, so the time for attaching two foreign programs is the reference. The
/// fastest of as many attempts as necessary counts, because the machine may be busy; a program that waits on its own is
/// fast in none.
#[test]
fn new_interface_is_counted_immediately() {
    let here = Namespace::new();
    here.command("ip link add exn0 type veth peer name exp0");
    let (network, events) = start(&here, config(Mode::Auto));
    attached(&events);
    let (mut ours, mut bare, mut made) = (Duration::MAX, Duration::MAX, 0);
    until("a new interface is counted at once", || {
        made += 1;
        here.command(&format!("ip link add exn{made} type veth peer name exp{made}"));
        let begun = Instant::now();
        attached(&events);
        ours = ours.min(begun.elapsed());
        let kinds = [libbpf_sys::BPF_TCX_INGRESS, libbpf_sys::BPF_TCX_EGRESS];
        let (took, others) = here.run(move || {
            let start = Instant::now();
            let others = kinds.map(|kind| before_others(1, kind, -1));
            (start.elapsed(), others)
        });
        drop(others);
        bare = bare.min(took);
        made >= 12 && ours < Duration::from_millis(50).max(3 * bare)
    });
    until("all are shown", || number(&network.collect(), "network_attached", &[]) == 2 * (made + 1));
}
