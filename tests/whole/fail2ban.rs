//! The shipped fail2ban action, with Debian's fail2ban: a log line causes a ban, and the end of the ban lifts the
//! block.
//!
//! Needs root.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::exporter::{Exporter, Place, Setup, exporter, finish, wait_for};

/// fail2ban with a configuration and jails in a private directory.
struct Fail2ban<'a> {
    place: &'a Place,
    process: Child,
}

impl<'a> Fail2ban<'a> {
    fn start(place: &'a Place) -> Self {
        for directory in ["f2b/filter.d", "f2b/action.d"] {
            fs::create_dir_all(place.path(directory)).expect("make a directory");
        }
        let path = |name: &str| place.path(name).display().to_string();
        place.write(
            "f2b/fail2ban.conf",
            &format!(
                "[Definition]\nloglevel = INFO\nlogtarget = STDOUT\nsyslogsocket = auto\nsocket = {}\npidfile = {}\n\
                 dbfile = None\ndbpurgeage = 1d\ndbmaxmatches = 10\nallowipv6 = auto\n",
                path("f2b.sock"),
                path("f2b.pid")
            ),
        );
        let action = include_str!("../../scripts/fail2ban/fibre-exporter.conf");
        place.write("f2b/action.d/fibre-exporter.conf", action);
        place.write(
            "f2b/filter.d/logins.conf",
            "[Definition]\nfailregex = ^\\s*login failed from <HOST>$\ndatepattern = ^%%Y-%%m-%%dT%%H:%%M:%%S%%z\n",
        );
        let jail = |name: &str, bantime: &str| {
            format!(
                "[{name}]\nenabled = true\nbackend = polling\nfilter = logins\nlogpath = {}\nmaxretry = 2\nfindtime = 600\n\
                 bantime = {bantime}\nusedns = no\nlogencoding = utf-8\nignoreself = false\n\
                 action = fibre-exporter[name={name}, exporter=\"{}\", options=\"--socket {}\"]\n",
                path(&format!("{name}.log")),
                env!("CARGO_BIN_EXE_exporter"),
                path("control.sock")
            )
        };
        place.write("f2b/jail.conf", &(jail("hour", "3600") + &jail("forever", "-1") + &jail("short", "2")));
        for log in ["hour.log", "forever.log", "short.log"] {
            place.write(log, "");
        }
        let log = File::create(place.path("f2b.log")).expect("make a file");
        let mut command = Command::new("fail2ban-server");
        command.args(["-xf", "-c", &path("f2b"), "-s", &path("f2b.sock"), "-p", &path("f2b.pid"), "start"]);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
        let process = command.spawn().expect("start fail2ban-server; run scripts/install-deps.sh --tests");
        let fail2ban = Self { place, process };
        wait_for("fail2ban has its jails", || fail2ban.ask(&["status", "short"]).0 == Some(0));
        fail2ban
    }

    fn ask(&self, args: &[&str]) -> (Option<i32>, String, String) {
        finish(Command::new("fail2ban-client").arg("-s").arg(self.place.path("f2b.sock")).args(args))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.place.path("f2b.log")).unwrap_or_default()
    }

    fn fails(&self, jail: &str, address: &str) {
        let mut log =
            OpenOptions::new().append(true).open(self.place.path(&format!("{jail}.log"))).expect("a log");
        let now = chrono::Local::now().format("%Y-%m-%dT%H:%M:%S%z");
        for _ in 0..2 {
            writeln!(log, "{now} login failed from {address}").expect("write a log");
        }
    }
}

impl Drop for Fail2ban<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start(place: &Place) -> Exporter {
    let path = |name: &str| place.path(name).display().to_string();
    let yaml = format!(
        "network:\n  interfaces: lo\n  block: {{ mode: enforce, socket: {}, file: {} }}\n",
        path("control.sock"),
        path("blocklist.db")
    );
    Setup::new(place, yaml).start()
}

fn listed(place: &Place, prefix: &str) -> Option<Value> {
    let socket = place.path("control.sock");
    let (code, out, err) = finish(exporter().args(["blocklist", "--format", "json", "--socket"]).arg(socket));
    assert_eq!(code, Some(0), "{out}{err}");
    let all: Vec<Value> = serde_json::from_str(&out).expect("JSON");
    all.into_iter().find(|row| row["prefix"] == prefix)
}

#[test]
fn log_line_bans_and_unban_releases() {
    let place = Place::new();
    let _exporter = start(&place);
    let fail2ban = Fail2ban::start(&place);
    for (jail, address) in [("hour", "198.51.100.7"), ("forever", "2001:db8::7"), ("short", "198.51.100.9")] {
        fail2ban.fails(jail, address);
    }
    let found = |prefix: &str| {
        let mut row = None;
        wait_for(&format!("{prefix} is banned\n{}", fail2ban.log()), || {
            row = listed(&place, prefix);
            row.is_some()
        });
        row.unwrap()
    };
    let (hour, forever) = (found("198.51.100.7/32"), found("2001:db8::7/128"));
    let left = hour["expires_in"].as_f64().expect("a time");
    assert!(left > 0.0 && left <= 3600.0 && hour["reason"] == "fail2ban hour", "{hour}");
    assert!(forever["expires_in"].is_null() && forever["source"] == "command", "{forever}");
    // The end of a short ban.
    wait_for("a ban comes to its end", || fail2ban.log().contains("[short] Unban 198.51.100.9"));
    wait_for("it is released", || listed(&place, "198.51.100.9/32").is_none());
    for address in ["198.51.100.7", "2001:db8::7"] {
        let (code, out, err) = fail2ban.ask(&["unban", address]);
        assert_eq!(code, Some(0), "{out}{err}");
    }
    wait_for("they are released", || {
        listed(&place, "198.51.100.7/32").is_none() && listed(&place, "2001:db8::7/128").is_none()
    });
    let log = fail2ban.log();
    assert!(!log.contains("ERROR"), "{log}");
}
