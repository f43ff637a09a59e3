//! `ban:` of probes: an application's own events put addresses on the blocklist.
//!
//! Needs root. Nothing is dropped: the banned addresses are reserved for documentation, and the interface is loopback.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use crate::slow::events;
use crate::support::exporter::{Exporter, Place, Setup, exporter as command, finish};
use crate::support::program::compile;

/// Calls a function with a peer's address in the form that each input line requests, and acknowledges the line.
const SOURCE: &str = r#"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#define HIDE(x) __asm__ volatile("" : "+r"(x) : : "memory")

__attribute__((noinline)) void failed(const char *peer, int status) { HIDE(peer); HIDE(status); }
__attribute__((noinline)) void other(const char *peer) { HIDE(peer); }
__attribute__((noinline)) void binary4(struct in_addr *peer) { HIDE(peer); }
__attribute__((noinline)) void binary6(struct in6_addr *peer) { HIDE(peer); }
__attribute__((noinline)) void socket_peer(struct sockaddr *peer) { HIDE(peer); }
__attribute__((noinline)) int login(const char *peer, int good) { HIDE(peer); HIDE(good); return good ? 0 : 7; }

int main(void)
{
	char line[256], kind[16], peer[128];
	int number;

	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "%15s %127s %d", kind, peer, &number) != 3)
			return 1;
		if (!strcmp(kind, "failed")) {
			failed(peer, number);
		} else if (!strcmp(kind, "other")) {
			other(peer);
		} else if (!strcmp(kind, "login")) {
			login(peer, number);
		} else if (!strcmp(kind, "v4")) {
			struct in_addr a;
			inet_pton(AF_INET, peer, &a);
			binary4(&a);
		} else if (!strcmp(kind, "v6")) {
			struct in6_addr a;
			inet_pton(AF_INET6, peer, &a);
			binary6(&a);
		} else {
			struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons(number) };
			inet_pton(AF_INET6, peer, &six.sin6_addr);
			socket_peer((struct sockaddr *)&six);
		}
		puts("done");
		fflush(stdout);
	}
	return 0;
}
"#;

/// The running program.
struct Application {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Application {
    fn start(program: &Path) -> Self {
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, output: BufReader::new(output) }
    }

