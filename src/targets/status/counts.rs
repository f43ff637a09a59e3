//! What is counted and measured of targets.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Counts about targets.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TargetCounts {
    /// Number of full scans of /proc.
    pub walks: u64,
    /// Descendants of selected processes that did not fit into the kernel's table.
    pub lost_children: u64,
    /// Reports of what processes did that found no room.
    #[serde(default)]
    pub lost_events: u64,
    /// By target: files that were attached in place of another, by [`Reattached`].
    pub reattached: Vec<[u64; 2]>,
    /// By target: mappings of its files by processes that do not execute them, by [`Foreign`].
    #[serde(default)]
    pub foreign: Vec<[u64; 2]>,
    /// By target: how long processes ran before their file was attached.
    pub unprobed: Vec<Duration>,
    /// Breakpoints that processes discarded with pages of their code.
    #[serde(default)]
    pub thrown_away: Vec<u64>,
    /// By target.
    pub usage: Vec<Usage>,
}

/// Measurements of a target's processes while they hit its probes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Seconds of CPU time.
    pub cpu: f64,
    /// Seconds of it that tracing took.
    pub tracing: f64,
    /// The recent share of tracing; None if unknown, as for processes that end at once.
    pub share: Option<f64>,
    /// It may be too high: processes have ended whose last moments were not measured.
    #[serde(default)]
    pub is_doubtful: bool,
}

/// Why a target's file was attached again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reattached {
    /// Another file has its name.
    Replaced,
    /// It was overwritten in place.
    Written,
}

impl Reattached {
    /// Each with its label value.
    pub const ALL: [(Self, &'static str); 2] = [(Self::Replaced, "replaced"), (Self::Written, "written")];
}

/// Why a process maps a traced file, other than to execute it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// To read it, for example to copy it.
    Read,
    /// To translate its code.
    Translated,
}

impl Foreign {
    /// Each with its label value.
    pub const ALL: [(Self, &'static str); 2] = [(Self::Read, "read"), (Self::Translated, "translated")];
}

/// The kernel's tick: a pair of jiffies and time, and the number of jiffies per second.
#[derive(Debug, Clone, Copy)]
pub struct Ticks {
    pub jiffies: u64,
    /// Seconds since 1970.
    pub unix: f64,
    pub hz: f64,
}
