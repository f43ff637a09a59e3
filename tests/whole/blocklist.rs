//! The blocklist through HTTP and commands: who may change it, the effect of requests, and what is logged.
//!
//! Needs root. Nothing is dropped: the blocked addresses are reserved for documentation, and the interface is loopback.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, ChildStdout, Stdio};

use serde_json::Value;

use crate::support::exporter::{Exporter, Place, Setup, exporter as command, finish, wait_for};
use crate::support::exposition::Metrics;
use crate::support::http;

const READER: &str = "reader:r";
const WRITER: &str = "writer:w";

fn yaml(place: &Place, more: &str) -> String {
    let (socket, file) = (place.path("control.sock"), place.path("blocklist.db"));
    format!(
        "network:\n  interfaces: lo\n  block: {{ mode: enforce, entries: [203.0.113.0/24], allow: 192.0.2.0/28, \
         socket: {}, file: {} }}\n{more}",
        socket.display(),
        file.display()
    )
}

/// Starts an exporter with two users, one of whom may write.
fn with_users(place: &Place) -> Exporter {
    // The cost is low because this is often an unoptimized build.
    let hash = |password: &str| bcrypt::hash(password, 4).expect("hash a password");
    let users = format!("{{ reader: '{}', writer: '{}' }}", hash("r"), hash("w"));
    let web = format!("web: {{ basic_auth_users: {users} }}\nweb_writers: writer\n");
    Setup::new(place, yaml(place, &web)).start()
}

fn scraped(exporter: &Exporter) -> Metrics {
    Metrics::parse(&ask(exporter, "GET", "/metrics", &["--user", READER]).1).expect("metrics")
}

/// Returns the status and body of a request's response.
fn ask(exporter: &Exporter, method: &str, path: &str, more: &[&str]) -> (u16, String) {
    let mut curl = exporter.curl(exporter.port, path);
    curl.args(["--request", method]).args(more);
    http::answer(&mut curl).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
}

#[test]
fn writer_can_block_and_unblock() {
    let place = Place::new();
    let exporter = with_users(&place);
    let ask = |method: &str, below: &str, user: &str| {
        ask(&exporter, method, &format!("/api/v1/blocklist{below}"), &["--user", user])
    };
    assert_eq!(ask("GET", "", "reader:x").0, 401);
    for wrong in ["writer:r", "nobody:w", "reader:"] {
        assert_eq!(ask("POST", "/198.51.100.7", wrong).0, 401, "{wrong}");
    }
    let wanted = "/198.51.100.7?ttl=1h&reason=scans+ports";
    for (method, below) in [("POST", wanted), ("DELETE", "/203.0.113.0/24")] {
        let (status, text) = ask(method, below, READER);
        assert!(status == 403 && text.contains("web_writers"), "{status} {text}");
    }
    exporter.wait_for_log("refused: user \"reader\" from 127.0.0.1 may only read");

    for changed in ["true", "false"] {
        let (status, text) = ask("POST", wanted, WRITER);
        assert!(status == 200 && text.contains(&format!("\"changed\":{changed}")), "{status} {text}");
    }
    exporter.wait_for_log(
        "block 198.51.100.7/32 for 3600s, reason \"scans ports\": by user \"writer\" from 127.0.0.1",
    );
    let (status, text) = ask("GET", "/198.51.100.7%2F32", READER);
    assert!(
        status == 200 && text.contains("\"source\":\"api\"") && text.contains("scans ports"),
        "{status} {text}"
    );
    let (status, text) = ask("GET", "?per_page=1&page=2", READER);
    assert!(
        status == 200 && text.contains("\"total\":2") && text.contains("203.0.113.0/24"),
        "{status} {text}"
    );

    for (method, below, status, said) in [
        ("POST", "/198.51.100.7/24", 400, "did you mean"),
        ("POST", "/198.51.100.9?ttl=1w", 400, "write 90s"),
        ("POST", "", 400, "name a prefix"),
        ("POST", "/192.0.2.1", 409, "network.block.allow"),
        ("POST", "/127.0.0.1", 409, "loopback"),
        ("POST", "/::ffff:127.0.0.1", 409, "loopback"),
        ("POST", "/198.51.100.7?confirm=60s", 409, "blocked already"),
        ("DELETE", "/203.0.113.0/24", 409, "network.block.entries"),
        ("GET", "/192.0.2.77", 404, "not in the blocklist"),
        ("GET", "?page=0", 400, "page: expected a number from 1"),
        ("PUT", "/192.0.2.77", 405, "GET, HEAD, POST and DELETE"),
    ] {
        let (found, text) = ask(method, below, WRITER);
        assert!(found == status && text.contains(said), "{method} {below}: {found} {text}");
    }
    for changed in ["true", "false"] {
        let (status, text) = ask("DELETE", "/198.51.100.7", WRITER);
        assert!(status == 200 && text.contains(&format!("\"changed\":{changed}")), "{status} {text}");
    }
    exporter.wait_for_log("unblock 198.51.100.7/32: by user \"writer\"");
}

