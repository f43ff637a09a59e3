//! The record of an engine's attached probes.

use serde::{Deserialize, Serialize};

use super::file::{Identity, Stamp};
use super::probe_state::ProbeState;
use super::status::SavedCounts;
use crate::elf::Semaphore;
use crate::kernel::{Pinning, Shape};
use crate::plan::SavedPlan;
use crate::unusable::UnusableSite;

/// An engine, as the next exporter needs to know it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct EngineRecord {
    pub plan: SavedPlan,
    pub shape: Shape,
    /// See [`crate::layout::Layout::fingerprint`].
    pub layout: String,
    #[serde(flatten)]
    pub(super) changing: Changing,
}

/// What changes while an engine runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Changing {
    /// By target.
    pub files: Vec<Vec<(Role, Record)>>,
    pub memory: SavedCounts,
}

/// The role of a file for its target.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) enum Role {
    Current,
    Replaced,
    WithoutProbes,
    Candidate,
}

/// The state in which an engine starts.
#[derive(Debug, Default)]
pub(crate) struct StartState {
    pub pinning: Option<Pinning>,
    /// The record of a previous exporter.
    pub record: Option<EngineRecord>,
}

/// The record of a file that stays attached when the exporter ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub display: String,
    pub identity: Identity,
    pub stamp: Stamp,
    pub probes: Vec<ProbeRecord>,
    pub links: Vec<(usize, String)>,
    pub cookies: Vec<(usize, u32)>,
    pub shared_semaphores: Vec<(u64, Semaphore)>,
    #[serde(default)]
    pub originals: Vec<(u64, u8)>,
    #[serde(default)]
    pub semaphores: Vec<(u64, u64)>,
    #[serde(default)]
    pub span: u64,
    pub unread: bool,
    pub attached_at: u64,
    /// Whether another file has replaced it, if no selected process runs it.
    pub unused: Option<bool>,
    /// For a candidate: the path that it stays attached for.
    #[serde(default)]
    pub ahead: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ProbeRecord {
    pub probe: usize,
    pub state: ProbeState,
    pub sites: usize,
    pub unsigned: u32,
    pub unusable: Vec<UnusableSite>,
    pub open: Vec<(u64, bool)>,
}

/// Changes, cheaply computed, when files, links or failed sites change.
pub(super) type Signature = Vec<(usize, usize, usize, u64)>;
