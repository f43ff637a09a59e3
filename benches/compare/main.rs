//! Compares the exporter with other ways to trace a program, in one interleaved run.
//!
//! Usage: `cargo bench --bench compare -- [--rounds N] [--calls N] [--only TEXT] [--markdown FILE]`
//!
//! Needs root, clang, cc and sys/sdt.h; also measures bpftrace where it is installed. This benchmark neither passes nor
//! fails, as times depend on the machine. What carries over to other machines is the ratio to an empty program on the
//! same probe.

mod load;
mod ours;
mod report;
mod rivals;
mod rows;
mod scrape;
mod target;

use std::path::PathBuf;
use std::process::ExitCode;

use report::Report;

/// The command-line options.
pub struct Options {
    /// Rounds of each comparison; the table shows medians.
    pub rounds: usize,
    /// Calls of the probe per measurement.
    pub calls: u64,
    /// Only rows whose name contains this text are measured.
    only: String,
    markdown: Option<PathBuf>,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { rounds: 15, calls: 150_000, only: String::new(), markdown: None };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            let number = |text: String| text.parse().map_err(|_| format!("\"{text}\" is not a number"));
            match arg.as_str() {
                // Cargo passes this to every benchmark.
                "--bench" => {}
                "--rounds" => options.rounds = usize::max(1, value().and_then(number)? as usize),
                "--calls" => options.calls = u64::max(1000, value().and_then(number)?),
                "--only" => options.only = value()?,
                "--markdown" => options.markdown = Some(value()?.into()),
                other => return Err(format!("unknown option {other}")),
            }
        }
        Ok(options)
    }

    /// Returns whether the row is selected.
    pub fn wants(&self, row: &str) -> bool {
        row.contains(&self.only)
    }
}

fn main() -> ExitCode {
    match Options::parse(std::env::args().skip(1)).and_then(|options| measure(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("compare: {err}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<(), String> {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let target = target::Target::build(&directory)?;
    let rivals = rivals::Rivals::load(&directory, &target)?;
    let mut report = Report::new(options.rounds);
    for row in rows::rows() {
        if options.wants(row.name) {
            report.row(row.name, rows::compare(&row, options, &target, &rivals)?);
        }
    }
    load::measure(options, &target, &mut report)?;
    scrape::measure(options, &target, &mut report)?;
    print!("{}", report.text());
    if let Some(path) = &options.markdown {
        std::fs::write(path, report.markdown()).map_err(|err| format!("{}: {err}", path.display()))?;
    }
    Ok(())
}
