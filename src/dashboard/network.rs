//! The rows about packets, according to what the configuration counts.

use super::CHOSEN;
use super::panels::Grid;
use crate::kinds::panel::Query;
use crate::net::{Count, NetworkConfig};

/// Labels that tell apart interfaces of the same name in several network namespaces.
pub(super) const PLACE: &str = "instance, netns, container, interface";
pub(super) const PLACE_LEGEND: &str = "{{interface}} {{netns}} {{container}}";

/// The matcher for series by interface, in addition to [`CHOSEN`].
const INTERFACE: &str = r#"interface=~"$interface""#;

pub(super) fn show(grid: &mut Grid, config: &NetworkConfig, collapsed: bool) {
    traffic(grid, &config.count, collapsed);
    packets(grid, &config.count);
    let count = &config.count;
    if count.drop_reasons || count.tcp || count.tcp_connections {
        stack(grid, count);
    }
    if count.cgroups {
        owners(grid);
    }
    if count.processes {
        processes(grid);
    }
    if count.dns {
        dns(grid);
    }
    if count.talkers > 0 || !count.cidrs.is_empty() {
        hosts(grid, count);
    }
}

/// Whether some panel shows only the largest series.
pub(super) fn ranks(config: &NetworkConfig) -> bool {
    config.count.cgroups || config.count.processes || config.count.top_sources > 0
}

pub(super) fn query(expr: String, legend: &str) -> Query {
    Query { expr, legend: format!("{legend} {{{{instance}}}}") }
}

pub(super) fn sum(by: &str, expr: &str) -> String {
    format!("sum by ({by}) ({expr})")
}

/// The rate of a series by interface.
pub(super) fn rate(name: &str) -> String {
    format!("rate({name}{{{CHOSEN}, {INTERFACE}}}[$__rate_interval])")
}

/// The rate of a series of the whole machine.
pub(super) fn rate_of_all(name: &str) -> String {
    format!("rate({name}{{{CHOSEN}}}[$__rate_interval])")
}

/// Queries for the median and the 95th percentile.
fn quantiles(name: &str, by: &str, rate: &dyn Fn(&str) -> String, legend: &str) -> [Query; 2] {
    let buckets = sum(&format!("{by}, le"), &rate(&format!("{name}_bucket")));
    [("0.50", "median"), ("0.95", "95 %")]
        .map(|(q, title)| query(format!("histogram_quantile({q}, {buckets})"), &format!("{legend} {title}")))
}

fn traffic(grid: &mut Grid, count: &Count, collapsed: bool) {
    let by_place = |name: &str, what: &str| query(sum(PLACE, &rate(name)), &format!("{PLACE_LEGEND} {what}"));
    grid.row("Network", collapsed);
    grid.time_series(
        "Bytes",
        "Received and sent bytes, including the link header.",
        "Bps",
        &[by_place("xdp_bytes_total", "received"), by_place("tc_egress_bytes_total", "sent")],
    );
    grid.time_series(
        "Frames",
        "Received and sent frames.",
        "pps",
        &[by_place("xdp_packets_total", "received"), by_place("tc_egress_packets_total", "sent")],
    );
    let used = |bytes: &str, what: &str| {
        let speed = format!("max by ({PLACE}) (network_speed_bytes{{{CHOSEN}, {INTERFACE}}})");
        query(format!("{} / {speed}", sum(PLACE, &rate(bytes))), &format!("{PLACE_LEGEND} {what}"))
    };
    grid.time_series(
        "Link utilisation",
        "Bytes relative to the speed of the link, where its driver has one.",
        "percentunit",
        &[used("xdp_bytes_total", "received"), used("tc_egress_bytes_total", "sent")],
    );
    for (title, about, metric) in [
        ("Received by protocol", "Received bytes, by address family and protocol.", "xdp_bytes_total"),
        ("Sent by protocol", "Sent bytes, by address family and protocol.", "tc_egress_bytes_total"),
    ] {
        let expr = sum("instance, family, protocol", &rate(metric));
        grid.time_series(title, about, "Bps", &[query(expr, "{{family}} {{protocol}}")]);
    }
    if count.has("sizes") {
        grid.time_series(
            "Frame sizes",
            "Median and 95th percentile of the frame size.",
            "bytes",
            &quantiles("xdp_packet_size_bytes", "instance, direction", &rate, "{{direction}}"),
        );
    }
}

