//! Identifies a file and its contents.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::kernel::Inode;
use crate::regular;

/// A file to attach to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetFile {
    /// A path that opens it now.
    pub path: PathBuf,
    /// For messages.
    pub display: String,
    pub identity: Identity,
    /// Device and inode according to stat(2) at the path.
    pub(super) key: (u64, u64),
    pub stamp: Stamp,
    /// It is loaded by a selected process, and is not its executable: only its USDT probes are considered.
    pub is_library: bool,
    /// It lies beside the target's file, and may replace it.
    pub is_candidate: bool,
}

impl TargetFile {
    /// Opens it.
    ///
    /// # Errors
    /// From the kernel, or if the path leads to another file by now: a process has executed another program, or a file
    /// was replaced. Attaching to that one under this one's identity would attach it a second time under its own.
    pub fn open(&self) -> io::Result<File> {
        let file = regular::open(&self.path)?;
        if key(&file.metadata()?) == self.key {
            Ok(file)
        } else {
            Err(io::Error::other("the file was replaced meanwhile"))
        }
    }

    /// Whether the process that ran it has ended or executes another program, and with it the only path to it is gone.
    pub fn is_gone(&self) -> bool {
        match regular::open(&self.path).and_then(|file| file.metadata()) {
            Ok(meta) => key(&meta) != self.key && self.path.starts_with("/proc"),
            Err(err) => err.kind() == io::ErrorKind::NotFound,
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// Those of [`TargetFile::open`], and of reading.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        regular::read_all(&self.open()?)
    }
}

pub(super) fn key(meta: &fs::Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// Identifies the file whatever its path: probes are attached to this.
pub type Identity = Inode;

/// Identifies the file's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// Of the inode: it also changes with chmod, which on overlayfs can turn it into another file.
    changed: (i64, i64),
    bytes: u64,
}

impl Stamp {
    /// The file's size.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it was written in between. Other changes of the inode, such as chmod, write nothing.
    pub(super) fn has_other_contents(self, before: Self) -> bool {
        (self.modified, self.bytes) != (before.modified, before.bytes)
    }

    pub(super) fn of(meta: &fs::Metadata) -> Self {
        Self {
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            bytes: meta.len(),
        }
    }
}

/// A process whose executable cannot be reached by any path.
#[derive(Debug)]
pub struct CopiedUp {
    pub pid: u32,
    pub display: String,
    /// All files that it maps.
    pub maps: Vec<Identity>,
}
