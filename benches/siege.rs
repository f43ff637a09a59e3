//! Scrapes while strangers besiege the endpoint: this exporter beside node_exporter (Debian's
//! prometheus-node-exporter), which uses the same file with the same user (bcrypt, cost 12).
//!
//! Usage: `cargo bench --bench siege [-- --rounds N] [--markdown FILE]`
//!
//! With EXPORTER in the environment, that program is measured instead of the built one.

#[path = "../tests/support/siege.rs"]
#[allow(dead_code)]
mod siege;
mod support;

use std::fmt::Write as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use siege::{Besieged, Besieger, connect_and_say_nothing, guess, others, read_slowly, send_noise};
use support::{Options, Result};

const USER: &str = "prometheus";
const PASSWORD: &str = "correct horse";
/// A slower scrape has failed: this is Prometheus's own limit.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Scrapes per siege and round, every other one over a new connection.
const SCRAPES: usize = 20;
/// How long a siege lasts before the first scrape.
const BEFORE: Duration = Duration::from_millis(500);

/// The sieges: name, number of addresses, concurrent connections per address, and the attack.
const SIEGES: &[(&str, u8, usize, Option<Besieger>)] = &[
    ("none", 0, 0, None),
    ("500 scrapes at once", 1, 500, Some(scrape)),
    ("1,000 silent clients", 4, 250, Some(stay_silent)),
    ("guessed passwords, 16 connections of the scraper's own address", 0, 16, Some(guess)),
    ("guessed passwords, 64 connections of 4 other addresses", 4, 16, Some(guess)),
    ("a flood of connections, 200 addresses", 200, 1, Some(connect_and_say_nothing)),
    ("64 slow readers", 4, 16, Some(read_slowly)),
    ("random bytes, 64 connections", 4, 16, Some(send_noise)),
];

fn scrape(besieged: Besieged<'_>, from: Ipv4Addr, _: u32) -> std::io::Result<()> {
    besieged.ask(&mut besieged.connect(from)?, besieged.password).map(drop)
}

fn stay_silent(besieged: Besieged<'_>, from: Ipv4Addr, _: u32) -> std::io::Result<()> {
    let stream = besieged.connect(from)?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let _ = std::io::Read::read(&mut &stream, &mut [0; 1]);
    Ok(())
}

/// A server; killed when dropped.
struct Server {
    name: &'static str,
    process: Child,
    port: u16,
}

