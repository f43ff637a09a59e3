//! The state directory: its owner, its user, and its content.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::dir::PinDir;
use super::document::{DOCUMENT, load};
use super::tree::{names, remove_files, remove_tree};
use super::{PinError, failed};

/// The type of a BPF file system in statfs(2).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// The directory of pinned packet counters.
const NETWORK: &str = "network";

/// The subdirectories of an engine's directory.
const MAPS: &str = "maps";
const LINKS: &str = "links";

/// The directory of one exporter, which no other one can use while this is held.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    dir: PinDir,
    _lock: File,
}

impl StateDirectory {
    /// Opens the directory, and creates it if necessary.
    ///
    /// # Errors
    /// If it is not on a BPF file system, is accessible to other users, or another exporter uses it.
    pub fn open(path: &Path) -> Result<Self, PinError> {
        check_place(path)?;
        let what = || format!("use {} for `state: pinned`", path.display());
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(err) if err.kind() != io::ErrorKind::AlreadyExists => {
                let next = "make it writable for this user, or make the directory beforehand as this user's own \
                            (`install -d -m 700 -o USER`)";
                return Err(PinError::new(what(), err, next));
            }
            _ => {}
        }
        let about = fs::symlink_metadata(path).map_err(failed("look at", path))?;
        let user = rustix::process::geteuid().as_raw();
        if !about.is_dir() || about.uid() != user || about.mode() & 0o077 != 0 {
            let reason = format!(
                "it must be a directory of user {user} with mode 0700, and is one of user {} with mode {:04o}",
                about.uid(),
                about.mode() & 0o7777
            );
            let next = "another user's state is not taken over: remove it with `exporter unpin` as root, or set \
                        `state_directory` to another path";
            return Err(PinError::new(what(), reason, next));
        }
        let lock = File::open(path).map_err(failed("open", path))?;
        let opened = lock.metadata().map_err(failed("look at", path))?;
        if (opened.dev(), opened.ino()) != (about.dev(), about.ino()) {
            return Err(PinError::new(what(), "it was replaced meanwhile", "start again"));
        }
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let next = "stop it, or give this one another `state_directory` or `metrics_port`";
            return Err(PinError::new(what(), "another exporter uses it", next));
        }
        Ok(Self { path: path.to_path_buf(), dir: PinDir::at(path.to_path_buf()), _lock: lock })
    }

    /// The path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its content; its document describes all engines.
    pub fn dir(&self) -> &PinDir {
        &self.dir
    }

    /// Where packet counters are pinned.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn network(&self) -> Result<PinDir, PinError> {
        self.dir.child(NETWORK)
    }

    /// The engine of this name.
    pub fn engine(&self, name: &str) -> EnginePins {
        EnginePins::of(self.path.join(name))
    }

    /// Whether any engine is in it, of this exporter or an earlier one.
    pub fn has_engines(&self) -> bool {
        self.dir.names().iter().any(|name| name.parse::<u32>().is_ok())
    }

    /// Creates a new engine.
    ///
    /// # Errors
    /// If its directories cannot be created.
    pub fn new_engine(&self) -> Result<EnginePins, PinError> {
        let taken: BTreeSet<u32> = self.dir.names().iter().filter_map(|name| name.parse().ok()).collect();
        let number = taken.last().map_or(0, |last| last + 1);
        let directory = self.dir.child(&number.to_string())?;
        directory.child(MAPS)?;
        directory.child(LINKS)?;
        Ok(self.engine(&number.to_string()))
    }

    /// Removes all engines but these, and, if the list is empty, the document too. Their probes are detached.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn remove_but(&self, kept: &[String]) -> Result<(), PinError> {
        if kept.is_empty() {
            self.dir.remove(DOCUMENT)?;
        }
        for name in self.dir.names() {
            if name.parse::<u32>().is_ok() && !kept.contains(&name) {
                self.dir.remove(&name)?;
            }
        }
        Ok(())
    }
}

/// Where one engine's maps and links are.
#[derive(Debug)]
pub struct EnginePins {
    directory: PathBuf,
    dir: PinDir,
    next: AtomicU32,
    /// Whether it must not outlive the exporter.
    is_over: AtomicBool,
}

impl EnginePins {
    fn of(directory: PathBuf) -> Self {
        let links = names(&directory.join(LINKS));
        let last = links.iter().filter_map(|name| name.parse::<u32>().ok()).max();
        Self {
            dir: PinDir::at(directory.clone()),
            directory,
            next: AtomicU32::new(last.map_or(0, |last| last + 1)),
            is_over: AtomicBool::new(false),
        }
    }

    /// Its content; its document describes this engine.
    pub fn dir(&self) -> &PinDir {
        &self.dir
    }

