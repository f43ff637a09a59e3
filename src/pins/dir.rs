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
    /// The exporter ends, and what is pinned stays.
    is_kept: Arc<AtomicBool>,
}

/// Removes what is pinned when it is dropped, unless the exporter ends.
#[derive(Debug, Default)]
pub struct Pin {
    path: Option<PathBuf>,
    is_kept: Arc<AtomicBool>,
}

/// How a map is made, and what one that is taken over must be like.
#[derive(Debug, Clone, Copy)]
pub struct MapSpec<'a> {
    pub kind: MapType,
    /// As the kernel knows it; programs that use the map must call it the same.
    pub name: &'a str,
    /// Bytes of a key.
    pub key: usize,
    /// Bytes of a value.
    pub value: usize,
    pub entries: usize,
    pub flags: u32,
    /// Of a map of maps: one like those in it.
    pub inner: Option<BorrowedFd<'a>>,
}

impl MapSpec<'_> {
    /// Makes one that is not pinned.
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

    /// The one that is pinned there; one is made and pinned if there is none.
    ///
    /// # Errors
    /// If the one that is there is of another kind or size, or the kernel refuses.
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

    /// Where something of this name is, if it outlives the exporter.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.path.as_ref().map(|path| path.join(name))
    }

    /// What it is called.
    pub fn name(&self) -> String {
        let name = self.path.as_deref().and_then(Path::file_name).unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Whether anything in it outlives the exporter.
    pub fn is_pinned(&self) -> bool {
        self.path.is_some()
    }

    /// Names of what is in it.
    pub fn names(&self) -> Vec<String> {
        self.path.as_deref().map(names).unwrap_or_default()
    }

    /// A directory in it, which is made if it is not there.
    ///
    /// # Errors
    /// If it cannot be made.
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
    /// If an earlier exporter's is of another kind or size, or the kernel refuses.
    pub fn map(&self, name: &str, spec: &MapSpec<'_>) -> libbpf_rs::Result<MapHandle> {
        self.path(name).map_or_else(|| spec.create(), |path| spec.at(&path))
    }

    /// What removes this name when it is dropped.
    pub fn pin(&self, name: &str) -> Pin {
        Pin { path: self.path(name), is_kept: self.is_kept.clone() }
    }

    /// From now on what is pinned stays: the exporter ends.
    pub fn keep(&self) {
        self.is_kept.store(true, Ordering::Relaxed);
    }

    /// Whether what is in it is to be left as it is.
    pub fn is_kept(&self) -> bool {
        self.path.is_some() && self.is_kept.load(Ordering::Relaxed)
    }

    /// Removes something of this name, or a directory with all that is in it, if it is there.
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

    /// Removes all that is in it.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub fn clear(&self) -> Result<(), PinError> {
        self.names().iter().try_for_each(|name| self.remove(name))
    }

    /// The document about what is in it; `None` if there is none.
    ///
    /// # Errors
    /// If there is something else in its place, or it cannot be understood.
    pub fn load<T: DeserializeOwned>(&self) -> Result<Option<T>, PinError> {
        self.path(DOCUMENT).map_or(Ok(None), |path| load(&path))
    }

    /// Writes that document.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn save<T: Serialize>(&self, state: &T) -> Result<(), PinError> {
        self.path(DOCUMENT).map_or(Ok(()), |path| save(&path, state))
    }
}

impl Pin {
    /// Whether it stays.
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
