//! One process, and the attributes that selectors use.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::membership::Membership;
use crate::selectors::ProcessFacts;
use crate::targets::file::{Identity, TargetFile};
use crate::targets::libraries::Library;

/// A process, and the attributes that selectors use.
#[derive(Debug, Clone)]
pub struct Process {
    pub pid: u32,
    /// Of the leader; the kernel truncates it to 15 bytes.
    pub(super) comm: String,
    /// Base name of the executable; None for a kernel thread.
    pub(super) exe: Option<String>,
    /// If any selector uses it.
    pub(super) cmdline: String,
    /// Targets of which it is a descendant.
    pub(super) families: BTreeSet<usize>,
    /// The permission to see its executable is missing.
    pub(super) is_hidden: bool,
    pub(super) membership: Arc<Membership>,
    /// Its executable, once looked up.
    pub file: Option<TargetFile>,
    /// All files that it maps, if its executable cannot be reached by any path.
    pub copied_up: Option<Vec<Identity>>,
    /// The files with probes that it has loaded, once looked up.
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