/// Panels about unusual packets.
fn packets(grid: &mut Grid, count: &Count) {
    let by = |metric: &str, labels: &str, legend: &str| {
        query(sum(&format!("instance, direction, {labels}"), &rate(metric)), legend)
    };
    grid.row("Packets", true);
    if count.has("flags") {
        let flags = by("xdp_tcp_flags_total", "flag", "{{direction}} {{flag}}");
        grid.time_series("TCP SYN, FIN and RST", "TCP segments with SYN, FIN or RST.", "pps", &[flags]);
    }
    if count.has("tcp_trouble") {
        let of = |metric: &str, what: &str| {
            query(sum("instance, direction", &rate(metric)), &format!("{{{{direction}}}} {what}"))
        };
        grid.time_series(
            "Resets and zero windows",
            "TCP segments with RST, and those that advertise a zero receive window.",
            "pps",
            &[of("xdp_tcp_resets_total", "reset"), of("xdp_tcp_zero_windows_total", "zero window")],
        );
    }
    let malformed = format!("increase(xdp_malformed_packets_total{{{CHOSEN}, {INTERFACE}}}[$window])");
    let malformed = sum("instance, direction, interface, reason", &malformed);
    grid.time_series(
        "Malformed frames",
        "Frames in the selected window with truncated or inconsistent headers.",
        "short",
        &[query(malformed, "{{interface}} {{direction}} {{reason}}")],
    );
    grid.time_series(
        "Fragments",
        "IP fragments.",
        "pps",
        &[by("xdp_fragments_total", "family", "{{direction}} {{family}}")],
    );
    let mode = format!("max by ({PLACE}, mode) (xdp_mode{{{CHOSEN}, {INTERFACE}}}) == 1");
    grid.time_series(
        "Hook",
        "Where received packets are counted: XDP in the driver (native) or in the network stack (generic), or TC ingress (tcx).",
        "short",
        &[query(mode, &format!("{PLACE_LEGEND} {{{{mode}}}}"))],
    );
    let failed = format!("network_attach_failed{{{CHOSEN}, {INTERFACE}}}");
    grid.time_series(
        "Not counted",
        "Interfaces and directions in which packets are not counted, with the reason.",
        "short",
        &[query(failed, &format!("{PLACE_LEGEND} {{{{direction}}}} {{{{reason}}}}"))],
    );
}

/// Panels about what the kernel does with packets and connections.
fn stack(grid: &mut Grid, count: &Count) {
    grid.row("Kernel and TCP", true);
    if count.drop_reasons {
        grid.time_series(
            "Packets dropped by the kernel",
            "Dropped packets by the kernel's reason, those that occur.",
            "pps",
            &[query(format!("{} > 0", rate_of_all("network_kernel_drops_total")), "{{reason}}")],
        );
    }
    if count.tcp_connections {
        grid.time_series(
            "TCP sockets",
            "TCP sockets in the exporter's network namespace, by state.",
            "short",
            &[query(format!("network_tcp_connections{{{CHOSEN}}}"), "{{state}}")],
        );
    }
    if count.tcp {
        connections(grid);
    }
}

/// Panels about the health of TCP connections.
fn connections(grid: &mut Grid) {
    let changes = |from: &str, to: &str, what: &str| {
        let narrowed = format!("network_tcp_state_changes_total{{{CHOSEN}, from=~\"{from}\", to=\"{to}\"}}");
        query(sum("instance", &format!("rate({narrowed}[$__rate_interval])")), what)
    };
    grid.time_series(
        "Connections",
        "TCP connections that were opened by this host (active) or by a peer (passive), failed to be opened, and ended.",
        "cps",
        &[
            changes("syn_sent", "established", "active"),
            changes("syn_recv", "established", "passive"),
            changes("syn_sent", "close", "failed"),
            changes(".+", "close", "closed"),
        ],
    );
    grid.time_series(
        "Retransmits and resets",
        "Retransmitted segments, and connections that were reset by this host (sent) or by the peer (received).",
        "pps",
        &[
            query(rate_of_all("network_tcp_retransmits_total"), "retransmitted"),
            query(rate_of_all("network_tcp_resets_total"), "reset {{direction}}"),
        ],
    );
    let handshake = quantiles(
        "network_tcp_handshake_duration_seconds",
        "instance, opened_by",
        &rate_of_all,
        "by {{opened_by}}",
    );
    grid.time_series(
        "Handshake time",
        "Round-trip time of the handshake, by the side that opened the connection.",
        "s",
        &handshake,
    );
    grid.time_series(
        "Round-trip time",
        "Smoothed round-trip time of connections at the start of their close.",
        "s",
        &quantiles("network_tcp_rtt_seconds", "instance", &rate_of_all, ""),
    );
    grid.time_series(
        "Connection duration",
        "Time from the handshake to the close.",
        "s",
        &quantiles("network_tcp_connection_duration_seconds", "instance", &rate_of_all, ""),
    );
    grid.time_series(
        "Listen queues",
        "Connections that listening sockets dropped: because the accept queue was full (overflows), and for any reason.",
        "cps",
        &[
            query(rate_of_all("network_tcp_listen_overflows_total"), "overflows"),
            query(rate_of_all("network_tcp_listen_drops_total"), "drops"),
            query(rate_of_all("network_tcp_untimed_connections_total"), "not timed"),
        ],
    );
}

