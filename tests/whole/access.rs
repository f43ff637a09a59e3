//! Access control: TLS, the password, and misbehaving clients.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::demo::program;
use crate::support::exporter::{Exporter, PASSWORD, Place, Setup, USER, wait_for};

/// curl's exit code for an untrusted certificate.
const UNTRUSTED: i32 = 60;

fn secure(place: &Place) -> Exporter {
    let exporter = Setup::fibre(place, &place.copy_of(&program("fibre-demo"), "bitcoind")).secure().start();
    exporter.wait_until_ready();
    exporter
}

/// Requests both ports as a client that trusts this CA, or those of the system; returns curl's outputs.
fn with_authority(exporter: &Exporter, place: &Place, authority: Option<&str>) -> [Output; 2] {
    [(exporter.port, "/metrics"), (exporter.health_port, "/health")].map(|(port, path)| {
        let mut command = exporter.curl(port, path);
        if let Some(name) = authority {
            command.arg("--cacert").arg(place.path(name));
        }
        command.output().expect("run curl")
    })
}

#[test]
fn certificate_is_trusted_only_with_its_authority() {
    let place = Place::new();
    let exporter = secure(&place);
    let code = |output: &Output| output.status.code();
    let right = with_authority(&exporter, &place, Some("certs/ca.crt"));
    assert_eq!(right.each_ref().map(code), [Some(0); 2], "{right:?}");
    place.certificates("others");
    for wrong in [Some("others/ca.crt"), None] {
        let output = with_authority(&exporter, &place, wrong);
        assert_eq!(output.each_ref().map(code), [Some(UNTRUSTED); 2], "{output:?}");
    }
    // Plain HTTP gets no response.
    let plain = format!("http://localhost:{}/metrics", exporter.port);
    let output = exporter.fetch("/metrics", &["--url", &plain, "--fail", "--output", "/dev/null"]);
    assert!(!output.status.success(), "{output:?}");
}

#[test]
fn metrics_require_the_password_and_health_does_not() {
    let place = Place::new();
    let exporter = secure(&place);
    let wrong = [
        ("no password", String::new()),
        ("a wrong password", format!("user = \"{USER}:{PASSWORD}.\"\n")),
        ("an empty password", format!("user = \"{USER}:\"\n")),
        ("another user", format!("user = \"{USER}.:{PASSWORD}\"\n")),
        ("a bearer token", "header = \"Authorization: Bearer cHJvbWV0aGV1czp4\"\n".to_owned()),
        ("not valid base64", "header = \"Authorization: Basic %%%\"\n".to_owned()),
    ];
    for (what, lines) in &wrong {
        let lines = format!("cacert = \"{}\"\n{lines}", place.path("certs/ca.crt").display());
        let config = place.write("wrong", &lines);
        let mut command = exporter.curl(exporter.port, "/metrics");
        let output = command.arg("--include").arg("--config").arg(config).output().expect("run curl");
        let answer = String::from_utf8_lossy(&output.stdout).to_lowercase();
        assert!(answer.starts_with("http/1.1 401 "), "{what}: {answer}");
        assert!(answer.contains("\nwww-authenticate: basic realm="), "{what}: {answer}");
        assert!(!answer.contains("fibre_"), "{what}: {answer}");
    }
    let scrape = exporter.scrape();
    let refused = scrape.value("fibre_exporter_http_unauthorized_requests_total", &[("endpoint", "metrics")]);
    assert_eq!(refused, wrong.len() as f64);
    assert_eq!(exporter.health("/health"), (200, "ok\n".to_owned()));
    assert_eq!(exporter.health("/ready"), (200, "ready\n".to_owned()));
}

/// Opens a connection that sends `first` and nothing more.
fn half_said(port: u16, first: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connect");
    stream.write_all(first).expect("write");
    stream.set_nonblocking(true).expect("set a socket's mode");
    stream
}

