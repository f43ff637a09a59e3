//! The `dashboard` command: what Grafana and Prometheus need to show and to watch a configuration's metrics.

mod alerts;
mod network;
mod overview;
mod panels;

use serde_json::{Value, json};

pub use alerts::alerts;

use crate::kinds;
use crate::kinds::panel::{Query, Selection};
use crate::plan::{MetricPlan, Plan};
use panels::{Grid, by, legend};

/// The variables that narrow a query; the same on every series of an exporter.
const CHOSEN: &str = r#"job=~"$job", instance=~"$instance""#;

/// Grafana's JSON model, as version 11 exports it (schema 39): a first screen that says whether all is well, then a row
/// for each target with a panel for each metric, one about packets, and one about the exporter itself. Only the first of
/// these rows is open.
pub fn dashboard(plan: &Plan) -> String {
    let mut grid = Grid::default();
    overview::show(&mut grid, plan);
    let mut has_panel = vec![false; plan.metrics.len()];
    let free = alerts::metrics_with_free_labels(plan);
    let mut collapsed = false;
    for target in &plan.targets {
        let actions = target.probes.iter().flat_map(|probe| &plan.probes[*probe].actions);
        let mut fed: Vec<usize> = Vec::new();
        for metric in actions.map(|action| action.metric) {
            if !std::mem::replace(&mut has_panel[metric], true) {
                fed.push(metric);
            }
        }
        if !fed.is_empty() {
            grid.row(&target.name, std::mem::replace(&mut collapsed, true));
            fed.into_iter().for_each(|metric| show(&mut grid, &plan.metrics[metric], free.contains(&metric)));
        }
    }
    if let Some(network) = &plan.network {
        network::show(&mut grid, network, std::mem::replace(&mut collapsed, true));
    }
    health(&mut grid, plan);
    let mut names: Vec<_> = plan.targets.iter().map(|target| target.name.as_str()).collect();
    names.extend(plan.network.as_ref().map(|_| "packets"));
    let names = names.join(", ");
    let document = json!({
        "uid": uid(plan),
        "title": format!("Traced: {names}"),
        "description": format!("Metrics of {names}, and the health of the exporter."),
        "tags": ["exporter"],
        "schemaVersion": 39,
        "version": 1,
        "id": null,
        "editable": true,
        "graphTooltip": 1,
        "refresh": "30s",
        "timezone": "browser",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": variables(plan, !free.is_empty())},
        "panels": grid.panels,
    });
    // Strings, numbers and lists only: nothing of it can fail.
    serde_json::to_string_pretty(&document).unwrap_or_default() + "\n"
}

/// The same targets and metrics give the same dashboard, so that a new one replaces the old. Grafana takes 40 characters.
fn uid(plan: &Plan) -> String {
    let targets = plan.targets.iter().map(|target| target.name.as_str());
    let metrics = plan.metrics.iter().map(|metric| metric.name.as_str());
    let network = plan.network.iter().map(|_| "network:");
    let all: Vec<&str> = targets.chain(metrics).chain(network).collect();
    // FNV-1a, 64 bits.
    let hash = all.join("\n").bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("exporter-{hash:016x}")
}

