//! Help and invalid usage.

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
fn help_accepts_help_flags() {
    let top = exporter(&["--help"]).good();
    for args in [&["help"][..], &["help", "--help"], &["help", "-h"]] {
        assert_eq!(exporter(args).good(), top, "{args:?}");
    }
    assert_eq!(exporter(&["help", "check", "--help"]).good(), exporter(&["check", "--help"]).good());
}

#[test]
fn reads_configuration_from_standard_input() {
    use std::process::{Command, Stdio};
    let mut child = Command::new(env!("CARGO_BIN_EXE_exporter"))
        .args(["check", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start");
    let text =
        super::config(&super::demo("leaf"), "probes: [{ function: main, metrics: [{ counter: a_total }] }]");
    std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), text.as_bytes()).expect("write");
    let output = child.wait_with_output().expect("wait");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && shown.contains("counter a_total"), "{output:?}");
}

/// Commands that need nothing but these arguments.
const TALKATIVE: [&[&str]; 8] = [
    &["--help"],
    &["help", "check"],
    &["--version"],
    &["profiles"],
    &["profiles", "fibre"],
    &["completions", "bash"],
    &["man"],
    &["schema"],
];

#[test]
fn write_errors_fail_but_a_closed_pipe_does_not() {
    use std::process::{Command, Stdio};
    for args in TALKATIVE {
        let mut command = Command::new(env!("CARGO_BIN_EXE_exporter"));
        let full = std::fs::File::options().write(true).open("/dev/full").expect("/dev/full");
        let output = command.args(args).stdout(full).output().expect("start");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {told}");
        assert!(told.contains("failed to write to standard output: No space left"), "{args:?}: {told}");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = command.stdout(Stdio::from(writer)).output().expect("start");
        assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]), "{args:?}");
    }
}

#[test]
fn usage_errors_exit_with_2_and_empty_stdout() {
    let wrong: &[&[&str]] = &[
        &["nonsense"],
        &["--prot", "1"],
        &["check"],
        &["check", "a", "b"],
        &["check", "a", "--seconds", "none"],
        &["check", "a", "--seconds", "3"],
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
fn closed_stdout_is_not_an_error() {
    use std::process::{Command, Stdio};
    // More output than fits into a pipe.
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