/// Panels of bytes received and sent by the largest owners.
fn bytes_of_greatest(grid: &mut Grid, metric: &str, who: &str, owner: &str, legend: &str) {
    for (direction, title) in [("ingress", "Received by"), ("egress", "Sent by")] {
        let narrowed = format!("rate({metric}{{{CHOSEN}, direction=\"{direction}\"}}[$__rate_interval])");
        grid.time_series(
            &format!("{title} {who}"),
            &format!("Bytes of the greatest {who}."),
            "Bps",
            &[query(format!("topk($top, {})", sum(owner, &narrowed)), legend)],
        );
    }
}

/// Panels by the process that owns the packets.
fn processes(grid: &mut Grid) {
    grid.row("Processes", true);
    let owner = "instance, process, unit, container, pod, namespace";
    let legend = "{{process}} {{unit}} {{container}} {{namespace}} {{pod}}";
    bytes_of_greatest(grid, "network_process_bytes_total", "processes", owner, legend);
    grid.time_series(
        "Packets by processes",
        "Packets of the processes with most of them, both directions.",
        "pps",
        &[query(
            format!("topk($top, {})", sum(owner, &rate_of_all("network_process_packets_total"))),
            legend,
        )],
    );
}

/// Panels by the unit, container or pod that owns the packets.
fn owners(grid: &mut Grid) {
    let owner = "instance, unit, container, pod, namespace";
    let legend = "{{unit}} {{container}} {{namespace}} {{pod}}";
    grid.row("Units, containers and pods", true);
    bytes_of_greatest(grid, "network_cgroup_bytes_total", "units, containers and pods", owner, legend);
    grid.time_series(
        "Packets by units, containers and pods",
        "Packets of the units, containers and pods with most of them, both directions.",
        "pps",
        &[query(format!("topk($top, {})", sum(owner, &rate_of_all("network_cgroup_packets_total"))), legend)],
    );
}

fn dns(grid: &mut Grid) {
    let queries = sum("instance, server, result", &rate_of_all("network_dns_queries_total"));
    let with = |matcher: &str| {
        let narrowed = format!("network_dns_queries_total{{{CHOSEN}{matcher}}}");
        sum("instance, server", &format!("rate({narrowed}[$__rate_interval])"))
    };
    grid.row("DNS", true);
    grid.time_series(
        "Queries",
        "DNS queries over UDP, by result and by where the server is.",
        "reqps",
        &[query(queries, "{{server}} {{result}}")],
    );
    grid.time_series(
        "Failing queries",
        "Share of queries without a useful answer: timeouts, SERVFAIL and REFUSED.",
        "percentunit",
        &[query(
            format!("{} / ({} > 0)", with(", result=~\"timeout|servfail|refused\""), with("")),
            "{{server}}",
        )],
    );
    grid.time_series(
        "Answer time",
        "Time from a query to its response.",
        "s",
        &quantiles("network_dns_duration_seconds", "instance, server", &rate_of_all, "{{server}}"),
    );
}

fn hosts(grid: &mut Grid, count: &Count) {
    grid.row("Hosts", true);
    if count.top_sources > 0 {
        grid.time_series(
            "Top sources",
            "Bytes received from the top sources.",
            "bytes",
            &[query(
                format!("topk($top, xdp_top_source_bytes{{{CHOSEN}, {INTERFACE}}})"),
                "{{interface}} {{source}}",
            )],
        );
    }
    if !count.cidrs.is_empty() {
        grid.time_series(
            "Traffic by prefix group",
            "Bytes received from and sent to hosts of each group of prefixes (`cidrs`).",
            "Bps",
            &[query(
                sum("instance, direction, cidr", &rate("network_cidr_bytes_total")),
                "{{cidr}} {{direction}}",
            )],
        );
    }
    if count.talkers > 0 {
        let by_table = |metric: &str, what: &str| {
            query(sum("instance, table", &rate(metric)), &format!("{{{{table}}}} {what}"))
        };
        grid.time_series(
            "Untracked packets",
            "Packets of talkers and flows that are not tracked, and of those that were evicted.",
            "pps",
            &[
                by_table("network_untracked_packets_total", "untracked"),
                by_table("network_evicted_packets_total", "evicted"),
            ],
        );
    }
}
