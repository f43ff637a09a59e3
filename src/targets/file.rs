//! A file that probes are set in: which one it is, and which contents it has.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::kernel::Inode;
use crate::regular;

/// A file to set probes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetFile {
    /// A path that opens it now.
    pub path: PathBuf,
    /// For people to read.
    pub display: String,
    pub identity: Identity,
    /// Its device and inode as stat(2) has them where the path leads to it.
    pub(super) key: (u64, u64),
    pub stamp: Stamp,
    /// Loaded by a process that is meant, and not what it runs: only its USDT probes are of interest.
    pub is_library: bool,
    /// It lies beside the target's file, and may take its place.
    pub is_candidate: bool,
}

impl TargetFile {
    /// Opens it.
    ///
    /// # Errors
    /// What the kernel says, or that the path leads to another file by now: a process has executed another program, or a
    /// file was replaced. Probes that went into that one under this one's identity would be set a second time under its own.
    pub fn open(&self) -> io::Result<File> {
        let file = regular::open(&self.path)?;
        if key(&file.metadata()?) == self.key {
            Ok(file)
        } else {
            Err(io::Error::other("the file was replaced meanwhile"))
        }
    }

    /// What is in it.
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

/// Which file it is, whatever it is called: probes are set on this.
pub type Identity = Inode;

/// Which contents it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// Of the inode: it also changes by chmod, which on overlayfs can make another file of it.
    changed: (i64, i64),
    bytes: u64,
}

impl Stamp {
    /// The file's size.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it was written meanwhile; what else changes the inode, as chmod does, writes nothing.
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

/// A process whose executable no path leads to.
#[derive(Debug)]
pub struct CopiedUp {
    pub pid: u32,
    pub display: String,
    /// All that it maps.
    pub maps: Vec<Identity>,
}