#[test]
fn accepts_request_bodies_and_rejects_browser_origins() {
    let place = Place::new();
    let exporter = with_users(&place);
    let ask =
        |more: &[&str]| ask(&exporter, "POST", "/api/v1/blocklist", &[&["--user", WRITER], more].concat());
    let json = "{\"prefix\": \"2001:db8::/32\", \"ttl\": \"1h\", \"protocol\": \"tcp\", \"ports\": 22}";
    for body in [json, "prefix=2001:db8::/32&ttl=1h"] {
        let (status, text) = ask(&["--data", body]);
        assert!(status == 200 && text.contains("\"2001:db8::/32\""), "{status} {text}");
    }
    let long = place.write("long", &format!("prefix=::1&reason={}", "x".repeat(10_000)));
    let data = format!("@{}", long.display());
    for more in [&["--data", &data][..], &["--data", &data, "--header", "Transfer-Encoding: chunked"]] {
        let (status, text) = ask(more);
        assert!(status == 413 && text.contains("4096 bytes"), "{more:?}: {status} {text}");
    }
    // What is announced is not waited for.
    let (status, text) = ask(&["--data", "prefix=::1", "--header", "Content-Length: 99999999999"]);
    assert!(status == 413 && text.contains("4096 bytes"), "{status} {text}");
    let (status, text) = ask(&["--data", json, "--header", "Origin: https://example.org"]);
    assert!(status == 403 && text.contains("browser"), "{status} {text}");

    let (status, text) = self::ask(&exporter, "GET", "/api/v1/stats", &["--user", READER]);
    let stats: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status} {text}"));
    assert!(stats["packets_processed"].as_u64() > Some(0), "{text}");
    assert_eq!(stats["blocklist"]["entries"], 2, "{text}");
    assert_eq!(stats["interfaces"][0]["interface"], "lo", "{text}");
}

/// Without configured users, clients cannot be told apart.
#[test]
fn changes_require_configured_users() {
    let place = Place::new();
    let exporter = Setup::new(&place, yaml(&place, "")).start();
    for (method, path, expected) in [
        ("POST", "/api/v1/blocklist/192.0.2.77", 405),
        ("DELETE", "/api/v1/blocklist/203.0.113.0/24", 405),
        ("POST", "/api/v1/blocklist", 405),
        ("GET", "/api/v1/blocklist/203.0.113.0/24", 200),
    ] {
        let (status, text) = ask(&exporter, method, path, &[]);
        assert_eq!(status, expected, "{method} {path}: {text}");
        assert!(!text.contains("POST"), "{method} {path}: {text}");
    }
    let metrics = exporter.scrape();
    let entries = |source: &str| metrics.value("xdp_blocklist_entries", &[("source", source)]);
    assert_eq!((entries("config"), entries("api"), entries("command")), (1.0, 0.0, 0.0));
}

