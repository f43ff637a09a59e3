//! The traced program.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use exporter::elf::{Image, function_sites, usdt_sites};

/// The built program.
pub struct Target {
    pub path: PathBuf,
    bytes: Vec<u8>,
}

/// The cost of one run.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// The CPU time of the process per call, in nanoseconds.
    pub ns_per_call: f64,
    pub wall_seconds: f64,
}

impl Target {
    /// Compiles the program.
    pub fn build(directory: &Path) -> Result<Self, String> {
        let path = directory.join("target");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/compare/target.c");
        let built = Command::new("cc")
            .args(["-O2", "-g", "-fstack-protector-explicit", "-o"])
            .arg(&path)
            .arg(source)
            .status();
        match built {
            Ok(status) if status.success() => {}
            Ok(status) => return Err(format!("cc {source}: {status}")),
            Err(err) => return Err(format!("cc: {err}; install gcc and systemtap-sdt-dev")),
        }
        let bytes = std::fs::read(&path).map_err(|err| format!("{}: {err}", path.display()))?;
        Ok(Self { path, bytes })
    }

    /// Returns the file offsets of a probe's sites, or of a function.
    pub fn sites(&self, name: &str) -> Result<Vec<usize>, String> {
        let image = Image::parse(&self.bytes).map_err(|err| err.to_string())?;
        let offsets = match usdt_sites(&image, "bench", name) {
            Ok(sites) => sites.iter().map(|site| site.offset as usize).collect(),
            Err(_) => {
                let sites = function_sites(&image, name).map_err(|err| err.to_string())?;
                sites.iter().map(|site| site.site.offset as usize).collect()
            }
        };
        Ok(offsets)
    }

    /// Returns the program's bytes, for resolving probes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Runs `processes` instances at once, each calling the probe `calls` times, at `rate` if given.
    pub fn run(
        &self,
        probe: &str,
        calls: u64,
        processes: usize,
        rate: Option<u64>,
    ) -> Result<Vec<Cost>, String> {
        let children: Vec<_> =
            (0..processes).map(|_| self.spawn(probe, calls, rate)).collect::<Result<_, _>>()?;
        children.into_iter().map(finish).collect()
    }

    fn spawn(&self, probe: &str, calls: u64, rate: Option<u64>) -> Result<Child, String> {
        let mut command = Command::new(&self.path);
        command.arg(probe).arg(calls.to_string()).stdout(Stdio::piped());
        if let Some(rate) = rate {
            command.arg(rate.to_string());
        }
        command.spawn().map_err(|err| format!("{}: {err}", self.path.display()))
    }
}

fn finish(child: Child) -> Result<Cost, String> {
    let output = child.wait_with_output().map_err(|err| format!("target: {err}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut numbers = text.split_whitespace().map_while(|word| word.parse().ok());
    match (output.status.success(), numbers.next(), numbers.next()) {
        (true, Some(ns_per_call), Some(wall_seconds)) => Ok(Cost { ns_per_call, wall_seconds }),
        _ => Err(format!("target: {}, printed \"{}\"", output.status, text.trim())),
    }
}
