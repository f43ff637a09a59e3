//! The overview: is everything well? All its queries are instant, so that what has disappeared is shown as such.

use super::panels::{Column, Grid, Stat};
use super::{CHOSEN, alerts, lost, own, own_increase, scheme};
use crate::plan::Plan;

/// Height of the table: the exporters that are visible without scrolling.
const TABLE_HEIGHT: usize = 7;

/// The states of an exporter, by the numbers of [`state`].
const STATES: [&str; 5] = ["OK", "errors", "hits lost", "not attached", "down"];

/// Their colors.
const STATE_COLORS: [(&str, Option<f64>); 3] = [("green", None), ("orange", Some(1.0)), ("red", Some(3.0))];

pub(super) fn show(grid: &mut Grid, plan: &Plan) {
    let (probes, network) = (!plan.targets.is_empty(), plan.network.as_ref());
    let mut stats = Vec::new();
    let stat = |title, description, unit, expr, bad_from| Stat { title, description, unit, expr, bad_from };
    stats.push(stat(
        "Exporters down",
        "Exporters whose latest scrape failed.",
        "short",
        format!("count(up{{{CHOSEN}}} == 0) or vector(0)"),
        Some(1.0),
    ));
    if probes {
        stats.push(stat(
            "Probes not attached",
            "Probes that wait for their program, were refused, or are not in its file, on exporters that are up.",
            "short",
            format!("count({}) or vector(0)", not_attached(plan)),
            Some(1.0),
        ));
        stats.push(stat(
            "Hits",
            "Hits of all probes in the selected window.",
            "short",
            format!("sum({})", own_increase("probe_hits_total", "$window")),
            None,
        ));
        stats.push(stat(
            "Last hit",
            "Time since the last hit of any probe.",
            "s",
            format!("time() - max({} > 0)", own("probe_last_hit_timestamp_seconds")),
            None,
        ));
        stats.push(stat(
            "Hits lost",
            "Hits lost in the dashboard's time range, other than ends of spans that began before their probe was attached.",
            "short",
            format!("sum({})", lost("$__range")),
            Some(1.0),
        ));
    }
    if let Some(network) = network {
        let rate = |name: &str| format!("sum(rate({name}{{{CHOSEN}}}[$__rate_interval]))");
        stats.push(stat(
            "Not counted",
            "Interfaces and directions in which packets are not counted.",
            "short",
            format!("count({}) or vector(0)", not_counted()),
            Some(1.0),
        ));
        stats.push(stat("Received", "Received bytes per second.", "Bps", rate("xdp_bytes_total"), None));
        stats.push(stat("Sent", "Sent bytes per second.", "Bps", rate("tc_egress_bytes_total"), None));
        if alerts::detects(plan) {
            stats.push(stat(
                "Attackers found",
                "Addresses that crossed a threshold in the dashboard's time range, and floods.",
                "short",
                format!("sum(increase(security_events_total{{{CHOSEN}}}[$__range])) or vector(0)"),
                None,
            ));
        }
        if network.block.is_some() {
            stats.push(stat(
                "Blocked frames",
                "Frames of listed sources per second, dropped, or passed on because of `mode: observe`.",
                "pps",
                format!("{} + ({} or vector(0))", rate("xdp_drops_total"), rate("xdp_would_drop_total")),
                None,
            ));
        }
    }
    stats.push(stat(
        "Errors",
        "Errors of the exporters in the dashboard's time range.",
        "short",
        format!("sum({})", own_increase("errors_total", "$__range")),
        Some(1.0),
    ));
    grid.stats(&stats);
    table(grid, plan);
}

/// Probes that should be attached but are not.
fn not_attached(plan: &Plan) -> String {
    let state = |matchers: &str| {
        let series = own("probe_state");
        let narrowed = series.trim_end_matches('}');
        format!("{narrowed}, {matchers}}} == 1")
    };
    let waiting = state("state=~\"waiting|refused\"");
    match alerts::absence_matters(plan) {
        Some(probes) => format!("{waiting} or {}", state(&format!("{probes}, state=\"absent\""))),
        None => waiting,
    }
}

fn not_counted() -> String {
    format!("network_attach_failed{{{CHOSEN}, reason!=\"pending\"}} == 1")
}

