//! Interfaces and the blocklist.

use super::*;
use crate::net::{BlockDirection, Prefix, Source};

#[test]
fn blocklist_is_shown_with_its_problems() {
    let network = |enforced: u64, stored: u64| {
        let family = |name, kind, rows: &[(&[(&'static str, &str)], u64)]| {
            let mut family = Family::new(name, kind, "");
            rows.iter().for_each(|(labels, number)| family.number(labels, *number));
            family
        };
        vec![
            family("xdp_blocklist_enforced", Kind::Gauge, &[(&[], enforced)]),
            family(
                "xdp_blocklist_entries",
                Kind::Gauge,
                &[(&[("source", "config")], 2), (&[("source", "api")], 0), (&[("source", "/<list>")], 40)],
            ),
            family("xdp_allowlist_entries", Kind::Gauge, &[(&[], 3)]),
            family("xdp_blocklist_stored", Kind::Gauge, &[(&[], stored)]),
            family("xdp_blocklist_file_readable", Kind::Gauge, &[(&[("file", "/<list>")], stored)]),
            family("xdp_blocklist_source_up", Kind::Gauge, &[(&[("source", "crowdsec")], stored)]),
            family("xdp_blocklist_source_age_seconds", Kind::Gauge, &[(&[("source", "crowdsec")], 600)]),
            family("xdp_drops_total", Kind::Counter, &[(&[("reason", "blocklist")], 70)]),
            family("xdp_would_drop_total", Kind::Counter, &[(&[("reason", "blocklist")], 90)]),
        ]
    };
    let blocked = |enforced, stored| {
        let mut all = snapshot_at(&PROBES[..1], Instant::now());
        all.missing.clear();
        all.network = Some((network(enforced, stored), Vec::new()));
        all.blocked = vec![BlockRow {
            prefix: Prefix::parse("203.0.113.0/24").unwrap(),
            source: Source::named("api"),
            reason: "<b>scans</b>".into(),
            direction: BlockDirection::Ingress,
            scope: None,
            expires_in: Some(90.0),
            is_unconfirmed: false,
            packets: 7,
            bytes: 700,
            last_seen: Some(4.0),
        }];
        seen(all)
    };
    let status = blocked(1, 1);
    assert!(status.attention.is_empty(), "{:?}", status.attention);
    let list = status.blocklist.as_ref().unwrap();
    assert_eq!((list.entries, list.dropped, list.sources.len()), (42.0, 70.0, 2));
    assert_eq!(list.busiest[0].last_seen, Some(status.time - 4.0));
    let shown = page(&status);
    for text in [
        "42 entries (config 2, /&lt;list&gt; 40)",
        "70 of their packets were dropped",
        "in 90 s",
        "&lt;b&gt;scans",
    ] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
    let status = blocked(0, 0);
    assert!(page(&status).contains("90 of their packets would have been dropped"));
    let notices = subjects(&status);
    assert_eq!(notices.len(), 3, "{notices:?}");
    assert_eq!(notices[0].1, "Blocklist: /<list> cannot be read");
    assert_eq!(notices[1].1, "Blocklist: crowdsec does not answer");
    assert!(seen(snapshot()).blocklist.is_none());
}

#[test]
fn interfaces_show_both_directions() {
    let began = Instant::now();
    let look = |after: u64, bytes: u64| {
        let mut packets = Family::new("xdp_bytes_total", Kind::Counter, "");
        for protocol in ["tcp", "udp"] {
            packets.number(&[("interface", "eth0"), ("protocol", protocol)], bytes);
        }
        let mut mode = Family::new("xdp_mode", Kind::Gauge, "");
        mode.number(&[("interface", "eth0"), ("mode", "native")], 1u64);
        mode.number(&[("interface", "eth0"), ("mode", "tc")], 0u64);
        let mut attached = Family::new("network_attached", Kind::Gauge, "");
        attached.number(&[("interface", "eth0"), ("direction", "ingress")], 1u64);
        attached.number(&[("interface", "eth0"), ("direction", "egress")], 0u64);
        let mut failed = Family::new("network_attach_failed", Kind::Gauge, "");
        failed.number(&[("interface", "eth0"), ("direction", "egress"), ("reason", "taken")], 1u64);
        let mut all = snapshot_at(&[], began + Duration::from_secs(after));
        all.missing.clear();
        let reasons = vec!["eth0: egress is not counted".to_owned()];
        all.network = Some((vec![packets, mode, attached, failed], reasons));
        all
    };
    let mut history = History::default();
    status(look(0, 100), &mut history);
    let later = status(look(2, 1100), &mut history);
    let network = later.network.as_ref().unwrap();
    assert_eq!(network.received_bytes_per_second, Some(1000.0));
    let [ingress, egress] = &network.interfaces[..] else { panic!("{:?}", network.interfaces) };
    assert_eq!(
        (&ingress.hook[..], ingress.bytes, ingress.bytes_per_second),
        ("native", Some(2200.0), Some(1000.0))
    );
    assert_eq!((egress.is_counted, &egress.hook[..], egress.bytes_per_second), (false, "taken", None));
    assert_eq!(later.state, Health::NotReady);
    assert_eq!(subjects(&later)[0], (Severity::Error, "Network: eth0"));
}
