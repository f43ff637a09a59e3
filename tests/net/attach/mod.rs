//! Where the packet programs are attached and where they are not: interfaces that appear and disappear, other programs,
//! large frames, drivers without XDP.
//!
//! Needs root, `ip`, `ping` and `bpftool`.

// A foreign program; any one will do.
include!(concat!(env!("OUT_DIR"), "/net_bench.skel.rs"));
mod beside_others;
mod foreign;
mod many;
mod names;

use crate::counting::{
    NATIVE_VETH_OMITS, agrees_with_the_kernel, attached, config, number, send_datagrams, settle, start,
};
use crate::namespace::{HERE, Namespace, connect, pair, up};
use crate::support::exporter::TIMEOUT;
use exporter::net::{Event, Hook, Mode, NetworkConfig};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};

#[test]
fn foreign_program_is_left_attached() {
    let (here, there) = pair();
    let text = here.command("ip -j link show dev exn0");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let index = json[0]["ifindex"].as_i64().unwrap() as i32;
    let link = here.run(move || foreign_link(index));
    let holder = || {
        let text = here.command("ip -j -d link show dev exn0");
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json[0]["xdp"]["prog"]["id"].as_u64()
    };
    let other = holder().expect("the other's program is there");
    for mode in [Mode::Native, Mode::Generic] {
        let (network, events) = start(&here, config(mode));
        let Event::Refused { direction: "ingress", refusal, .. } = events.recv().unwrap() else {
            panic!("{mode:?}: not refused")
        };
        assert_eq!(refusal.reason, "busy");
        assert!(refusal.text.contains(&format!("\"bench_empty\", id {other}, in native mode")), "{refusal}");
        assert!(refusal.text.contains("ip link set dev exn0 xdp off"), "{refusal}");
        assert_eq!(holder(), Some(other));
        // Egress is counted all the same, and the metrics show that ingress is not.
        let families = network.collect();
        assert_eq!(number(&families, "network_attached", &[("direction", "egress")]), 1);
        assert_eq!(number(&families, "network_attached", &[("direction", "ingress")]), 0);
        assert_eq!(number(&families, "network_attach_failed", &[("reason", "busy")]), 1);
        drop(network);
        assert_eq!(holder(), Some(other));
    }
    up(&here, &there);
    there.command(&format!("ping -c 1 -q {HERE}"));
    drop(link);
    assert_eq!(holder(), None);
}

/// Attaches a program that is not ours; the link keeps it loaded.
fn foreign_link(index: i32) -> libbpf_rs::Link {
    let mut storage = std::mem::MaybeUninit::uninit();
    let mut open = generated::NetBenchSkelBuilder::default().open(&mut storage).expect("another's object");
    // Without resizing, its counters have no room for all CPUs.
    open.progs.net_ingress.set_autoload(false);
    open.progs.net_ingress_blocklist.set_autoload(false);
    let skel = open.load().expect("another's program loads");
    skel.progs.bench_empty.attach_xdp(index).expect("another's program attaches")
}

#[test]
fn removed_interfaces_leave_nothing_behind() {
    let (here, there) = pair();
    let (network, events) = start(&here, config(Mode::Generic));
    let event = || events.recv_timeout(TIMEOUT).expect("an event");
    assert!(matches!(event(), Event::Attached { .. }));
    up(&here, &there);
    send_datagrams(&there, 10, 10);
    settle(&here);
    assert_eq!(number(&network.collect(), "xdp_packets_total", &[("protocol", "udp")]), 10);

    here.command("ip link del exn0");
    assert_eq!(event(), Event::Gone { interface: "exn0".into() });
    assert!(network.collect().is_empty());

    connect(&here, &there);
    assert_eq!(attached(&events), ("exn0".into(), Some(Hook::Generic)));
    up(&here, &there);
    send_datagrams(&there, 3, 10);
    settle(&here);
    assert_eq!(number(&network.collect(), "xdp_packets_total", &[("protocol", "udp")]), 3);
    agrees_with_the_kernel(&here, &network, 0);

    drop(network);
    assert!(!here.command("ip -d link show dev exn0").contains("xdp"));
    assert!(!here.command("bpftool net show dev exn0").contains("net_egress"));
}

#[test]
fn missing_interfaces_are_reported() {
    let here = Namespace::new();
    let (_network, events) = start(
        &here,
        NetworkConfig { interfaces: vec!["exn7".into(), "other*".into()], ..config(Mode::Auto) },
    );
    assert_eq!(events.recv().unwrap(), Event::Missing { interface: "exn7".into() });
    assert!(events.try_recv().is_err());
}

#[test]
fn large_mtu_works_in_native_mode() {
    let (here, there) = pair();
    here.command("ip link set exn0 mtu 9000");
    there.command("ip link set exn1 mtu 9000");
    let (network, events) = start(&here, config(Mode::Native));
    // veth accepts frames in fragments, so native mode works with it.
    assert_eq!(attached(&events), ("exn0".into(), Some(Hook::Native)));
    up(&here, &there);
    send_datagrams(&there, 20, 8000);
    settle(&here);
    let families = network.collect();
    let labels = [("family", "ipv4"), ("protocol", "udp")];
    assert_eq!(number(&families, "xdp_packets_total", &labels), 20);
    assert_eq!(number(&families, "xdp_bytes_total", &labels), 20 * 8042);
    agrees_with_the_kernel(&here, &network, NATIVE_VETH_OMITS);
}

#[test]
fn driver_without_xdp_is_reported() {
    let here = Namespace::new();
    let (_network, events) =
        start(&here, NetworkConfig { interfaces: vec!["lo".into()], ..config(Mode::Native) });
    let Event::Refused { refusal, .. } = events.recv().unwrap() else { panic!("not refused") };
    assert!(["unsupported", "mtu"].contains(&refusal.reason), "{refusal:?}");
    assert!(refusal.text.contains("mode: generic"), "{refusal}");
    let (_network, events) =
        start(&here, NetworkConfig { interfaces: vec!["lo".into()], ..config(Mode::Auto) });
    assert_eq!(attached(&events), ("lo".into(), Some(Hook::Tcx)));
}
