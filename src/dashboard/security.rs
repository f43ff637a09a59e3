//! The rows about attackers: which are detected, which are blocked, and by which source.

use super::CHOSEN;
use super::network::{PLACE, PLACE_LEGEND, query, rate, sum};
use super::panels::Grid;
use crate::net::{BlockConfig, DetectConfig};

/// Panels about the blocklist.
pub(super) fn blocklist(grid: &mut Grid, config: &BlockConfig) {
    let all = |metric: &str| format!("{metric}{{{CHOSEN}}}");
    grid.row("Blocklist", true);
    let blocked = |metric: &str, what: &str| {
        let expr = sum(&format!("{PLACE}, reason"), &rate(metric));
        query(expr, &format!("{PLACE_LEGEND} {{{{reason}}}} {what}"))
    };
    grid.time_series(
        "Blocked frames",
        "Frames from and to listed addresses, dropped, or passed on because of `mode: observe`.",
        "pps",
        &[
            blocked("xdp_drops_total", "dropped"),
            blocked("xdp_would_drop_total", "would be dropped"),
            blocked("tc_egress_drops_total", "not sent"),
            blocked("tc_egress_would_drop_total", "would not be sent"),
        ],
    );
    grid.time_series(
        "Blocklist entries",
        "Entries by the source that lists them.",
        "short",
        &[query(sum("instance, source", &all("xdp_blocklist_entries")), "{{source}}")],
    );
    let matched = format!("increase({}[$window])", all("xdp_blocklist_packets_total"));
    let matched = sum("instance, source, verdict", &matched);
    grid.time_series(
        "Blocked by source",
        "Packets in the selected window that entries matched, by the source that lists them.",
        "short",
        &[query(matched, "{{source}} {{verdict}}")],
    );
    if config.crowdsec.is_some() || !config.urls.is_empty() {
        sources(grid);
    }
    grid.time_series(
        "Blocklist files",
        "Invalid lines; 1 for a file that cannot be read.",
        "short",
        &[
            query(all("xdp_blocklist_file_invalid_lines"), "{{file}} invalid lines"),
            query(format!("1 - {}", all("xdp_blocklist_file_readable")), "{{file}} unreadable"),
        ],
    );
    grid.time_series(
        "Changes that failed",
        "Changes that the kernel refused, and tables whose hits could not be read; 1 if entries are not stored.",
        "short",
        &[
            query(format!("increase({}[$window])", all("xdp_blocklist_errors_total")), "refused"),
            query(format!("increase({}[$window])", all("xdp_blocklist_unread_tables_total")), "unread tables"),
            query(format!("1 - {}", all("xdp_blocklist_stored")), "not stored"),
        ],
    );
}

/// Panels about the blocklist's remote sources.
fn sources(grid: &mut Grid) {
    let all = |metric: &str| format!("{metric}{{{CHOSEN}}}");
    grid.time_series(
        "Age of remote lists",
        "Time since the last successful response of each remote source.",
        "s",
        &[query(all("xdp_blocklist_source_age_seconds"), "{{source}}")],
    );
    grid.time_series(
        "Sources that answer",
        "1 for a remote source whose last request was answered; if 0, its last response stays in effect.",
        "short",
        &[query(all("xdp_blocklist_source_up"), "{{source}}")],
    );
    let ignored = format!("increase({}[$window])", all("xdp_blocklist_ignored_decisions_total"));
    grid.time_series(
        "Ignored decisions",
        "Decisions of CrowdSec in the selected window that are not applied, by reason.",
        "short",
        &[query(sum("instance, source, reason", &ignored), "{{source}} {{reason}}")],
    );
}

/// Panels about attackers, and what was done about them.
pub(super) fn detection(grid: &mut Grid, config: Option<&DetectConfig>) {
    let grown = |metric: &str, by: &str| {
        sum(&format!("instance, {by}"), &format!("increase({metric}{{{CHOSEN}}}[$window])"))
    };
    grid.row("Detection", true);
    grid.time_series(
        "Attackers found",
        "Addresses that crossed a threshold in the selected window, and floods, by kind.",
        "short",
        &[query(grown("security_events_total", "kind"), "{{kind}}")],
    );
    grid.time_series(
        "Attackers banned",
        "Addresses that were put on the blocklist in the selected window, by kind.",
        "short",
        &[query(grown("xdp_autobans_total", "reason"), "{{reason}}")],
    );
    grid.time_series(
        "Attackers not banned",
        "Bans in the selected window that were not made, by kind and cause.",
        "short",
        &[query(grown("security_bans_refused_total", "kind, cause"), "{{kind}} {{cause}}")],
    );
    if config.is_some_and(|config| config.tcp_anomalies.is_some()) {
        grid.time_series(
            "TCP anomalies",
            "TCP segments in the selected window with flags that no connection has, by kind.",
            "short",
            &[query(grown("security_tcp_anomalies_total", "kind"), "{{kind}}")],
        );
    }
    if config.is_some_and(|config| config.syn_flood.is_some()) {
        grid.time_series(
            "SYN cookies",
            "SYN cookies in the selected window that the kernel sent because a queue was full, and that came back valid or not.",
            "short",
            &[query(grown("network_tcp_syncookies_total", "result"), "{{result}}")],
        );
    }
    grid.time_series(
        "Not looked at",
        "Hits and addresses in the selected window that detection could not follow; if not 0, attackers may not be found.",
        "short",
        &[
            query(grown("security_lost_hits_total", "kind"), "{{kind}} lost"),
            query(grown("security_unusable_addresses_total", "kind"), "{{kind}} no address"),
            query(grown("security_evicted_total", "table"), "{{table}} forgotten"),
        ],
    );
}
