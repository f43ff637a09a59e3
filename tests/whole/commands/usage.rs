//! Help and wrong usage.

use super::exporter;

const COMMANDS: [&str; 6] = ["check", "probes", "profiles", "dashboard", "completions", "man"];

#[test]
fn every_command_has_help() {
    let top = exporter(&["--help"]).good();
    for command in COMMANDS {
        assert!(top.lines().any(|line| line.trim_start().starts_with(command)), "{command}: {top}");
        let help = exporter(&[command, "--help"]).good();
        assert!(help.contains(&format!("Usage: exporter {command}")), "{help}");
    }
}

#[test]
fn wrong_usage_leaves_with_2_and_prints_nothing_else() {
    let wrong: &[&[&str]] = &[
        &["nonsense"],
        &["--prot", "1"],
        &["check"],
        &["check", "a", "b"],
        &["check", "a", "--seconds", "none"],
        &["probes"],
        &["probes", "a", "--json", "--yaml"],
        &["probes", "a", "--functions"],
        &["dashboard"],
        &["completions", "tcsh"],
        &["man", "nonsense"],
        &["profiles", "no-such-profile"],
        &["check", "/nonexistent/c.yaml"],
        &["dashboard", "/nonexistent/c.yaml"],
    ];
    for args in wrong {
        let ran = exporter(args);
        assert_eq!(ran.out, "", "{args:?}");
        assert!(!ran.bad(2).is_empty(), "{args:?}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    use std::process::{Command, Stdio};
    // More than a pipe holds.
    let mut child = Command::new(env!("CARGO_BIN_EXE_exporter"))
        .args(["probes", env!("CARGO_BIN_EXE_exporter"), "--functions", "*config*"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("wait");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stderr, b"", "{output:?}");
}
