//! Attached means counting, whatever others do to the interface.

use std::sync::mpsc::Receiver;
use std::time::Duration;

use exporter::net::{Event, Hook, Mode, Network};

use super::foreign::{before_others, native_xdp, send_past_tc};
use crate::counting::{attached, config, number, send_datagrams, settle, start, until};
use crate::namespace::{Namespace, connect_at, pair, up};
use crate::support::exporter::TIMEOUT;

const TC_ACT_OK: i32 = 0;
const XDP_DROP: i32 = 1;

fn index_of(here: &Namespace, name: &str) -> i32 {
    let text = here.command(&format!("ip -j link show dev {name}"));
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json[0]["ifindex"].as_i64().unwrap() as i32
}

fn event(events: &Receiver<Event>) -> Event {
    events.recv_timeout(TIMEOUT).expect("an event")
}

fn received(network: &Network) -> u64 {
    number(&network.collect(), "xdp_packets_total", &[("family", "ipv4"), ("protocol", "udp")])
}

/// Returns the IDs of the links that attach programs of these names to the interface.
fn links_on(index: i32) -> Vec<u32> {
    let names = ["net_tc_ingress", "net_ingress", "net_egress"];
    let ours = |link: &libbpf_rs::query::LinkInfo| {
        let program = libbpf_rs::ProgramHandle::from_prog_id(link.prog_id);
        let is_on = match &link.info {
            libbpf_rs::query::LinkTypeInfo::Tcx(tcx) => tcx.ifindex == index as u32,
            libbpf_rs::query::LinkTypeInfo::Xdp(xdp) => xdp.ifindex == index as u32,
            _ => false,
        };
        is_on && program.is_ok_and(|program| names.iter().any(|name| program.name() == *name))
    };
    libbpf_rs::query::LinkInfoIter::default().filter(ours).map(|link| link.id).collect()
}

#[test]
fn reattaches_after_a_forced_detach() {
    for (mode, hook) in [(Mode::Auto, Hook::Tcx), (Mode::Native, Hook::Native)] {
        let (here, there) = (Namespace::new(), Namespace::new());
        // An index that no other test's interface has, because links do not tell the namespace of their interface.
        connect_at(1234, &here, &there);
        let (network, events) = start(&here, config(mode));
        assert_eq!(attached(&events), ("exn0".into(), Some(hook)));
        up(&here, &there);
        let links = links_on(1234);
        assert_eq!(links.len(), 2, "one for each direction: {}", here.command("bpftool net show dev exn0"));
        for id in &links {
            here.command(&format!("bpftool link detach id {id}"));
        }
        let mut restored = [event(&events), event(&events)].map(|event| match event {
            Event::Restored { direction, .. } => direction,
            other => panic!("{other}"),
        });
        restored.sort_unstable();
        assert_eq!(restored, ["egress", "ingress"]);
        let before = received(&network);
        send_datagrams(&there, 100, 100);
        settle(&here);
        assert_eq!(received(&network) - before, 100);
        assert!(network.not_ready().is_empty(), "{:?}", network.not_ready());
    }
}

#[test]
fn moves_ahead_of_a_later_program_that_ends_the_chain() {
    let (here, there) = pair();
    let (network, events) = start(&here, config(Mode::Auto));
    attached(&events);
    up(&here, &there);
    let index = index_of(&here, "exn0");
    let both = [libbpf_sys::BPF_TCX_INGRESS, libbpf_sys::BPF_TCX_EGRESS];
    let others = here.run(move || both.map(|kind| before_others(index, kind, TC_ACT_OK)));
    // A check between the two attachments may see either first.
    let mut moved = [(); 2].map(|()| match event(&events) {
        Event::Moved { direction, before, .. } => {
            assert!(before.contains("\"somebody\""), "{before}");
            direction
        }
        other => panic!("not moved: {other}"),
    });
    moved.sort_unstable();
    assert_eq!(moved, ["egress", "ingress"]);
    let counted = |name| number(&network.collect(), name, &[("family", "ipv4"), ("protocol", "udp")]);
    let (before, sent) = (received(&network), counted("tc_egress_packets_total"));
    send_datagrams(&there, 100, 100);
    here.run(|| {
        let socket = std::net::UdpSocket::bind((crate::namespace::HERE, 0)).unwrap();
        for _ in 0..100 {
            while socket.send_to(&[0; 50], (crate::namespace::THERE, 9)).is_err() {}
        }
    });
    settle(&here);
    assert_eq!(received(&network) - before, 100);
    assert_eq!(counted("tc_egress_packets_total") - sent, 100);
    drop(others);
}

