//! `state: pinned`: packets are counted while no exporter runs, and the next exporter continues.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use libbpf_rs::query::LinkInfoIter;

use crate::cable::{Cable, address, run};
use crate::counting::until;
use crate::support::bpffs::{BpfFs, unpin};
use crate::support::demo::program;
use crate::support::exporter::{Place, Setup, exporter, finish};

const TAKEN_OVER: &str = "Took over the packet counters that version";
const ANEW: &str = "The pinned packet counters are not taken over: ";

/// Returns the IDs of the pinned links.
fn links(directory: &Path) -> BTreeSet<u32> {
    let mut all = BTreeSet::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path: PathBuf = entry.path();
        // Only open links: libbpf would read a map as if it were one.
        let is_link = ["ingress", "egress", "tcp_", "kfree_skb"]
            .iter()
            .any(|part| entry.file_name().to_string_lossy().contains(part));
        if path.is_dir() {
            all.extend(links(&path));
        } else if is_link && let Ok(link) = libbpf_rs::Link::open(&path).and_then(|link| link.info()) {
            all.insert(link.id);
        }
    }
    all
}

#[track_caller]
fn are_gone(links: &BTreeSet<u32>) {
    assert!(!links.is_empty());
    until("the links to go", || !LinkInfoIter::default().any(|link| links.contains(&link.id)));
}

#[test]
fn restart_loses_no_packet_or_link_in_any_mode() {
    for mode in [
        ", count: { tcp: true, drop_reasons: true }",
        ", mode: generic",
        ", mode: native, count: { talkers: true, flows: true, cidrs: { all: [0.0.0.0/0] } }",
    ] {
        let (cable, place) = (Cable::lay(), Place::new());
        let bpf = BpfFs::mount(&place);
        let mut exporter = cable.start(&place, &bpf, mode);
        cable.up();
        let held = links(&bpf.state().join("network"));
        let traffic = cable.traffic();
        for signal in ["TERM", "KILL"] {
            exporter.end(signal);
            let before = cable.kernel().rx_packets;
            until("traffic while no exporter runs", || cable.kernel().rx_packets > before + 100);
            exporter = cable.start(&place, &bpf, mode);
            exporter.wait_for_log(TAKEN_OVER);
            // The links have counted in the meantime.
            let scrape = exporter.scrape();
            assert!(cable.ours(&scrape)[0] >= before as f64 + 100.0, "{mode}: {}", exporter.log());
            assert_eq!(links(&bpf.state().join("network")), held, "{mode}: not the same links");
        }
        drop(traffic);
        cable.agrees_with_the_kernel(&exporter);
        if mode.contains("talkers") {
            let talkers = exporter.fetch("/api/v1/talkers", &[]);
            let rows: serde_json::Value = serde_json::from_slice(&talkers.stdout).expect("JSON");
            let of = |row: &&serde_json::Value| row["address"] == address(2).as_str();
            let row = rows["rows"].as_array().expect("rows").iter().find(of).expect("the far end");
            let icmp = exporter
                .scrape()
                .sum("xdp_packets_total", &[("protocol", "icmp"), ("interface", &cable.name)]);
            assert!(row["received_packets"].as_f64().expect("a number") >= icmp, "{row} {icmp}");
        }
        exporter.end("TERM");
        unpin(&bpf.state());
        are_gone(&held);
    }
}

/// Not one packet passes while exporters end and start, and the next exporter's list replaces that of the previous one.
#[test]
fn configured_blocks_survive_restart() {
    for mode in ["", ", mode: generic"] {
        let (cable, place) = (Cable::lay(), Place::new());
        let bpf = BpfFs::mount(&place);
        let file = place.path("blocklist.db");
        let block = |entry: &str| {
            format!("{mode}, block: {{ mode: enforce, entries: [{entry}], file: {} }}", file.display())
        };
        let mut exporter = cable.start(&place, &bpf, &block(&address(2)));
        cable.up();
        let traffic = cable.traffic();
        for signal in ["TERM", "KILL"] {
            exporter.end(signal);
            let before = cable.kernel().rx_packets;
            // In generic mode XDP drops before the kernel counts, TCX after.
            if mode.is_empty() {
                until("traffic while no exporter runs", || cable.kernel().rx_packets > before + 100);
            }
            exporter = cable.start(&place, &bpf, &block(&address(2)));
            exporter.wait_for_log(TAKEN_OVER);
            let drops = exporter.scrape().sum("xdp_drops_total", &[]);
            exporter.scrape_until("more drops", |now| now.sum("xdp_drops_total", &[]) > drops + 100.0);
        }
        traffic.end_unanswered(mode);
        exporter.end("KILL");
        let exporter = cable.start(&place, &bpf, &block("192.0.2.1"));
        exporter.wait_for_log(TAKEN_OVER);
        until("an answer", || cable.pings());
    }
}

