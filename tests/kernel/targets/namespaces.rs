//! The exporter in a pid namespace of its own, as in a container, with processes in it, below it and outside of it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::support::*;
use crate::support::exporter::Port;
use crate::support::program::directory;
use crate::support::tracer::eventually;

const EXPORTER: &str = env!("CARGO_BIN_EXE_exporter");

/// The script of the shell in the new namespace: it runs one program there, one in a namespace below, and the exporter.
const INSIDE: &str = r#"
mkfifo in below; echo $$ > ready
./inner < in > inner.out & echo $! > pid; exec 8> in
unshare -pf --mount-proc ./inner < below > below.out & exec 7> below
sed "s/PID/$(cat pid)/" config.in > config
$0 --config config > log 2>&1 8>&- 7>&- & exporter=$!
until grep -q "Waiting for events" log; do kill -0 $exporter || exit 1; sleep 0.05; done
echo 100 >&8; echo 1000 >&7
until [ -s below.out ] && [ -s inner.out ]; do sleep 0.05; done
touch fired; while [ ! -e done ]; do sleep 0.05; done
kill $exporter; wait $exporter
"#;

/// Makes a program in the exporter's namespace fire 100 times, one below it 1,000 times, and one outside of it 10,000
/// times. Calls `held` for two scrapes, with the pid inside, the pid outside, and the exporter's log.
fn in_a_namespace(unshare: &[&str], mine: &str, held: impl Fn(&str, &str, u32, &str)) {
    let (builds, directory) = (builds(), directory());
    let at = directory.path();
    copy(&builds.path().join("first"), &at.join("inner"));
    let (port, health_port) = (Port::claim(), Port::claim());
    let config = config_of(&at.join("inner"), [&port, &health_port], mine);
    fs::write(at.join("config.in"), config).unwrap();
    let mut outside = Program::start(&at.join("inner"));
    let mut shell = Command::new("unshare")
        .args(unshare)
        .args(["--kill-child", "bash", "-c", INSIDE, EXPORTER])
        .current_dir(at)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the programs inside to have fired", || {
        assert!(shell.try_wait().unwrap().is_none(), "{:?}", fs::read_to_string(at.join("log")));
        at.join("fired").exists()
    });
    outside.fire(10_000);
    let pid = fs::read_to_string(at.join("pid")).unwrap();
    let scrape = || {
        let url = format!("http://127.0.0.1:{port}/metrics");
        String::from_utf8(Command::new("curl").args(["-s", &url]).output().unwrap().stdout).unwrap()
    };
    // Twice, because series of ended processes would be removed after the first scrape.
    for _ in 0..2 {
        let log = fs::read_to_string(at.join("log")).unwrap();
        held(&scrape(), pid.trim(), outside.pid(), &log);
    }
    fs::write(at.join("done"), "").unwrap();
    assert!(shell.wait().unwrap().success());
}

fn by_pid(text: &str, pid: &str) -> Option<u64> {
    value(text, &format!("hits_total{{node=\"t\",pid=\"{pid}\"}}"))
}

fn all(text: &str) -> u64 {
    text.lines().filter(|line| line.starts_with("hits_total{")).filter_map(number).sum()
}

#[test]
fn ids_are_those_of_the_exporter_namespace() {
    let mine =
        "- name: mine\n  pid: PID\n  probes:\n  - on: usdt:t:hit\n    metrics: [{ counter: mine_total }]\n";
    in_a_namespace(&["-pf", "--mount-proc"], mine, |text, inside, _, log| {
        assert_eq!(by_pid(text, inside), Some(100), "{text}");
        assert_eq!(by_pid(text, "0"), Some(10_000), "outside of the namespace");
        assert_eq!(all(text), 11_100, "and what is below has an id of this one too: {text}");
        assert_eq!(value(text, "mine_total{node=\"t\"}"), Some(100));
        assert!(log.contains("only shows processes of this container"), "{log}");
        assert!(!log.contains("has replaced") && !log.contains("no breakpoint"), "{log}");
    });
}

/// As after a plain `unshare -pf`.
#[test]
fn ids_follow_proc_of_another_namespace() {
    in_a_namespace(&["-pf"], "", |text, inside, outside, log| {
        assert_eq!(by_pid(text, &outside.to_string()), Some(10_000), "{text}");
        assert_eq!(by_pid(text, inside), None, "{text}");
        assert_eq!((by_pid(text, "0"), all(text)), (None, 11_100), "{text}");
        assert!(log.contains("that of an outer pid namespace"), "{log}");
        assert!(!log.contains("has replaced") && !log.contains("no breakpoint"), "{log}");
    });
}

fn config_of(program: &Path, [port, health_port]: [&Port; 2], mine: &str) -> String {
    format!(
        "node_name: t\nmetrics_port: {port}\nhealth_port: {health_port}\ntargets:\n- name: all\n  binary: {}\n  probes:\n  \
         - on: usdt:t:hit\n    metrics: [{{ counter: hits_total, labels: {{ pid: pid }} }}]\n{mine}",
        program.display()
    )
}

fn number(line: &str) -> Option<u64> {
    line.rsplit(' ').next()?.parse().ok()
}

fn value(text: &str, series: &str) -> Option<u64> {
    text.lines().find(|line| line.starts_with(series)).and_then(number)
}
