//! What has become of a probe.

use serde::{Deserialize, Serialize};

use crate::plan::TargetPlan;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeState {
    /// It cannot be attached yet.
    Waiting(String),
    /// The target's file or process does not exist.
    Missing(String),
    /// The same, for a target that is optional.
    NotRunning(String),
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

    /// The state as it is shown for a probe of this target. A reload can change whether a target is optional without
    /// attaching anything again.
    #[must_use]
    pub fn shown_for(self, target: &TargetPlan) -> Self {
        match self {
            ProbeState::Missing(reason) if target.optional => ProbeState::NotRunning(reason),
            state => state,
        }
    }

    /// The label value.
    pub fn word(&self) -> &'static str {
        match self {
            ProbeState::Waiting(_) | ProbeState::Missing(_) => "waiting",
            ProbeState::NotRunning(_) => "not_running",
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
            | ProbeState::Missing(reason)
            | ProbeState::NotRunning(reason)
            | ProbeState::Absent(reason)
            | ProbeState::Refused(reason)
            | ProbeState::Shed(reason)
            | ProbeState::Partly(reason) => reason,
            ProbeState::Attached => "",
        }
    }
}