/// Returns the standard output of a command that must succeed.
#[track_caller]
fn succeeds(place: &Place, args: &[&str]) -> String {
    let socket = place.path("control.sock");
    let (code, out, err) = finish(command().args(args).arg("--socket").arg(socket));
    assert_eq!(code, Some(0), "{args:?}: {out}{err}");
    out
}

#[test]
fn commands_reach_the_running_exporter() {
    let place = Place::new();
    let exporter = with_users(&place);
    let run = |args: &[&str]| succeeds(&place, args);
    let shown = run(&["block", "198.51.100.0/24", "--ttl", "90m", "--reason", "scans", "--ports", "22"]);
    assert!(shown.contains("198.51.100.0/24 is blocked"), "{shown}");
    exporter.wait_for_log("block 198.51.100.0/24 tcp 22 for 5400s, reason \"scans\": by uid 0 (process ");
    let list = run(&["blocklist"]);
    assert!(list.contains("tcp 22") && list.contains("command") && list.contains("1h"), "{list}");
    assert!(list.contains("203.0.113.0/24") && list.contains("never"), "{list}");
    let one: Value =
        serde_json::from_str(&run(&["blocklist", "198.51.100.0/24", "--format", "json"])).unwrap();
    assert_eq!((&one["source"], &one["ports"]), (&"command".into(), &"22".into()), "{one}");
    // The output names the exceptions.
    let wide = run(&["block", "192.0.0.0/8"]);
    assert!(wide.contains("except 192.0.2.0/28, in network.block.allow"), "{wide}");
    assert!(run(&["unblock", "192.0.0.0/8"]).contains("not blocked any more"));
    assert!(run(&["unblock", "192.0.0.0/8"]).contains("was not blocked"));

    // The configuration also names the socket.
    let config = place.path("config.yaml");
    let with_config = |args: &[&str]| finish(command().args(args).arg("--config").arg(&config));
    assert_eq!(with_config(&["blocklist"]).1.lines().count(), run(&["blocklist"]).lines().count());
    let (_, checked, _) = finish(command().arg("check").arg(&config));
    assert!(checked.contains("packets of its sources are dropped (mode enforce)"), "{checked}");
    let (_, dashboard, _) = finish(command().arg("dashboard").arg(&config));
    assert!(
        dashboard.contains("xdp_drops_total") && dashboard.contains("xdp_blocklist_entries"),
        "{dashboard}"
    );
    let (code, _, error) = with_config(&["block", "127.0.0.0/16"]);
    assert!(code == Some(1) && error.contains("loopback"), "{code:?} {error}");
    let (code, _, error) = finish(command().args(["unblock", "::1", "--socket"]).arg(place.path("none")));
    assert!(code == Some(1) && error.contains("is it running"), "{code:?} {error}");
}

#[test]
fn command_reverts_unconfirmed_blocks() {
    let place = Place::new();
    let _exporter = with_users(&place);
    let run = |args: &[&str]| succeeds(&place, args);
    let shown = run(&["block", "198.51.100.7", "--confirm", "1s"]);
    assert!(shown.contains("Press Enter within 1s") && shown.contains("Not confirmed"), "{shown}");
    wait_for("it is taken back", || !run(&["blocklist"]).contains("198.51.100.7"));

    let mut block = command();
    block.args(["block", "198.51.100.7", "--confirm", "1h", "--socket"]).arg(place.path("control.sock"));
    let mut block = block.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start a command");
    wait_for("it is listed", || run(&["blocklist"]).contains("(unconfirmed)"));
    block.stdin.take().unwrap().write_all(b"\n").unwrap();
    let output = block.wait_with_output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && shown.contains("stays blocked"), "{shown}");
    let list = run(&["blocklist", "198.51.100.7"]);
    assert!(list.contains("never") && !list.contains("unconfirmed"), "{list}");
}

