//! The exporter as a process, for benchmarks. Each benchmark uses only part of this module.
#![allow(dead_code)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::{env, fs};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The options of a benchmark.
pub struct Options {
    pub rounds: usize,
    /// A file to which the table is written as well.
    pub markdown: Option<PathBuf>,
}

impl Options {
    pub fn from_args() -> Result<Self> {
        let mut options = Self { rounds: 9, markdown: None };
        let mut args = env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                // Cargo passes this to every benchmark.
                "--bench" => {}
                "--rounds" => options.rounds = args.next().ok_or("--rounds needs a number")?.parse()?,
                "--markdown" => options.markdown = Some(args.next().ok_or("--markdown needs a file")?.into()),
                other => return Err(format!("unknown option {other}").into()),
            }
        }
        Ok(options)
    }
}

/// A running exporter that is ready; killed when dropped.
pub struct Exporter {
    pub process: Child,
    pub port: u16,
    /// Kept open, so that the exporter can write its log.
    _log: BufReader<ChildStdout>,
}

impl Exporter {
    /// Starts an exporter on its own ports with this configuration, which is written to `config_file`.
    pub fn start(config_file: &Path, config: &str) -> Result<Self> {
        let port = || Ok::<_, std::io::Error>(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
        let (port, health_port) = (port()?, port()?);
        fs::write(config_file, format!("metrics_port: {port}\nhealth_port: {health_port}\n{config}"))?;
        let mut process = Command::new(env!("CARGO_BIN_EXE_exporter"))
            .arg("--config")
            .arg(config_file)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut log = BufReader::new(process.stdout.take().ok_or("no log")?);
        for line in log.by_ref().lines() {
            if line?.contains("Waiting for events") {
                return Ok(Self { process, port, _log: log });
            }
        }
        Err(format!("the exporter ended: {}", process.wait()?).into())
    }

    /// Returns the sum of a metric's series.
    pub fn sum(&self, metric: &str) -> Result<f64> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let is_meant = |line: &&str| {
            line.strip_prefix(metric).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
        };
        let values =
            text.lines().filter(is_meant).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(values.sum())
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the links and programs that a process holds in the kernel, by kind and ID.
pub fn held(pid: u32) -> Result<BTreeSet<(&'static str, u32)>> {
    let mut held = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        for line in text.lines() {
            for kind in ["link_id:", "prog_id:"] {
                if let Some(id) = line.strip_prefix(kind).and_then(|id| id.trim().parse().ok()) {
                    held.insert((kind, id));
                }
            }
        }
    }
    Ok(held)
}
