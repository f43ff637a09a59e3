//! QEMU, whose block layer and monitor run in coroutines: a coroutine leaves a function's frame by switching to another
//! stack and returns to the middle of the function later, possibly on another thread. With the durations of all these
//! functions measured, QEMU must answer as before, and the counts of entries and returns must match the requests.
//! `HARM_CALLS=1000000` in the environment makes a million coroutine calls.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::exporter::{Exporter, Place, Setup, TIMEOUT, wait_for};
use crate::support::exposition::Metrics;
use crate::support::harm;

const COROUTINES: [&str; 2] = ["qemu_coroutine*", "aio_co_*"];
/// The monitor and the block layer. One link covers them all, whereas perf events are attached one by one, each of
/// which takes time.
const BY_LINK: [&str; 3] = ["qmp_*", "bdrv_co_*", "blk_co_*"];
const BY_EVENTS: [&str; 10] = [
    "qmp_dispatch",
    "qmp_human_monitor_command",
    "qmp_*block_resize",
    "qmp_*query_status",
    "qmp_*query_block",
    "bdrv_co_truncate",
    "bdrv_co_p*v_part",
    "blk_co_truncate",
    "blk_co_pread",
    "blk_co_pwrite",
];

/// The number of stack switches; one round makes more than 20.
const SWITCHES: u64 = 1_200;

/// A machine with nothing but a disk, and a connection to its monitor. Dropping it kills it.
struct Qemu {
    process: Child,
    monitor: BufReader<UnixStream>,
    output: PathBuf,
    /// The number of commands sent so far.
    sent: u64,
}

impl Qemu {
    /// Makes a private copy of QEMU, which finds its modules relative to its own path.
    fn file(place: &Place) -> PathBuf {
        std::fs::create_dir(place.path("bin")).expect("make a directory");
        for directory in ["lib", "share"] {
            symlink(Path::new("/usr").join(directory), place.path(directory)).expect("make a link");
        }
        place.copy_of(Path::new("/usr/bin/qemu-system-x86_64"), "bin/qemu")
    }

