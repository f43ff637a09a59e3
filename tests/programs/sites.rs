//! Every site of every probe of real programs is attached and detached, with all probes of a program in one
//! configuration. The expected numbers come from readelf. The time taken is printed, but only limited by the timeout
//! against hanging.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::support::exporter::Exporter;
use crate::support::program::{directory, private, run};

const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

/// Returns the probes of a file by provider and name, with their number of sites, according to readelf.
fn probes(file: &Path) -> BTreeMap<(String, String), usize> {
    let notes = run(Command::new("readelf").args(["--notes"]).arg(file).env("LC_ALL", "C"));
    let mut probes = BTreeMap::new();
    let mut provider = String::new();
    for line in notes.lines() {
        match line.trim().split_once(": ") {
            Some(("Provider", word)) => provider = word.to_owned(),
            Some(("Name", word)) => {
                *probes.entry((provider.clone(), word.to_owned())).or_default() += 1;
            }
            _ => {}
        }
    }
    probes
}

/// Attaches to all probes of a private copy of `file` and detaches. The number of probes varies with the package
/// version; it must be at least `least`.
fn attach_all(file: impl Into<PathBuf>, least: usize) {
    let file = file.into();
    let directory = directory();
    let probes = probes(&file);
    let (names, sites) = (probes.len(), probes.values().sum::<usize>());
    assert!(names >= least, "{names} probes in {}", file.display());
    let copy = private(&file, directory.path());
    let mut targets = format!("  - name: all\n    binary: {}\n    probes:\n", copy.display());
    for (provider, name) in probes.keys() {
        let _ = writeln!(targets, "      - on: usdt:{provider}:{name}");
    }

    let started = Instant::now();
    let exporter = Exporter::tracing(&targets);
    let attached = started.elapsed();
    let samples = exporter.scrape();
    for ((provider, name), sites) in &probes {
        let label = format!("{provider}:{name}");
        let shown = samples.sum("fibre_exporter_probe_sites", &[("probe", &label)]);
        assert_eq!(shown, *sites as f64, "sites of {label} in {}", file.display());
    }
    assert_eq!(samples.sum("fibre_exporter_probes_attached", &[]), names as f64);
    let stopping = Instant::now();
    exporter.stop();
    println!(
        "{}: {names} probes, {sites} sites: ready after {attached:?}, gone after {:?}",
        file.display(),
        stopping.elapsed()
    );
}

#[test]
fn all_sites_of_postgresql() {
    attach_all("/usr/lib/postgresql/15/bin/postgres", 40);
}

#[test]
fn all_sites_of_openjdk() {
    attach_all("/usr/lib/jvm/java-17-openjdk-amd64/lib/server/libjvm.so", 300);
}

/// Finds a Rust program whose probes have hyphens in their names.
fn nextest() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|directory| directory.join("cargo-nextest"))
        .find(|file| file.is_file());
    found.expect("cargo-nextest, which scripts/install-deps.sh --tests installs")
}

#[test]
fn all_sites_of_cargo_nextest() {
    attach_all(nextest(), 3);
}

#[test]
fn cargo_nextest_test_counts_match_its_output() {
    let directory = directory();
    let copy = private(nextest(), directory.path());
    let project = directory.path().join("five");
    std::fs::create_dir_all(project.join("src")).unwrap();
    std::fs::write(
        project.join("Cargo.toml"),
        "[package]\nname = \"five\"\nedition = \"2024\"\n[workspace]\n",
    )
    .unwrap();
    let tests: String = (0..5).map(|n| format!("#[test] fn test_{n}() {{}}\n")).collect();
    std::fs::write(project.join("src/lib.rs"), tests).unwrap();
    let counted = |probe: &str, name: &str| {
        format!("      - {{ on: \"usdt:nextest:{probe}\", metrics: [{{ counter: {name} }}] }}\n")
    };
    let exporter = Exporter::tracing(&format!(
        "  - name: nextest\n    binary: {}\n    probes:\n{}{}{}",
        copy.display(),
        counted("test-attempt-start", "tests_started_total"),
        counted("test-attempt-done", "tests_done_total"),
        counted("run-done", "runs_total"),
    ));
    run(Command::new(&copy)
        .args(["nextest", "run", "--offline", "--manifest-path"])
        .arg(project.join("Cargo.toml"))
        // The one of this run is not known there.
        .env_remove("NEXTEST_PROFILE")
        .env("CARGO_TARGET_DIR", directory.path().join("target")));
    let samples = exporter.scrape();
    let of = |metric: &str| samples.sum(metric, &[]);
    assert_eq!((of("tests_started_total"), of("tests_done_total"), of("runs_total")), (5.0, 5.0, 1.0));
}

#[test]
fn all_sites_of_interpreters() {
    attach_all("/usr/bin/python3.11", 5);
    attach_all(Path::new(LIBRARIES).join("libpython3.11.so.1.0"), 5);
    attach_all("/usr/bin/php8.2", 8);
    attach_all(Path::new(LIBRARIES).join("libruby-3.1.so.3.1"), 15);
}

#[test]
fn all_sites_of_libraries() {
    attach_all(Path::new(LIBRARIES).join("libstdc++.so.6"), 3);
    attach_all(Path::new(LIBRARIES).join("libvirt.so.0"), 25);
}

/// SSSD's libraries, which `scripts/install-deps.sh --tests` unpacks without installing them.
#[test]
fn all_sites_of_sssd() {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME is set"));
    let unpacked = cache.unwrap_or_else(|| home().join(".cache")).join("exporter/sssd");
    let libraries = unpacked.join("usr/lib/x86_64-linux-gnu/sssd");
    attach_all(libraries.join("libsss_ldap_common.so"), 25);
    attach_all(libraries.join("libsss_util.so"), 3);
}
