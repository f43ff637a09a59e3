//! The shipped dashboards: their format, their PromQL, and that the FIBRE dashboard shows every metric.

use std::collections::BTreeSet;

use serde_json::Value as Json;

use super::stand_in::{FAMILIES, Kind};
use super::{repository, shipped_dashboards};
use crate::support::dashboard::{BUILT_IN_VARIABLES, Dashboard, Variable, substitute};
use crate::support::prometheus::promtool;

/// Values for the dashboards' variables, for checks of a query's syntax only.
const ANY: &[Variable] = &[
    ("job", "fibre"),
    ("node", ".*"),
    ("instance", ".*"),
    ("interface", ".*"),
    ("window", "1h"),
    ("top", "10"),
];

fn each_dashboard(check: impl Fn(&Dashboard) -> Vec<String>) {
    for file in shipped_dashboards() {
        let found = check(&Dashboard::load(&file).unwrap());
        assert!(found.is_empty(), "{}:\n{}", file.display(), found.join("\n"));
    }
}

/// Returns rows and panels, except those in collapsed rows (which have no position until the row is expanded).
fn visible(dashboard: &Dashboard) -> &[Json] {
    dashboard.json["panels"].as_array().map_or(&[], Vec::as_slice)
}

/// Returns what is wrong with the format of a dashboard, compared with what Grafana 11 itself writes.
fn faults_of_form(dashboard: &Dashboard) -> Vec<String> {
    let json = &dashboard.json;
    let mut faults = Vec::new();
    let mut want = |good: bool, fault: String| faults.extend((!good).then_some(fault));
    want(json["schemaVersion"] == 39, "schemaVersion is not 39, Grafana 11's".into());
    want(json["id"].is_null(), "an id belongs to one Grafana only".into());
    for key in ["uid", "title", "description"] {
        want(json[key].as_str().is_some_and(|t| !t.is_empty()), format!("no {key}"));
    }
    let mut ids = BTreeSet::new();
    for panel in visible(dashboard) {
        let title = panel["title"].as_str().unwrap_or_default();
        want(!title.is_empty(), format!("a panel without a title: {}", panel["id"]));
        want(ids.insert(panel["id"].as_u64()), format!("{title}: its id {} is not unique", panel["id"]));
        if panel["type"] == "row" {
            continue;
        }
        let data_source = serde_json::json!({"type": "prometheus", "uid": "${datasource}"});
        want(panel["datasource"] == data_source, format!("{title}: not the chosen data source"));
        let description = panel["description"].as_str().unwrap_or_default();
        want(description.ends_with('.'), format!("{title}: no description in sentences"));
        let targets = panel["targets"].as_array().map_or(&[] as &[Json], Vec::as_slice);
        want(!targets.is_empty(), format!("{title}: no query"));
        let mut ref_ids = BTreeSet::new();
        for target in targets {
            want(target["datasource"] == data_source, format!("{title}: a query of another data source"));
            want(ref_ids.insert(target["refId"].as_str()), format!("{title}: a refId twice"));
        }
    }
    faults
}

/// Returns the panels that overlap or extend beyond the right edge, which is at 24.
fn faults_of_place(dashboard: &Dashboard) -> Vec<String> {
    let place = |panel: &Json| ["x", "y", "w", "h"].map(|k| panel["gridPos"][k].as_u64());
    let mut faults = Vec::new();
    let mut taken = BTreeSet::new();
    for panel in visible(dashboard) {
        let [Some(x), Some(y), Some(w @ 1..), Some(h @ 1..)] = place(panel) else {
            faults.push(format!("{}: no place", panel["title"]));
            continue;
        };
        if x + w > 24 {
            faults.push(format!("{}: reaches over the right edge", panel["title"]));
        }
        let cells = (y..y + h).flat_map(|row| (x..x + w).map(move |column| (row, column)));
        if cells.filter(|cell| !taken.insert(*cell)).count() > 0 {
            faults.push(format!("{}: lies over another panel", panel["title"]));
        }
    }
    faults
}

