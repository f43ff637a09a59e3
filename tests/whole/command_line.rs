//! The command line: what it accepts, what it rejects, and the exit codes.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use crate::support::demo::{play, program};
use crate::support::exporter::{Place, Port, Setup, exporter, finish};

#[test]
fn prints_its_version() {
    let version = format!("exporter {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(finish(exporter().arg("--version")), (Some(0), version, String::new()));
}

#[test]
fn invalid_config_reports_all_errors() {
    let place = Place::new();
    let config = place.write(
        "config.yaml",
        "bitcoind_path: /usr/local/bin/bitcoind\n\
         metrcs_port: 9435\n\
         health_port: 99999\n\
         tls_cert: /nonexistent/node.crt\n\
         verbose: 7\n\
         metrics_auth_password: hunter2\n",
    );
    let (status, out, err) = finish(exporter().arg("--config").arg(&config));
    assert_eq!((status, out.as_str()), (Some(2), ""), "{err}");
    let shown = config.display();
    for error in [
        format!("{shown}:2:1: metrcs_port: unknown key (did you mean \"metrics_port\"?)"),
        format!("{shown}:3:14: health_port: expected a port from 1 to 65535, found the number 99999"),
        format!("{shown}:4:11: tls_cert: failed to read the certificate /nonexistent/node.crt: No such file"),
        format!("{shown}:4:11: tls_cert: tls_cert is set without tls_key"),
        format!("{shown}:5:10: verbose: expected true or false, found the number 7"),
        format!("{shown}:6:24: metrics_auth_password: a password is set without metrics_auth_username"),
        format!("exporter: 6 errors in {shown}"),
    ] {
        assert!(err.contains(&error), "no {error} in:\n{err}");
    }
    assert!(!err.contains("hunter2"), "{err}");
}

#[test]
fn missing_target_and_unknown_flag_suggest_a_fix() {
    let (status, _, err) = finish(&mut exporter());
    assert_eq!(status, Some(2), "{err}");
    assert!(err.contains("nothing to trace") && err.contains("bitcoind_path"), "{err}");
    let (status, _, err) = finish(exporter().args(["--prot", "1"]));
    assert_eq!(status, Some(2), "{err}");
    assert!(err.contains("--port"), "{err}");
    let (status, _, err) = finish(exporter().args(["--config", "/nonexistent.yaml"]));
    assert_eq!(status, Some(2), "{err}");
    assert!(err.contains("/nonexistent.yaml"), "{err}");
}

#[test]
fn port_in_use_is_reported() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let (free, other_free) = (Port::claim(), Port::claim());
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, free.number)).expect("listen");
    let taken = taken.local_addr().expect("an address").port().to_string();
    for (flag, other) in [("--port", "--health-port"), ("--health-port", "--port")] {
        let mut command = exporter();
        command.arg("--bitcoind").arg(&demo).args([flag, &taken, other, &other_free.to_string()]);
        let (status, out, err) = finish(&mut command);
        assert_eq!(status, Some(1), "{out}{err}");
        assert!(out.contains("[ERROR] exporter: ") && out.contains(&format!("127.0.0.1:{taken}")), "{out}");
        assert!(out.contains("the address is in use"), "{out}");
    }
}

#[test]
fn exits_naming_missing_privileges() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let ports = [Port::claim(), Port::claim()];
    let mut command = std::process::Command::new("setpriv");
    command
        .args(["--bounding-set", "-all", "--inh-caps", "-all", "--", env!("CARGO_BIN_EXE_exporter")])
        .arg("--bitcoind")
        .arg(&demo)
        .args(["--port", &ports[0].to_string(), "--health-port", &ports[1].to_string()]);
    let (status, out, err) = finish(&mut command);
    assert_eq!(status, Some(3), "{out}{err}");
    assert!(out.contains("[ERROR] exporter: failed to load the BPF programs"), "{out}");
    assert!(out.contains("CAP_BPF and CAP_PERFMON"), "{out}");
}

/// As in the scripts of FIBRE operators: no file, every flag.
#[test]
fn python_exporter_command_line_still_works() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let certificates = place.certificates("certs");
    let shown = |path: &Path| path.display().to_string();
    let log = place.path("exporter.log");
    let mut exporter = Setup::new(&place, "")
        .arguments(&["-b", &shown(&demo), "-n", "london", "-v", "--log-level", "DEBUG"])
        .arguments(&["--log-file", &shown(&log), "--metrics-auth-username", "prometheus"])
        .arguments(&["--metrics-auth-password", "secret", "--tls-cert", &shown(&certificates.certificate)])
        .arguments(&["--tls-key", &shown(&certificates.key)])
        .start();
    exporter.authority = Some(certificates.authority.clone());
    exporter.wait_until_ready();
    let totals = play(&demo, &["--rate", "0", "--blocks", "20", "--wait-attached"]);

    let curl = format!("user = \"prometheus:secret\"\ncacert = \"{}\"\n", shown(&certificates.authority));
    let curl = shown(&place.write("curl", &curl));
    let output = exporter.fetch("/metrics", &["--fail", "--config", &curl]);
    let text = String::from_utf8(output.stdout).expect("metrics in UTF-8");
    let scrape = crate::support::exposition::Metrics::parse(&text).unwrap();
    scrape.measured().assert_same(&totals.series("london"));

    assert!(exporter.end("TERM").success());
    let logged = std::fs::read_to_string(&log).expect("read the log's file");
    assert_eq!(logged, exporter.log(), "the file has what standard output has");
    assert!(logged.contains("Attached 6/6 probes"), "{logged}");
    for url in ["metrics", "health"] {
        let port = if url == "metrics" { exporter.port } else { exporter.health_port };
        assert!(logged.contains(&format!("https://127.0.0.1:{port}/{url}")), "{logged}");
    }
}

#[test]
fn flags_override_environment_overrides_file() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let exporter =
        Setup::new(&place, "bitcoind_path: /nonexistent/bitcoind\nnode_name: file\nverbose: false\n")
            .environment("FIBRE_BITCOIND_PATH", &demo.display().to_string())
            .environment("FIBRE_NODE_NAME", "environment")
            .environment("FIBRE_VERBOSE", "true")
            .environment("FIBRE_LOG_LEVEL", "INFO")
            .arguments(&["--node-name", "flag"])
            .start();
    exporter.wait_until_ready();
    let totals = play(&demo, &["--rate", "0", "--blocks", "5", "--wait-attached"]);
    exporter.scrape().measured().assert_same(&totals.series("flag"));
    exporter.wait_for_log("Block connected: height=900004 ");
}
