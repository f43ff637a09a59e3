//! Another version of a running program: what matches is traced, the old version is still counted, and series continue.

use std::fs;
use std::path::Path;

use exporter::targets::ProbeState;

use super::support::*;
use crate::support::program::directory;
use crate::support::tracer::{Tracer, eventually};

/// Returns how often a file at the path was attached in place of another.
fn replaced(tracer: &Tracer) -> u64 {
    tracer.targets().reattached[0][0]
}

fn rename(from: &Path, to: &Path) {
    run("mv", &[from.to_str().unwrap(), to.to_str().unwrap()]);
}

#[test]
fn probe_missing_in_a_new_version_is_reported() {
    let directory = directory();
    let [path, new] = ["program", "new"].map(|name| directory.path().join(name));
    build(&path, &["-O1", "-DPAD=1"]);
    // Without function names.
    build(&new, &["-O3", "-DPAD=40", "-s"]);
    let text = config(&[("p", &format!("binary: {}", path.display()))])
        + "  - function: padded\n    metrics: [{ counter: calls_total }]\n";
    let tracer = Tracer::start(&text);
    let mut old = Program::start(&path);
    old.fire(10);
    rename(&new, &path);
    eventually("the new version to be traced", || replaced(&tracer) == 1);
    assert_eq!(tracer.state(0), (ProbeState::Attached, 1));
    let (state, sites) = tracer.state(1);
    assert!(sites == 0 && !state.is_attached(), "{state:?}");
    assert!(state.reason().contains("padded"), "{state:?}");
    let mut new = Program::start(&path);
    new.fire(1000);
    old.fire(5);
    assert_eq!((count(&tracer, "p_total"), count(&tracer, "calls_total")), (1015, 15));
}

#[test]
fn upgraded_library_counts_in_both_versions() {
    let directory = directory();
    let name = format!("loads{}", std::process::id() % 100_000);
    let [path, library, new] =
        [&name, "library.so", "library.so.new"].map(|name| directory.path().join(name));
    build(&path, &["-O1", "-DPAD=1"]);
    build(&library, &["-O1", "-DLIBRARY", "-shared", "-fPIC"]);
    build(&new, &["-O3", "-DLIBRARY", "-shared", "-fPIC", "-fcf-protection=full"]);
    let open = format!("open {}", library.display());
    let mut old = Program::start(&path);
    old.say(&open);
    let yaml = format!(
        "node_name: test\ntargets:\n- name: l\n  process: {name}\n  library: library.so\n  probes:\n  - on: usdt:lib:hit\n    \
         metrics: [{{ counter: l_total }}]\n"
    );
    let tracer = Tracer::start(&yaml);
    old.fire(10);
    rename(&new, &library);
    let mut new = Program::start(&path);
    new.say(&open);
    // Both are loaded.
    until_sites(&tracer, 0, 2);
    new.fire(1000);
    old.fire(5);
    assert_eq!(count(&tracer, "l_total"), 1015);
    drop(old);
    new.fire(2000);
    assert_eq!(count(&tracer, "l_total"), 3015);
}

/// Builds a package with the program, in a tree of its own.
fn package(directory: &Path, version: &str, options: &[&str]) -> String {
    let tree = directory.join(version);
    fs::create_dir_all(tree.join("DEBIAN")).unwrap();
    fs::create_dir_all(tree.join("usr/bin")).unwrap();
    let control = format!(
        "Package: traced\nVersion: {version}\nArchitecture: all\nMaintainer: Test <test@localhost>\nDescription: to be traced\n"
    );
    fs::write(tree.join("DEBIAN/control"), control).unwrap();
    build(&tree.join("usr/bin/traced"), options);
    let made = directory.join(format!("{version}.deb")).to_str().unwrap().to_string();
    run("dpkg-deb", &["-Znone", "--root-owner-group", "--build", tree.to_str().unwrap(), &made]);
    made
}

#[test]
fn upgraded_package_counts_in_both_versions() {
    let directory = directory();
    let versions = [
        package(directory.path(), "1", &["-O1", "-DPAD=1"]),
        package(directory.path(), "2", &["-O3", "-DPAD=40"]),
        package(directory.path(), "3", &["-O1", "-DPAD=7"]),
    ];
    let root = directory.path().join("root");
    fs::create_dir_all(root.join("var/lib/dpkg/info")).unwrap();
    fs::create_dir_all(root.join("var/lib/dpkg/updates")).unwrap();
    for file in ["status", "available"] {
        fs::write(root.join("var/lib/dpkg").join(file), "").unwrap();
    }
    let of_root = format!("--root={}", root.display());
    let install = |version: usize| {
        run("dpkg", &[&of_root, "--force-script-chrootless", "--log=/dev/null", "-i", &versions[version]]);
    };
    install(0);
    let path = root.join("usr/bin/traced");
    let tracer = Tracer::start(&config(&[("p", &format!("binary: {}", path.display()))]));
    let mut running = vec![Program::start(&path)];
    let mut expected = 0;
    for version in [1, 2] {
        install(version);
        eventually("the new version to be traced", || replaced(&tracer) == version as u64);
        running.push(Program::start(&path));
        for (at, program) in running.iter_mut().enumerate() {
            program.fire(10 + at as u64);
            expected += 10 + at as u64;
        }
        assert_eq!(count(&tracer, "p_total"), expected);
    }
    assert_eq!(tracer.stray(), 0);
}