#[test]
fn entries_survive_restart() {
    let place = Place::new();
    let mut exporter = with_users(&place);
    let run = |args: &[&str]| succeeds(&place, args);
    run(&["block", "198.51.100.7", "--ttl", "1h", "--reason", "scans", "--ports", "22-23"]);
    run(&["block", "198.51.100.8"]);
    run(&["block", "198.51.100.9"]);
    run(&["unblock", "198.51.100.9"]);
    run(&["block", "198.51.100.10", "--ttl", "1s"]);
    run(&["block", "198.51.100.11", "--confirm", "1h"]);
    wait_for("its time to be over", || !run(&["blocklist"]).contains("198.51.100.10"));
    assert_eq!(scraped(&exporter).value("xdp_blocklist_stored", &[]), 1.0);
    exporter.end("KILL");
    let exporter = with_users(&place);
    let list = run(&["blocklist", "--format", "json"]);
    let list: Vec<Value> = serde_json::from_str(&list).unwrap();
    let of = |prefix: &str| list.iter().find(|entry| entry["prefix"] == prefix);
    assert_eq!(list.len(), 3, "what is to be confirmed is not kept: {list:?}");
    let (first, second) = (of("198.51.100.7/32").unwrap(), of("198.51.100.8/32").unwrap());
    assert_eq!((&first["source"], &first["reason"]), (&"command".into(), &"scans".into()), "{first}");
    assert_eq!((&first["protocol"], &first["ports"]), (&"tcp".into(), &"22-23".into()), "{first}");
    let remaining = first["expires_in"].as_f64().unwrap();
    assert!(remaining > 0.0 && remaining <= 3600.0 && second["expires_in"].is_null(), "{first} {second}");
    // An unwritable file does not prevent blocking; it is logged.
    fs::remove_file(place.path("blocklist.db")).unwrap();
    fs::create_dir(place.path("blocklist.db")).unwrap();
    run(&["block", "198.51.100.12"]);
    exporter.wait_for_log("was not stored and is lost at the next restart");
    assert_eq!(scraped(&exporter).value("xdp_blocklist_stored", &[]), 0.0);
}

