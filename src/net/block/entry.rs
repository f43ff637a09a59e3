//! Entries of the blocklist as they are requested, rejected and shown.

use std::fmt;

use super::super::cidr::Prefix;
use super::config::{BlockDirection, BlockScope};

/// Why the list was not changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockError {
    /// It is not listed.
    Absent(Prefix),
    /// It is listed by another source, which is named.
    Elsewhere(Prefix, String),
    /// It is protected, for the reason given.
    Protected(Prefix, String),
    /// It is blocked already, without a pending confirmation.
    Settled(Prefix),
    /// The number of entries added at run time is at its limit.
    Full(usize),
    /// The kernel refused.
    Kernel(String),
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(prefix) => write!(f, "{prefix} is not in the blocklist"),
            Self::Elsewhere(prefix, place) => {
                write!(f, "{prefix} is listed in {place}; remove it there, or list it in network.block.allow")
            }
            Self::Protected(prefix, why) => write!(f, "{prefix} is never dropped: {why}"),
            Self::Settled(prefix) => write!(
                f,
                "{prefix} is blocked already, so there is nothing to confirm; unblock it first, or leave out the confirmation"
            ),
            Self::Full(most) => write!(
                f,
                "{most} entries were added at run time, the most there can be; unblock some, or list them in a file of \
                 network.block.files"
            ),
            Self::Kernel(error) => write!(f, "the kernel refused the change: {error}"),
        }
    }
}

impl std::error::Error for BlockError {}

/// Who added an entry at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// A client of the HTTP API.
    Api,
    /// A command on this machine.
    Command,
    /// The exporter's own detection.
    Detection,
}

impl Asker {
    pub const ALL: [Self; 3] = [Self::Api, Self::Command, Self::Detection];

    /// The word used in output.
    pub fn word(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Command => "command",
            Self::Detection => "detection",
        }
    }
}

/// Where entries come from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// `config`, the word of an [`Asker`], the path of a file, a URL, or `crowdsec`.
    pub name: String,
    /// For CrowdSec: the origin of its decision.
    pub origin: Option<String>,
}

impl Source {
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), origin: None }
    }

    /// As labels.
    pub fn labels(&self) -> Vec<(&'static str, &str)> {
        let origin = self.origin.as_deref().map(|origin| ("origin", origin));
        [("source", self.name.as_str())].into_iter().chain(origin).collect()
    }
}

/// The outcome of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// Whether it was not listed before.
    pub is_new: bool,
    /// Addresses within the prefix that are protected, and why.
    pub except: Vec<(Prefix, String)>,
}

/// An entry for display. Times are in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockRow {
    pub prefix: Prefix,
    pub source: Source,
    pub reason: String,
    pub direction: BlockDirection,
    pub scope: Option<BlockScope>,
    /// The remaining time.
    pub expires_in: Option<f64>,
    /// Whether it expires unless it is confirmed.
    pub is_unconfirmed: bool,
    pub packets: u64,
    pub bytes: u64,
    /// The time since the last packet.
    pub last_seen: Option<f64>,
}
