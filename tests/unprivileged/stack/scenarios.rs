//! What the dashboards' first tables show of exporters in a certain state, evaluated by promtool.

use serde_json::{Value as Json, json};

use super::{repository, shipped_dashboards};
use crate::support::dashboard::{BUILT_IN_VARIABLES, Dashboard, substitute};
use crate::support::prometheus::promtool;

const ALL: &[(&str, &str)] = &[
    ("job", ".*"),
    ("node", ".*"),
    ("instance", ".*"),
    ("interface", ".*"),
    ("window", "1h"),
    ("top", "10"),
];

/// Returns the queries of the table above the first row, with a row for each exporter.
fn first_table(file: &std::path::Path) -> Vec<String> {
    let dashboard = Dashboard::load(file).unwrap();
    let panels = dashboard.json["panels"].as_array().unwrap();
    let table =
        panels.iter().take_while(|panel| panel["type"] != "row").find(|panel| panel["type"] == "table");
    let targets = table.expect("a table on the first screen")["targets"].as_array().unwrap();
    let expr =
        |target: &Json| substitute(target["expr"].as_str().unwrap(), &[ALL, BUILT_IN_VARIABLES]).unwrap();
    targets.iter().map(expr).collect()
}

/// Asserts that after half an hour of these series each query has exactly one series with each of these labels.
fn assert_labels(series: &[(&str, &str)], queries: &[(String, &[&str])]) {
    let inputs = series.iter().map(|(series, values)| json!({"series": series, "values": values}));
    let tests = queries.iter().map(|(expr, labels)| {
        let samples = labels.iter().map(|labels| json!({"labels": labels, "value": 1}));
        json!({"expr": expr, "eval_time": "30m", "exp_samples": samples.collect::<Vec<_>>()})
    });
    let test = json!({
        "interval": "1m",
        "input_series": inputs.collect::<Vec<_>>(),
        "promql_expr_test": tests.collect::<Vec<_>>(),
    });
    let file = tempfile::NamedTempFile::new().expect("cannot make a temporary file");
    // JSON is YAML.
    std::fs::write(&file, json!({"tests": [test]}).to_string()).expect("cannot write the test");
    promtool(["test", "rules", &file.path().display().to_string()]).unwrap();
}

#[test]
fn exporter_has_one_row_with_its_latest_labels() {
    let series = [
        // It was upgraded while it is looked at.
        (
            r#"fibre_exporter_info{job="x", instance="a:1", node="a", version="1", kernel="6.1"}"#,
            "1x26 stale",
        ),
        (r#"fibre_exporter_info{job="x", instance="a:1", node="a", version="2", kernel="6.1"}"#, "_x27 1x10"),
        // It has been down for longer than the dashboard's time range.
        (
            r#"fibre_exporter_info{job="x", instance="b:1", node="b", version="1", kernel="6.1"}"#,
            "1x20 stale",
        ),
    ];
    for file in shipped_dashboards() {
        let info = first_table(&file).into_iter().find(|expr| expr.contains("fibre_exporter_info"));
        let info = info.expect("a query that adds the labels");
        let has_version = info.contains("version");
        let by = if has_version { "instance, node, version" } else { "instance, node" };
        let rows: &[&str] = if has_version {
            &[r#"{instance="a:1", node="a", version="2"}"#, r#"{instance="b:1", node="b", version="1"}"#]
        } else {
            &[r#"{instance="a:1", node="a"}"#, r#"{instance="b:1", node="b"}"#]
        };
        // Each series is a row.
        assert_labels(
            &series,
            &[(format!("count by ({by}) ({info})"), rows), (format!("count ({info}) / 2"), &["{}"])],
        );
    }
}

#[test]
fn probes_of_an_absent_optional_target_are_not_expected() {
    let state = |target: &str, probe: &str, state: &str| {
        format!(
            r#"fibre_exporter_probe_state{{instance="a:1", target="{target}", probe="{probe}", state="{state}"}}"#
        )
    };
    let states = [state("t", "p", "attached"), state("t", "q", "waiting"), state("o", "p", "not_running")];
    let mut series = vec![
        (r#"fibre_exporter_probes_configured{job="x", instance="a:1", node="a"}"#, "3x40"),
        (r#"fibre_exporter_probes_attached{job="x", instance="a:1", node="a"}"#, "1x40"),
        (r#"fibre_exporter_probes_configured{job="x", instance="b:1", node="b"}"#, "6x40"),
        (r#"fibre_exporter_probes_attached{job="x", instance="b:1", node="b"}"#, "6x40"),
    ];
    series.extend(states.iter().map(|state| (state.as_str(), "1x40")));
    for name in ["fibre", "fleet"] {
        let table = first_table(&repository(&format!("grafana/{name}.json")));
        let probes = table.into_iter().find(|expr| expr.contains("fibre_exporter_probes_configured"));
        let rows: &[&str] = &[r#"{instance="a:1", probes="1 of 2"}"#, r#"{instance="b:1", probes="6 of 6"}"#];
        assert_labels(&series, &[(format!("count by (instance, probes) ({})", probes.unwrap()), rows)]);
    }
}

#[test]
fn probe_of_an_absent_optional_target_is_not_shown_as_missing() {
    let of = |name: &str, probe: &str, more: &str| {
        format!(r#"fibre_exporter_{name}{{job="x", instance="a:1", target="t", probe="{probe}"{more}}}"#)
    };
    let series = [
        (of("probe_attached", "p", ""), "1x40"),
        (of("probe_attached", "q", ""), "0x40"),
        (of("probe_attached", "r", ""), "0x40"),
        (of("probe_state", "p", r#", state="attached""#), "1x40"),
        (of("probe_state", "q", r#", state="waiting""#), "1x40"),
        (of("probe_state", "r", r#", state="not_running""#), "1x40"),
    ];
    let series: Vec<_> = series.iter().map(|(series, values)| (series.as_str(), *values)).collect();
    let rows: &[&str] =
        &[r#"{probe="p", shown="1"}"#, r#"{probe="q", shown="2"}"#, r#"{probe="r", shown="0"}"#];
    let mut tables = 0;
    for file in shipped_dashboards() {
        let dashboard = Dashboard::load(&file).unwrap();
        let panels = dashboard.json["panels"].as_array().unwrap();
        let inside = panels.iter().flat_map(|row| row["panels"].as_array().into_iter().flatten());
        for table in
            inside.filter(|panel| panel["title"].as_str().is_some_and(|title| title.starts_with("Probes")))
        {
            let Some(expr) = table["targets"][0]["expr"].as_str().filter(|expr| expr.contains("attached"))
            else {
                continue;
            };
            if table["type"] == "table" {
                tables += 1;
                let expr = substitute(expr, &[ALL, BUILT_IN_VARIABLES]).unwrap();
                assert_labels(&series, &[(format!("count_values by (probe) (\"shown\", {expr})"), rows)]);
            }
        }
    }
    assert!(tables >= 4, "{tables}");
}
