//! The rows about packets.

use super::CHOSEN;
use super::panels::Grid;
use crate::kinds::panel::Query;
use crate::net::{BlockMode, NetworkConfig};

/// What interfaces are told apart by.
const PLACE: &str = "instance, interface";

pub(super) fn show(grid: &mut Grid, config: &NetworkConfig, collapsed: bool) {
    let rate = |name: &str| format!("rate({name}{{{CHOSEN}}}[$__rate_interval])");
    let sum = |by: &str, expr: &str| format!("sum by ({by}) ({expr})");
    let query = |expr: String, legend: &str| Query { expr, legend: legend.to_string() };
    let both = |received: &str, sent: &str| {
        [
            query(sum(PLACE, &rate(received)), "{{interface}} received {{instance}}"),
            query(sum(PLACE, &rate(sent)), "{{interface}} sent {{instance}}"),
        ]
    };
    let count = &config.count;
    grid.row("Network", collapsed);
    grid.time_series(
        "Bytes",
        "Received and sent bytes, including the link header.",
        "Bps",
        &both("xdp_bytes_total", "tc_egress_bytes_total"),
    );
    grid.time_series(
        "Frames",
        "Received and sent frames.",
        "pps",
        &both("xdp_packets_total", "tc_egress_packets_total"),
    );
    let used = |bytes: &str| {
        format!("{} / on (instance, interface) network_speed_bytes{{{CHOSEN}}}", sum(PLACE, &rate(bytes)))
    };
    grid.time_series(
        "Link utilisation",
        "Bytes relative to the speed of the link, where its driver has one.",
        "percentunit",
        &[
            query(used("xdp_bytes_total"), "{{interface}} received {{instance}}"),
            query(used("tc_egress_bytes_total"), "{{interface}} sent {{instance}}"),
        ],
    );
    let by_protocol = "instance, family, protocol";
    grid.time_series(
        "Received by protocol",
        "Received bytes, by address family and protocol.",
        "Bps",
        &[query(sum(by_protocol, &rate("xdp_bytes_total")), "{{family}} {{protocol}} {{instance}}")],
    );
    grid.time_series(
        "Malformed frames",
        "Frames with truncated or inconsistent headers.",
        "pps",
        &[query(
            sum("instance, interface, direction, reason", &rate("xdp_malformed_packets_total")),
            "{{interface}} {{direction}} {{reason}} {{instance}}",
        )],
    );
    if count.has("sizes") {
        let buckets = sum("instance, direction, le", &rate("xdp_packet_size_bytes_bucket"));
        let quantile = |q: &str, legend: &str| query(format!("histogram_quantile({q}, {buckets})"), legend);
        grid.time_series(
            "Frame sizes",
            "Median and 95th percentile of the frame size.",
            "bytes",
            &[
                quantile("0.50", "{{direction}} median {{instance}}"),
                quantile("0.95", "{{direction}} 95 % {{instance}}"),
            ],
        );
    }
    if count.has("flags") {
        grid.time_series(
            "TCP SYN, FIN and RST",
            "TCP segments with SYN, FIN or RST.",
            "pps",
            &[query(
                sum("instance, direction, flag", &rate("xdp_tcp_flags_total")),
                "{{direction}} {{flag}} {{instance}}",
            )],
        );
    }
    if count.tcp_connections {
        grid.time_series(
            "TCP sockets",
            "TCP sockets in the exporter's network namespace, by state.",
            "short",
            &[query(format!("network_tcp_connections{{{CHOSEN}}}"), "{{state}} {{instance}}")],
        );
    }
    if count.top_sources > 0 {
        grid.time_series(
            "Top sources",
            "Bytes received from the top sources.",
            "bytes",
            &[query(format!("xdp_top_source_bytes{{{CHOSEN}}}"), "{{interface}} {{source}} {{instance}}")],
        );
    }
    if !count.cidrs.is_empty() {
        grid.time_series(
            "Traffic by prefix group",
            "Bytes received from and sent to hosts of each group of prefixes (`cidrs`).",
            "Bps",
            &[query(
                sum("instance, direction, cidr", &rate("network_cidr_bytes_total")),
                "{{cidr}} {{direction}} {{instance}}",
            )],
        );
    }
    if count.talkers > 0 {
        grid.time_series(
            "Untracked packets",
            "Packets of talkers and flows that are not tracked.",
            "pps",
            &[query(
                sum("instance, interface, table", &rate("network_untracked_packets_total")),
                "{{interface}} {{table}} {{instance}}",
            )],
        );
    }
    if let Some(block) = &config.block {
        let (title, about, metric) = match block.mode {
            BlockMode::Enforce => ("Dropped frames", "Frames of blocked sources.", "xdp_drops_total"),
            BlockMode::Observe => (
                "Frames that would be dropped",
                "Frames of listed sources, passed on because of `mode: observe`.",
                "xdp_would_drop_total",
            ),
        };
        grid.time_series(
            title,
            about,
            "pps",
            &[query(
                sum("instance, interface, reason", &rate(metric)),
                "{{interface}} {{reason}} {{instance}}",
            )],
        );
        grid.time_series(
            "Blocklist entries",
            "Entries by the source that lists them.",
            "short",
            &[query(format!("xdp_blocklist_entries{{{CHOSEN}}}"), "{{source}} {{instance}}")],
        );
    }
    grid.time_series(
        "Not counted",
        "Interfaces and directions in which packets are not counted, with the reason.",
        "short",
        &[query(
            format!("network_attach_failed{{{CHOSEN}}}"),
            "{{interface}} {{direction}} {{reason}} {{instance}}",
        )],
    );
}