    /// Makes it call the function.
    fn call(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        assert_eq!(answer, "done\n", "{line}");
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        // Both fail only if it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn compiled(place: &Place) -> PathBuf {
    compile("cc", "peers.c", SOURCE, &["-fno-ipa-icf", "-g"], &place.path(""))
}

fn yaml(place: &Place, program: &Path, mode: &str, network: &str) -> String {
    let ban = |more: &str| format!("ban: {{ address: peer, mode: {mode}, ttl: 1h, max_ttl: 3h, {more} }}");
    let probes = [
        format!(
            "{{ function: failed, args: {{ peer: {{ index: 0, type: string }}, status: 1 }}, {} }}",
            ban("reason: failed, when: status != 0, after: 3, within: 1d")
        ),
        format!(
            "{{ function: other, args: {{ peer: {{ index: 0, type: string }} }}, {} }}",
            ban("reason: other")
        ),
        format!(
            "{{ function: binary4, args: {{ peer: {{ index: 0, type: ipv4 }} }}, {} }}",
            ban("reason: binary")
        ),
        format!(
            "{{ function: binary6, args: {{ peer: {{ index: 0, type: ipv6 }} }}, {} }}",
            ban("reason: binary")
        ),
        format!(
            "{{ function: socket_peer, args: {{ peer: {{ index: 0, type: sockaddr }} }}, {} }}",
            ban("reason: socket")
        ),
        format!(
            "{{ function: login, returns: i32, args: {{ peer: {{ index: 0, type: string }} }}, metrics: [{{ counter: logins_total, labels: {{ peer: peer }} }}], {} }}",
            ban("reason: login, when: retval == 7")
        ),
    ];
    format!(
        "slow_events: {{ file: {} }}\n{network}targets:\n- name: app\n  binary: {}\n  probes:\n{}",
        place.path("events.db").display(),
        program.display(),
        probes.map(|probe| format!("  - {probe}\n")).concat()
    )
}

fn network(place: &Place) -> String {
    let (socket, file) = (place.path("control.sock"), place.path("blocklist.db"));
    format!(
        "network:\n  interfaces: lo\n  block: {{ mode: enforce, entries: 203.0.113.9, allow: 192.0.2.128/25, socket: {}, file: {} }}\n",
        socket.display(),
        file.display()
    )
}

/// Returns the entries that detection added to the blocklist, with their remaining seconds.
fn banned(place: &Place) -> Vec<(String, String, f64)> {
    let mut list = command();
    list.args(["blocklist", "--format", "json", "--socket"]).arg(place.path("control.sock"));
    let (code, text, told) = finish(&mut list);
    assert_eq!(code, Some(0), "{told}");
    let all: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let rows = all["entries"].as_array().or(all.as_array()).unwrap_or_else(|| panic!("{text}"));
    let row = |row: &Value| {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_string();
        (text("prefix"), text("reason"), row["expires_in"].as_f64().unwrap_or_default())
    };
    rows.iter().filter(|row| row["source"] == "detection").map(row).collect()
}

/// Bans one more address after all others, and waits until the ban is logged.
fn decided(exporter: &Exporter, application: &mut Application, last: &str) {
    application.call(&format!("other {last} 0"));
    exporter.wait_for_log(&format!("by {last}/"));
}

#[test]
fn application_events_trigger_bans() {
    let place = Place::new();
    let program = compiled(&place);
    let exporter = Setup::new(&place, yaml(&place, &program, "enforce", &network(&place))).start();
    exporter.wait_until_ready();
    let mut application = Application::start(&program);
    for line in [
        // Two hits are not enough, and hits that do not meet the conditions do not count.
        "failed 198.51.100.1 1",
        "failed 198.51.100.1 1",
        "failed 198.51.100.1 0",
        "login 198.51.100.2 1",
        "v4 198.51.100.3 0",
        "v6 2001:db8::4 0",
        "socket ::ffff:198.51.100.5 4000",
        "socket 2001:db8::6 4000",
        "login [2001:db8::7]:22 0",
        "failed 198.51.100.8:22 1",
        "failed 198.51.100.8:23 2",
        "failed 198.51.100.8 3",
        // Never banned: loopback, an allowed address, an address that is already listed, and invalid addresses.
        "other 127.0.0.1 0",
        "other 192.0.2.200 0",
        "other 203.0.113.9 0",
        "other UNKNOWN 0",
        "other ::: 0",
    ] {
        application.call(line);
    }
    decided(&exporter, &mut application, "198.51.100.99");
    let found: Vec<_> =
        banned(&place).into_iter().map(|(prefix, reason, _)| format!("{prefix} {reason}")).collect();
    assert_eq!(
        found,
        [
            "198.51.100.3/32 binary",
            "198.51.100.5/32 socket",
            "198.51.100.8/32 failed",
            "198.51.100.99/32 other",
            "2001:db8::4/128 binary",
            "2001:db8::6/128 socket",
            "2001:db8::7/128 login",
        ]
    );
    let scrape = exporter.scrape();
    scrape.assert_nothing_lost();
    let of = |name: &str, label: &str, value: &str| scrape.value(name, &[(label, value)]);
    assert_eq!(of("xdp_module_enabled", "module", "ban"), 1.0);
    assert_eq!(of("xdp_autobans_total", "reason", "binary"), 2.0);
    assert_eq!(of("xdp_autobans_total", "reason", "other"), 1.0);
    assert_eq!(of("security_events_total", "kind", "other"), 4.0);
    assert_eq!(of("security_events_total", "kind", "failed"), 1.0);
    assert_eq!(of("security_unusable_addresses_total", "kind", "other"), 2.0);
    assert_eq!(of("xdp_blocklist_entries", "source", "detection"), 7.0);
    for (cause, count) in [("protected", 2.0), ("listed", 1.0)] {
        let refused = [("kind", "other"), ("cause", cause)];
        assert_eq!(scrape.value("security_bans_refused_total", &refused), count, "{cause}");
    }

    // An address that is unblocked manually and hits again is banned for twice as long.
    let mut unblock = command();
    unblock.args(["unblock", "198.51.100.3", "--socket"]).arg(place.path("control.sock"));
    assert_eq!(finish(&mut unblock).0, Some(0));
    application.call("v4 198.51.100.3 0");
    decided(&exporter, &mut application, "198.51.100.98");
    let again =
        banned(&place).into_iter().find(|(prefix, ..)| prefix == "198.51.100.3/32").expect("it is banned");
    assert!(again.2 > 3600.0 && again.2 <= 7200.0, "{again:?}");
    exporter.stop();

    // Bans are stored like slow events, and survive a restart.
    let file = place.path("events.db").display().to_string();
    let rows = events(&["--file", &file, "--metric", "security_events_total", "--limit", "100"]);
    let of = |address: &str, name: &str| {
        let mut rows = rows.iter().filter(|row| row["fields"]["address"] == address);
        let row = rows.next().unwrap_or_else(|| panic!("no event of {address}: {rows:?}"));
        (row["probe"].clone(), row["fields"][name].clone())
    };
    assert_eq!(rows.len(), 12);
    assert_eq!(of("198.51.100.8", "outcome"), ("failed".into(), "banned".into()));
    assert_eq!(of("2001:db8::7", "ttl"), ("login:return".into(), "3600s".into()));
    assert_eq!(of("127.0.0.1", "outcome").1, "refused");
    let next = Setup::new(&place, yaml(&place, &program, "enforce", &network(&place))).start();
    next.wait_until_ready();
    assert_eq!(banned(&place).len(), 8);
    assert_eq!(next.scrape().value("security_evicted_total", &[("table", "bans")]), 0.0, "before any hit");
    // The next exporter knows how often the address was banned.
    assert_eq!(finish(&mut unblock).0, Some(0));
    application.call("v4 198.51.100.3 0");
    decided(&next, &mut application, "198.51.100.97");
    let again =
        banned(&place).into_iter().find(|(prefix, ..)| prefix == "198.51.100.3/32").expect("it is banned");
    assert!(again.2 > 7200.0 && again.2 <= 10_800.0, "{again:?}");
}

/// Nothing is banned unless the configuration says so; this also works without a blocklist.
#[test]
fn observed_bans_are_reported_and_recorded() {
    let place = Place::new();
    let program = compiled(&place);
    for network in [network(&place), String::new()] {
        let exporter = Setup::new(&place, yaml(&place, &program, "observe", &network)).start();
        exporter.wait_until_ready();
        let mut application = Application::start(&program);
        ["failed 198.51.100.8:22 1"; 7].iter().for_each(|line| application.call(line));
        decided(&exporter, &mut application, "198.51.100.99");
        let scrape = exporter.scrape();
        assert_eq!(scrape.value("security_events_total", &[("kind", "failed")]), 1.0, "once");
        assert_eq!(scrape.value("xdp_autobans_total", &[("reason", "failed")]), 0.0);
        assert_eq!(scrape.value("xdp_module_enforced", &[("module", "ban")]), 0.0);
        assert!(exporter.log().contains("mode observe, would be banned for 3600s"));
        if !network.is_empty() {
            assert_eq!(banned(&place), []);
        }
        exporter.stop();
    }
    let (code, checked, _) = finish(command().arg("check").arg(place.path("config.yaml")));
    assert_eq!(code, Some(0));
    assert!(checked.contains("ban: the address in peer after 3 hits within 86400s, for 3600s"), "{checked}");
    let file = place.path("events.db").display().to_string();
    let rows = events(&["--file", &file, "--where", "outcome=observed"]);
    assert_eq!(rows.len(), 4);
}
