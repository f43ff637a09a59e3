//! CrowdSec's own engine decides, and the exporter blocks.
//!
//! Needs root, and Debian's crowdsec, which `scripts/install-deps.sh --tests` unpacks: it is not installed, and
//! contacts no other service.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::cable::{Cable, address};
use crate::counting::until;
use crate::support::exporter::{Exporter, Place, Port, Setup, exporter, finish, send_signal, wait_for_end};
use crate::support::program::compile;

/// Returns the path of an unpacked program.
fn unpacked(program: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache =
        cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("a home")).join(".cache"));
    let path = cache.join("exporter/crowdsec/usr/bin").join(program);
    assert!(path.exists(), "{} is missing; run scripts/install-deps.sh --tests", path.display());
    path
}

/// CrowdSec with its Local API only: it reads no logs, and only cscli feeds it.
struct Engine<'a> {
    place: &'a Place,
    port: Port,
    process: Option<Child>,
}

impl<'a> Engine<'a> {
    fn start(place: &'a Place) -> Self {
        let port = Port::claim();
        let all = place.path("crowdsec");
        for directory in ["data", "hub", "notifications", "plugins"] {
            fs::create_dir_all(all.join(directory)).expect("make a directory");
        }
        let all = all.display();
        let tls = place.certificates("lapi");
        let config = format!(
            "common: {{ daemonize: false, log_media: stdout, log_level: info, working_dir: {all} }}\n\
             config_paths:\n  config_dir: {all}\n  data_dir: {all}/data\n  simulation_path: {all}/simulation.yaml\n  \
             hub_dir: {all}/hub\n  index_path: {all}/hub/.index.json\n  notification_dir: {all}/notifications\n  \
             plugin_dir: {all}/plugins\n\
             db_config: {{ type: sqlite, db_path: {all}/data/crowdsec.db, use_wal: true, max_open_conns: 1 }}\n\
             api:\n  client: {{ credentials_path: {all}/machine.yaml }}\n  \
             server:\n    listen_uri: 127.0.0.1:{port}\n    profiles_path: {all}/profiles.yaml\n    \
             tls: {{ cert_file: {certificate}, key_file: {key} }}\n\
             prometheus: {{ enabled: false }}\n",
            certificate = tls.certificate.display(),
            key = tls.key.display(),
        );
        place.write("crowdsec/config.yaml", &config);
        place.write("crowdsec/simulation.yaml", "simulation: false\n");
        place.write("crowdsec/hub/.index.json", "{}\n");
        place.write(
            "crowdsec/profiles.yaml",
            "name: all\nfilters: ['Alert.GetScope() == \"Ip\"']\ndecisions: [{ type: ban, duration: 4h }]\non_success: break\n",
        );
        let machine = place.write("crowdsec/machine.yaml", "");
        let mut engine = Engine { place, port, process: None };
        engine.cscli(&format!(
            "machines add test --password secret --url https://localhost:{} -f {}",
            engine.port,
            machine.display()
        ));
        let written = fs::read_to_string(&machine).expect("credentials");
        place
            .write("crowdsec/machine.yaml", &format!("{written}ca_cert_path: {}\n", tls.authority.display()));
        place.write("key", &engine.cscli("bouncers add exporter -o raw"));
        engine.run();
        engine
    }

    fn run(&mut self) {
        let log = fs::File::create(self.place.path("crowdsec/log")).expect("make a file");
        let config = self.place.path("crowdsec/config.yaml");
        let mut command = Command::new(unpacked("crowdsec"));
        command.args(["-no-cs", "-c"]).arg(config).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a descriptor")).stderr(log);
        self.process = Some(command.spawn().expect("start crowdsec"));
        until("CrowdSec listens", || TcpStream::connect(("127.0.0.1", self.port.number)).is_ok());
    }