    /// The path of the map of this name.
    pub fn map(&self, name: &str) -> PathBuf {
        self.directory.join(MAPS).join(name)
    }

    /// The path of the link of this name.
    pub fn link(&self, name: &str) -> PathBuf {
        self.directory.join(LINKS).join(name)
    }

    /// Returns an unused name for a link.
    pub fn new_link(&self) -> String {
        self.next.fetch_add(1, Ordering::Relaxed).to_string()
    }

    /// Removes the numbered links with none of these names, which an exporter left that was killed before it recorded
    /// them.
    pub fn remove_links_but(&self, kept: &BTreeSet<String>) {
        let directory = self.directory.join(LINKS);
        let gone = |name: &String| name.parse::<u32>().is_ok() && !kept.contains(name);
        remove_files(names(&directory).into_iter().filter(gone).map(|name| directory.join(name)).collect());
    }

    /// From now on it must not outlive the exporter.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Removes it.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn remove(&self) -> Result<(), PinError> {
        remove_tree(&self.directory)
    }
}

/// Removes all state in the directory, and the directory: everything that it keeps attached is detached. `detach` is
/// called for the network's state first, for what removing it does not detach.
///
/// # Errors
/// If an exporter uses the directory, or it is not a state directory.
pub fn remove_all(path: &Path, detach: impl FnOnce(&PinDir)) -> Result<(), PinError> {
    let what = || format!("remove the pinned state in {}", path.display());
    let about = fs::symlink_metadata(path).map_err(failed("look at", path))?;
    let system = rustix::fs::statfs(path).map_err(io::Error::from).map_err(failed("look at", path))?;
    if !about.is_dir() || system.f_type as i64 != BPF_FS_MAGIC {
        return Err(PinError::new(what(), "it is not a directory on a BPF file system", ""));
    }
    let is_ours =
        |name: &String| name.starts_with(DOCUMENT) || name == NETWORK || name.parse::<u32>().is_ok();
    if let Some(other) = names(path).into_iter().find(|name| !is_ours(name)) {
        return Err(PinError::new(what(), format!("{other} in it is not an exporter's"), "check the path"));
    }
    let lock = File::open(path).map_err(failed("open", path))?;
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(PinError::new(what(), "a running exporter uses it", "stop that one first"));
    }
    detach(&PinDir::at(path.join(NETWORK)));
    remove_tree(path)
}

/// The exporter that has written the rest of a document, and whether it is compatible.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VersionStamp {
    pub version: String,
    pub abi: String,
}

impl VersionStamp {
    /// The stamp of this version.
    pub fn this() -> Self {
        Self { version: env!("CARGO_PKG_VERSION").to_string(), abi: super::abi() }
    }
}

/// A description of the directory's content for people.
pub fn describe(path: &Path) -> String {
    let shown = path.display();
    if !path.exists() {
        return format!("{shown}: nothing yet");
    }
    let is_used = || {
        let locked = File::open(path)
            .map(|lock| rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err());
        locked.unwrap_or(false)
    };
    let used = if is_used() { "in use by a running exporter" } else { "no exporter runs" };
    match load::<VersionStamp>(&path.join(DOCUMENT)) {
        Err(err) => format!("{shown}: {used}; {err}"),
        Ok(None) => format!("{shown}: {used}; nothing to take over"),
        Ok(Some(stamp)) if stamp.abi != super::abi() => {
            format!("{shown}: {used}; of version {}, which this one cannot take over", stamp.version)
        }
        Ok(Some(stamp)) => format!("{shown}: {used}; of version {}", stamp.version),
    }
}

/// Checks that a state directory may be at this path.
///
/// # Errors
/// If it is not on a BPF file system.
pub fn check_place(path: &Path) -> Result<(), PinError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let system = match rustix::fs::statfs(parent).map_err(io::Error::from) {
        // It is checked again with sufficient permissions.
        Err(err) if err.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
        system => system.map_err(failed("use", parent))?,
    };
    if system.f_type as i64 == BPF_FS_MAGIC {
        return Ok(());
    }
    Err(PinError::new(
        format!("use {} for `state: pinned`", path.display()),
        format!("{} is not on a BPF file system", parent.display()),
        "mount one (`mount -t bpf bpf /sys/fs/bpf`), or set `state_directory` to a path on one",
    ))
}

/// Sibling directories that look like another exporter's state and are not in use.
pub fn leftovers(path: &Path) -> Vec<PathBuf> {
    let Some(parent) = path.parent() else { return Vec::new() };
    let is_free = |path: &PathBuf| {
        File::open(path).is_ok_and(|lock| {
            rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
                && !names(path).is_empty()
        })
    };
    let all = names(parent).into_iter().filter(|name| name.starts_with("exporter-"));
    all.map(|name| parent.join(name)).filter(is_free).collect()
}