/// Checks expressions with promtool, which only accepts them in recording rules.
fn refused(expressions: &[String]) -> Result<(), String> {
    let rules: Vec<Json> = expressions
        .iter()
        .enumerate()
        .map(|(i, expr)| serde_json::json!({"record": format!("expression:{i}"), "expr": expr}))
        .collect();
    let file = tempfile::NamedTempFile::new().expect("cannot make a temporary file");
    // JSON is YAML.
    let text = serde_json::json!({"groups": [{"name": "expressions", "rules": rules}]}).to_string();
    std::fs::write(&file, text).expect("cannot write rules");
    promtool(["check", "rules", &file.path().display().to_string()]).map(drop)
}

/// Returns the names of exporter metrics as they occur in an expression (including `_bucket` and so on).
fn metric_names(expr: &str) -> BTreeSet<String> {
    // Every second piece is quoted: a label's value.
    let code = expr.split('"').step_by(2).collect::<Vec<_>>().join("\"");
    code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| ["fibre_", "bitcoin_", "process_"].iter().any(|p| word.starts_with(p)))
        .map(str::to_owned)
        .collect()
}

/// Returns the names of the series of all metrics.
fn series_names() -> BTreeSet<String> {
    FAMILIES
        .iter()
        .flat_map(|(name, kind, _)| match kind {
            Kind::Histogram => ["_bucket", "_sum", "_count"].map(|s| format!("{name}{s}")).to_vec(),
            _ => vec![(*name).to_owned()],
        })
        .collect()
}

#[test]
fn dashboards_have_the_grafana_format() {
    each_dashboard(faults_of_form);
}

#[test]
fn malformed_dashboard_is_detected() {
    let dashboard = Dashboard::parse(
        r#"{"schemaVersion": 39, "uid": "u", "title": "t", "description": "d", "panels": [
            {"id": 1, "title": "One", "type": "stat"}, {"id": 1, "title": "Two", "type": "row"}]}"#,
    );
    let faults = faults_of_form(&dashboard.unwrap());
    let expected = ["not the chosen data source", "no description", "no query", "its id 1 is not unique"];
    assert_eq!(faults.len(), expected.len(), "{faults:?}");
    assert!(faults.iter().zip(expected).all(|(f, e)| f.contains(e)), "{faults:?}");
}

#[test]
fn panels_do_not_overlap() {
    each_dashboard(faults_of_place);
}

