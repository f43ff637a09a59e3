//! An open network namespace.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::sys::enter;

/// An open network namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub file: File,
    path: PathBuf,
    identity: (u64, u64),
}

impl Namespace {
    /// The calling thread's.
    ///
    /// # Errors
    /// Without `/proc`.
    pub fn own() -> io::Result<Self> {
        Self::at("/proc/thread-self/ns/net".into())
    }

    /// Opens that with this path.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn at(path: PathBuf) -> io::Result<Self> {
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
