//! Memory of the exporter that outlives it: what it computes from events, and the names behind its numbers.

use std::error::Error;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicU64;

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};

use super::{EnginePins, MapSpec, PinError};
use crate::mapping::Mapped;
use crate::store::{KeptName, NameStore};

/// Bytes of a name that are kept; longer names are truncated.
const NAME_BYTES: usize = 1016;

const KEY_BYTES: usize = 8;
const VALUE_BYTES: usize = 8 + NAME_BYTES;

/// Names by interner and number.
#[derive(Debug)]
pub struct PinnedNames(MapHandle);

impl EnginePins {
    /// Maps this many numbers in persistent memory, initially zero, and room for this many names.
    ///
    /// # Errors
    /// If the kernel refuses, or the existing memory has a different size.
    pub fn memory(&self, numbers: usize, names: usize) -> Result<(Mapped<AtomicU64>, PinnedNames), PinError> {
        let path = self.map("user_slots");
        let failed =
            |err: Box<dyn Error + Send + Sync>| PinError::new(format!("use {}", path.display()), err, "");
        let entries = u32::try_from(numbers.max(1)).map_err(|err| failed(err.into()))?;
        let slots = MapSpec {
            kind: MapType::Array,
            name: "exporter_user",
            key: 4,
            value: 8,
            entries: entries as usize,
            flags: libbpf_sys::BPF_F_MMAPABLE,
            inner: None,
        };
        let map = slots.at(&path).map_err(|err| failed(err.into()))?;
        let memory = Mapped::new(map.as_fd(), entries as usize).map_err(|err| failed(err.into()))?;
        let entries = u32::try_from(names.max(1)).map_err(|err| failed(err.into()))?;
        let names = MapSpec {
            kind: MapType::Hash,
            key: KEY_BYTES,
            value: VALUE_BYTES,
            entries: entries as usize,
            flags: libbpf_sys::BPF_F_NO_PREALLOC,
            ..slots
        };
        let names = names.at(&self.map("user_names")).map_err(|err| failed(err.into()))?;
        Ok((memory, PinnedNames(names)))
    }
}

fn key(interner: u32, number: u32) -> [u8; KEY_BYTES] {
    (u64::from(interner) << 32 | u64::from(number)).to_ne_bytes()
}

impl NameStore for PinnedNames {
    fn keep(&self, interner: u32, number: u32, name: &[u8]) {
        let kept = &name[..name.len().min(NAME_BYTES)];
        let mut value = (kept.len() as u64).to_ne_bytes().to_vec();
        value.extend(kept);
        value.resize(VALUE_BYTES, 0);
        if let Err(err) = self.0.update(&key(interner, number), &value, MapFlags::ANY) {
            log::debug!("failed to keep a name: {err}");
        }
    }

    fn forget(&self, interner: u32, number: u32) {
        let _ = self.0.delete(&key(interner, number));
    }

    fn all(&self) -> Vec<KeptName> {
        let read = |key: Vec<u8>| {
            let at = u64::from_ne_bytes(*key.first_chunk()?);
            let value = self.0.lookup(&key, MapFlags::ANY).ok()??;
            let length = u64::from_ne_bytes(*value.first_chunk()?) as usize;
            let name = value.get(8..)?.get(..length)?.into();
            Some(KeptName { interner: (at >> 32) as u32, number: at as u32, name })
        };
        self.0.keys().filter_map(read).collect()
    }
}
