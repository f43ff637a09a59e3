//! Maps and links that outlive the exporter, each by its name in a directory.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use libbpf_rs::{MapCore, MapHandle, MapType};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::document::{DOCUMENT, load, save};
use super::tree::{names, remove_tree};
use super::{PinError, failed};

/// A directory of pinned maps and links, or none: then nothing in it outlives the exporter.
#[derive(Debug, Clone, Default)]
pub struct PinDir {
    path: Option<PathBuf>,
    /// The exporter is exiting, and pinned objects stay.
    is_kept: Arc<AtomicBool>,
}

/// Unpins the object when it is dropped, unless the exporter is exiting.
#[derive(Debug, Default)]
pub struct Pin {
    path: Option<PathBuf>,
    is_kept: Arc<AtomicBool>,
}

/// How a map is created, and what a map must be like to be taken over.
#[derive(Debug, Clone, Copy)]
pub struct MapSpec<'a> {
    pub kind: MapType,
    /// Its name in the kernel; programs that use the map must use the same.
    pub name: &'a str,
    /// Size of a key in bytes.
    pub key: usize,
    /// Size of a value in bytes.
    pub value: usize,
    pub entries: usize,
    pub flags: u32,
    /// For a map of maps: an example of its inner maps.
    pub inner: Option<BorrowedFd<'a>>,
}

impl MapSpec<'_> {
    /// Creates a map that is not pinned.
    ///
    /// # Errors
    /// If the kernel refuses: not permitted, or out of memory.
    pub fn create(&self) -> libbpf_rs::Result<MapHandle> {
        let opts = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
            map_flags: self.flags,
            inner_map_fd: self.inner.map_or(0, |inner| inner.as_raw_fd() as u32),
            ..Default::default()
        };
        let [key, value, entries] = [self.key, self.value, self.entries].map(|number| number as u32);
        MapHandle::create(self.kind, Some(self.name), key, value, entries, &opts)
    }

    /// Opens the map that is pinned at the path, or creates and pins it.
    ///
    /// # Errors
    /// If the existing map has a different kind or size, or the kernel refuses.
    pub(super) fn at(&self, path: &Path) -> libbpf_rs::Result<MapHandle> {
        if path.symlink_metadata().is_err() {
            let mut map = self.create()?;
            map.pin(path)?;
            return Ok(map);
        }
        let map = MapHandle::from_pinned_path(path)?;
        let found = [map.key_size(), map.value_size(), map.max_entries()].map(|number| number as usize);
        if map.map_type() != self.kind || found != [self.key, self.value, self.entries] {
            let reason = format!("{} is a map of another kind or size", path.display());
            return Err(io::Error::other(reason).into());
        }
        Ok(map)
    }
}

impl PinDir {
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path: Some(path), is_kept: Arc::default() }
    }

    /// The path of this name, if it outlives the exporter.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.path.as_ref().map(|path| path.join(name))
    }

    /// The name of the directory.
    pub fn name(&self) -> String {
        let name = self.path.as_deref().and_then(Path::file_name).unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Whether anything in it outlives the exporter.
    pub fn is_pinned(&self) -> bool {
        self.path.is_some()
    }

    /// Names of the directory's entries.
    pub fn names(&self) -> Vec<String> {
        self.path.as_deref().map(names).unwrap_or_default()
    }

    /// Opens a subdirectory, and creates it if necessary.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn child(&self, name: &str) -> Result<Self, PinError> {
        let path = self.path(name);
        if let Some(path) = &path {
            fs::DirBuilder::new().mode(0o700).recursive(true).create(path).map_err(failed("make", path))?;
        }
        Ok(Self { path, is_kept: self.is_kept.clone() })
    }

    /// The map of this name: an earlier exporter's, or a new one.
    ///
    /// # Errors
    /// If an earlier exporter's map has a different kind or size, or the kernel refuses.
    pub fn map(&self, name: &str, spec: &MapSpec<'_>) -> libbpf_rs::Result<MapHandle> {
        self.path(name).map_or_else(|| spec.create(), |path| spec.at(&path))
    }

    /// Returns a guard that removes this name when it is dropped.
    pub fn pin(&self, name: &str) -> Pin {
        Pin { path: self.path(name), is_kept: self.is_kept.clone() }
    }

    /// From now on pinned objects stay: the exporter is exiting.
    pub fn keep(&self) {
        self.is_kept.store(true, Ordering::Relaxed);
    }

    /// Whether its content must stay.
    pub fn is_kept(&self) -> bool {
        self.path.is_some() && self.is_kept.load(Ordering::Relaxed)
    }

    /// Removes this name, or a directory with its content, if it exists.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), PinError> {
        let Some(path) = self.path(name) else { return Ok(()) };
        match path.symlink_metadata() {
            Err(_) => Ok(()),
            Ok(about) if about.is_dir() => remove_tree(&path),
            Ok(_) => fs::remove_file(&path).map_err(failed("remove", path)),
        }
    }

    /// Removes all entries.
    ///
    /// # Errors
    /// If an entry cannot be removed.
    pub fn clear(&self) -> Result<(), PinError> {
        self.names().iter().try_for_each(|name| self.remove(name))
    }

    /// Reads the document that describes the content; `None` if there is none.
    ///
    /// # Errors
    /// If something else is in its place, or it cannot be decoded.
    pub fn load<T: DeserializeOwned>(&self) -> Result<Option<T>, PinError> {
        self.path(DOCUMENT).map_or(Ok(None), |path| load(&path))
    }

    /// Writes the document.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn save<T: Serialize>(&self, state: &T) -> Result<(), PinError> {
        self.path(DOCUMENT).map_or(Ok(()), |path| save(&path, state))
    }
}

impl Pin {
    /// Whether the object stays.
    pub fn is_kept(&self) -> bool {
        self.path.is_some() && self.is_kept.load(Ordering::Relaxed)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && !self.is_kept()
            && let Err(err) = fs::remove_file(path)
            && err.kind() != io::ErrorKind::NotFound
        {
            log::warn!("failed to remove {}: {err}", path.display());
        }
    }
}
