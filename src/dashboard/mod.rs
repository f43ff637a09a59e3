//! The `dashboard` command: what Grafana and Prometheus need to display and monitor a configuration's metrics.

mod alerts;
mod health;
mod network;
mod overview;
mod panels;
mod security;

use serde_json::{Value, json};

pub(crate) use alerts::ALERTS;
pub use alerts::alerts;

use crate::kinds;
use crate::kinds::panel::Selection;
use crate::plan::{MetricPlan, Plan};
use panels::{Grid, by, legend};

/// Matchers with the dashboard's variables, which apply to every series of an exporter.
const CHOSEN: &str = r#"job=~"$job", instance=~"$instance""#;

/// Returns Grafana's JSON model, as exported by version 11 (schema 39): an overview that says whether all is well, then
/// a row for each target with a panel for each metric, one about packets, and one about the exporter itself. Only the
/// first of these rows is expanded.
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
        if let Some(block) = &network.block {
            security::blocklist(&mut grid, block);
        }
    }
    if alerts::detects(plan) {
        security::detection(&mut grid, plan.network.as_ref().map(|network| &network.detect));
    }
    health::show(&mut grid, plan);
    let mut names: Vec<_> = plan.targets.iter().map(|target| target.name.as_str()).collect();
    names.extend(plan.network.as_ref().map(|_| "packets"));
    let names = names.join(", ");
    let title = if plan.targets.is_empty() { "Packets".to_string() } else { format!("Traced: {names}") };
    let document = json!({
        "uid": uid(plan, &grid),
        "title": title,
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
        "annotations": {"list": annotations(plan)},
        "links": [{
            "type": "dashboards",
            "title": "Dashboards",
            "tooltip": "Other dashboards of exporters, with the same time and variables.",
            "tags": ["exporter"],
            "asDropdown": true,
            "includeVars": true,
            "keepTime": true,
            "targetBlank": false,
            "icon": "external link",
            "url": "",
        }],
        "templating": {"list": variables(plan, !free.is_empty() || plan.network.as_ref().is_some_and(network::ranks))},
        "panels": grid.panels,
    });
    // Only strings, numbers and lists, which cannot fail to serialize.
    serde_json::to_string_pretty(&document).unwrap_or_default() + "\n"
}

/// The same targets, metrics and panels yield the same identifier, so that a new dashboard replaces the old one.
/// Grafana accepts 40 characters.
fn uid(plan: &Plan, grid: &Grid) -> String {
    let targets = plan.targets.iter().map(|target| target.name.as_str());
    let metrics = plan.metrics.iter().map(|metric| metric.name.as_str());
    let inside = |row: &'_ Value| row["panels"].as_array().cloned().unwrap_or_default();
    let panels: Vec<Value> =
        grid.panels.iter().flat_map(|panel| std::iter::once(panel.clone()).chain(inside(panel))).collect();
    let titles = panels.iter().filter_map(|panel| panel["title"].as_str());
    let all: Vec<&str> = targets.chain(metrics).chain(titles).collect();
    // FNV-1a, 64 bits.
    let hash = all.join("\n").bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("exporter-{hash:016x}")
}

/// Events of the exporters, as lines across all panels.
fn annotations(plan: &Plan) -> Value {
    let annotation = |name: &str, color: &str, expr: String, text: &str, value_is_time: bool| {
        json!({
            "name": name,
            "datasource": panels::data_source(),
            "enable": true,
            "hide": false,
            "iconColor": color,
            "expr": expr,
            "step": "60s",
            "titleFormat": name,
            "textFormat": text,
            "useValueForTime": value_is_time,
        })
    };
    let started = format!("{} * 1000", own("start_time_seconds"));
    let mut all = vec![annotation("Exporter started", "blue", started, "{{instance}}", true)];
    if !plan.targets.is_empty() {
        let reattached = own_increase("reattach_total", "2m");
        let expr = format!("sum by (instance, target, reason) ({reattached}) > 0");
        all.push(annotation("Attached again", "yellow", expr, "{{target}} {{reason}} {{instance}}", false));
    }
    if alerts::detects(plan) {
        let bans = format!("sum by (instance, reason) (increase(xdp_autobans_total{{{CHOSEN}}}[2m])) > 0");
        all.push(annotation("Banned", "red", bans, "{{reason}} {{instance}}", false));
    }
    Value::Array(all)
}

fn variables(plan: &Plan, ranks: bool) -> Value {
    // Only exporters with such probes, whatever the names of their targets.
    let probes: Vec<&str> = plan
        .targets
        .iter()
        .filter_map(|target| target.probes.first())
        .map(|probe| plan.probes[*probe].name.as_str())
        .collect();
    let series = |matchers: &str| match probes.is_empty() {
        true => format!("network_attached{{{matchers}}}"),
        false => {
            let of = alerts::one_of(probes.iter().copied());
            format!(
                "fibre_exporter_probe_attached{{probe=~{of}{}{matchers}}}",
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
    ];
    if plan.network.is_some() {
        let all_interfaces =
            "label_values(network_attached{job=~\"$job\", instance=~\"$instance\"}, interface)";
        all.push(query("interface", "Interface", "Interfaces that are counted.", all_interfaces));
    }
    all.push(choice(
        "window",
        "Window",
        "Time window for rates, quantiles and means; use a longer one for rare events.",
        &["1m", "5m", "15m", "1h", "6h", "1d"],
        "5m",
    ));
    if ranks {
        let about = "Maximum number of series per panel for metrics with many label values.";
        all.push(choice("top", "Top", about, &["5", "10", "20", "50"], "10"));
    }
    Value::Array(all)
}

/// Adds a metric's panel, by its kind.
fn show(grid: &mut Grid, metric: &MetricPlan, is_free: bool) {
    let labels: Vec<&str> = metric.displayed_labels().collect();
    let (by, legend) = (by(&labels), legend(&labels));
    let of = Selection { name: &metric.name, matchers: CHOSEN, by: &by, legend: &legend, top: is_free };
    let panel = kinds::of(&metric.kind).panel(&of);
    let title = metric.help.trim_end_matches('.');
    grid.time_series(title, &format!("{}: {}", metric.name, panel.about), panel.unit, &panel.queries);
}

/// A metric of the exporter itself.
fn own(metric: &str) -> String {
    format!("fibre_exporter_{metric}{{{CHOSEN}}}")
}

fn own_rate(metric: &str) -> String {
    format!("rate({}[$__rate_interval])", own(metric))
}

/// Lost hits that need attention.
fn lost(window: &str) -> String {
    format!("increase(fibre_exporter_probe_lost_total{{{CHOSEN}, {}}}[{window}])", alerts::BUT_NO_START)
}

fn own_increase(metric: &str, window: &str) -> String {
    format!("increase({}[{window}])", own(metric))
}

/// The URL scheme of this configuration's exporters.
fn scheme(plan: &Plan) -> &'static str {
    if plan.settings.web.tls.is_some() { "https" } else { "http" }
}
