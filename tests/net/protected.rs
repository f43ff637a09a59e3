//! Changes of what must never be dropped are noticed at once while the exporter runs.
//!
//! Needs root and `ip`.

use std::time::{Duration, Instant};

use exporter::net::{BlockConfig, BlockEntry, BlockMode, BlockRule, Mode, NetworkConfig, Prefix};

use crate::counting::{config, number, start, until};
use crate::namespace::{pair, up};

/// Much shorter than polling every five seconds would take for this many changes, and much longer than notifications
/// take.
const ALL_CHANGES: Duration = Duration::from_secs(30);

#[test]
fn protected_addresses_follow_changes_immediately() {
    let (here, there) = pair();
    let entry = |text: &str| BlockEntry { prefix: Prefix::parse(text).unwrap(), rule: BlockRule::default() };
    let block = BlockConfig {
        mode: BlockMode::Enforce,
        entries: vec![entry("10.99.0.0/24"), entry("fd99::/64")],
        ..BlockConfig::default()
    };
    let (network, _) = start(&here, NetworkConfig { block: Some(block), ..config(Mode::Auto) });
    // No automatic address appears late.
    here.command("ip link set exn0 addrgenmode none");
    up(&here, &there);
    let allowed = || number(&network.collect(), "xdp_allowlist_entries", &[]);
    let pings = |to: &str| there.output(&format!("ping -c 1 -W 1 -q {to}")).status.success();
    until("the addresses of the interface are known", || allowed() > 3);
    assert!(!pings("10.99.0.1"));
    let begun = Instant::now();
    // Each change with the number of addresses that it protects.
    for (change, back, more) in [
        ("route add default via 10.99.0.2", "route del default", 1),
        ("-6 route add default via fd99::2", "-6 route del default", 1),
        (
            "route add default nexthop via 10.99.0.2 dev exn0 nexthop via 10.99.0.3 dev exn0",
            "route del default",
            2,
        ),
        ("route add default via inet6 fd99::3 dev exn0", "route del default via inet6 fd99::3 dev exn0", 1),
        ("addr add 10.98.0.1/32 dev exn0", "addr del 10.98.0.1/32 dev exn0", 1),
    ] {
        let before = allowed();
        here.command(&format!("ip {change}"));
        until(change, || allowed() == before + more);
        here.command(&format!("ip {back}"));
        until(back, || allowed() == before);
    }
    // A table counts if a rule leads to it.
    let before = allowed();
    for (change, more) in [
        ("rule add from all table 4000 pref 900", 0),
        ("route add default via 10.99.0.4 table 4000", 1),
        ("route append default via 10.99.0.5 table 4000 metric 9", 2),
        ("rule del pref 900", 0),
    ] {
        here.command(&format!("ip {change}"));
        until(change, || allowed() == before + more);
    }
    assert!(begun.elapsed() < ALL_CHANGES, "{:?}", begun.elapsed());
    // The protection also applies to packets.
    here.command("ip route add default via 10.99.0.2");
    until("the gateway's packets pass", || pings("10.99.0.1"));
}