fn variables(plan: &Plan, has_free_labels: bool) -> Value {
    // Exporters with such a configuration, and no others.
    let targets: Vec<&str> = plan.targets.iter().map(|target| target.name.as_str()).collect();
    let series = |matchers: &str| match targets.is_empty() {
        true => format!("network_attached{{{matchers}}}"),
        false => {
            let of = alerts::one_of(targets.iter().copied());
            format!(
                "fibre_exporter_probe_attached{{target=~{of}{}{matchers}}}",
                if matchers.is_empty() { "" } else { ", " }
            )
        }
    };
    let query = |name: &str, label: &str, description: &str, query: &str| {
        json!({
            "name": name,
            "label": label,
            "description": description,
            "type": "query",
            "datasource": panels::data_source(),
            "definition": query,
            "query": {"query": query, "refId": "A"},
            "refresh": 2,
            "sort": 1,
            "hide": 0,
            "multi": true,
            "includeAll": true,
            "allValue": null,
            "current": {"text": ["All"], "value": ["$__all"]},
            "options": [],
        })
    };
    let choice = |name: &str, label: &str, description: &str, values: &[&str], chosen: &str| {
        let options: Vec<Value> = values
            .iter()
            .map(|value| json!({"text": value, "value": value, "selected": *value == chosen}))
            .collect();
        json!({
            "name": name,
            "label": label,
            "description": description,
            "type": "custom",
            "query": values.join(","),
            "hide": 0,
            "multi": false,
            "includeAll": false,
            "current": {"text": chosen, "value": chosen},
            "options": options,
        })
    };
    let mut all = vec![
        json!({
            "name": "datasource",
            "label": "Data source",
            "description": "Prometheus server that scrapes the exporters.",
            "type": "datasource",
            "query": "prometheus",
            "refresh": 1,
            "hide": 0,
            "multi": false,
            "includeAll": false,
            "options": [],
        }),
        query("job", "Job", "Scrape job of the exporters.", &format!("label_values({}, job)", series(""))),
        query(
            "instance",
            "Exporter",
            "Address of the exporter.",
            &format!("label_values({}, instance)", series("job=~\"$job\"")),
        ),
        choice(
            "window",
            "Window",
            "Time window for rates, quantiles and means; use a longer one for rare events.",
            &["1m", "5m", "15m", "1h", "6h", "1d"],
            "5m",
        ),
    ];
    if has_free_labels {
        let about = "Maximum number of series per panel for metrics with many label values.";
        all.push(choice("top", "Top", about, &["5", "10", "20", "50"], "10"));
    }
    Value::Array(all)
}

/// A metric's panel, by its kind.
fn show(grid: &mut Grid, metric: &MetricPlan, is_free: bool) {
    let labels: Vec<&str> = metric.displayed_labels().collect();
    let (by, legend) = (by(&labels), legend(&labels));
    let of = Selection { name: &metric.name, matchers: CHOSEN, by: &by, legend: &legend, top: is_free };
    let panel = kinds::of(&metric.kind).panel(&of);
    let title = metric.help.trim_end_matches('.');
    grid.time_series(title, &format!("{}: {}", metric.name, panel.about), panel.unit, &panel.queries);
}

/// A metric of the exporter's own.
fn own(metric: &str) -> String {
    format!("fibre_exporter_{metric}{{{CHOSEN}}}")
}

fn own_rate(metric: &str) -> String {
    format!("rate({}[$__rate_interval])", own(metric))
}

/// The row about the exporter itself.
fn health(grid: &mut Grid, plan: &Plan) {
    grid.row("Exporter health", true);
    let rate = own_rate;
    let one = |expr: String, legend: &str| vec![Query { expr, legend: legend.to_string() }];
    if !plan.targets.is_empty() {
        probe_health(grid);
    }
    grid.time_series(
        "Errors",
        "Errors of the exporter, by type.",
        "ops",
        &one(rate("errors_total"), "{{instance}} {{error_type}}"),
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
fn probe_health(grid: &mut Grid) {
    let rate = own_rate;
    let one = |expr: String, legend: &str| vec![Query { expr, legend: legend.to_string() }];
    grid.time_series(
        "Probes",
        "Configured and attached probes.",
        "short",
        &[
            Query { expr: own("probes_configured"), legend: "{{instance}} configured".to_string() },
            Query { expr: own("probes_attached"), legend: "{{instance}} attached".to_string() },
        ],
    );
    let by_probe = "{{instance}} {{target}} {{probe}}";
    grid.time_series("Hits", "Hit rate of each probe.", "ops", &one(rate("probe_hits_total"), by_probe));
    grid.time_series(
        "Hits lost",
        "Lost hits, by reason. If this is not 0, metrics of the probe are too low.",
        "ops",
        &one(
            format!("sum by (instance, target, probe, reason) ({})", rate("probe_lost_total")),
            "{{instance}} {{target}} {{probe}} {{reason}}",
        ),
    );
    grid.time_series(
        "Read faults",
        "Hits with a value that could not be read from the application's memory.",
        "ops",
        &one(rate("probe_read_faults_total"), by_probe),
    );
    grid.time_series(
        "Label overflow",
        "Hits counted as \"other\" because a label reached its limit.",
        "ops",
        &one(rate("label_overflow_total"), "{{instance}} {{metric}}"),
    );
}
