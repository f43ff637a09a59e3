//! Bytes in a pinned map, in place of a file.

use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{PinError, failed};

/// The name of a directory's document.
pub(super) const DOCUMENT: &str = "state";

/// Bytes in one element of the map.
const CHUNK: usize = 1 << 16;

/// The longest document, in bytes.
const MAX_LENGTH: usize = 1 << 26;

/// Reads the document at a path; `None` if there is none.
pub(super) fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, PinError> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    let read = serde_json::from_slice(&bytes);
    read.map(Some).map_err(|err| PinError::new(format!("read {}", path.display()), err, ""))
}

/// Writes the document at a path.
pub(super) fn save<T: Serialize>(path: &Path, state: &T) -> Result<(), PinError> {
    write(path, &encoded(path, state)?)
}

fn encoded<T: Serialize>(path: &Path, state: &T) -> Result<Vec<u8>, PinError> {
    let bytes = serde_json::to_vec(state);
    bytes.map_err(|err| PinError::new(format!("write {}", path.display()), err, ""))
}

/// Replaces the previous document atomically: a reader finds one or the other.
fn write(path: &Path, bytes: &[u8]) -> Result<(), PinError> {
    let failed_to =
        |err: Box<dyn Error + Send + Sync>| PinError::new(format!("write {}", path.display()), err, "");
    let mut all = (bytes.len() as u64).to_le_bytes().to_vec();
    all.extend(bytes);
    if all.len() > MAX_LENGTH {
        return Err(failed_to("it is too long".into()));
    }
    all.resize(all.len().next_multiple_of(CHUNK), 0);
    let pieces = (all.len() / CHUNK) as u32;
    let opts = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
        ..Default::default()
    };
    let map = MapHandle::create(MapType::Array, Some("exporter_state"), 4, CHUNK as u32, pieces, &opts);
    let mut map = map.map_err(|err| failed_to(err.into()))?;
    for (number, piece) in (0u32..).zip(all.chunks(CHUNK)) {
        map.update(&number.to_ne_bytes(), piece, MapFlags::ANY).map_err(|err| failed_to(err.into()))?;
    }
    let mut next = path.as_os_str().to_owned();
    next.push("-next");
    // Left by an exporter that was killed while writing.
    let _ = fs::remove_file(&next);
    map.pin(&next).map_err(|err| failed_to(err.into()))?;
    fs::rename(&next, path).map_err(failed("write", path))
}

/// Reads a document; `None` if there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, PinError> {
    if fs::symlink_metadata(path).is_err_and(|err| err.kind() == io::ErrorKind::NotFound) {
        return Ok(None);
    }
    let failed_to =
        |err: Box<dyn Error + Send + Sync>| PinError::new(format!("read {}", path.display()), err, "");
    let map = MapHandle::from_pinned_path(path).map_err(|err| failed_to(err.into()))?;
    if map.map_type() != MapType::Array || map.value_size() as usize != CHUNK {
        return Err(failed_to("it is not a document of the exporter".into()));
    }
    let mut all = Vec::new();
    for number in 0..map.max_entries().min((MAX_LENGTH / CHUNK) as u32) {
        let piece = map.lookup(&number.to_ne_bytes(), MapFlags::ANY).map_err(|err| failed_to(err.into()))?;
        all.extend(piece.unwrap_or_default());
    }
    let length = all.first_chunk().map_or(0, |length| u64::from_le_bytes(*length)) as usize;
    let bytes = all.get(8..).and_then(|bytes| bytes.get(..length));
    bytes.map(|bytes| Some(bytes.to_vec())).ok_or_else(|| failed_to("it is cut off".into()))
}
