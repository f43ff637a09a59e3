//! Maps of the kernel that are shared as memory: cells, dictionaries, the control page, counters of packets.
//!
//! The kernel writes to them while they are read, so they are only ever seen as atomic numbers; a mapping never hands
//! out a reference to a plain structure.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// The memory of one array map, unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    memory: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is not tied to a thread, and is only reached through atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the whole value area of a `BPF_F_MMAPABLE` array of `entries` values of `value_bytes` each.
    ///
    /// # Errors
    /// What mmap(2) refuses, and sizes that do not fit the address space.
    pub fn new(map: BorrowedFd<'_>, entries: usize, value_bytes: usize) -> io::Result<Self> {
        // The kernel rounds each value up to eight bytes, and the whole up to pages (kernel/bpf/arraymap.c).
        let bytes = value_bytes
            .next_multiple_of(8)
            .checked_mul(entries)
            .filter(|bytes| *bytes > 0 && isize::try_from(*bytes).is_ok())
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: a fresh shared mapping at an address of the kernel's choice touches no memory of ours; the result
        // is checked before it is used.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory =
            NonNull::new(memory.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Self { memory, bytes })
    }

    /// The whole mapping as 64-bit numbers.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, `bytes` long, lives as long as `self`, and is only seen as atomics.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.bytes / 8) }
    }

    /// The whole mapping as 32-bit numbers.
    pub fn halves(&self) -> &[AtomicU32] {
        // SAFETY: as for `words`.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.bytes / 4) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the region that `new` mapped; no reference to it outlives `self`.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.bytes) };
    }
}
