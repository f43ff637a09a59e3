//! Network namespaces by name or container.

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::containers::{Containers, is_in_container};
use crate::procfs::processes;

use super::config::Space;
use super::sys::enter;

/// An open network namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub file: File,
    path: PathBuf,
    identity: (u64, u64),
}

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

impl Namespace {
    /// The calling thread's.
    ///
    /// # Errors
    /// Without `/proc`.
    pub fn own() -> io::Result<Self> {
        Self::at("/proc/thread-self/ns/net".into())
    }

    /// Opens a namespace.
    ///
    /// # Errors
    /// If it does not exist (yet), or cannot be opened.
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

    /// Whether the name still leads to it. A namespace held open exists, but may be used by nobody else.
    pub fn is_there(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity)
    }

    pub fn is_same(&self, other: &Self) -> bool {
        self.identity == other.identity
    }

    /// Calls a function in it, on a thread that ends with the call: no thread of the caller's could be left behind.
    ///
    /// # Errors
    /// If the kernel starts no thread, or without CAP_SYS_ADMIN.
    pub fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let inside = std::thread::Builder::new().name("namespace".to_string());
            let inside = inside.spawn_scoped(scope, || enter(self.file.as_fd()).map(|()| job()))?;
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The root directory of the process through which it was found, if any: what is below it is not to be trusted.
    pub fn root(&self) -> Option<PathBuf> {
        let process = self.path.to_str()?.strip_suffix("/ns/net")?;
        Some(Path::new(process).join("root"))
    }

    /// Where `ip netns exec` has the files of `/etc` for this namespace.
    pub fn own_etc(&self) -> PathBuf {
        Path::new("/etc/netns").join(self.path.file_name().unwrap_or_default())
    }
}

fn identity(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// A process of the container.
fn process_of(name: &str) -> Option<u32> {
    let id = Containers::default().id(name).unwrap_or_else(|| name.to_string());
    processes().find(|pid| is_in_container(*pid, &id))
}
