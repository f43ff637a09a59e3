//! The exporter as a process beside a real program, and its scrape as numbers: for tests that hold a profile's
//! counts against the program's own books.
//!
//! Probes belong to a file, so that everything on this machine that runs it is counted. [`private`] gives a test a
//! file of its own, of an executable or of a library.

// Each test binary that includes this file uses a part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long anything may take before the test fails. Generous: nothing here measures speed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Ports of the exporters, on loopback: one for metrics and the next for health.
const PORTS: std::ops::Range<u16> = 19400..19500;

/// A running exporter. Dropping it kills it.
pub struct Exporter {
    process: Child,
    metrics_port: u16,
    health_port: u16,
    folder: tempfile::TempDir,
}

impl Exporter {
    /// Starts with one target that has this file and profile, and waits until every probe is attached.
    pub fn with_profile(binary: &Path, profile: &str) -> Exporter {
        let exporter = Exporter::start(&format!(
            "  - name: traced\n    binary: {}\n    profile: {profile}\n",
            binary.display()
        ));
        let scrape = exporter.scrape();
        let states: Vec<_> = scrape.named("fibre_exporter_probe_attached").collect();
        assert!(!states.is_empty(), "the profile {profile} has no probe");
        let missing: Vec<_> = states.iter().filter(|(_, value)| *value != 1.0).collect();
        assert!(missing.is_empty(), "not attached: {missing:?}\n{}", exporter.log());
        exporter
    }

    /// Starts with the entries of `targets:` and waits until it is ready.
    pub fn start(targets: &str) -> Exporter {
        // Another process may take a port between our look at it and the exporter's.
        for _ in 0..5 {
            let mut exporter = Exporter::spawn(targets);
            match exporter.wait_until_ready() {
                Ok(()) => return exporter,
                Err(log) if log.contains("another process listens there") => {}
                Err(log) => panic!("the exporter did not get ready:\n{log}"),
            }
        }
        panic!("the exporter found no free port in {PORTS:?}");
    }

