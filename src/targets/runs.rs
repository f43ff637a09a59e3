//! Runs of programs that may have begun before a target's probes were in their file.

use std::collections::HashMap;
use std::path::PathBuf;

use super::file::Identity;

/// A run of a program that targets may select. Times are by `CLOCK_MONOTONIC`, in nanoseconds.
#[derive(Debug)]
pub struct Run {
    pub pid: u32,
    pub identity: Identity,
    pub program: Program,
    /// For which it is not settled whether the run went without probes.
    pub targets: Vec<usize>,
    pub from: u64,
    pub until: Option<u64>,
    /// It waited until its file was examined, up to a limit.
    pub is_held: bool,
}

/// What is known of the file that is run.
#[derive(Debug)]
pub enum Program {
    /// All targets were compared with it before.
    Known,
    /// It was executed from this path.
    Examined(PathBuf),
    /// Likewise, if the path is known; its process has ended, and the file may be gone.
    Unexamined(Option<PathBuf>),
}

/// The runs for which it is not settled.
#[derive(Debug, Default)]
pub struct Runs {
    /// By process.
    pub open: HashMap<u32, Run>,
    pub over: Vec<Run>,
}

impl Runs {
    pub fn begin(&mut self, run: Run) {
        if run.targets.is_empty() {
            return;
        }
        if run.until.is_none() {
            self.open.insert(run.pid, run);
        } else {
            self.over.push(run);
        }
    }

    /// The process has ended, or has executed another program.
    pub fn end(&mut self, pid: u32, time: u64) {
        if let Some(run) = self.open.remove(&pid) {
            self.over.push(Run { until: Some(time), ..run });
        }
    }
}
