//! The programs of demo/ as targets: `fibre-demo` with the totals that it reports, and `forms`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use super::exporter::{send_signal, wait_for_end};
use super::exposition::{Metrics, labels};
use super::program::private;

/// Returns a program of demo/, built on first use.
pub fn program(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let directory = BUILT.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        // Each test is a separate process; without a lock, all of them would build at once.
        let output = Command::new("flock")
            .arg(root.join("demo/Makefile"))
            .args(["make", "--silent", "-C"])
            .arg(root.join("demo"))
            .output()
            .expect("run flock and make");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        root.join("target/demo")
    });
    directory.join(name)
}

/// Makes a private copy of a program of demo/.
pub fn private_copy(name: &str, directory: &Path) -> PathBuf {
    private(program(name), directory)
}

/// Runs a fibre-demo until it ends and returns its totals.
#[track_caller]
pub fn play(binary: &Path, arguments: &[&str]) -> Totals {
    Demo::start(binary, arguments).end()
}

/// A running fibre-demo. Dropping it kills it.
pub struct Demo {
    child: Child,
    output: tempfile::NamedTempFile,
}

impl Demo {
    #[track_caller]
    pub fn start(binary: &Path, arguments: &[&str]) -> Demo {
        let output = tempfile::NamedTempFile::new().expect("make a file");
        let file = File::create(output.path()).expect("open a file");
        let mut command = Command::new(binary);
        command.args(arguments).stdin(Stdio::null()).stdout(file);
        let child = command.spawn().unwrap_or_else(|e| panic!("start {}: {e}", binary.display()));
        Demo { child, output }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM, which makes it print its totals.
    #[track_caller]
    pub fn stop(self) -> Totals {
        send_signal(self.pid(), "TERM");
        self.end()
    }

    /// Waits until it ends and returns its totals.
    #[track_caller]
    pub fn end(mut self) -> Totals {
        let status = wait_for_end(&mut self.child);
        assert!(status.success(), "fibre-demo: {status}");
        let text = std::fs::read(self.output.path()).expect("read the totals");
        Totals(serde_json::from_slice(&text).expect("totals in JSON"))
    }

    /// Kills it with SIGKILL; it prints no totals.
    pub fn kill(mut self) {
        self.child.kill().expect("kill fibre-demo");
        self.child.wait().expect("wait for fibre-demo");
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Both fail only if it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The totals that a fibre-demo reports.
#[derive(Debug, Clone)]
pub struct Totals(pub Value);

impl Totals {
    /// Returns how often a probe was fired.
    pub fn fired(&self, probe: &str) -> u64 {
        self.0["probes"][probe]["fired"].as_u64().unwrap_or_else(|| panic!("no {probe} in {}", self.0))
    }

    /// Returns the series that the profile `fibre` is expected to export for these totals, and no others.
    pub fn series(&self, node: &str) -> Metrics {
        let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"));
        let mut series = BTreeMap::new();
        let mut add = |name: &str, more: &[(&str, &str)], value: f64| {
            let labels = labels(&[&[("node", node)], more].concat());
            assert!(series.insert((name.to_owned(), labels), value).is_none(), "{name} twice");
        };
        for kind in ["counters", "gauges"] {
            for (name, value) in self.0[kind].as_object().expect("an object") {
                add(name, &[], number(value));
            }
        }
        for delivery in self.0["deliveries"].as_array().expect("a list") {
            let [mechanism, peer] =
                ["mechanism", "peer"].map(|label| (label, delivery[label].as_str().expect("a string")));
            add("fibre_block_deliveries_total", &[mechanism, peer], number(&delivery["count"]));
        }
        for histogram in self.0["histograms"].as_array().expect("a list") {
            let name = histogram["name"].as_str().expect("a name");
            let own: Vec<_> = histogram["labels"].as_object().expect("labels").iter().collect();
            let own: Vec<(&str, &str)> =
                own.iter().map(|(name, value)| (name.as_str(), value.as_str().expect("a string"))).collect();
            let count = number(&histogram["count"]);
            add(&format!("{name}_count"), &own, count);
            add(&format!("{name}_sum"), &own, number(&histogram["sum"]) / number(&histogram["sum_divisor"]));
            let bucket = format!("{name}_bucket");
            for pair in histogram["buckets"].as_array().expect("a list") {
                let bound = number(&pair[0]).to_string();
                add(&bucket, &[&own[..], &[("le", &bound)]].concat(), number(&pair[1]));
            }
            add(&bucket, &[&own[..], &[("le", "+Inf")]].concat(), count);
        }
        Metrics(series)
    }
}

/// The number of sites of the probe forms:i32; each raises the semaphore by one.
pub const I32_SITES: u64 = 2;

/// A running `forms` of `demo/`, which fires probes on request.
pub struct Forms {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Forms {
    pub fn start(program: &Path) -> Self {
        let mut command = Command::new(program);
        command.arg("-").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("start {}: {e}", program.display()));
        let ask = child.stdin.take().expect("a pipe");
        let answers = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, ask, answers }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fires the probe and waits until that is done. Returns the program's response.
    pub fn fire(&mut self, form: &str, count: u64) -> Value {
        self.begin(form, count);
        let answer = self.answer().unwrap_or_else(|| panic!("{form}: the program ended"));
        assert_eq!(answer["fired"], count, "{answer}");
        assert_eq!(answer["damaged"], 0, "{answer}");
        answer
    }

    /// Makes it start firing, without waiting.
    pub fn begin(&mut self, form: &str, count: u64) {
        writeln!(self.ask, "{form} {count}").unwrap();
        self.ask.flush().unwrap();
    }

    /// Reads the next response; `None` if the program has ended.
    pub fn answer(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.answers.read_line(&mut line).ok().filter(|read| *read > 0)?;
        Some(serde_json::from_str(&line).unwrap_or_else(|err| panic!("{err}: {line}")))
    }

    /// Returns the value of a probe's semaphore: how often tracers have raised it.
    pub fn semaphore(&mut self, probe: &str) -> u64 {
        self.semaphores()[probe]
    }

    /// Returns the semaphore of every probe that has one, by probe name.
    pub fn semaphores(&mut self) -> BTreeMap<String, u64> {
        self.begin("semaphores", 0);
        let answer = self.answer().expect("the program runs");
        let all = answer["semaphores"].as_object().unwrap();
        all.iter().map(|(probe, value)| (probe.clone(), value.as_u64().unwrap())).collect()
    }

    /// Kills it, whatever it is doing.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Forms {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
