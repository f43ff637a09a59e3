//! Hits for which the kernel did not run a program, by the kernel's own count.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libbpf_rs::Program;

use super::link_kind::Attach;
use crate::abi::generated::ProbeProgs;

/// A loaded program that hits run, kept open for queries.
#[derive(Debug)]
pub struct LoadedProgram {
    /// Its name in `bpf/probe.bpf.c`.
    pub name: &'static str,
    program: OwnedFd,
}

/// The programs that are loaded with this kind of link.
pub(super) fn loaded(
    programs: &ProbeProgs<'_>,
    attach: Attach,
    sessions: bool,
) -> io::Result<Vec<LoadedProgram>> {
    let hold = |name, program: &Program<'_>| {
        program.as_fd().try_clone_to_owned().map(|program| LoadedProgram { name, program })
    };
    let mut held = vec![match attach {
        Attach::Multi => hold("probe_multi", &programs.probe_multi)?,
        Attach::Perf => hold("probe_perf", &programs.probe_perf)?,
    }];
    if sessions {
        held.push(hold("probe_session", &programs.probe_session)?);
    }
    Ok(held)
}

impl LoadedProgram {
    /// As [`misses`], for this program.
    ///
    /// # Errors
    /// As [`misses`].
    pub fn misses(&self) -> io::Result<u64> {
        misses(self.program.as_fd())
    }
}

/// The number of hits for which the kernel did not run the program because it was already running on that CPU:
/// `recursion_misses`, which is counted whether or not statistics are enabled (`kernel.bpf_stats_enabled`).
///
/// # Errors
/// If /proc is not mounted, or the kernel does not report it (before 5.12).
pub fn misses(program: BorrowedFd<'_>) -> io::Result<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd()))?;
    info.lines()
        .find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::other("the kernel does not report recursion_misses"))
}