    fn spawn(targets: &str) -> Exporter {
        let folder = tempfile::Builder::new().prefix("exporter-program-").tempdir().expect("make a folder");
        let (metrics_port, health_port) = free_ports();
        let config = folder.path().join("config.yaml");
        let text = format!(
            "node_name: test\nmetrics_port: {metrics_port}\nhealth_port: {health_port}\ntargets:\n{targets}"
        );
        fs::write(&config, text).expect("write the configuration");
        let log = fs::File::create(folder.path().join("log")).expect("make the log");
        let errors = log.try_clone().expect("share the log");
        let process = Command::new(env!("CARGO_BIN_EXE_exporter"))
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .expect("start the exporter");
        Exporter { process, metrics_port, health_port, folder }
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.process.try_wait().expect("wait for the exporter").is_some() {
                return Err(self.log());
            }
            match get(self.health_port, "/ready") {
                // Another test's exporter may answer in place of one that found its port taken; this one's log tells.
                Some((200, _)) if self.log().contains("Waiting for events") => return Ok(()),
                Some((_, why)) if Instant::now() > deadline => return Err(format!("{why}\n{}", self.log())),
                None if Instant::now() > deadline => return Err(self.log()),
                _ => sleep(Duration::from_millis(50)),
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// All samples of this moment.
    pub fn scrape(&self) -> Samples {
        let (status, text) = get(self.metrics_port, "/metrics").expect("scrape the exporter");
        assert_eq!(status, 200, "{text}");
        Samples::parse(&text)
    }

    /// Scrapes until `condition` holds for what the program does on its own time; fails the test if it never does.
    pub fn scrape_until(&self, what: &str, condition: impl Fn(&Samples) -> bool) -> Samples {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let samples = self.scrape();
            if condition(&samples) {
                return samples;
            }
            assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for {what}:\n{samples:#?}");
            sleep(Duration::from_millis(100));
        }
    }

    /// Asks it to end, and waits until it has: all probes are detached then.
    pub fn stop(mut self) {
        let pid = self.pid().to_string();
        run(Command::new("kill").args(["-TERM", &pid]));
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait().expect("wait for the exporter") {
                assert!(status.success(), "the exporter ended with {status}:\n{}", self.log());
                return;
            }
            assert!(Instant::now() < deadline, "the exporter does not end:\n{}", self.log());
            sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One scrape: the series as Prometheus' text format writes them, and their values.
#[derive(Debug)]
pub struct Samples(BTreeMap<String, f64>);

impl Samples {
    fn parse(text: &str) -> Samples {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        Samples(
            lines
                .map(|line| {
                    let (series, value) = line.rsplit_once(' ').expect("series and value");
                    (series.to_owned(), value.parse().expect("a number"))
                })
                .collect(),
        )
    }

    /// Series of the family `name`, with their values.
    pub fn named(&self, name: &str) -> impl Iterator<Item = (&str, f64)> {
        self.0
            .iter()
            .filter(move |(series, _)| {
                series.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
            })
            .map(|(series, value)| (series.as_str(), *value))
    }

    /// The sum of the series called `name` that have all these labels; 0 if there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted: Vec<_> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        self.named(name)
            .filter(|(series, _)| wanted.iter().all(|label| series.contains(label.as_str())))
            .map(|(_, value)| value)
            .sum()
    }

    /// The values of a label among the series called `name`, with the sum of each.
    pub fn by(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        let start = format!("{label}=\"");
        for (series, value) in self.named(name) {
            let Some((_, rest)) = series.split_once(&start) else { continue };
            let (shown, _) = rest.split_once('"').expect("a closing quote");
            *sums.entry(shown.to_owned()).or_default() += value;
        }
        sums
    }

    /// Fails the test unless every hit was counted in full.
    pub fn assert_nothing_lost(&self) {
        for name in ["fibre_exporter_probe_lost_total", "fibre_exporter_label_overflow_total"] {
            let lost: Vec<_> = self.named(name).filter(|(_, value)| *value != 0.0).collect();
            assert!(lost.is_empty(), "{lost:?}");
        }
    }
}

/// Answers a GET on loopback: status and body. `None` if nobody answers.
fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

fn free_ports() -> (u16, u16) {
    // Tests that run beside this one, in this process or another, begin elsewhere.
    static CALLS: AtomicU16 = AtomicU16::new(0);
    let pairs = (PORTS.end - PORTS.start) / 2;
    let first = (std::process::id() as u16 % pairs + CALLS.fetch_add(1, Ordering::Relaxed)) % pairs;
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    (0..pairs)
        .map(|n| PORTS.start + (first + n) % pairs * 2)
        .find(|port| free(port) && free(&(port + 1)))
        .map(|port| (port, port + 1))
        .unwrap_or_else(|| panic!("no free ports in {PORTS:?}"))
}

/// A copy of `file` in `folder`, under its name: another file, whose probes nobody else on this machine hits.
pub fn private(file: impl AsRef<Path>, folder: &Path) -> PathBuf {
    let file = file.as_ref();
    let copy = folder.join(file.file_name().expect("a file name"));
    fs::copy(file, &copy).unwrap_or_else(|why| panic!("copy {}: {why}", file.display()));
    copy
}

/// Runs a command to its end, which must be good; returns its standard output.
pub fn run(command: &mut Command) -> String {
    let output = finish(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("output in UTF-8")
}

/// Runs a command to its end, good or bad.
pub fn finish(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|why| {
        panic!("{command:?}: {why}; scripts/install-deps.sh --tests installs what the tests need")
    })
}

/// Compiles a C or C++ program of the test's own into `folder`.
pub fn compile(compiler: &str, name: &str, source: &str, flags: &[&str], folder: &Path) -> PathBuf {
    let (file, program) = (folder.join(name), folder.join("program"));
    fs::write(&file, source).expect("write the source");
    run(Command::new(compiler).arg("-O1").arg("-o").arg(&program).arg(&file).args(flags));
    program
}

/// A folder that is deleted when it is dropped.
pub fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("exporter-program-").tempdir().expect("make a folder")
}

/// The one existing path among these, or the first's name in the failure.
pub fn first_of(paths: &[&str]) -> PathBuf {
    let found = paths.iter().map(Path::new).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{} is missing; run scripts/install-deps.sh --tests", paths[0])).to_owned()
}
