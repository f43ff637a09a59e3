//! Which interface is selected, whatever its name, and which interface counters belong to.

use exporter::net::{Event, Hook, Mode, NetworkConfig, Space};

use crate::counting::{attached, config, number, numbers, send_datagrams, settle, start, until};
use crate::namespace::{Namespace, connect_at, pair, up};
use crate::support::exporter::TIMEOUT;

fn udp(network: &exporter::net::Network, labels: &[(&str, &str)]) -> u64 {
    let all = [&[("family", "ipv4"), ("protocol", "udp")], labels].concat();
    number(&network.collect(), "xdp_packets_total", &all)
}

#[test]
fn matches_altnames_and_honors_exclusions() {
    let (here, there) = pair();
    here.command("ip link property add dev exn0 altname wan-uplink");
    here.command("ip link add exn5 type veth peer name exn6");
    let wanted = NetworkConfig {
        interfaces: vec!["wan-uplink".into(), "exn*".into(), "exn7".into()],
        exclude: vec!["exn6".into(), "exn7".into()],
        ..config(Mode::Auto)
    };
    let (network, events) = start(&here, wanted);
    assert_eq!([attached(&events).0, attached(&events).0], ["exn0", "exn5"]);
    // An excluded interface does not count as missing either.
    assert!(network.not_ready().is_empty(), "{:?}", network.not_ready());
    up(&here, &there);
    send_datagrams(&there, 10, 10);
    settle(&here);
    assert_eq!(udp(&network, &[("interface", "exn0")]), 10);
    here.command("ip link property del dev exn0 altname wan-uplink");
    until("it is missing", || network.not_ready().join("").contains("no interface wan-uplink"));
    here.command("ip link property add dev exn5 altname wan-uplink");
    until("it is there again", || network.not_ready().is_empty());
}

/// Readiness does not wait for packets that a device never receives.
#[test]
fn device_without_receive_path_is_ready() {
    let here = Namespace::new();
    here.command("ip link add exn0 type ifb");
    let named = NetworkConfig { interfaces: vec!["exn0".into()], ..config(Mode::Auto) };
    let (network, _events) = start(&here, named);
    assert_eq!(network.attached(), [("exn0".to_string(), None)]);
    assert!(network.not_ready().is_empty(), "{:?}", network.not_ready());
    assert_eq!(network.refusals().len(), 1, "the reason is exported");
}

/// What a reload does.
#[test]
fn reconfiguring_interfaces_retains_unchanged_ones() {
    let (here, there) = pair();
    here.command("ip link add exn5 type veth peer name exn6");
    let of = |names: &[&str]| NetworkConfig {
        interfaces: names.iter().map(ToString::to_string).collect(),
        ..config(Mode::Auto)
    };
    let (network, events) = start(&here, of(&["exn0"]));
    let event = || events.recv_timeout(TIMEOUT).expect("an event");
    assert_eq!(attached(&events).0, "exn0");
    up(&here, &there);
    send_datagrams(&there, 10, 10);
    settle(&here);
    network.change(&of(&["exn0", "exn5"])).unwrap();
    // There is no event for the other interface, which is left alone.
    assert_eq!(attached(&events).0, "exn5");
    assert_eq!(udp(&network, &[("interface", "exn0")]), 10);
    send_datagrams(&there, 5, 10);
    settle(&here);
    assert_eq!(udp(&network, &[("interface", "exn0")]), 15);
    network.change(&of(&["exn5", "exn7"])).unwrap();
    assert_eq!(event(), Event::Unwanted { interface: "exn0".into() });
    assert_eq!(event(), Event::Missing { interface: "exn7".into() });
    assert!(!here.command("bpftool net show dev exn0").contains("net_"));
    assert!(network.not_ready().join("").contains("exn7"), "{:?}", network.not_ready());
    network.change(&of(&["exn*"])).unwrap();
    let again = [attached(&events).0, attached(&events).0];
    assert!(again.contains(&"exn0".into()) && again.contains(&"exn6".into()), "{again:?}");
    assert_eq!(udp(&network, &[("interface", "exn0")]), 0);
    assert!(network.not_ready().is_empty(), "{:?}", network.not_ready());
}

/// When an index is reused, it is another interface, whose counters start at zero.
#[test]
fn recreated_interface_starts_at_zero() {
    let (here, there) = (Namespace::new(), Namespace::new());
    let make = || {
        connect_at(77, &here, &there);
        up(&here, &there);
    };
    make();
    let (network, events) = start(&here, config(Mode::Auto));
    assert_eq!(attached(&events), ("exn0".into(), Some(Hook::Tcx)));
    let before = udp(&network, &[]);
    send_datagrams(&there, 10, 10);
    settle(&here);
    assert_eq!(udp(&network, &[]) - before, 10);
    for _ in 0..5 {
        here.command("ip link del exn0");
        make();
        assert_eq!(events.recv_timeout(TIMEOUT), Ok(Event::Gone { interface: "exn0".into() }));
        assert_eq!(attached(&events), ("exn0".into(), Some(Hook::Tcx)));
        let families = network.collect();
        assert_eq!(number(&families, "network_attached", &[]), 2);
        send_datagrams(&there, 3, 10);
        settle(&here);
        assert_eq!(udp(&network, &[]), 3, "neither the counts of the last one nor none");
    }
}