impl Server {
    fn start(name: &'static str, command: &mut Command, port: u16) -> Result<Self> {
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let process = process
            .map_err(|err| format!("{command:?}: {err}; scripts/install-deps.sh --bench installs it"))?;
        let mut server = Self { name, process, port };
        let begun = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if let Some(status) = server.process.try_wait()? {
                return Err(format!("{name} ended: {status}").into());
            }
            if begun.elapsed() > Duration::from_secs(60) {
                return Err(format!("{name} does not listen").into());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    fn besieged(&self) -> Besieged<'static> {
        Besieged { port: self.port, user: USER, password: PASSWORD, patience: TIMEOUT }
    }

    /// Returns the peak memory use in MiB.
    fn peak(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Scrapes of one server under one siege.
#[derive(Default)]
struct Scrapes {
    milliseconds: Vec<f64>,
    failed: usize,
    peak: f64,
}

impl Scrapes {
    fn under(
        &mut self,
        server: &Server,
        from: &[Ipv4Addr],
        each: usize,
        besieger: Option<Besieger>,
    ) -> Result<()> {
        let besieged = server.besieged();
        let (stop, number) = (AtomicBool::new(false), AtomicU32::new(0));
        let mut kept = recovered(besieged)?;
        thread::scope(|scope| {
            for address in from.iter().flat_map(|address| std::iter::repeat_n(*address, each)) {
                let (stop, number, besieger) = (&stop, &number, besieger);
                scope.spawn(move || {
                    while let (Some(besieger), false) = (besieger, stop.load(Ordering::Relaxed)) {
                        let turn = Instant::now();
                        // The outcome of an attack does not matter.
                        let _ = besieger(besieged, address, number.fetch_add(1, Ordering::Relaxed));
                        thread::sleep(Duration::from_millis(10).saturating_sub(turn.elapsed()));
                    }
                });
            }
            thread::sleep(BEFORE);
            for turn in 0..SCRAPES {
                let begun = Instant::now();
                let status = match turn % 2 {
                    // A connection that was closed in the meantime is reopened, as Go's client does for Prometheus.
                    0 => besieged.ask(&mut kept, PASSWORD).or_else(|_| {
                        kept = besieged.connect(Ipv4Addr::LOCALHOST)?;
                        besieged.ask(&mut kept, PASSWORD)
                    }),
                    _ => besieged
                        .connect(Ipv4Addr::LOCALHOST)
                        .and_then(|mut new| besieged.ask(&mut new, PASSWORD)),
                };
                match status {
                    Ok(200) => self.milliseconds.push(begun.elapsed().as_secs_f64() * 1e3),
                    Ok(_) | Err(_) => self.failed += 1,
                }
                thread::sleep(Duration::from_millis(20));
            }
            stop.store(true, Ordering::Relaxed);
        });
        self.peak = self.peak.max(server.peak()?);
        Ok(())
    }

    fn quantile(&self, quantile: f64) -> f64 {
        let mut sorted = self.milliseconds.clone();
        sorted.sort_by(f64::total_cmp);
        let at = ((sorted.len() as f64 * quantile).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
        sorted.get(at).copied().unwrap_or(f64::NAN)
    }

    fn answered(&self) -> f64 {
        100.0 * self.milliseconds.len() as f64 / (self.milliseconds.len() + self.failed).max(1) as f64
    }

    /// Returns the table cells: the share of scrapes answered, the share answered within three times the quiet median,
    /// the median, the 99th percentile and the peak memory.
    fn cells(&self, quiet: f64) -> String {
        let soon = self.milliseconds.iter().filter(|time| **time <= 3.0 * quiet).count();
        format!(
            "{:.0} % | {:.0} % | {:.1} | {:.1} | {:.0}",
            self.answered(),
            100.0 * soon as f64 / (self.milliseconds.len() + self.failed).max(1) as f64,
            self.quantile(0.5),
            self.quantile(0.99),
            self.peak
        )
    }
}

/// Returns a connection with one answered scrape, once the server has recovered from the last siege: it may still be
/// checking passwords.
fn recovered(besieged: Besieged<'_>) -> Result<TcpStream> {
    let begun = Instant::now();
    loop {
        let opened = besieged.connect(Ipv4Addr::LOCALHOST).and_then(|mut stream| {
            besieged.ask(&mut stream, PASSWORD)?;
            Ok(stream)
        });
        match opened {
            Ok(stream) => return Ok(stream),
            Err(err) if begun.elapsed() > 6 * TIMEOUT => return Err(err.into()),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn servers(directory: &Path) -> Result<[Server; 2]> {
    let port = || Ok::<_, std::io::Error>(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
    let web = directory.join("web.yml");
    fs::write(&web, format!("basic_auth_users:\n  {USER}: {}\n", bcrypt::hash(PASSWORD, 12)?))?;
    let traced = directory.join("traced");
    fs::copy("/bin/true", &traced)?;
    let (metrics, health) = (port()?, port()?);
    let config = directory.join("config.yaml");
    let probes = "probes: [{ function: main, metrics: [{ counter: calls_total }] }]";
    let target = format!("targets: [{{ name: none, binary: {}, {probes} }}]", traced.display());
    fs::write(&config, format!("metrics_port: {metrics}\nhealth_port: {health}\n{target}\n"))?;
    let exporter = env::var("EXPORTER").unwrap_or_else(|_| env!("CARGO_BIN_EXE_exporter").to_owned());
    let mut ours = Command::new(exporter);
    ours.arg("--config").arg(&config).arg("--web.config.file").arg(&web);
    let ours = Server::start("exporter", &mut ours, metrics)?;
    let port = port()?;
    let mut node = Command::new("prometheus-node-exporter");
    node.arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg(format!("--web.config.file={}", web.display()));
    Ok([ours, Server::start("node_exporter", &mut node, port)?])
}

fn main() -> Result<()> {
    let options = Options::from_args()?;
    let directory = env::temp_dir().join(format!("exporter-siege-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let measured = measure(&options, &directory);
    fs::remove_dir_all(&directory)?;
    let text = measured?;
    print!("{text}");
    if let Some(file) = &options.markdown {
        fs::write(file, text)?;
    }
    Ok(())
}

fn measure(options: &Options, directory: &Path) -> Result<String> {
    let mut text = String::from(
        "| siege | exporter: answered | in 3 x quiet | median, ms | 99 %, ms | MiB | node_exporter: answered | in 3 x quiet | median, ms | 99 %, ms | MiB |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    let mut quiet = [f64::INFINITY; 2];
    for (name, addresses, each, besieger) in SIEGES {
        let from = if *addresses == 0 { vec![Ipv4Addr::LOCALHOST] } else { others(*addresses) };
        let mut all = [Scrapes::default(), Scrapes::default()];
        // New servers for each siege, so that the memory is that of this siege alone.
        let servers = servers(directory)?;
        for round in 0..options.rounds {
            for (server, scrapes) in servers.iter().zip(&mut all) {
                scrapes.under(server, &from, *each, *besieger)?;
                eprintln!(
                    "{name}, round {round}, {}: {:.0} %, {:.1} ms",
                    server.name,
                    scrapes.answered(),
                    scrapes.quantile(0.5)
                );
            }
        }
        if besieger.is_none() {
            quiet = [all[0].quantile(0.5), all[1].quantile(0.5)];
        }
        writeln!(text, "| {name} | {} | {} |", all[0].cells(quiet[0]), all[1].cells(quiet[1]))?;
    }
    Ok(text)
}
