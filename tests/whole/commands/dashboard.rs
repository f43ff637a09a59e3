//! `exporter dashboard`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::{Value as Json, json};

use super::{Scratch, config, demo, exporter};

/// Returns configurations with every kind of metric, all kinds of labels, and names that need quoting.
fn configurations() -> Vec<String> {
    let own = "labels: { site: \"a\\\"b{{c\" }
    probes:
      - on: usdt:udp:block_race_winner
        args: { height: 1, peer: { index: 3, type: string } }
        metrics:
          - { counter: winners_total, labels: { peer: { value: peer, limit: 5 } } }
          - { gauge: height_max, mode: max, value: height }
          - { gauge: seen_timestamp_seconds, value: height }
          - { histogram: heights, value: height, buckets: [1, 2] }
      - function: \"main+0x0\"
        metrics: [{ counter: mains_total }]";
    vec![
        config(&demo("fibre-demo"), "profile: [fibre, bitcoin-core]"),
        config(&demo("fibre-demo"), own).replace("name: t", "name: \"x (y) {{z}}\""),
        "network: { interfaces: [lo], count: { talkers: true, top_sources: 3, tcp_connections: true } }\n"
            .to_string(),
        format!("{}network: {{ interfaces: [lo] }}\n", config(&demo("fibre-demo"), "profile: fibre")),
        NETWORK.to_string(),
    ]
}

/// Everything that can be counted about packets.
const NETWORK: &str = "network:
  interfaces: [\"*\"]
  count: { tcp_trouble: true, talkers: true, flows: true, top_sources: 10, cidrs: { own: 10.0.0.0/8 }, tcp_connections: true,
    drop_reasons: true, tcp: true, cgroups: true, processes: true, dns: true }
  detect: { syn_flood: true, port_scan: true, tcp_anomalies: true }
  block: { mode: observe }
";

/// Returns the names of the shipped dashboards that are generated from a configuration, with that configuration.
fn shipped() -> Vec<(&'static str, String)> {
    let profile = |name: &'static str, program: &str| {
        let target = format!("targets: [{{ name: {name}, process: {program}, profile: {name} }}]\n");
        (name, target)
    };
    vec![
        profile("bitcoin-core", "bitcoind"),
        profile("postgresql", "postgres"),
        profile("openjdk", "java"),
        ("network", NETWORK.to_string()),
    ]
}

#[test]
fn shipped_dashboards_match_the_command_output() {
    for (name, text) in shipped() {
        let printed = dashboard(&text, &[]);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("grafana/{name}.json"));
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(&path, &printed).unwrap();
        }
        let is = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(is == printed, "{} is not what is printed: run this with UPDATE_EXPECT=1", path.display());
    }
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

/// Returns all panels, including those in collapsed rows.
fn panels(json: &Json) -> impl Iterator<Item = &Json> {
    let top = json["panels"].as_array().expect("panels").iter();
    let inside = |panel: &Json| panel["panels"].as_array().map_or(0, Vec::len);
    top.flat_map(move |panel| {
        std::iter::once(panel).chain((0..inside(panel)).map(move |n| &panel["panels"][n]))
    })
    .filter(|panel| panel["type"] != "row")
}

#[test]
fn every_metric_has_a_panel_and_every_query_is_promql() {
    for text in configurations() {
        let json: Json = serde_json::from_str(&dashboard(&text, &[])).expect("JSON");
        let shown: BTreeSet<&str> = panels(&json)
            .filter_map(|panel| panel["description"].as_str()?.split_once(": "))
            .map(|(metric, _)| metric)
            .collect();
        let scratch = Scratch::new();
        let table = exporter(&["check", &scratch.write("c.yaml", &text)]).good();
        // Labels directly follow the name.
        let words = table.split_whitespace().filter_map(|word| word.split('{').next());
        let metrics: Vec<&str> = words.filter(|w| w.starts_with("fibre_") || w.ends_with("_total")).collect();
        assert_eq!(metrics.is_empty(), !has_probes(&text), "{table}");
        metrics.iter().for_each(|metric| assert!(shown.contains(metric), "{metric}: {shown:?}"));

        let queries = panels(&json).flat_map(|panel| panel["targets"].as_array().expect("queries"));
        let rules: Vec<Json> = queries
            .enumerate()
            .map(|(n, query)| {
                let expr = query["expr"].as_str().expect("an expression");
                let values =
                    [("$__rate_interval", "1m"), ("$__range", "1h"), ("$window", "5m"), ("$top", "10")];
                let values =
                    values.iter().chain(&[("$job", ".*"), ("$instance", ".*"), ("$interface", ".*")]);
                let expr = values.fold(expr.to_string(), |expr, (name, value)| expr.replace(name, value));
                assert!(!expr.contains('$'), "{expr}");
                json!({"record": format!("expression:{n}"), "expr": expr})
            })
            .collect();
        // JSON is YAML.
        promtool(&json!({"groups": [{"name": "queries", "rules": rules}]}).to_string());
    }
}

