//! The built exporter as a user runs it: a process with its own configuration, ports and log.
//!
//! Probes belong to a file, not to a process: programs that run the same file are counted together, even those of a
//! test in another thread or process. [`Place::copy_of`] gives a test a private file.
//!
//! It needs root, `curl` and `openssl`. Ports are taken from 19300 to 19399, on loopback.

use std::fmt;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::exposition::Metrics;
use super::http;
use super::program::copy_by_another;

/// How long anything may take before the test fails. This is generous: nothing here measures speed.
pub const TIMEOUT: Duration = Duration::from_secs(120);

pub const USER: &str = "prometheus";
pub const PASSWORD: &str = "the password of a test";

const BINARY: &str = env!("CARGO_BIN_EXE_exporter");

/// Waits until `condition` holds; fails the test, naming `what`, on timeout.
#[track_caller]
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {TIMEOUT:?} in vain for {what}");
        sleep(Duration::from_millis(20));
    }
}

/// Waits until the process has ended; on timeout, kills it and fails the test.
#[track_caller]
pub fn wait_for_end(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(status) = child.try_wait().expect("wait for a process") {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("process {} has not ended after {TIMEOUT:?}", child.id());
        }
        sleep(Duration::from_millis(5));
    }
}

/// Sends a signal: `TERM`, `INT`, `KILL`.
pub fn send_signal(pid: u32, name: &str) {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status().expect("run kill");
    assert!(status.success(), "kill -s {name} {pid}: {status}");
}

