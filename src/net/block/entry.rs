//! Entries of the blocklist as they are asked for, refused and shown.

use std::fmt;

use super::super::cidr::Prefix;
use super::config::BlockScope;

/// Why the list is not changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockError {
    /// It is not listed.
    Absent(Prefix),
    /// It is listed elsewhere: where.
    Elsewhere(Prefix, String),
    /// All its packets pass, because of this.
    Protected(Prefix, String),
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
            Self::Kernel(error) => write!(f, "the kernel refused the change: {error}"),
        }
    }
}

impl std::error::Error for BlockError {}

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
    /// `config`, `api`, or the path of a file.
    pub source: String,
    pub reason: String,
    pub scope: Option<BlockScope>,
    /// How long it will hold.
    pub expires_in: Option<f64>,
    pub packets: u64,
    pub bytes: u64,
    /// How long ago the last packet came.
    pub last_seen: Option<f64>,
}
