//! Entries of the blocklist as they are asked for, refused and shown.

use std::fmt;

use super::super::cidr::Prefix;
use super::config::{BlockDirection, BlockScope};

/// Why the list is not changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockError {
    /// It is not listed.
    Absent(Prefix),
    /// It is listed elsewhere: where.
    Elsewhere(Prefix, String),
    /// All its packets pass, because of this.
    Protected(Prefix, String),
    /// It is blocked already, and was not to be confirmed.
    Settled(Prefix),
    /// There are as many entries as there can be at run time.
    Full(usize),
    /// The kernel refuses.
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

/// Who asked for an entry at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// Somebody over HTTP.
    Api,
    /// A command on this machine.
    Command,
    /// What the exporter itself has seen.
    Detection,
}

impl Asker {
    pub const ALL: [Self; 3] = [Self::Api, Self::Command, Self::Detection];

    /// As it is shown.
    pub fn word(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Command => "command",
            Self::Detection => "detection",
        }
    }
}

/// Who lists entries.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// `config`, the word of who asked at run time, the path of a file, a URL, or `crowdsec`.
    pub name: String,
    /// Of CrowdSec's decisions: who has decided.
    pub origin: Option<String>,
}

impl Source {
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), origin: None }
    }

    /// For labels.
    pub fn labels(&self) -> Vec<(&'static str, &str)> {
        let origin = self.origin.as_deref().map(|origin| ("origin", origin));
        [("source", self.name.as_str())].into_iter().chain(origin).collect()
    }
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// Whether it was not listed before.
    pub is_new: bool,
    /// What within the prefix is never dropped, and why.
    pub except: Vec<(Prefix, String)>,
}

/// An entry to show. Times are in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockRow {
    pub prefix: Prefix,
    pub source: Source,
    pub reason: String,
    pub direction: BlockDirection,
    pub scope: Option<BlockScope>,
    /// How long it will hold.
    pub expires_in: Option<f64>,
    /// Whether it goes away unless it is confirmed.
    pub is_unconfirmed: bool,
    pub packets: u64,
    pub bytes: u64,
    /// How long ago the last packet came.
    pub last_seen: Option<f64>,
}
