//! The `dashboard` command: what Grafana and Prometheus need to show and to watch a configuration's metrics.

mod alerts;
mod panels;

use serde_json::{Value, json};

pub use alerts::alerts;

use crate::kinds;
use crate::kinds::panel::{Query, Selection};
use crate::plan::{MetricPlan, Plan};
use panels::{Grid, by, legend};

/// The variables that narrow a query; the same on every series of an exporter.
const CHOSEN: &str = r#"job=~"$job", instance=~"$instance""#;

/// Grafana's JSON model, as version 11 exports it (schema 39): a panel for each metric, in a row for each target,
/// and a row about the exporter itself.
pub fn dashboard(plan: &Plan) -> String {
    let mut grid = Grid::default();
    let mut shown = vec![false; plan.metrics.len()];
    for target in &plan.targets {
        let actions = target.probes.iter().flat_map(|probe| &plan.probes[*probe].actions);
        let mut fed: Vec<usize> = Vec::new();
        for metric in actions.map(|action| action.metric) {
            if !std::mem::replace(&mut shown[metric], true) {
                fed.push(metric);
            }
        }
        if !fed.is_empty() {
            grid.row(&target.name);
            fed.into_iter().for_each(|metric| show(&mut grid, &plan.metrics[metric]));
        }
    }
    health(&mut grid);
    let names: Vec<_> = plan.targets.iter().map(|target| target.name.as_str()).collect();
    let names = names.join(", ");
    let made = json!({
        "uid": uid(&names),
        "title": format!("Traced: {names}"),
        "description": format!("What the exporter's configuration measures of {names}, and the exporter's own health."),
        "tags": ["exporter"],
        "schemaVersion": 39,
        "version": 1,
        "id": null,
        "editable": true,
        "graphTooltip": 1,
        "refresh": "30s",
        "timezone": "browser",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": variables()},
        "panels": grid.panels,
    });
    // Strings, numbers and lists only: nothing of it can fail.
    serde_json::to_string_pretty(&made).unwrap_or_default() + "\n"
}

/// The same names give the same dashboard, so that a new one replaces the old. Grafana takes 40 characters.
fn uid(names: &str) -> String {
    // FNV-1a, 64 bits.
    let hash = names.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("exporter-{hash:016x}")
}

fn variables() -> Value {
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
    json!([
        {
            "name": "datasource",
            "label": "Data source",
            "description": "The Prometheus that scrapes the exporters.",
            "type": "datasource",
            "query": "prometheus",
            "refresh": 1,
            "hide": 0,
            "multi": false,
            "includeAll": false,
            "options": [],
        },
        query("job", "Job", "The scrape job of the exporters.", "label_values(fibre_exporter_up, job)"),
        query(
            "instance",
            "Exporter",
            "Address of the exporter.",
            "label_values(fibre_exporter_up{job=~\"$job\"}, instance)"
        ),
    ])
}

/// One metric by its kind: rates of counters, values of gauges, quantiles and mean of histograms.
fn show(grid: &mut Grid, metric: &MetricPlan) {
    let name = &metric.name;
    let labels: Vec<&str> = metric.shown_labels().collect();
    let (by, legend) = (by(&labels), legend(&labels));
    let of = Selection { name, matchers: CHOSEN, by: &by, legend: &legend };
    let panel = kinds::of(&metric.kind).panel(&of);
    grid.time_series(name, &sentence(&metric.help), panel.unit, &panel.queries);
}

/// The row about the exporter itself.
fn health(grid: &mut Grid) {
    grid.row("Exporter health");
    let own = |metric: &str| format!("fibre_exporter_{metric}{{{CHOSEN}}}");
    let rate = |metric: &str| format!("rate(fibre_exporter_{metric}{{{CHOSEN}}}[$__rate_interval])");
    let one = |expr: String, legend: &str| vec![Query { expr, legend: legend.to_string() }];
    grid.time_series(
        "Probes",
        "Probes that the configuration asks for, and those that are attached.",
        "short",
        &[
            Query { expr: own("probes_configured"), legend: "{{instance}} configured".to_string() },
            Query { expr: own("probes_attached"), legend: "{{instance}} attached".to_string() },
        ],
    );
    let by_probe = "{{instance}} {{target}} {{probe}}";
    grid.time_series("Hits", "How often each probe fires.", "ops", &one(rate("probe_hits_total"), by_probe));
    grid.time_series(
        "Hits lost",
        "Hits that some metric misses, by reason. Anything but 0 means that counts are too low.",
        "ops",
        &one(
            format!("sum by (instance, target, probe, reason) ({})", rate("probe_lost_total")),
            "{{instance}} {{target}} {{probe}} {{reason}}",
        ),
    );
    grid.time_series(
        "Read faults",
        "Hits of which a value could not be read from the application's memory.",
        "ops",
        &one(rate("probe_read_faults_total"), by_probe),
    );
    grid.time_series(
        "Label overflow",
        "Label values that were counted as \"other\" because their label's limit was reached.",
        "ops",
        &one(rate("label_overflow_total"), "{{instance}} {{metric}}"),
    );
    grid.time_series(
        "Errors",
        "What went wrong in the exporter, by type.",
        "ops",
        &one(rate("errors_total"), "{{instance}} {{error_type}}"),
    );
    grid.time_series("Series", "Series of the latest scrape.", "short", &one(own("series"), "{{instance}}"));
    grid.time_series(
        "CPU",
        "Share of one CPU that the exporter takes.",
        "percentunit",
        &one(format!("rate(process_cpu_seconds_total{{{CHOSEN}}}[$__rate_interval])"), "{{instance}}"),
    );
    grid.time_series(
        "Memory",
        "Memory that the exporter has in use.",
        "bytes",
        &one(format!("process_resident_memory_bytes{{{CHOSEN}}}"), "{{instance}}"),
    );
}

fn sentence(help: &str) -> String {
    if help.ends_with('.') { help.to_string() } else { format!("{help}.") }
}