#[test]
fn control_socket_is_root_only() {
    let place = Place::new();
    let _exporter = with_users(&place);
    let socket = place.path("control.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    // Even if the socket's permissions let others connect, the kernel reports their credentials.
    fs::set_permissions(&socket, Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(place.path(""), Permissions::from_mode(0o755)).unwrap();
    let socket = socket.to_str().unwrap();
    let ask = |program: &str, args: &[&str]| {
        let url = "http://localhost/api/v1/blocklist";
        let mut command = std::process::Command::new(program);
        command.args(args).args(["--silent", "--max-time", "30", "--unix-socket", socket, url]);
        http::answer(&mut command).unwrap()
    };
    assert_eq!(ask("curl", &["--disable"]).0, 200);
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "--", "curl", "--disable"];
    let (status, text) = ask("setpriv", &nobody);
    assert!(status == 403 && text.contains("root"), "{status} {text}");
}

#[test]
fn excess_changes_return_too_many_requests() {
    let place = Place::new();
    let exporter = with_users(&place);
    let mut statuses = String::new();
    wait_for("a client is told to wait", || {
        let mut curl = exporter.curl(exporter.port, "/api/v1/blocklist/198.51.100.[0-255]");
        // Unblocking an address that is not listed is quick.
        curl.args(["--request", "DELETE", "--user", WRITER, "--output", "/dev/null"]);
        curl.args(["--parallel", "--parallel-max", "8"]);
        let output = curl.args(["--write-out", "%{http_code} "]).output().expect("run curl");
        statuses = String::from_utf8_lossy(&output.stdout).into_owned();
        statuses.contains("429")
    });
    assert!(statuses.split_whitespace().all(|status| ["200", "429"].contains(&status)), "{statuses}");
    // Reads are not limited.
    assert_eq!(ask(&exporter, "GET", "/api/v1/blocklist", &["--user", READER]).0, 200);
}

#[test]
fn full_list_is_reported() {
    let place = Place::new();
    with_users(&place).stop();
    let file = rusqlite::Connection::open(place.path("blocklist.db")).expect("the file");
    let full = "INSERT INTO entries (prefix, source, reason, since) WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 65535) \
                SELECT '198.18.' || (i / 256) || '.' || (i % 256) || '/32', 'api', '', 0 FROM n";
    assert_eq!(file.execute(full, []).expect("all entries"), 65536);
    drop(file);
    let exporter = with_users(&place);
    let post =
        |prefix: &str| ask(&exporter, "POST", &format!("/api/v1/blocklist/{prefix}"), &["--user", WRITER]);
    let (status, text) = post("198.51.100.7");
    assert!(
        status == 507 && text.contains("65536 entries") && text.contains("network.block.files"),
        "{status} {text}"
    );
    exporter.wait_for_log("block 198.51.100.7/32 permanently: by user \"writer\" from 127.0.0.1: refused: 65536 entries were added");
    // An existing entry can be changed, and removing one makes room.
    assert_eq!(post("198.18.0.7?ttl=1h").0, 200);
    assert_eq!(ask(&exporter, "DELETE", "/api/v1/blocklist/198.18.0.7", &["--user", WRITER]).0, 200);
    assert_eq!(post("198.51.100.7").0, 200);
}

/// A client that listens to the stream. Dropping it kills it.
struct Listener {
    curl: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Listener {
    fn new(exporter: &Exporter) -> Self {
        let mut curl = exporter.curl(exporter.port, "/api/v1/stream");
        curl.args(["--no-buffer", "--user", READER, "--max-time", "600"]).stdout(Stdio::piped());
        let mut curl = curl.spawn().expect("start curl");
        let lines = BufReader::new(curl.stdout.take().expect("its output")).lines();
        Self { curl, lines }
    }

    fn line(&mut self) -> Option<String> {
        self.lines.next().and_then(Result::ok)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.curl.kill();
        let _ = self.curl.wait();
    }
}

#[test]
fn statistics_stream_requires_auth_and_limits_clients() {
    let place = Place::new();
    let exporter = with_users(&place);
    let stream = |more: &[&str]| ask(&exporter, "GET", "/api/v1/stream", more);
    assert_eq!(stream(&[]).0, 401);
    let mut listeners = vec![Listener::new(&exporter)];
    let mut event = || {
        assert_eq!(listeners[0].line().as_deref(), Some("event: stats"));
        let data = listeners[0].line().expect("data");
        assert_eq!(listeners[0].line().as_deref(), Some(""));
        serde_json::from_str::<Value>(data.strip_prefix("data: ").expect("data")).expect("JSON")
    };
    let first = event()["packets_processed"].as_u64().expect("a number");
    // This request produces packets.
    assert_eq!(ask(&exporter, "GET", "/metrics", &["--user", READER]).0, 200);
    let mut last = event();
    while last["packets_processed"].as_u64().expect("a number") <= first {
        last = event();
    }
    assert_eq!(last["blocklist"]["sources"][0]["source"], "config", "{last}");

    for _ in 1..8 {
        listeners.push(Listener::new(&exporter));
        assert!(listeners.last_mut().unwrap().line().is_some());
    }
    let (status, text) = stream(&["--user", READER]);
    assert!(status == 503 && text.contains("too many streams"), "{status} {text}");
    let refused = "fibre_exporter_http_streams_rejected_total";
    assert_eq!(scraped(&exporter).value(refused, &[("endpoint", "metrics")]), 1.0);
    drop(listeners);
    wait_for("there is room again", || Listener::new(&exporter).line().as_deref() == Some("event: stats"));

    let place = Place::new();
    let open = Setup::new(&place, yaml(&place, "")).start();
    let (status, text) = ask(&open, "GET", "/api/v1/stream", &[]);
    assert!(status == 404 && !text.contains("stream"), "{status} {text}");
}