    fn stop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        send_signal(process.id(), "TERM");
        wait_for_end(&mut process);
    }

    fn cscli(&self, line: &str) -> String {
        let mut command = Command::new(unpacked("cscli"));
        command.arg("-c").arg(self.place.path("crowdsec/config.yaml")).args(line.split(' '));
        let (code, out, err) = finish(&mut command);
        let log = fs::read_to_string(self.place.path("crowdsec/log")).unwrap_or_default();
        assert_eq!(code, Some(0), "cscli {line}: {out}{err}\n{log}");
        out
    }

    fn block(&self, more: &str) -> String {
        let path = |name: &str| self.place.path(name).display().to_string();
        format!(
            ", block: {{ socket: {}, file: {}, crowdsec: {{ url: 'https://localhost:{}/', ca: {}, api_key_file: {}, interval: 1s }}{more} }}",
            path("control.sock"),
            path("blocklist.db"),
            self.port,
            self.place.path("lapi/ca.crt").display(),
            path("key")
        )
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Returns the entries as the command shows them.
fn listed(place: &Place) -> Vec<Value> {
    let socket = place.path("control.sock");
    let (code, out, err) = finish(exporter().args(["blocklist", "--format", "json", "--socket"]).arg(socket));
    assert_eq!(code, Some(0), "{out}{err}");
    serde_json::from_str(&out).expect("JSON")
}

fn prefixes(place: &Place) -> Vec<String> {
    listed(place).iter().map(|row| row["prefix"].as_str().expect("a prefix").to_string()).collect()
}

/// A program that fails once for each of its arguments.
const LOGIN: &str = r#"
__attribute__((noinline)) void failed(const char *peer) { __asm__ volatile("" : : "r"(peer) : "memory"); }

int main(int count, char **arguments)
{
	for (int i = 1; i < count; i++)
		failed(arguments[i]);
	return 0;
}
"#;

/// Starts an exporter on this machine's loopback that bans the addresses that a program reports and pushes them to
/// CrowdSec, with its files prefixed by this name.
fn start_detecting(place: &Place, engine: &Engine<'_>, name: &str, program: &Path) -> Exporter {
    let path = |file: &str| place.path(&format!("{name}{file}")).display().to_string();
    let yaml = format!(
        "network:\n  interfaces: lo\n  block: {{ mode: enforce, socket: {socket}, file: {file}, crowdsec: {{ \
         url: 'https://localhost:{port}/', ca: {ca}, api_key_file: {key}, interval: 1s, \
         push: {{ machine: test, password_file: {password} }} }} }}\n\
         targets:\n- name: login\n  binary: {program}\n  probes:\n  - function: failed\n    args: {{ peer: {{ index: 0, type: string }} }}\n    \
         ban: {{ address: peer, ttl: 1h, reason: failed logins, mode: enforce }}\n",
        socket = path(".sock"),
        file = path(".db"),
        port = engine.port,
        ca = place.path("lapi/ca.crt").display(),
        key = path(".key"),
        password = place.path("password").display(),
        program = program.display(),
    );
    place.write(&format!("{name}.key"), &engine.cscli(&format!("bouncers add {name} -o raw")));
    let exporter = Setup::new(place, yaml).start();
    exporter.wait_until_ready();
    exporter
}

fn fail_from(program: &Path, addresses: &[&str]) {
    let (code, out, err) = finish(Command::new(program).args(addresses));
    assert_eq!(code, Some(0), "{out}{err}");
}

fn rows_of(place: &Place, name: &str) -> Vec<(String, String)> {
    let socket = place.path(&format!("{name}.sock"));
    let (code, out, err) = finish(exporter().args(["blocklist", "--format", "json", "--socket"]).arg(socket));
    assert_eq!(code, Some(0), "{out}{err}");
    let rows: Vec<Value> = serde_json::from_str(&out).expect("JSON");
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_string();
    rows.iter().map(|row| (text(row, "prefix"), text(row, "origin"))).collect()
}

/// Whatever one exporter detects, all block, and `cscli` unblocks it everywhere; while CrowdSec is away, alerts are
/// queued.
#[test]
fn ban_reaches_other_exporters() {
    let place = Place::new();
    let mut engine = Engine::start(&place);
    // The machine account that cscli itself uses.
    place.write("password", "secret\n");
    let program = compile("cc", "login.c", LOGIN, &["-O1"], &place.path(""));
    let one = start_detecting(&place, &engine, "one", &program);
    // A copy of the program, so that only the first exporter detects.
    let elsewhere = place.path("elsewhere");
    fs::copy(&program, &elsewhere).expect("copy the program");
    let two = start_detecting(&place, &engine, "two", &elsewhere);
    fail_from(&program, &["192.0.2.7", "2001:db8::7", "::ffff:192.0.2.8"]);
    for name in ["one", "two"] {
        until("all have the decisions", || {
            let rows = rows_of(&place, name);
            rows.len() == 3 && rows.iter().all(|(_, origin)| origin == "fibre-exporter")
        });
    }
    let alerts = |exporter: &Exporter, result| {
        exporter.scrape().value("xdp_blocklist_alerts_total", &[("result", result)])
    };
    // CrowdSec may return the decisions before it answers the alert.
    until("all are sent", || alerts(&one, "sent") == 3.0);
    assert_eq!(alerts(&two, "sent"), 0.0, "what comes from CrowdSec is not sent back");

    engine.stop();
    fail_from(&program, &["192.0.2.9"]);
    one.wait_for_log("failed to report bans to CrowdSec");
    one.scrape_until("one to wait", |scrape| scrape.value("xdp_blocklist_alerts_waiting", &[]) == 1.0);
    assert!(rows_of(&place, "one").iter().any(|(prefix, _)| prefix == "192.0.2.9/32"), "it holds here");
    engine.run();
    until("the other has it too", || rows_of(&place, "two").len() == 4);
    until("it is counted", || alerts(&one, "sent") == 4.0);
    assert_eq!(alerts(&one, "late"), 0.0);

    engine.cscli("decisions delete --ip 192.0.2.7");
    for name in ["one", "two"] {
        until("it is released everywhere", || {
            rows_of(&place, name).iter().all(|(prefix, _)| prefix != "192.0.2.7/32")
        });
    }
    drop(two);
}

/// Of several decisions on an address, each lasts for its own time, in whichever order they start and end.
#[test]
fn overlapping_decisions_expire_independently() {
    let (place, cable) = (Place::new(), Cable::lay());
    let engine = Engine::start(&place);
    let _exporter = start(&place, &cable, &engine.block(""));
    let left = || listed(&place).first().and_then(|row| row["expires_in"].as_f64());
    engine.cscli("decisions add --ip 192.0.2.7 --duration 4h --reason long");
    until("the long one holds", || left().is_some_and(|left| left > 3.0 * 3600.0));
    engine.cscli("decisions add --ip 192.0.2.7 --duration 10m --reason short");
    // A later decision on another address has arrived, so the short one has, too.
    engine.cscli("decisions add --ip 192.0.2.8 --duration 10m");
    until("all are there", || listed(&place).len() == 2);
    assert!(left().is_some_and(|left| left > 3.0 * 3600.0), "{:?}", listed(&place));
    // The first ID of a new database; `cscli decisions list` only shows the latest decision on an address.
    engine.cscli("decisions delete --id 1");
    until("the short one is left", || left().is_some_and(|left| left < 601.0));
    assert_eq!(listed(&place).len(), 2);
}

fn start(place: &Place, cable: &Cable, block: &str) -> Exporter {
    let exporter = Setup::new(place, cable.yaml(block)).start();
    exporter.wait_until_ready();
    exporter
}

#[test]
fn crowdsec_decisions_block_and_release() {
    let (place, cable) = (Place::new(), Cable::lay());
    let engine = Engine::start(&place);
    let exporter = start(&place, &cable, &engine.block(", mode: enforce, allow: [192.0.2.9]"));
    cable.up();
    until("an answer", || cable.pings());
    let far = format!("{}/32", address(2));
    engine.cscli(&format!("decisions add --ip {} --duration 1h --reason guesses", address(2)));
    engine.cscli("decisions add --range 2001:db8::/32 --duration 30m");
    engine.cscli("decisions add --ip 192.0.2.9 --duration 30m");
    engine.cscli("decisions add --ip 192.0.2.8 --type captcha --duration 30m");
    until("the decisions are there", || prefixes(&place).len() == 3);
    let rows = listed(&place);
    let row = rows.iter().find(|row| row["prefix"] == far.as_str()).expect("the far end");
    assert_eq!((&row["source"], &row["origin"]), (&"crowdsec".into(), &"cscli".into()), "{row}");
    let left = row["expires_in"].as_f64().expect("a time");
    assert!(left > 0.0 && left <= 3600.0 && row["reason"].as_str().unwrap().contains("guesses"), "{row}");

    assert!(!cable.pings());
    let labels = [("source", "crowdsec"), ("origin", "cscli")];
    let of = |verdict: &'static str| [labels[0], labels[1], ("verdict", verdict)];
    let metrics = exporter.scrape_until("packets of the origin", |metrics| {
        metrics.sum("xdp_blocklist_packets_total", &of("drop")) > 0.0
    });
    assert_eq!(
        metrics.value("xdp_blocklist_packets_total", &of("drop")),
        metrics.sum("xdp_drops_total", &[]),
        "{}",
        exporter.text()
    );
    assert_eq!(metrics.value("xdp_blocklist_entries", &labels), 3.0);
    assert_eq!(metrics.value("xdp_blocklist_source_up", &[("source", "crowdsec")]), 1.0);
    let ignored = [("source", "crowdsec"), ("reason", "type captcha")];
    assert_eq!(metrics.value("xdp_blocklist_ignored_decisions_total", &ignored), 1.0);
    exporter.wait_for_log("not applied, type captcha");
    let (_, _, error) =
        finish(exporter_command(&["unblock", &address(2), "--socket"]).arg(place.path("control.sock")));
    assert!(error.contains("CrowdSec's decisions (origin cscli)"), "{error}");

    engine.cscli(&format!("decisions delete --ip {}", address(2)));
    until("it is released", || cable.pings());
    until("it is not listed", || prefixes(&place).len() == 2);
}

fn exporter_command(args: &[&str]) -> Command {
    let mut command = exporter();
    command.args(args);
    command
}

/// Decisions stay in force while CrowdSec is unreachable, even for an exporter that starts in the meantime; missed
/// changes are caught up on.
#[test]
fn decisions_persist_while_crowdsec_is_unreachable() {
    let (place, cable) = (Place::new(), Cable::lay());
    let mut engine = Engine::start(&place);
    let block = engine.block("");
    let mut running = start(&place, &cable, &block);
    cable.up();
    engine.cscli(&format!("decisions add --ip {} --duration 1h", address(2)));
    engine.cscli("decisions add --range 198.51.100.0/24 --duration 1h");
    until("the decisions are there", || prefixes(&place).len() == 2);
    let labels = [("source", "crowdsec")];
    let up = |exporter: &Exporter, wanted: f64| {
        exporter.scrape_until("the state of the source", |metrics| {
            metrics.sum("xdp_blocklist_source_up", &labels) == wanted
        })
    };
    engine.stop();
    up(&running, 0.0);
    running.wait_for_log("failed to request decisions from CrowdSec");
    let age = |exporter: &Exporter| exporter.scrape().value("xdp_blocklist_source_age_seconds", &labels);
    let before = age(&running);
    until("the age grows", || age(&running) > before + 1.0);
    assert_eq!(prefixes(&place).len(), 2);
    running.end("KILL");
    let running = start(&place, &cable, &block);
    assert_eq!(prefixes(&place).len(), 2, "{}", running.log());
    assert!(age(&running) >= before, "{}", running.text());
    // Nothing is dropped unless the configuration says so.
    until("an answer", || cable.pings());
    let metrics = running.scrape_until("packets that would be dropped", |metrics| {
        metrics.sum("xdp_blocklist_packets_total", &[("origin", "cscli"), ("verdict", "pass")]) > 0.0
    });
    assert_eq!(metrics.sum("xdp_drops_total", &[]), 0.0);

    engine.run();
    up(&running, 1.0);
    running.wait_for_log("responds: 2 decisions");
    engine.cscli("decisions delete --range 198.51.100.0/24");
    until("the change is there", || prefixes(&place).len() == 1);
    // With a wrong key, the reason is logged; with the right one, the exporter continues.
    let key = fs::read_to_string(place.path("key")).expect("the key");
    place.write("key", "wrong");
    running.wait_for_log("the key is not known there");
    place.write("key", &key);
    engine.cscli("decisions delete --all");
    until("nothing is listed", || prefixes(&place).is_empty());
}
