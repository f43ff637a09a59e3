//! Every query of the dashboard in a real Prometheus that scrapes a stand-in for the exporter.

use std::time::Duration;

use super::repository;
use super::stand_in::{PASSWORD, StandIn};
use crate::support::dashboard::{Dashboard, Variable, chosen};
use crate::support::exporter::TIMEOUT;
use crate::support::prometheus::{Prometheus, Scrape};

/// Starts a Prometheus that scrapes `exporter`, a target with the label `node` "configured", with this password.
fn scraping(exporter: &StandIn, password: &str) -> (Prometheus, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().expect("cannot make a temporary file");
    std::fs::write(&file, password).expect("cannot write the password");
    let scrape = Scrape {
        target: exporter.address.clone(),
        ca_file: None,
        password_file: file.path().to_owned(),
        node: Some("configured".into()),
    };
    (Prometheus::start(&scrape).unwrap(), file)
}

/// A name with everything that has a meaning in a regular expression, in PromQL or for Grafana.
const ODD_NODE: &str = r#"it's "$node" `a|b` [c] {d} ^e (f.g)+*? \d ü"#;

/// Returns the dashboard's queries without data when the exporter lacks one metric. Two nodes are chosen by name, of
/// which one exists.
fn empty_queries(without: &'static str) -> Vec<String> {
    let exporter = StandIn::named(ODD_NODE, without);
    let (prometheus, _password) = scraping(&exporter, PASSWORD);
    prometheus.wait_until_up(TIMEOUT).unwrap();
    prometheus.wait_for_scrapes(4, TIMEOUT).unwrap();
    let dashboard = Dashboard::load(&repository("grafana/fibre.json")).unwrap();
    let (nodes, instance) = (chosen(&[ODD_NODE, "other"]), chosen(&[&exporter.address]));
    let variables: &[Variable] =
        &[("job", "fibre"), ("node", &nodes), ("instance", &instance), ("window", "5m"), ("top", "10")];
    prometheus.queries_without_data(&dashboard, variables).unwrap()
}

#[test]
fn every_panel_has_data_when_all_metrics_exist() {
    assert_eq!(empty_queries(""), Vec::<String>::new());
}

#[test]
fn missing_metric_leaves_its_panels_empty() {
    let empty = empty_queries("fibre_block_missing_tx_bytes");
    assert!(empty.iter().all(|q| q.contains("fibre_block_missing_tx_bytes")), "{empty:#?}");
    // Each block, and the mean and maximum over the window.
    assert_eq!(empty.len(), 3, "{empty:#?}");
}

#[test]
fn wrong_password_is_reported() {
    let exporter = StandIn::start("");
    let (prometheus, _password) = scraping(&exporter, "wrong");
    prometheus.wait_for_scrapes(1, TIMEOUT).unwrap();
    let told = prometheus.wait_until_up(Duration::ZERO).unwrap_err();
    assert!(told.contains("401"), "{told}");
}

#[test]
fn configured_node_label_fills_in_missing_ones() {
    let exporter = StandIn::start("");
    let (prometheus, _password) = scraping(&exporter, PASSWORD);
    prometheus.wait_until_up(TIMEOUT).unwrap();
    let nodes = |expr: &str| -> Vec<Option<String>> {
        prometheus.query(expr).unwrap().iter().map(|s| s.labels.get("node").cloned()).collect()
    };
    assert_eq!(nodes("fibre_blocks_sent_total"), [Some("demo".into())]);
    assert_eq!(nodes("process_open_fds"), [Some("configured".into())]);
    assert_eq!(nodes("up"), [Some("configured".into())]);
    assert_eq!(nodes(r#"{exported_node!="", job="fibre"}"#), []);
}

#[test]
fn rejected_query_states_the_reason() {
    let exporter = StandIn::start("");
    let (prometheus, _password) = scraping(&exporter, PASSWORD);
    let told = prometheus.query("rate(up)").unwrap_err();
    assert!(told.contains("expected type range vector"), "{told}");
    let one = prometheus.query("1 + 1").unwrap();
    assert_eq!(one.iter().map(|s| s.value).collect::<Vec<_>>(), [2.0]);
}