/// Returns whether the other end has not closed the connection.
fn is_open(mut stream: &TcpStream) -> bool {
    matches!(stream.read(&mut [0; 64]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

/// Scrapes next to clients that have only sent `first`, and next to one that keeps sending `drip`, one byte at a time.
/// If they are still connected after the scrape, it did not wait for them: their own timeouts would have ended them.
/// Retries in case the machine stalls for seconds.
fn scrape_is_not_delayed(exporter: &Exporter, first: &[u8], drip: &[u8]) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, exporter.port)).expect("connect");
                for byte in drip {
                    if stop.load(Ordering::Relaxed) || stream.write_all(&[*byte]).is_err() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        });
        let tried = std::panic::catch_unwind(|| {
            wait_for("a scrape that is faster than the time-outs of others", || {
                let ports = [exporter.port, exporter.health_port];
                let silent: Vec<_> =
                    ports.iter().flat_map(|port| (0..8).map(|_| half_said(*port, first))).collect();
                exporter.text();
                exporter.health("/ready");
                silent.iter().all(is_open)
            });
        });
        stop.store(true, Ordering::Relaxed);
        tried.unwrap();
    });
}

#[test]
fn silent_or_slow_clients_delay_no_scrape() {
    let place = Place::new();
    let exporter = secure(&place);
    // The beginning of a TLS record that contains a handshake of 512 bytes.
    let hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 252][..], &[3; 500]].concat();
    scrape_is_not_delayed(&exporter, b"", &hello);
    scrape_is_not_delayed(&exporter, &hello[..40], &hello);
}

#[test]
fn partial_requests_delay_no_scrape() {
    let place = Place::new();
    let exporter = Setup::fibre(&place, &place.copy_of(&program("fibre-demo"), "bitcoind")).start();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(500));
    scrape_is_not_delayed(&exporter, b"", request.as_bytes());
    scrape_is_not_delayed(&exporter, &request.as_bytes()[..30], request.as_bytes());
}

#[test]
fn excess_silent_clients_do_not_block_a_scrape() {
    let place = Place::new();
    let exporter = secure(&place);
    // As above, retries with new connections in case the machine stalls for seconds.
    wait_for("a scrape while others have all places", || {
        let silent: Vec<_> = (0..200).map(|_| half_said(exporter.port, b"")).collect();
        let scraped = exporter.fetch("/metrics", &["--fail", "--output", "/dev/null"]).status.success();
        scraped && silent.iter().any(is_open)
    });
}

#[test]
fn password_is_never_leaked() {
    let yaml = |line: &str| format!("metrics_auth_username: {USER}\n{line}log_level: DEBUG\nverbose: true\n");
    let in_file = format!("metrics_auth_password: {PASSWORD}\n");
    for way in ["a file of its own", "the configuration", "the environment", "the command line"] {
        let place = Place::new();
        let binary = place.copy_of(&program("fibre-demo"), "bitcoind");
        let setup = Setup::fibre(&place, &binary);
        let setup = match way {
            "a file of its own" => setup.secure(),
            "the configuration" => setup.yaml(&yaml(&in_file)),
            "the environment" => setup.yaml(&yaml("")).environment("FIBRE_METRICS_AUTH_PASSWORD", PASSWORD),
            _ => setup.yaml(&yaml("")).arguments(&["--metrics-auth-password", PASSWORD]),
        };
        let mut exporter = setup.start();
        exporter.wait_until_ready();
        let of_process = |file: &str| {
            let bytes = std::fs::read(format!("/proc/{}/{file}", exporter.pid())).expect("read /proc");
            String::from_utf8_lossy(&bytes).contains(PASSWORD)
        };
        assert_eq!(of_process("cmdline"), way == "the command line", "{way}");
        assert_eq!(of_process("environ"), way == "the environment", "{way}");
        // The password is checked: the right one and a wrong one.
        let config = place.write("right", &format!("user = \"{USER}:{PASSWORD}\"\n"));
        let config = config.display().to_string();
        let right = exporter.fetch("/metrics", &["--fail", "--config", &config]);
        assert!(right.status.success(), "{way}: {right:?}");
        assert!(!String::from_utf8_lossy(&right.stdout).contains(PASSWORD), "{way}");
        let mut anonymous = exporter.curl(exporter.port, "/metrics");
        let wrong = anonymous.args(["--insecure", "--user", "x:y", "--fail"]).output().expect("run curl");
        assert_eq!(wrong.status.code(), Some(22), "{way}: {wrong:?}");
        assert!(exporter.end("TERM").success(), "{way}");
        assert!(!exporter.log().contains(PASSWORD), "{way}: {}", exporter.log());
    }
}