/// Returns a command of the built exporter that ignores the exporter settings in the environment of the tests.
pub fn exporter() -> Command {
    let mut command = Command::new(BINARY);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FIBRE_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// Runs a command until it ends; returns the status, standard output and standard error.
#[track_caller]
pub fn finish(command: &mut Command) -> (Option<i32>, String, String) {
    let place = Place::new();
    let (out, err) = (place.path("stdout"), place.path("stderr"));
    let create = |path: &Path| File::create(path).expect("make a file");
    let mut child =
        command.stdout(create(&out)).stderr(create(&err)).spawn().expect("start what is to be tested");
    let status = wait_for_end(&mut child);
    (status.code(), read(&out), read(&err))
}

/// A TCP port on loopback from 19300 to 19399. As a claim, the UDP port of the same number stays bound while this value
/// lives, so that no other test, in this process or another, takes the port between the check and its use.
pub struct Port {
    pub number: u16,
    _claim: UdpSocket,
}

impl Port {
    /// Claims a port.
    ///
    /// # Panics
    /// If all are taken.
    pub fn claim() -> Port {
        (19300..19400)
            .find_map(|number| {
                let claim = UdpSocket::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
                TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
                Some(Port { number, _claim: claim })
            })
            .expect("no free port from 19300 to 19399")
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number.fmt(f)
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// A temporary directory for a test's files.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Place {
        Place(tempfile::Builder::new().prefix("exporter-test-").tempdir().expect("make a directory"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("write a file");
        path
    }

    /// Copies a program, so that the kernel sees another file.
    pub fn copy_of(&self, program: &Path, name: &str) -> PathBuf {
        let copy = self.path(name);
        copy_by_another(program, &copy);
        copy
    }

    /// Creates certificates for localhost with generate-certs.sh, in the directory `name`.
    pub fn certificates(&self, name: &str) -> Certificates {
        let directory = self.path(name);
        let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/generate-certs.sh"))
            .arg("localhost")
            .env("CERTS_DIR", &directory)
            .output()
            .expect("run generate-certs.sh");
        assert!(output.status.success(), "{output:?}");
        Certificates {
            authority: directory.join("ca.crt"),
            certificate: directory.join("localhost/node.crt"),
            key: directory.join("localhost/node.key"),
        }
    }
}

/// The files needed for HTTPS.
pub struct Certificates {
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// How to start an exporter; [`start`](Setup::start) starts it.
pub struct Setup<'a> {
    place: &'a Place,
    yaml: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    certificates: Option<Certificates>,
    wrapper: Vec<String>,
    listen: String,
}

impl<'a> Setup<'a> {
    /// Creates a setup with a configuration, to which the ports are added. If the text is empty, there is no file, and
    /// flags set the ports.
    pub fn new(place: &'a Place, yaml: impl Into<String>) -> Setup<'a> {
        let yaml = yaml.into();
        Setup {
            place,
            yaml,
            arguments: vec![],
            environment: vec![],
            certificates: None,
            wrapper: vec![],
            listen: "metrics_port: {port}".into(),
        }
    }

    /// Creates a setup that traces this file with the profile `fibre`, for the node `demo`.
    pub fn fibre(place: &'a Place, binary: &Path) -> Setup<'a> {
        Setup::new(place, format!("bitcoind_path: {}\nnode_name: demo\n", binary.display()))
    }

    /// Appends to the configuration.
    pub fn yaml(mut self, more: &str) -> Self {
        self.yaml += more;
        self
    }

    /// Serves over HTTPS and requires [`USER`] and [`PASSWORD`], which it reads from a file.
    pub fn secure(mut self) -> Self {
        let certificates = self.place.certificates("certs");
        let password = self.place.write("password", &format!("{PASSWORD}\n"));
        fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).expect("protect the password");
        self.yaml += &format!(
            "metrics_auth_username: {USER}\nmetrics_auth_password_file: {}\ntls_cert: {}\ntls_key: {}\n",
            password.display(),
            certificates.certificate.display(),
            certificates.key.display()
        );
        self.certificates = Some(certificates);
        self
    }

    /// Appends to the command line.
    pub fn arguments(mut self, more: &[&str]) -> Self {
        self.arguments.extend(more.iter().map(ToString::to_string));
        self
    }

    /// Sets an environment variable.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_string(), value.to_string()));
        self
    }

    /// Starts it through another program, which is passed its command line; after several calls, the first is the outermost.
    pub fn through(mut self, wrapper: &[&str]) -> Self {
        self.wrapper.extend(wrapper.iter().map(ToString::to_string));
        self
    }

    /// Starts it as nobody, with these capabilities in setpriv(1) syntax (`-all,+bpf`) and no way to gain others.
    pub fn nobody_with(self, capabilities: &str) -> Self {
        self.through(&[
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            &format!("--inh-caps={capabilities}"),
            &format!("--ambient-caps={capabilities}"),
            &format!("--bounding-set={capabilities}"),
            "--no-new-privs",
            "--",
        ])
    }

    /// Replaces the configuration line that says where the metrics are served, `metrics_port: {port}` by default.
    pub fn listening(mut self, line: &str) -> Self {
        self.listen = line.to_owned();
        self
    }

    /// Starts it and waits until it serves. It need not be ready yet: see [`Exporter::wait_until_ready`].
    ///
    /// # Panics
    /// If it ends instead; its log is printed.
    #[track_caller]
    pub fn start(self) -> Exporter {
        let secure = self.certificates.map(|certificates| {
            let curl =
                format!("user = \"{USER}:{PASSWORD}\"\ncacert = \"{}\"\n", certificates.authority.display());
            self.place.write("curl", &curl);
            certificates.authority
        });
        let (port, health_port) = (Port::claim(), Port::claim());
        let log = self.place.path("log");
        let file = File::create(&log).expect("make a log");
        let mut command = exporter();
        if let Some((program, arguments)) = self.wrapper.split_first() {
            command = Command::new(program);
            let with_port = arguments.iter().map(|argument| argument.replace("{port}", &port.to_string()));
            command.args(with_port).arg(BINARY).stdin(Stdio::null());
        }
        if self.yaml.is_empty() {
            command.args(["--port", &port.to_string(), "--health-port", &health_port.to_string()]);
        } else {
            let listen = self.listen.replace("{port}", &port.to_string());
            let config = format!("{}{listen}\nhealth_port: {health_port}\n", self.yaml);
            command.arg("--config").arg(self.place.write("config.yaml", &config));
        }
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stderr(file.try_clone().expect("share a log"))
            .stdout(file);
        let child = command.spawn().expect("start the exporter");
        let curl = secure.as_ref().map(|_| self.place.path("curl"));
        let ports = [port, health_port];
        let [port, health_port] = ports.each_ref().map(|port| port.number);
        let mut started =
            Exporter { child, port, health_port, log, curl, authority: secure, _ports: ports, _place: None };
        started.wait_until_it_serves();
        started
    }
}

/// A running exporter. Dropping it kills it.
pub struct Exporter {
    child: Child,
    pub port: u16,
    pub health_port: u16,
    log: PathBuf,
    curl: Option<PathBuf>,
    /// The CA of the exporter's certificate, if it has one.
    pub authority: Option<PathBuf>,
    _ports: [Port; 2],
    /// The exporter's directory, unless the test owns it.
    _place: Option<Place>,
}

impl Exporter {
    /// Starts an exporter that traces this file with this profile, in a private directory. Every probe must be attached
    /// and stays attached whatever its overhead, because the counts are compared with the program's own.
    #[track_caller]
    pub fn with_profile(binary: &Path, profile: &str) -> Exporter {
        let target = format!("  - name: traced\n    binary: {}\n    profile: {profile}\n", binary.display());
        let exporter = Exporter::tracing_in(&format!("limits: {{ overhead: off }}\ntargets:\n{target}"));
        let scrape = exporter.scrape();
        let states = scrape.select("fibre_exporter_probe_attached", &[]);
        assert!(!states.is_empty(), "the profile {profile} has no probe");
        let missing: Vec<_> = states.iter().filter(|(_, value)| *value != 1.0).collect();
        assert!(missing.is_empty(), "not attached: {missing:?}\n{}", exporter.log());
        exporter
    }

    /// Starts an exporter that traces these entries of `targets:`, in a private directory, and waits until it is ready.
    #[track_caller]
    pub fn tracing(targets: &str) -> Exporter {
        Exporter::tracing_in(&format!("targets:\n{targets}"))
    }

    #[track_caller]
    fn tracing_in(yaml: &str) -> Exporter {
        let place = Place::new();
        let mut exporter = Setup::new(&place, format!("node_name: test\n{yaml}")).start();
        exporter._place = Some(place);
        exporter.wait_until_ready();
        exporter
    }

    #[track_caller]
    fn wait_until_it_serves(&mut self) {
        let deadline = Instant::now() + TIMEOUT;
        while !self.log().contains("Waiting for events") {
            if let Some(status) = self.child.try_wait().expect("wait for the exporter") {
                panic!("the exporter ended, {status}");
            }
            assert!(Instant::now() < deadline, "the exporter does not serve");
            sleep(Duration::from_millis(10));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns its standard output and standard error so far.
    pub fn log(&self) -> String {
        read(&self.log)
    }

    /// Runs curl for a path of the metrics port, with the right password and CA if the exporter is secure.
    pub fn fetch(&self, path: &str, more: &[&str]) -> Output {
        let config: Vec<_> =
            self.curl.iter().flat_map(|file| ["--config".as_ref(), file.as_os_str()]).collect();
        self.curl(self.port, path).args(config).args(more).output().expect("run curl")
    }

    /// Returns a curl command for a path of one of its ports, with neither password nor CA.
    pub fn curl(&self, port: u16, path: &str) -> Command {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        http::curl(&format!("{scheme}://localhost:{port}{path}"))
    }

    /// Returns the text of a scrape.
    #[track_caller]
    pub fn text(&self) -> String {
        let output = self.fetch("/metrics", &["--fail"]);
        assert!(output.status.success(), "{output:?}\n{}", self.log());
        String::from_utf8(output.stdout).expect("metrics in UTF-8")
    }

    /// Returns a parsed scrape.
    #[track_caller]
    pub fn scrape(&self) -> Metrics {
        Metrics::parse(&self.text()).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Scrapes until `condition` holds, for events that the traced program produces asynchronously; fails the test on
    /// timeout.
    #[track_caller]
    pub fn scrape_until(&self, what: &str, condition: impl Fn(&Metrics) -> bool) -> Metrics {
        let mut scrape = self.scrape();
        wait_for(what, || {
            scrape = self.scrape();
            condition(&scrape)
        });
        scrape
    }

    /// Returns the status and body of a path of the health port.
    #[track_caller]
    pub fn health(&self, path: &str) -> (u16, String) {
        let mut command = self.curl(self.health_port, path);
        if let Some(authority) = &self.authority {
            command.arg("--cacert").arg(authority);
        }
        http::answer(&mut command).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Waits until the probes of all its targets are attached.
    #[track_caller]
    pub fn wait_until_ready(&self) {
        wait_for("the exporter to be ready", || self.health("/ready").0 == 200);
    }

    /// Waits until the log contains `text`.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        wait_for(&format!("the log to say {text}"), || self.log().contains(text));
    }

    /// Terminates it and waits until it has ended, after which all probes are detached.
    #[track_caller]
    pub fn stop(mut self) {
        let status = self.end("TERM");
        assert!(status.success(), "the exporter ended with {status}:\n{}", self.log());
    }

    /// Sends it a signal and waits until it ends.
    #[track_caller]
    pub fn end(&mut self, signal: &str) -> ExitStatus {
        send_signal(self.pid(), signal);
        wait_for_end(&mut self.child)
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the exporter's log:\n{}", self.log());
        }
        // Both fail only if it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
