//! Network namespaces by name or container.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::containers::{Containers, is_in_container};
use crate::procfs::processes;

use super::config::Space;
use super::namespace::Namespace;

/// Why a namespace was not found, as a continuation of its name.
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

/// Opens a namespace.
///
/// # Errors
/// If it does not exist (yet), or cannot be opened.
pub(crate) fn find(space: &Space) -> Result<Namespace, SpaceError> {
    let path = match space {
        Space::Own => PathBuf::from("/proc/thread-self/ns/net"),
        Space::Netns(name) if name.starts_with('/') => PathBuf::from(name),
        Space::Netns(name) => Path::new("/run/netns").join(name),
        Space::Container(name) => {
            let pid = process_of(name).ok_or(SpaceError::NoContainer)?;
            PathBuf::from(format!("/proc/{pid}/ns/net"))
        }
    };
    Namespace::at(path.clone()).map_err(|source| SpaceError::Open { path, source })
}

/// A process of the container.
fn process_of(name: &str) -> Option<u32> {
    let id = Containers::default().id(name).unwrap_or_else(|| name.to_string());
    processes().find(|pid| is_in_container(*pid, &id))
}
