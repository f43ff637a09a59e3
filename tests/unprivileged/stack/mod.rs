//! The monitoring stack: the compose file and what it mounts, the alerts, and the dashboard, the last with a real
//! Prometheus. No containers run here.

mod dashboards;
mod files;
mod live;
mod scenarios;
mod stand_in;
mod told;

use std::path::{Path, PathBuf};

/// Returns a path inside the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Returns the shipped dashboards.
fn shipped_dashboards() -> Vec<PathBuf> {
    let files = std::fs::read_dir(repository("grafana")).expect("cannot list grafana/");
    let files = files.map(|entry| entry.expect("cannot list grafana/").path());
    let found: Vec<_> = files.filter(|f| f.extension().is_some_and(|e| e == "json")).collect();
    assert!(!found.is_empty(), "no dashboard in grafana/");
    found
}