#[test]
fn overlapping_panels_are_detected() {
    let at = |x: u32, y: u32, w: u32| serde_json::json!({"title": "p", "gridPos": {"x": x, "y": y, "w": w, "h": 4}});
    let faults = |panels: [Json; 2]| {
        let json = serde_json::json!({"panels": panels});
        faults_of_place(&Dashboard { json, panels: Vec::new() })
    };
    assert_eq!(faults([at(0, 0, 12), at(12, 0, 12)]), Vec::<String>::new());
    assert_eq!(faults([at(0, 0, 12), at(11, 3, 12)]), [r#""p": lies over another panel"#]);
    assert_eq!(faults([at(0, 0, 12), at(13, 0, 12)]), [r#""p": reaches over the right edge"#]);
}

#[test]
fn every_query_is_promql() {
    each_dashboard(|dashboard| {
        let queries = dashboard.panels.iter().flat_map(|p| &p.queries);
        let expressions: Result<Vec<_>, _> =
            queries.map(|q| substitute(&q.expr, &[ANY, BUILT_IN_VARIABLES])).collect();
        expressions.and_then(|e| refused(&e)).err().into_iter().collect()
    });
}

#[test]
fn annotations_are_promql_and_dashboards_are_linked() {
    each_dashboard(|dashboard| {
        let json = &dashboard.json;
        let own = json["annotations"]["list"].as_array().map_or(&[] as &[Json], Vec::as_slice);
        let own: Vec<&Json> = own.iter().filter(|one| one["builtIn"].is_null()).collect();
        assert!(!own.is_empty(), "no annotations");
        assert!(json["tags"].as_array().is_some_and(|tags| tags.contains(&"exporter".into())));
        assert_eq!(json["links"][0]["tags"], serde_json::json!(["exporter"]));
        let expressions = own.iter().map(|one| one["expr"].as_str().expect("an expression"));
        let expressions: Result<Vec<_>, _> =
            expressions.map(|expr| substitute(expr, &[ANY, BUILT_IN_VARIABLES])).collect();
        expressions.and_then(|e| refused(&e)).err().into_iter().collect()
    });
}

#[test]
fn first_screen_is_instant_and_only_one_row_is_open() {
    each_dashboard(|dashboard| {
        let panels = visible(dashboard);
        let first_row = panels.iter().position(|panel| panel["type"] == "row").expect("a row");
        let targets =
            panels[..first_row].iter().flat_map(|panel| panel["targets"].as_array().expect("queries"));
        let of_before = targets.filter(|target| target["instant"] != true);
        let mut faults: Vec<_> =
            of_before.map(|target| format!("{} is not instant", target["expr"])).collect();
        let open = panels.iter().filter(|panel| panel["collapsed"] == false).count();
        faults.extend((open != 1).then(|| format!("{open} rows are open")));
        faults
    });
}

#[test]
fn invalid_promql_is_detected() {
    assert_eq!(refused(&["sum by (node) (up)".into()]), Ok(()));
    let told = refused(&["up".into(), "sum by (node (up)".into()]).unwrap_err();
    assert!(told.contains("expression:1"), "{told}");
}

#[test]
fn variable_without_a_value_is_an_error() {
    let of = |expr: &str| substitute(expr, &[&[("node", "a"), ("node_name", "b")]]);
    assert_eq!(of("x{n=\"$node\"}[${node_name}s] $1").as_deref(), Ok("x{n=\"a\"}[bs] $1"));
    assert!(of("rate(x[$window])").is_err());
    assert!(of("${node").is_err());
}

#[test]
fn variables_query_existing_series() {
    let dashboard = Dashboard::load(&repository("grafana/fibre.json")).unwrap();
    let list = dashboard.json["templating"]["list"].as_array().unwrap().clone();
    let names: Vec<_> = list.iter().filter_map(|v| v["name"].as_str()).collect();
    assert_eq!(names, ["datasource", "job", "node", "instance", "window", "top"]);
    for variable in list.iter().filter(|v| v["type"] == "query") {
        let query = variable["query"]["query"].as_str().unwrap_or_default();
        assert_eq!(variable["definition"], query);
        let arguments = query.strip_prefix("label_values(").and_then(|q| q.strip_suffix(')'));
        let (selector, label) = arguments.and_then(|a| a.rsplit_once(", ")).expect(query);
        assert_eq!(label, variable["name"], "{query}");
        assert_eq!(refused(&[substitute(selector, &[ANY]).unwrap()]), Ok(()));
        assert!(metric_names(selector).is_subset(&series_names()), "{query}");
    }
}

/// Grafana escapes names for `=~"$variable"`, and only of variables that have `multi` or `includeAll`.
#[test]
fn chosen_names_are_matched_as_grafana_escapes_them() {
    each_dashboard(|dashboard| {
        let list = dashboard.json["templating"]["list"].as_array().expect("variables");
        let of_series: Vec<&Json> = list.iter().filter(|variable| variable["type"] == "query").collect();
        let mut faults = Vec::new();
        for variable in &of_series {
            if variable["multi"] != true || variable["includeAll"] != true {
                faults.push(format!("{} is not escaped", variable["name"]));
            }
        }
        let texts = |json: &Json, key: &str| -> Vec<String> {
            json.as_array()
                .into_iter()
                .flatten()
                .filter_map(|one| one[key].as_str().map(str::to_owned))
                .collect()
        };
        let mut expressions: Vec<String> = dashboard
            .panels
            .iter()
            .flat_map(|panel| &panel.queries)
            .map(|query| query.expr.clone())
            .collect();
        expressions.extend(texts(&dashboard.json["annotations"]["list"], "expr"));
        expressions.extend(texts(&dashboard.json["templating"]["list"], "definition"));
        for name in of_series.iter().filter_map(|variable| variable["name"].as_str()) {
            let (matcher, word) = (format!("{name}=~\"${name}\""), format!("${name}"));
            for expr in &expressions {
                let rest = expr.replace(&matcher, "");
                if rest.contains(&word) || rest.contains(&format!("${{{name}")) {
                    faults.push(format!("{expr}: ${name} is not in {matcher}"));
                }
            }
        }
        faults
    });
}

#[test]
fn fibre_dashboard_shows_exactly_the_known_metrics() {
    let dashboard = Dashboard::load(&repository("grafana/fibre.json")).unwrap();
    let queries = || dashboard.panels.iter().flat_map(|p| &p.queries);
    let shown: BTreeSet<String> = queries().flat_map(|q| metric_names(&q.expr)).collect();
    let unknown: Vec<_> = shown.difference(&series_names()).cloned().collect();
    assert_eq!(unknown, Vec::<String>::new());
    // The endpoint's counters are queried by a pattern.
    assert!(queries().any(|q| q.expr.contains(r#"__name__=~"fibre_exporter_http_.+_total""#)));
    let missing: Vec<_> = FAMILIES
        .iter()
        .map(|(name, ..)| *name)
        .filter(|name| !name.starts_with("fibre_exporter_http_"))
        .filter(|name| !shown.contains(*name) && !shown.contains(&format!("{name}_bucket")))
        .collect();
    assert_eq!(missing, Vec::<&str>::new());
}

#[test]
fn every_alert_has_a_severity_docs_and_a_test() {
    let read = |path: &str| std::fs::read_to_string(repository(path)).unwrap();
    let (docs, tests) = (read("docs/alerts.md"), read("tests/unprivileged/stack/alerts.yml"));
    let rules: serde_yaml::Value = serde_yaml::from_str(&read("docker/prometheus/rules/fibre.yml")).unwrap();
    for rule in rules["groups"].as_sequence().unwrap().iter().flat_map(|g| g["rules"].as_sequence().unwrap())
    {
        let (name, severity) =
            (rule["alert"].as_str().unwrap(), rule["labels"]["severity"].as_str().unwrap());
        assert!(docs.contains(&format!("### {name}\n\n*{severity}.* ")), "{name} is not in docs/alerts.md");
        let runbook = rule["annotations"]["runbook_url"].as_str().unwrap();
        assert!(runbook.contains("https://{{ ") && runbook.contains("}}/alerts"), "{runbook}");
        assert!(runbook.ends_with(&format!("#{}", name.to_lowercase())), "{runbook}");
        assert!(tests.contains(&format!("alertname: {name}\n")), "no test lets {name} fire");
    }
}

#[test]
fn alerts_query_existing_series() {
    let text = std::fs::read_to_string(repository("docker/prometheus/rules/fibre.yml")).unwrap();
    let rules: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
    let groups = rules["groups"].as_sequence().unwrap();
    let all = groups.iter().flat_map(|g| g["rules"].as_sequence().unwrap());
    let asked: BTreeSet<String> = all.flat_map(|r| metric_names(r["expr"].as_str().unwrap())).collect();
    assert!(asked.len() > 5, "{asked:?}");
    // Some metrics exist only if the configuration enables them; the reference lists all.
    let reference = std::fs::read_to_string(repository("docs/metrics.md")).unwrap();
    let base = |name: &str| name.strip_suffix("_bucket").unwrap_or(name).to_owned();
    let is_unknown = |name: &&String| !reference.contains(&format!("| `{}` |", base(name)));
    let unknown: Vec<_> = asked.iter().filter(is_unknown).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
