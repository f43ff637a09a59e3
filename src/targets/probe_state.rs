//! What has become of a probe.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeState {
    /// The target's file or process does not exist yet.
    Waiting(String),
    /// The file has no such probe.
    Absent(String),
    /// It exists but cannot be used, or the kernel rejects it.
    Refused(String),
    /// Attached, but not at all of its sites.
    Partly(String),
    /// Detached for now, because tracing takes too much of the target's time.
    Shed(String),
    Attached,
}

impl ProbeState {
    /// Whether hits are counted, at least at some of its sites.
    pub fn is_attached(&self) -> bool {
        matches!(self, ProbeState::Attached | ProbeState::Partly(_))
    }

    /// The label value.
    pub fn word(&self) -> &'static str {
        match self {
            ProbeState::Waiting(_) => "waiting",
            ProbeState::Absent(_) => "absent",
            ProbeState::Refused(_) => "refused",
            ProbeState::Partly(_) => "partly",
            ProbeState::Shed(_) => "shed",
            ProbeState::Attached => "attached",
        }
    }

    /// Why it is not attached, or not everywhere; empty if it is.
    pub fn reason(&self) -> &str {
        match self {
            ProbeState::Waiting(reason)
            | ProbeState::Absent(reason)
            | ProbeState::Refused(reason)
            | ProbeState::Shed(reason)
            | ProbeState::Partly(reason) => reason,
            ProbeState::Attached => "",
        }
    }
}