/// Addresses blocked at run time stay blocked by the next exporter, without interruption.
#[test]
fn command_blocks_survive_restart() {
    let (cable, place) = (Cable::lay(), Place::new());
    let bpf = BpfFs::mount(&place);
    let (file, socket) = (place.path("blocklist.db"), place.path("control.sock"));
    let block =
        format!(", block: {{ mode: enforce, file: {}, socket: {} }}", file.display(), socket.display());
    let mut running = cable.start(&place, &bpf, &block);
    let command = |args: &[&str]| {
        let (code, out, err) = finish(exporter().args(args).arg("--socket").arg(&socket));
        assert_eq!(code, Some(0), "{args:?}: {out}{err}");
        out
    };
    command(&["block", &address(2), "--ttl", "1h", "--reason", "a test"]);
    cable.up();
    let traffic = cable.traffic();
    for signal in ["TERM", "KILL"] {
        running.end(signal);
        let before = cable.kernel().rx_packets;
        until("traffic while no exporter runs", || cable.kernel().rx_packets > before + 100);
        running = cable.start(&place, &bpf, &block);
        running.wait_for_log(TAKEN_OVER);
        let drops = running.scrape().sum("xdp_drops_total", &[]);
        running.scrape_until("more drops", |now| now.sum("xdp_drops_total", &[]) > drops + 100.0);
        let list = command(&["blocklist"]);
        assert!(list.contains("a test") && list.contains("command") && !list.contains("never"), "{list}");
    }
    traffic.end_unanswered("");
    command(&["unblock", &address(2)]);
    until("an answer", || cable.pings());
}

#[test]
fn incompatible_or_unwanted_links_are_detached() {
    let (cable, place) = (Cable::lay(), Place::new());
    let bpf = BpfFs::mount(&place);
    let mut exporter = cable.start(&place, &bpf, "");
    cable.up();
    let traffic = cable.traffic();
    exporter.scrape_until("packets", |scrape| cable.ours(scrape)[0] > 100.0);
    let first = links(&bpf.state());
    exporter.end("KILL");

    // Tables of another size.
    exporter = cable.start(&place, &bpf, ", count: { talkers: true }");
    exporter.wait_for_log(&format!("{ANEW}`network.count.talkers` or `flows` has changed"));
    are_gone(&first);
    exporter.scrape_until("packets", |scrape| cable.ours(scrape)[0] > 100.0);
    exporter.end("TERM");
    drop(traffic);

    // Another hook: the link is a new one, and the counters continue.
    let before = cable.kernel().rx_packets;
    exporter = cable.start(&place, &bpf, ", mode: generic, count: { talkers: true }");
    exporter.wait_for_log(TAKEN_OVER);
    assert!(cable.ours(&exporter.scrape())[0] > 100.0, "{before}: {}", exporter.log());
    let second = links(&bpf.state());
    exporter.end("TERM");

    // A different interface of the same name starts at zero.
    run(&format!("ip link del {}", cable.name));
    cable.connect();
    exporter = cable.start(&place, &bpf, ", mode: generic, count: { talkers: true }");
    exporter.wait_for_log(TAKEN_OVER);
    are_gone(&second);
    cable.up();
    cable.agrees_with_the_kernel(&exporter);
    let third = links(&bpf.state());
    exporter.end("TERM");

    // First the interface is no longer selected, then there is no network at all.
    let lo = "node_name: test\nnetwork: { interfaces: [lo], count: { talkers: true } }\n";
    exporter = Setup::new(&place, lo).yaml(&bpf.config()).start();
    exporter.wait_until_ready();
    are_gone(&third);
    let fourth = links(&bpf.state());
    exporter.end("TERM");
    let probes = format!(
        "targets: [{{ name: forms, binary: {}, probes: [{{ on: 'usdt:forms:i32', metrics: [{{ counter: fired_total }}] }}] }}]\n",
        program("forms").display()
    );
    exporter = Setup::new(&place, probes).yaml(&bpf.config()).start();
    are_gone(&fourth);
    exporter.end("TERM");
}

#[test]
fn unpin_is_rejected_while_an_exporter_runs() {
    let (cable, place) = (Cable::lay(), Place::new());
    let bpf = BpfFs::mount(&place);
    let mut counting = cable.start(&place, &bpf, "");
    let (status, _, err) = finish(exporter().arg("unpin").arg(bpf.state()));
    assert_eq!(status, Some(1), "{err}");
    counting.end("KILL");
    assert!(!links(&bpf.state()).is_empty());
    unpin(&bpf.state());
}