/// The worst state of an exporter, as an index of [`STATES`].
fn state(plan: &Plan) -> String {
    let mut problems = vec![(4, format!("max by (instance) (up{{{CHOSEN}}}) == 0"))];
    if !plan.targets.is_empty() {
        problems.push((3, format!("count by (instance) ({})", not_attached(plan))));
    }
    if plan.network.is_some() {
        problems.push((3, format!("count by (instance) ({})", not_counted())));
    }
    if !plan.targets.is_empty() {
        problems.push((2, format!("sum by (instance) ({}) > 0", lost("$__range"))));
    }
    problems.push((1, format!("sum by (instance) ({}) > 0", own_increase("errors_total", "$__range"))));
    let mut all: Vec<String> =
        problems.iter().map(|(number, expr)| format!("({expr}) * 0 + {number}")).collect();
    all.push(format!("max by (instance) (up{{{CHOSEN}}}) * 0"));
    all.join(" or on (instance) ")
}

/// A row for each exporter, the worst state first.
fn table(grid: &mut Grid, plan: &Plan) {
    let by_instance = |function: &str, expr: &str| format!("{function} by (instance) ({expr})");
    let plain = |name, expr, unit| Column { name, expr, unit, steps: &[], words: &[] };
    let bad = |name, expr| Column {
        name,
        expr,
        unit: "short",
        steps: &[("transparent", None), ("red", Some(1.0))],
        words: &[],
    };
    let mut columns = vec![Column {
        name: "State",
        expr: state(plan),
        unit: "short",
        steps: &STATE_COLORS,
        words: &STATES,
    }];
    if !plan.targets.is_empty() {
        columns.push(plain("Attached", by_instance("sum", &own("probes_attached")), "short"));
        columns.push(bad("Not attached", by_instance("count", &not_attached(plan))));
        let hits = own_increase("probe_hits_total", "$window");
        columns.push(plain("Hits", by_instance("sum", &hits), "short"));
        let last = format!("{} > 0", own("probe_last_hit_timestamp_seconds"));
        columns.push(plain("Last hit", format!("{} * 1000", by_instance("max", &last)), "dateTimeFromNow"));
        columns.push(bad("Hits lost", by_instance("sum", &lost("$__range"))));
        columns.push(Column {
            name: "Tracing",
            expr: by_instance("max", &own("target_tracing_ratio")),
            unit: "percentunit",
            steps: &[("transparent", None), ("orange", Some(0.05))],
            words: &[],
        });
    }
    if let Some(network) = &plan.network {
        let traffic = |name: &str| by_instance("sum", &format!("rate({name}{{{CHOSEN}}}[$__rate_interval])"));
        columns.push(plain("Received", traffic("xdp_bytes_total"), "Bps"));
        columns.push(plain("Sent", traffic("tc_egress_bytes_total"), "Bps"));
        columns.push(bad("Not counted", by_instance("count", &not_counted())));
        if network.block.is_some() {
            columns.push(plain("Dropped", traffic("xdp_drops_total"), "pps"));
            columns.push(plain("Would drop", traffic("xdp_would_drop_total"), "pps"));
        }
    }
    let errors = own_increase("errors_total", "$__range");
    columns.push(bad("Errors", by_instance("sum", &errors)));
    columns.push(plain("Series", by_instance("sum", &own("series")), "short"));
    let uptime = by_instance("max", &format!("time() - {}", own("start_time_seconds")));
    columns.push(plain("Uptime", uptime, "dtdurations"));
    // Adds the labels of an exporter to its row, even if it is down: the latest, since an upgrade changes them.
    let seen = format!("timestamp({})", own("info"));
    let info = format!(
        "topk by (instance) (1, max by (instance, node, version) ({seen} or max_over_time({seen}[7d:15m])))"
    );
    columns.push(plain("", info, "short"));
    grid.table(
        "Exporters",
        "Current state of each exporter, the worst first. The exporter's address leads to its status page.",
        &[("node", "Node"), ("instance", "Exporter"), ("version", "Version")],
        &columns,
        TABLE_HEIGHT,
        scheme(plan),
    );
}