#[test]
fn panels_do_not_overlap_and_are_described() {
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
fn queries_match_the_metric_kinds() {
    let json: Json = serde_json::from_str(&dashboard(&configurations()[1], &[])).expect("JSON");
    let exprs = |metric: &str| -> Vec<String> {
        let about = |panel: &&Json| {
            panel["description"].as_str().is_some_and(|text| text.starts_with(&format!("{metric}: ")))
        };
        let panel = panels(&json).find(about).expect(metric);
        let targets = panel["targets"].as_array().expect("queries").iter();
        targets.map(|target| target["expr"].as_str().expect("text").to_string()).collect()
    };
    assert_eq!(
        exprs("winners_total"),
        [
            r#"topk($top, sum by (instance, node, site, peer) (increase(winners_total{job=~"$job", instance=~"$instance"}[$window])))"#
        ]
    );
    assert_eq!(exprs("height_max"), [r#"height_max{job=~"$job", instance=~"$instance"}"#]);
    assert_eq!(
        exprs("seen_timestamp_seconds"),
        [r#"seen_timestamp_seconds{job=~"$job", instance=~"$instance"} * 1000"#]
    );
    assert_eq!(exprs("heights").len(), 3);
    assert!(exprs("heights")[0].contains("histogram_quantile(0.50") && exprs("heights")[0].contains("le)"));
    let dates = panels(&json).find(|panel| panel["title"] == "Seen timestamp seconds").expect("its help");
    assert_eq!(dates["fieldConfig"]["defaults"]["unit"], "dateTimeAsIso");
    assert_eq!(json["links"][0]["tags"], json!(["exporter"]));
    let events: Vec<_> = json["annotations"]["list"].as_array().expect("annotations").iter().collect();
    assert_eq!(events.len(), 2, "{events:?}");
    for panel in panels(&json).filter(|panel| panel["type"] == "timeseries") {
        for target in panel["targets"].as_array().expect("queries") {
            let legend = target["legendFormat"].as_str().expect("a legend");
            assert!(legend.contains("{{instance}}"), "two exporters look alike: {legend}");
        }
    }
}

#[test]
fn first_screen_is_instant_and_later_rows_are_collapsed() {
    let mut uids = BTreeSet::new();
    for text in configurations() {
        let json: Json = serde_json::from_str(&dashboard(&text, &[])).expect("JSON");
        assert!(uids.insert(json["uid"].to_string()), "another configuration has the same uid");
        let all = json["panels"].as_array().expect("panels");
        let first_row = all.iter().position(|panel| panel["type"] == "row").expect("a row");
        for panel in &all[..first_row] {
            for target in panel["targets"].as_array().expect("queries") {
                assert_eq!((&target["instant"], &target["range"]), (&json!(true), &json!(false)), "{panel}");
            }
        }
        let table = all[..first_row].iter().find(|panel| panel["type"] == "table").expect("a table");
        assert!(table["targets"][0]["expr"].as_str().is_some_and(|expr| expr.contains("(up{")), "{table}");
        let collapsed: Vec<_> = all.iter().filter_map(|panel| panel["collapsed"].as_bool()).collect();
        assert_eq!(collapsed.iter().filter(|is| !**is).count(), 1, "{collapsed:?}");
        assert!(!collapsed[0]);
        let titles: Vec<_> = all.iter().filter_map(|panel| panel["title"].as_str()).collect();
        assert_eq!(titles.contains(&"Network"), text.contains("network:"), "{titles:?}");
        for row in ["Kernel and TCP", "Units, containers and pods", "DNS", "Hosts", "Blocklist"] {
            assert!(text != NETWORK || titles.contains(&row), "no {row}: {titles:?}");
        }
        assert_eq!(titles.contains(&"Hits lost"), text.contains("targets:"), "{titles:?}");
    }
}

#[test]
fn exporter_table_fits_a_common_screen() {
    let json: Json = serde_json::from_str(&dashboard(&configurations()[1], &[])).unwrap();
    let table = panels(&json).find(|panel| panel["title"] == "Exporters").expect("the table");
    let widths: std::collections::HashMap<String, u64> = table["fieldConfig"]["overrides"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|column| {
            let of_width = |one: &&Json| one["id"].as_str().is_some_and(|id| id.ends_with("idth"));
            let width = column["properties"].as_array()?.iter().find(of_width)?["value"].as_u64()?;
            Some((column["matcher"]["options"].as_str()?.to_owned(), width))
        })
        .collect();
    // Room for "a few seconds ago" and "192.168.100.100:9435".
    for (column, least) in [("Last hit", 140), ("Uptime", 140), ("Exporter", 170), ("State", 110)] {
        assert!(widths[column] >= least, "{column}: {widths:?}");
    }
    assert!(widths.values().sum::<u64>() < 1500, "{widths:?}");
}

/// The check of metric names does not apply to a configuration for packets only.
fn has_probes(text: &str) -> bool {
    text.contains("targets:")
}

#[test]
fn alert_rules_have_a_severity_and_docs() {
    let docs = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/alerts.md")).unwrap();
    let reference =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md")).unwrap();
    for text in configurations() {
        let rules = dashboard(&text, &["--alerts"]);
        promtool(&rules);
        for alert in ["ExporterDown", "ExporterNotScraped"] {
            assert!(rules.contains(alert), "{rules}");
        }
        assert_eq!(rules.contains("ExporterHitsLost"), has_probes(&text), "{rules}");
        assert_eq!(rules.contains("ExporterInterfaceNotCounted"), text.contains("network:"), "{rules}");
        let yaml: serde_yaml::Value = serde_yaml::from_str(&rules).unwrap();
        for rule in yaml["groups"][0]["rules"].as_sequence().expect("rules") {
            let name = rule["alert"].as_str().expect("a name");
            let expr = rule["expr"].as_str().expect("an expression");
            let words = expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let prefixes = ["fibre_exporter_", "xdp_", "network_", "security_"];
            for metric in words.filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix))) {
                assert!(reference.contains(&format!("| `{metric}` |")), "{name}: there is no {metric}");
            }
            let severity = rule["labels"]["severity"].as_str().expect("a severity");
            assert!(["critical", "warning", "info"].contains(&severity), "{name}");
            assert!(
                docs.contains(&format!("### {name}\n\n*{severity}.* ")),
                "{name} is not in docs/alerts.md"
            );
            let runbook = rule["annotations"]["runbook_url"].as_str().expect("an address");
            assert!(runbook.contains("http://{{ ") && runbook.contains("}}/alerts"), "{runbook}");
            assert!(runbook.ends_with(&format!("#{}", name.to_lowercase())), "{runbook}");
        }
    }
    let elsewhere = dashboard(NETWORK, &["--alerts", "--runbooks", "https://docs.example.org/a.html"]);
    assert!(elsewhere.contains("runbook_url: https://docs.example.org/a.html#exporterdown\n"), "{elsewhere}");
    assert!(!elsewhere.contains("/alerts#"), "{elsewhere}");
    // Only a probe that the user wrote is expected to be present.
    let [shipped, own] = [0, 1].map(|n| dashboard(&configurations()[n], &["--alerts"]));
    assert!(!shipped.contains("ExporterProbeAbsent") && own.contains("ExporterProbeAbsent"));
    assert!(own.contains("winners_total") && !own.contains("heights"), "only what can overflow may: {own}");
}

#[test]
fn alerts_fire_for_each_of_two_nodes_of_one_name() {
    let scratch = Scratch::new();
    let key = scratch.write("api-key", "k");
    let secret = scratch.write("secret", "0123456789abcdef0123456789abcdef");
    let network = format!(
        "network:
  interfaces: [lo]
  count: {{ tcp: true, dns: true }}
  detect: {{ port_scan: true }}
  block:
    crowdsec: {{ url: 'http://127.0.0.1:8080/', api_key_file: {key} }}
    blocklist_url: [{{ url: 'https://lists.example.org/a' }}]
slow_events: {{ webhook: {{ url: 'https://hooks.example.org/', secret_file: {secret} }} }}
tls_cert: CERT\ntls_key: KEY\n"
    );
    let certificate = rcgen::generate_simple_self_signed(vec!["localhost".to_string()]).unwrap();
    let cert = scratch.write("c.crt", certificate.cert.pem());
    let key = scratch.write("c.key", certificate.signing_key.serialize_pem());
    let text = format!(
        "node_name: n\n{}{}",
        network.replace("CERT", &cert).replace("KEY", &key),
        config(
            &demo("fibre-demo"),
            "profile: fibre\n    probes:\n      - on: usdt:udp:block_race_winner\n        args: { peer: { index: 3, type: string } }\n        metrics: [{ counter: winners_total, labels: { peer: peer } }]\n      - on: usdt:udp:block_race_time\n        args: { us: 2 }\n        metrics: [{ histogram: race_us, value: us, buckets: [1], slow: 5 }]"
        )
    );
    let rules = scratch.write("rules.yml", dashboard(&text, &["--alerts"]));
    let tests = include_str!("alerts.yml").replace("RULES", &rules);
    let output = Command::new("promtool")
        .args(["test", "rules", &scratch.write("tests.yml", &tests)])
        .output()
        .expect("run promtool (Debian's package prometheus)");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    // Each rule fires in one of the tests.
    let yaml: serde_yaml::Value = serde_yaml::from_str(&std::fs::read_to_string(&rules).unwrap()).unwrap();
    for rule in yaml["groups"][0]["rules"].as_sequence().expect("rules") {
        let name = rule["alert"].as_str().expect("a name");
        assert!(tests.contains(&format!("alertname: {name}\n")), "no test lets {name} fire");
    }
}