    fn start(place: &Place, file: &Path) -> Self {
        let (socket, disk, output) = (place.path("monitor"), place.path("disk"), place.path("output"));
        File::create(&disk).and_then(|file| file.set_len(1 << 20)).expect("make a disk");
        let log = File::create(&output).expect("make a log");
        let process = Command::new(file)
            .args(["-M", "none", "-nodefaults", "-display", "none", "-S"])
            .args(["-drive", &format!("if=none,id=disk,format=raw,file={}", disk.display())])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())])
            .stdin(Stdio::null())
            .stderr(log.try_clone().expect("share a log"))
            .stdout(log)
            .spawn()
            .expect("start QEMU; scripts/install-deps.sh --tests installs it");
        let mut monitor = None;
        wait_for("QEMU's monitor", || {
            monitor = UnixStream::connect(&socket).ok();
            monitor.is_some()
        });
        let monitor = monitor.expect("just connected");
        monitor.set_read_timeout(Some(TIMEOUT)).expect("a time-out");
        let mut qemu = Self { process, monitor: BufReader::new(monitor), output, sent: 0 };
        assert!(qemu.hear()["QMP"].is_object());
        assert_eq!(qemu.ask("qmp_capabilities", json!({})), json!({ "return": {} }));
        qemu
    }

    fn hear(&mut self) -> Value {
        let mut line = String::new();
        let read = self.monitor.read_line(&mut line).expect("hear QEMU");
        assert!(read > 0, "QEMU hung up: {}", self.said());
        serde_json::from_str(&line).expect("JSON")
    }

    /// Returns the response to a command, skipping events that arrive before it.
    fn ask(&mut self, command: &str, arguments: Value) -> Value {
        self.sent += 1;
        let command = json!({ "execute": command, "arguments": arguments });
        writeln!(self.monitor.get_mut(), "{command}").expect("ask QEMU");
        loop {
            let answer = self.hear();
            if answer.get("event").is_none() {
                return answer;
            }
        }
    }

    /// Makes the block layer read or write; its output is in [`Qemu::said`].
    fn io(&mut self, command: &str) {
        let line = format!("qemu-io disk \"{command}\"");
        assert_eq!(
            self.ask("human-monitor-command", json!({ "command-line": line })),
            json!({ "return": "" })
        );
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// Runs commands that need coroutines and commands that do not, valid and invalid ones.
    fn one_round(&mut self, n: u64) {
        assert_eq!(self.ask("query-status", json!({}))["return"]["status"], "prelaunch");
        let size = (1 << 20) + n % 7 * 512;
        assert_eq!(
            self.ask("block_resize", json!({ "device": "disk", "size": size })),
            json!({ "return": {} })
        );
        let answer = self.ask("query-block", json!({}));
        assert_eq!(answer["return"][0]["inserted"]["image"]["virtual-size"], size, "{answer}");
        let pattern = n % 200 + 1;
        self.io(&format!("write -P {pattern} 64k 4k"));
        self.io(&format!("read -P {pattern} 64k 4k"));
        let error = |answer: Value| answer["error"]["class"].as_str().unwrap_or_default().to_string();
        let no_disk = self.ask("block_resize", json!({ "device": "none", "size": size }));
        assert_eq!(error(no_disk), "GenericError");
        assert_eq!(error(self.ask("no-such-command", json!({}))), "CommandNotFound");
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What one round of commands causes: the number of returns per function.
const EFFECTS: [(&str, u64); 13] = [
    ("qmp_query_status", 1),
    ("qmp_marshal_query_status", 1),
    ("qmp_query_block", 1),
    ("qmp_marshal_query_block", 1),
    ("qmp_human_monitor_command", 2),
    ("qmp_block_resize", 2),
    ("qmp_marshal_block_resize", 2),
    ("blk_co_truncate", 1),
    // The format driver and the file driver below it.
    ("bdrv_co_truncate", 2),
    ("blk_co_pread", 1),
    ("bdrv_co_preadv_part", 2),
    ("blk_co_pwrite", 1),
    ("bdrv_co_pwritev_part", 2),
];

struct Seen(Metrics);

impl Seen {
    /// Returns the counts once no call is in progress any more.
    fn at_rest(exporter: &Exporter) -> Self {
        let mut last = exporter.scrape();
        wait_for("QEMU to be at rest", || {
            std::thread::sleep(std::time::Duration::from_millis(200));
            let now = exporter.scrape();
            let hits = |scrape: &Metrics| scrape.sum("fibre_exporter_probe_hits_total", &[]);
            let same = hits(&now) == hits(&last);
            last = now;
            same
        });
        assert_eq!(last.sum("fibre_exporter_probe_lost_total", &[]), 0.0);
        Self(last)
    }

    fn returns(&self, function: &str) -> u64 {
        self.count("g", "_seconds_count", function)
    }

    fn entries(&self, function: &str) -> u64 {
        self.count("e", "_total", function)
    }

    fn count(&self, before: &str, after: &str, function: &str) -> u64 {
        let of_glob = |n| self.0.sum(&format!("{before}{n}{after}"), &[("function", function)]) as u64;
        (0..COROUTINES.len() + BY_EVENTS.len()).map(of_glob).sum()
    }

    /// Returns the functions of a glob with calls in progress, and the number of these calls.
    fn inside(&self, glob: usize) -> Vec<(String, u64)> {
        let rows = self.0.select(&format!("e{glob}_total"), &[]);
        let functions = rows.into_iter().map(|(labels, _)| labels["function"].clone());
        functions
            .map(|name| {
                let inside = self.entries(&name) - self.returns(&name);
                (name, inside)
            })
            .filter(|(_, inside)| *inside > 0)
            .collect()
    }
}

fn coroutines(attach: &str, commands: &[&str]) {
    let place = Place::new();
    let file = Qemu::file(&place);
    let mut yaml = format!(
        "attach: {attach}\nlimits: {{ overhead: off }}\ntargets:\n- name: qemu\n  binary: {}\n  probes:\n",
        file.display()
    );
    let globs = [&COROUTINES, commands].concat();
    for (n, glob) in globs.iter().enumerate() {
        let labels = "labels: { function: { value: function, limit: 600 } }";
        // The second probe at the same entries only counts them.
        yaml += &format!(
            "  - function: \"{glob}\"\n    metrics: [{{ histogram: g{n}_seconds, value: duration, buckets: [10], {labels} }}]\n  \
             - function: \"{glob}\"\n    metrics: [{{ counter: e{n}_total, {labels} }}]\n"
        );
    }
    let exporter = Setup::new(&place, yaml).start();
    exporter.wait_until_ready();
    let mut qemu = Qemu::start(&place, &file);
    let before = Seen::at_rest(&exporter);
    let (rounds, sent) = (harm::calls(SWITCHES) / 20, qemu.sent);
    for n in 0..rounds {
        qemu.one_round(n);
    }
    let seen = Seen::at_rest(&exporter);
    let said = qemu.said();
    assert_eq!(said.matches("4096/4096 bytes").count() as u64, 2 * rounds, "{said}");
    assert!(!said.contains("failed"), "{said}");
    for (function, times) in EFFECTS {
        let more = seen.returns(function) - before.returns(function);
        assert_eq!(more, times * rounds, "{attach}: {function}");
    }
    assert_eq!(seen.returns("qmp_dispatch") - before.returns("qmp_dispatch"), qemu.sent - sent);
    // All calls have returned except those of waiting coroutines, each of which is inside a switch to another
    // coroutine.
    for (n, glob) in globs.iter().enumerate().filter(|(_, glob)| !glob.starts_with("qemu_coroutine")) {
        assert_eq!(seen.inside(n), [], "{attach}: {glob}");
    }
    let waiting = seen.returns("qemu_coroutine_new") - seen.returns("qemu_coroutine_delete");
    let inside = |seen: &Seen, function: &str| seen.entries(function) - seen.returns(function);
    let switch = "qemu_coroutine_switch";
    assert!(seen.returns(switch) - before.returns(switch) > 20 * rounds);
    assert_eq!(inside(&seen, switch), waiting, "{attach}");
    let yields = "qemu_coroutine_yield";
    assert!(seen.returns(yields) - before.returns(yields) >= rounds);
    assert_eq!(inside(&seen, yields), inside(&before, yields), "{attach}");
    assert_eq!(qemu.ask("query-status", json!({}))["return"]["status"], "prelaunch");
}

#[test]
fn coroutines_with_uprobe_multi() {
    coroutines("auto", &BY_LINK);
}

#[test]
fn coroutines_with_perf_events() {
    coroutines("perf", &BY_EVENTS);
}