/// Programs find an interface by the low bits of its index, or by a hash if another interface has the same bits.
#[test]
fn interfaces_with_colliding_indexes_stay_distinct() {
    let (here, there) = pair();
    for (index, name) in [(100, "exa"), (100 + 2048, "exb"), (100 + 2 * 2048, "exc")] {
        here.command(&format!(
            "ip link add {name} index {index} type veth peer name {name}9 netns {}",
            there.id()
        ));
        there.command(&format!("ip link set {name}9 up"));
        here.command(&format!("ip link set {name} up"));
    }
    let wanted = NetworkConfig { interfaces: vec!["ex?".into()], ..config(Mode::Auto) };
    let (network, events) = start(&here, wanted);
    assert_eq!([0; 3].map(|_| attached(&events).0), ["exa", "exb", "exc"]);
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 9, 8, 0]);
    frame.extend([0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 99, 0, 2, 10, 99, 0, 1]);
    frame.extend([0, 7, 0, 8, 0, 12, 0, 0, 1, 2, 3, 4]);
    for (name, times) in [("exa", 10), ("exb", 20), ("exc", 30)] {
        let frame = frame.clone();
        there.run(move || crate::namespace::send_raw(&format!("{name}9"), &frame, times));
    }
    let counted = || ["exa", "exb", "exc"].map(|name| udp(&network, &[("interface", name)]));
    until("all have come", || counted().iter().sum::<u64>() >= 60);
    assert_eq!(counted(), [10, 20, 30]);
    here.command("ip link del exa");
    until("it is gone", || number(&network.collect(), "network_attached", &[]) == 4);
    there.run(move || crate::namespace::send_raw("exb9", &frame, 5));
    until("more have come", || udp(&network, &[("interface", "exb")]) >= 25);
    assert_eq!(udp(&network, &[("interface", "exb")]), 25);
}

#[test]
fn rename_under_traffic_loses_no_packet() {
    let (here, there) = pair();
    let (network, events) = start(&here, config(Mode::Auto));
    attached(&events);
    up(&here, &there);
    for round in 0..10 {
        let (from, to) = if round % 2 == 0 { ("exn0", "exn9") } else { ("exn9", "exn0") };
        send_datagrams(&there, 50, 10);
        here.command(&format!("ip link set {from} name {to}"));
        send_datagrams(&there, 50, 10);
    }
    settle(&here);
    until("the last name is known", || {
        // At first it may still have the previous one.
        numbers(&network.collect(), "network_attached", &[("interface", "exn0")]) == Some(2)
    });
    assert_eq!(udp(&network, &[("interface", "exn0")]), 1000);
}

/// An interface that moves to another namespace disappears here and, if that namespace is counted too, appears there as
/// new.
#[test]
fn interfaces_are_labeled_with_their_namespace() {
    let (here, there) = (Namespace::new(), Namespace::new());
    crate::namespace::connect(&here, &there);
    let path = format!("/proc/{}/task/{}/ns/net", std::process::id(), there.id());
    let wanted = NetworkConfig {
        interfaces: vec!["exn*".into()],
        elsewhere: vec![(Space::Netns(path.clone()), vec!["exn*".into()])],
        ..config(Mode::Auto)
    };
    let (network, events) = start(&here, wanted);
    let names = [attached(&events).0, attached(&events).0];
    assert_eq!(names, ["exn0".to_string(), format!("exn1 (netns {path})")]);
    up(&here, &there);
    send_datagrams(&there, 10, 10);
    settle(&here);
    let sent = [("netns", &*path), ("interface", "exn1"), ("protocol", "udp"), ("family", "ipv4")];
    assert_eq!(number(&network.collect(), "tc_egress_packets_total", &sent), 10);
    assert_eq!(udp(&network, &[("interface", "exn0")]), 10);

    here.command("ip link add exn4 type veth peer name exn5");
    let mut new = [attached(&events).0, attached(&events).0];
    new.sort();
    assert_eq!(new, ["exn4", "exn5"]);
    here.command(&format!("ip link set exn4 netns {}", there.id()));
    let mut told = [0; 2].map(|_| match events.recv_timeout(TIMEOUT).expect("an event") {
        Event::Gone { interface } | Event::Attached { interface, .. } => interface,
        other => panic!("{other}"),
    });
    told.sort();
    assert_eq!(told, ["exn4".to_string(), format!("exn4 (netns {path})")]);
    let at_both = number(&network.collect(), "network_attached", &[("interface", "exn4")]);
    assert_eq!(at_both, 2, "it is only in one of them");
}
