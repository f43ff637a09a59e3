//! The first screen: is it well? Everything in it is asked for now, so that what is gone shows as gone.

use super::panels::{Column, Grid, Stat};
use super::{CHOSEN, own, own_rate};
use crate::plan::Plan;

/// Rows of exporters that can be seen without scrolling.
const TABLE_HEIGHT: usize = 7;

pub(super) fn show(grid: &mut Grid, plan: &Plan) {
    let (probes, network) = (!plan.targets.is_empty(), plan.network.is_some());
    let stat = |title, description, unit, expr, bad_from| Stat { title, description, unit, expr, bad_from };
    grid.stat(&stat(
        "Exporters down",
        "Exporters whose latest scrape failed.",
        "short",
        format!("count(up{{{CHOSEN}}} == 0) or vector(0)"),
        Some(1.0),
    ));
    if probes {
        grid.stat(&stat(
            "Probes not attached",
            "Configured probes that are not attached, on exporters that are up.",
            "short",
            format!("sum({} - {})", own("probes_configured"), own("probes_attached")),
            Some(1.0),
        ));
        grid.stat(&stat(
            "Hits per second",
            "Hit rate of all probes.",
            "ops",
            format!("sum({})", own_rate("probe_hits_total")),
            None,
        ));
        grid.stat(&stat(
            "Last hit",
            "Time since the last hit of any probe.",
            "s",
            format!("time() - max({} > 0)", own("probe_last_hit_timestamp_seconds")),
            None,
        ));
        grid.stat(&stat(
            "Hits lost",
            "Hits lost in the dashboard's time range.",
            "short",
            format!("sum(increase({}[$__range]))", own("probe_lost_total")),
            Some(1.0),
        ));
    }
    if network {
        grid.stat(&stat(
            "Interfaces not counted",
            "Interfaces and directions in which packets are not counted.",
            "short",
            format!("count(network_attach_failed{{{CHOSEN}}} == 1) or vector(0)"),
            Some(1.0),
        ));
        grid.stat(&stat(
            "Received",
            "Received bytes per second.",
            "Bps",
            format!("sum(rate(xdp_bytes_total{{{CHOSEN}}}[$__rate_interval]))"),
            None,
        ));
        grid.stat(&stat(
            "Sent",
            "Sent bytes per second.",
            "Bps",
            format!("sum(rate(tc_egress_bytes_total{{{CHOSEN}}}[$__rate_interval]))"),
            None,
        ));
    }
    grid.stat(&stat(
        "Errors",
        "Errors of the exporters in the dashboard's time range.",
        "short",
        format!("sum(increase({}[$__range]))", own("errors_total")),
        Some(1.0),
    ));
    table(grid, probes, network);
}

/// A row for each exporter, those that are down first.
fn table(grid: &mut Grid, probes: bool, network: bool) {
    let by_instance = |function: &str, expr: &str| format!("{function} by (instance) ({expr})");
    let plain = |name, expr, unit| Column { name, expr, unit, steps: &[] };
    let bad = |name, expr| Column {
        name,
        expr,
        unit: "short",
        steps: &[("transparent", None), ("red", Some(1.0))],
    };
    let mut columns = vec![
        Column {
            name: "Up",
            expr: by_instance("min", &format!("up{{{CHOSEN}}}")),
            unit: "bool_yes_no",
            steps: &[("red", None), ("green", Some(1.0))],
        },
        plain(
            "Uptime",
            by_instance("max", &format!("time() - {}", own("start_time_seconds"))),
            "dtdurations",
        ),
    ];
    if probes {
        let attached = by_instance("sum", &own("probes_attached"));
        columns.push(plain("Probes attached", attached, "short"));
        let missing = format!("{} - {}", own("probes_configured"), own("probes_attached"));
        columns.push(bad("Not attached", by_instance("sum", &missing)));
        columns.push(plain("Hits per second", by_instance("sum", &own_rate("probe_hits_total")), "ops"));
        let last = format!("{} > 0", own("probe_last_hit_timestamp_seconds"));
        columns.push(plain("Last hit", format!("{} * 1000", by_instance("max", &last)), "dateTimeFromNow"));
        let lost = format!("increase({}[$__range])", own("probe_lost_total"));
        columns.push(bad("Hits lost", by_instance("sum", &lost)));
        columns.push(Column {
            name: "Tracing",
            expr: by_instance("max", &own("target_tracing_ratio")),
            unit: "percentunit",
            steps: &[("transparent", None), ("orange", Some(0.05))],
        });
    }
    if network {
        let traffic = |name: &str| by_instance("sum", &format!("rate({name}{{{CHOSEN}}}[$__rate_interval])"));
        columns.push(plain("Received", traffic("xdp_bytes_total"), "Bps"));
        columns.push(plain("Sent", traffic("tc_egress_bytes_total"), "Bps"));
        columns.push(bad(
            "Not counted",
            by_instance("count", &format!("network_attach_failed{{{CHOSEN}}} == 1")),
        ));
    }
    let errors = format!("increase({}[$__range])", own("errors_total"));
    columns.push(bad("Errors", by_instance("sum", &errors)));
    columns.push(plain("Series", by_instance("sum", &own("series")), "short"));
    // With its value it adds the labels to the row of an exporter, also of one that is gone.
    let info = format!("last_over_time({}[$__range])", own("info"));
    columns.push(plain("", format!("max by (instance, node, version) ({info})"), "short"));
    grid.table(
        "Exporters",
        "Current state of each exporter; exporters that are down come first.",
        &[("node", "Node"), ("instance", "Exporter"), ("version", "Version")],
        &columns,
        TABLE_HEIGHT,
    );
}
