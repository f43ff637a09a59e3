//! One process, and what selectors go by.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::membership::Membership;
use crate::selectors::ProcessFacts;
use crate::targets::file::{Identity, TargetFile};
use crate::targets::libraries::Library;

/// A process, and what selectors go by.
#[derive(Debug, Clone)]
pub struct Process {
    pub pid: u32,
    /// Of the leader; the kernel cuts it after 15 bytes.
    pub(super) comm: String,
    /// Base name of what it runs; None for a thread of the kernel.
    pub(super) exe: Option<String>,
    /// If somebody asks for it.
    pub(super) cmdline: String,
    /// Targets of which a process that is meant has started it.
    pub(super) families: BTreeSet<usize>,
    /// The right to see what it runs is missing.
    pub(super) is_hidden: bool,
    pub(super) membership: Arc<Membership>,
    /// What it runs, once that was looked up.
    pub file: Option<TargetFile>,
    /// All that it maps, if what it runs cannot be reached by any path.
    pub copied_up: Option<Vec<Identity>>,
    /// Files with probes that it has loaded, once they were looked up.
    pub libraries: Option<Vec<Library>>,
}

impl Process {
    pub(super) fn is_called(&self, name: &str) -> bool {
        self.facts().names().any(|called| called == name)
    }

    pub(super) fn facts(&self) -> ProcessFacts<'_> {
        ProcessFacts {
            pid: self.pid,
            comm: &self.comm,
            exe: self.exe.as_deref(),
            cmdline: &self.cmdline,
            belongs: &self.membership.new,
        }
    }
}
