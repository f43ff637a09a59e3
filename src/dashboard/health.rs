//! The row about the exporter itself.

use super::panels::{Column, Grid};
use super::{CHOSEN, own, own_increase, own_rate, scheme};
use crate::kinds::panel::Query;
use crate::plan::Plan;

/// Height of the table of probes, in grid lines.
const PROBES_HEIGHT: usize = 9;

pub(super) fn show(grid: &mut Grid, plan: &Plan) {
    grid.row("Exporter health", true);
    let one = |expr: String, legend: &str| vec![Query { expr, legend: legend.to_string() }];
    if !plan.targets.is_empty() {
        probe_health(grid, scheme(plan));
    }
    grid.time_series(
        "Errors",
        "Errors of the exporter in the selected window, by type.",
        "short",
        &one(own_increase("errors_total", "$window"), "{{error_type}} {{instance}}"),
    );
    grid.time_series(
        "Scrape time",
        "Time that a scrape took.",
        "s",
        &one(format!("scrape_duration_seconds{{{CHOSEN}}}"), "{{instance}}"),
    );
    grid.time_series("Series", "Series in the latest scrape.", "short", &one(own("series"), "{{instance}}"));
    grid.time_series(
        "CPU",
        "CPU usage of the exporter, as a share of one core.",
        "percentunit",
        &one(format!("rate(process_cpu_seconds_total{{{CHOSEN}}}[$__rate_interval])"), "{{instance}}"),
    );
    grid.time_series(
        "Memory",
        "Resident memory of the exporter.",
        "bytes",
        &one(format!("process_resident_memory_bytes{{{CHOSEN}}}"), "{{instance}}"),
    );
}

/// Panels about probes and their hits.
fn probe_health(grid: &mut Grid, scheme: &str) {
    let one = |expr: String, legend: &str| vec![Query { expr, legend: legend.to_string() }];
    probe_table(grid, scheme);
    grid.time_series(
        "Probes",
        "Configured and attached probes.",
        "short",
        &[
            Query { expr: own("probes_configured"), legend: "configured {{instance}}".to_string() },
            Query { expr: own("probes_attached"), legend: "attached {{instance}}".to_string() },
        ],
    );
    let by_probe = "{{target}} {{probe}} {{instance}}";
    grid.time_series("Hits", "Hit rate of each probe.", "ops", &one(own_rate("probe_hits_total"), by_probe));
    grid.time_series(
        "Hits lost",
        "Lost hits in the selected window, by reason. If this is not 0, metrics of the probe are too low; no_start is \
         normal after a start.",
        "short",
        &one(
            format!(
                "sum by (instance, target, probe, reason) ({})",
                own_increase("probe_lost_total", "$window")
            ),
            "{{target}} {{probe}} {{reason}} {{instance}}",
        ),
    );
    grid.time_series(
        "Read faults",
        "Hits in the selected window with a value that could not be read from the application's memory.",
        "short",
        &one(own_increase("probe_read_faults_total", "$window"), by_probe),
    );
    grid.time_series(
        "Label overflow",
        "Hits in the selected window that were counted as \"other\" because a label reached its limit.",
        "short",
        &one(own_increase("label_overflow_total", "$window"), "{{metric}} {{instance}}"),
    );
    grid.time_series(
        "Tracing",
        "Tracing's share of each target's CPU time (an estimate).",
        "percentunit",
        &one(own("target_tracing_ratio"), "{{target}} {{instance}}"),
    );
}

/// A row for each probe: whether it is attached, and if not, why.
fn probe_table(grid: &mut Grid, scheme: &str) {
    let by_probe = |function: &str, expr: &str| format!("{function} by (instance, target, probe) ({expr})");
    let plain = |name, expr, unit| Column { name, expr, unit, steps: &[], words: &[] };
    let attached = by_probe("min", &own("probe_attached"));
    // Of optional targets.
    let states = own("probe_state");
    let not_running = format!("{}, state=\"not_running\"}} == 1", states.trim_end_matches('}'));
    let not_running = by_probe("max", &not_running);
    let columns = [
        Column {
            name: "Attached",
            expr: format!("2 - {attached} - 2 * ({not_running} or {attached} * 0)"),
            unit: "short",
            steps: &[("transparent", None), ("green", Some(1.0)), ("orange", Some(2.0))],
            words: &["not running", "yes", "no"],
        },
        plain("Hits", by_probe("sum", &own("probe_hits_total")), "short"),
        plain("Lost", by_probe("sum", &own("probe_lost_total")), "short"),
        plain(
            "Last hit",
            format!(
                "{} * 1000",
                by_probe("max", &format!("{} > 0", own("probe_last_hit_timestamp_seconds")))
            ),
            "dateTimeFromNow",
        ),
        plain(
            "",
            format!("max by (instance, target, probe, state, reason) ({} == 1)", own("probe_state")),
            "short",
        ),
    ];
    let labels = [
        ("target", "Target"),
        ("probe", "Probe"),
        ("instance", "Exporter"),
        ("state", "State"),
        ("reason", "Reason"),
    ];
    let about = "State of each probe, those that are not attached first.";
    grid.table("Probes and their state", about, &labels, &columns, PROBES_HEIGHT, scheme);
}