/// Two exporters do not move ahead of each other forever, which would lose packets at every move.
#[test]
fn two_exporters_count_the_same_interface() {
    let (here, there) = pair();
    let (first, of_first) = start(&here, config(Mode::Auto));
    attached(&of_first);
    let (second, of_second) = start(&here, config(Mode::Auto));
    let mut behind = 0;
    until("a program stays first in each direction", || {
        let events = of_first.try_iter().chain(of_second.try_iter());
        behind += events.filter(|event| matches!(event, Event::Behind { .. })).count();
        behind == 2
    });
    up(&here, &there);
    let before = [received(&first), received(&second)];
    send_datagrams(&there, 100, 100);
    settle(&here);
    assert_eq!([received(&first) - before[0], received(&second) - before[1]], [100, 100]);
    let moved =
        of_first.try_iter().chain(of_second.try_iter()).any(|event| matches!(event, Event::Moved { .. }));
    assert!(!moved);
}

/// Sends in several bursts, so that comparisons with the kernel's counts show a difference, until the event arrives.
fn hidden_after(burst: impl Fn(), events: &Receiver<Event>, direction: &str) {
    for _ in 0..200 {
        burst();
        match events.recv_timeout(Duration::from_millis(100)) {
            Ok(Event::Hidden { direction: of, packets, .. }) => {
                assert_eq!(of, direction);
                assert!(packets >= 32, "{packets}");
                return;
            }
            Ok(other) => panic!("{other}"),
            Err(_) => {}
        }
    }
    panic!("it was never told");
}

#[test]
fn packets_taken_by_an_earlier_program_are_reported() {
    let (here, there) = pair();
    let (network, events) = start(&here, config(Mode::Auto));
    assert_eq!(attached(&events).1, Some(Hook::Tcx));
    up(&here, &there);
    let index = index_of(&here, "exn0");
    let other = here.run(move || native_xdp(index, XDP_DROP));
    hidden_after(|| send_datagrams(&there, 50, 100), &events, "ingress");
    let families = network.collect();
    assert_eq!(number(&families, "network_attach_failed", &[("reason", "hidden")]), 1);
    assert_eq!(number(&families, "network_attached", &[("direction", "ingress")]), 0);
    assert_eq!(number(&families, "network_attached", &[("direction", "egress")]), 1);
    let reason = network.not_ready().join("\n");
    assert!(reason.contains("exn0: TC ingress is attached but sees less than half"), "{reason}");
    drop(other);
    until("it is seen again", || {
        send_datagrams(&there, 50, 100);
        matches!(events.try_recv(), Ok(Event::Seen { direction: "ingress", .. }))
    });
    assert!(network.not_ready().is_empty());
}

#[test]
fn packets_bypassing_the_egress_program_are_reported() {
    let (here, there) = pair();
    let (network, events) = start(&here, config(Mode::Auto));
    attached(&events);
    up(&here, &there);
    let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 9, 0x88, 0xb5], &[7; 60]].concat();
    hidden_after(
        || {
            let frame = frame.clone();
            here.run(move || send_past_tc("exn0", &frame, 50));
        },
        &events,
        "egress",
    );
    let reason = network.not_ready().join("\n");
    assert!(reason.contains("exn0: TC egress is attached but sees less than half"), "{reason}");
}
