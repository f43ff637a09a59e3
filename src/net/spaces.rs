//! Network namespaces by name or container.

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::containers::{Containers, is_in_container};
use crate::procfs::processes;

use super::config::Space;

/// A network namespace, told from others while it is open.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub file: File,
    path: PathBuf,
    identity: (u64, u64),
}

/// Why there is no such namespace, in words that follow its name.
#[derive(Debug)]
pub(crate) enum SpaceError {
    NoContainer,
    Open { path: PathBuf, source: io::Error },
}

impl fmt::Display for SpaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoContainer => f.write_str("no process runs in a container with this name or id"),
            Self::Open { path, source } => write!(f, "failed to open {}: {source}", path.display()),
        }
    }
}

impl Error for SpaceError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::NoContainer => None,
            Self::Open { source, .. } => Some(source),
        }
    }
}

impl Namespace {
    /// That of the calling thread.
    ///
    /// # Errors
    /// Without `/proc`.
    pub fn own() -> io::Result<Self> {
        Self::at("/proc/thread-self/ns/net".into())
    }

    /// The one that is meant.
    ///
    /// # Errors
    /// If there is none (yet), or it cannot be opened.
    pub fn find(space: &Space) -> Result<Self, SpaceError> {
        let path = match space {
            Space::Own => PathBuf::from("/proc/thread-self/ns/net"),
            Space::Netns(name) if name.starts_with('/') => PathBuf::from(name),
            Space::Netns(name) => Path::new("/run/netns").join(name),
            Space::Container(name) => {
                let pid = process_of(name).ok_or(SpaceError::NoContainer)?;
                PathBuf::from(format!("/proc/{pid}/ns/net"))
            }
        };
        Self::at(path.clone()).map_err(|source| SpaceError::Open { path, source })
    }

    fn at(path: PathBuf) -> io::Result<Self> {
        let file = File::open(&path)?;
        let identity = identity(&file.metadata()?);
        Ok(Self { file, path, identity })
    }

    /// Whether it is still found where it was found. What is held open is not gone, but nobody else has it.
    pub fn is_there(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity)
    }

    pub fn is_same(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

fn identity(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Any process of a container.
fn process_of(name: &str) -> Option<u32> {
    let id = Containers::default().id(name).unwrap_or_else(|| name.to_string());
    processes().find(|pid| is_in_container(*pid, &id))
}
