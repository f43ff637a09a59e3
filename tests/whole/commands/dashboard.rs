//! `exporter dashboard`.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::{Value as Json, json};

use super::{Scratch, config, demo, exporter};

/// Configurations with every kind of metric, labels of all kinds, and names that need quoting.
fn configurations() -> Vec<String> {
    let own = "labels: { site: \"a\\\"b{{c\" }
    probes:
      - on: usdt:udp:block_race_winner
        args: { height: 1, peer: { index: 3, type: string } }
        metrics:
          - { counter: winners_total, labels: { peer: { value: peer, limit: 5 } } }
          - { gauge: height_max, mode: max, value: height }
          - { histogram: heights, value: height, buckets: [1, 2] }
      - function: \"main+0x0\"
        metrics: [{ counter: mains_total }]";
    vec![
        config(&demo("fibre-demo"), "profile: [fibre, bitcoin-core]"),
        config(&demo("fibre-demo"), own).replace("name: t", "name: \"x (y) {{z}}\""),
    ]
}

fn dashboard(text: &str, flags: &[&str]) -> String {
    let scratch = Scratch::new();
    let file = scratch.write("c.yaml", text);
    exporter(&[&["dashboard", file.as_str()], flags].concat()).good()
}

fn promtool(rules: &str) {
    let scratch = Scratch::new();
    let output = Command::new("promtool")
        .args(["check", "rules", &scratch.write("rules.yml", rules)])
        .output()
        .expect("run promtool (Debian's package prometheus)");
    assert!(output.status.success(), "{}\n{rules}", String::from_utf8_lossy(&output.stderr));
}

fn panels(json: &Json) -> impl Iterator<Item = &Json> {
    json["panels"].as_array().expect("panels").iter().filter(|panel| panel["type"] != "row")
}

#[test]
fn every_metric_has_a_panel_and_every_query_is_promql() {
    for text in configurations() {
        let json: Json = serde_json::from_str(&dashboard(&text, &[])).expect("JSON");
        let titles: BTreeSet<&str> = panels(&json).filter_map(|panel| panel["title"].as_str()).collect();
        let scratch = Scratch::new();
        let table = exporter(&["check", &scratch.write("c.yaml", &text)]).good();
        let words = table.split_whitespace();
        let metrics: Vec<&str> = words.filter(|w| w.starts_with("fibre_") || w.ends_with("_total")).collect();
        assert!(!metrics.is_empty(), "{table}");
        metrics.iter().for_each(|metric| assert!(titles.contains(metric), "{metric}: {titles:?}"));

        let queries = panels(&json).flat_map(|panel| panel["targets"].as_array().expect("queries"));
        let rules: Vec<Json> = queries
            .enumerate()
            .map(|(n, query)| {
                let expr = query["expr"].as_str().expect("an expression");
                let expr =
                    expr.replace("$__rate_interval", "1m").replace("$job", ".*").replace("$instance", ".*");
                assert!(!expr.contains('$'), "{expr}");
                json!({"record": format!("expression:{n}"), "expr": expr})
            })
            .collect();
        // JSON is YAML.
        promtool(&json!({"groups": [{"name": "queries", "rules": rules}]}).to_string());
    }
}

#[test]
fn panels_lie_beside_each_other_and_say_what_they_show() {
    for text in configurations() {
        let json: Json = serde_json::from_str(&dashboard(&text, &[])).expect("JSON");
        assert_eq!((&json["schemaVersion"], &json["id"]), (&Json::from(39), &Json::Null));
        assert!(json["uid"].as_str().is_some_and(|uid| (1..=40).contains(&uid.len())), "{}", json["uid"]);
        let (mut taken, mut ids) = (BTreeSet::new(), BTreeSet::new());
        for panel in json["panels"].as_array().expect("panels") {
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|k| panel["gridPos"][k].as_u64().expect("a place"));
            assert!(x + w <= 24, "{panel}");
            for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                assert!(taken.insert(cell), "{} lies over another", panel["title"]);
            }
            assert!(ids.insert(panel["id"].as_u64()), "{panel}");
        }
        for panel in panels(&json) {
            assert!(panel["description"].as_str().is_some_and(|text| text.ends_with('.')), "{panel}");
        }
    }
}

#[test]
fn the_kinds_are_shown_by_what_they_are() {
    let json: Json = serde_json::from_str(&dashboard(&configurations()[1], &[])).expect("JSON");
    let exprs = |title: &str| -> Vec<String> {
        let panel = panels(&json).find(|panel| panel["title"] == title).expect(title);
        let targets = panel["targets"].as_array().expect("queries").iter();
        targets.map(|target| target["expr"].as_str().expect("text").to_string()).collect()
    };
    assert_eq!(
        exprs("winners_total"),
        [
            r#"sum by (instance, node, site, peer) (rate(winners_total{job=~"$job", instance=~"$instance"}[$__rate_interval]))"#
        ]
    );
    assert_eq!(exprs("height_max"), [r#"height_max{job=~"$job", instance=~"$instance"}"#]);
    assert_eq!(exprs("heights").len(), 4);
    assert!(exprs("heights")[0].contains("histogram_quantile(0.50") && exprs("heights")[0].contains("le)"));
}

#[test]
fn alerts_are_rules() {
    for text in configurations() {
        let rules = dashboard(&text, &["--alerts"]);
        promtool(&rules);
        for alert in ["ExporterGone", "ExporterProbeNotAttached", "ExporterHitsLost"] {
            assert!(rules.contains(alert), "{rules}");
        }
    }
    // Only a probe that the user wrote must be there.
    let [shipped, own] = [0, 1].map(|n| dashboard(&configurations()[n], &["--alerts"]));
    assert!(!shipped.contains("ExporterProbeAbsent") && own.contains("ExporterProbeAbsent"));
    assert!(own.contains("winners_total") && !own.contains("heights"), "only what can overflow may: {own}");
}
