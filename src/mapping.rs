//! Mapped memory: maps of the kernel (slots, interners, the control page, packet counters), the code of traced files,
//! and code for trying out probes.
//!
//! The kernel writes to its maps while they are read, so they are only accessed as atomic numbers; a mapping never
//! hands out a reference to a plain structure.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Memory that the kernel writes to at any time, accessed as one type for as long as it is mapped: atomics of different
/// sizes never overlap, as Rust's memory model does not define that.
///
/// # Safety
/// Implemented only for atomic integers, arrays of them, and `repr(C)` structures of these without padding: every bit
/// pattern is a valid value, and everything is changed only atomically.
pub unsafe trait Shared {}

// SAFETY: an atomic integer.
unsafe impl Shared for AtomicU32 {}
// SAFETY: an atomic integer.
unsafe impl Shared for AtomicU64 {}
// SAFETY: there is nothing between the elements of an array.
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}

/// The memory of one array map as a slice of values, unmapped when dropped.
#[derive(Debug)]
pub struct Mapped<T: Shared> {
    memory: NonNull<T>,
    values: usize,
}

// SAFETY: the memory is not tied to a thread, and is only accessed through atomics.
unsafe impl<T: Shared> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Mapped<T> {}

impl<T: Shared> Mapped<T> {
    /// Maps the value area of a `BPF_F_MMAPABLE` array that has this number of values.
    ///
    /// # Errors
    /// If mmap(2) fails, or the size does not fit the address space.
    pub fn new(map: BorrowedFd<'_>, values: usize) -> io::Result<Self> {
        Self::map(values, libc::MAP_SHARED, map.as_raw_fd())
    }

    /// Maps private zeros instead: Miri does not support mapping files.
    #[cfg(test)]
    pub(crate) fn zeros(values: usize) -> Self {
        Self::map(values, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1).unwrap()
    }

    fn map(values: usize, flags: libc::c_int, file: libc::c_int) -> io::Result<Self> {
        // The kernel aligns each of a map's values to eight bytes (kernel/bpf/arraymap.c); smaller ones here are parts
        // of one of its values.
        const { assert!(size_of::<T>().is_multiple_of(8) || size_of::<T>() == 4) };
        let bytes = size_of::<T>()
            .checked_mul(values)
            .filter(|bytes| *bytes > 0 && isize::try_from(*bytes).is_ok())
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: a new mapping at an address chosen by the kernel does not affect existing memory; the result is
        // checked before it is used.
        let memory = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, file, 0)
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory =
            NonNull::new(memory.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Self { memory, values })
    }
}

impl<T: Shared> Deref for Mapped<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping is page-aligned, holds this number of values, lives as long as `self`, and by `Shared`
        // may be accessed as this type, which is the only one that it is ever accessed as.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.values) }
    }
}

impl<T: Shared> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: exactly the region that `map` mapped; no reference to it outlives `self`.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.values * size_of::<T>()) };
    }
}

/// A part of a file, mapped as in a process that runs it, but not executable.
///
/// While it exists, the kernel has a process in which to insert breakpoints, so that it checks each instruction when a
/// probe is attached rather than when a program starts, and the breakpoints can be verified here. The pages that have
/// one are copies, so it should be dropped afterwards.
#[derive(Debug)]
pub struct CodeView {
    memory: NonNull<u8>,
    bytes: usize,
    from: u64,
}

/// Size of a page in bytes, on the only architecture that is supported.
pub const PAGE: u64 = 4096;

impl CodeView {
    /// Maps the pages that contain the bytes from offset `first` to `last` of the file.
    ///
    /// # Errors
    /// If mmap(2) fails.
    pub fn new(file: BorrowedFd<'_>, first: u64, last: u64) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let from = first / PAGE * PAGE;
        let length = last.checked_sub(from).and_then(|length| length.checked_add(1)).ok_or_else(invalid)?;
        let bytes = usize::try_from(length.next_multiple_of(PAGE)).map_err(|_| invalid())?;
        let offset = i64::try_from(from).map_err(|_| invalid())?;
        // SAFETY: a new private mapping at an address chosen by the kernel does not affect existing memory; the result
        // is checked before it is used.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                offset,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or_else(invalid)?;
        Ok(Self { memory, bytes, from })
    }

    /// The byte at this offset, as seen by a process that maps the file. `None` outside the mapping, or if the file has
    /// been truncated: the kernel copies it, because reading it directly would raise SIGBUS.
    pub fn byte(&self, offset: u64) -> Option<u8> {
        let into = usize::try_from(offset.checked_sub(self.from)?).ok().filter(|into| *into < self.bytes)?;
        let mut byte = 0u8;
        let to = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let at = libc::iovec { iov_base: self.memory.as_ptr().wrapping_add(into).cast(), iov_len: 1 };
        let pid = i32::try_from(std::process::id()).ok()?;
        // SAFETY: the kernel writes one byte to `byte`, which outlives the call, and itself checks the address that it
        // reads from.
        let read = unsafe { libc::process_vm_readv(pid, &raw const to, 1, &raw const at, 1, 0) };
        (read == 1).then_some(byte)
    }
}

impl Drop for CodeView {
    fn drop(&mut self) {
        // SAFETY: exactly the region that `new` mapped; no reference to it is ever made.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.bytes) };
    }
}

/// Functions that do nothing, in a private file, to attach probes to.
#[derive(Debug)]
pub struct TestCode {
    /// The file to attach probes to; it is deleted when dropped.
    pub file: File,
    memory: NonNull<u8>,
}

impl TestCode {
    /// Offset of a function whose first instruction the kernel emulates.
    pub const EMULATED: usize = 0;
    /// Offset of a function whose first instruction the kernel single-steps.
    pub const SINGLE_STEPPED: usize = 64;
    /// As the first one, for tracing its return.
    pub const RETURNING: usize = 128;
    /// As the first one, without a probe.
    pub const BARE: usize = 192;

    /// Creates the file, and maps it as a program is mapped.
    ///
    /// # Errors
    /// If memfd_create(2), write(2) or mmap(2) fails.
    pub fn new() -> io::Result<Self> {
        use rustix::fs::{MemfdFlags, memfd_create};
        let make = |flags| memfd_create("exporter-prices", MemfdFlags::CLOEXEC | flags);
        // Before Linux 6.3 there is no such flag, and the file is executable anyway.
        let file = make(MemfdFlags::EXEC).or_else(|_| make(MemfdFlags::empty()))?;
        let mut file = File::from(file);
        file.write_all(&Self::code())?;
        // SAFETY: a new private mapping at an address chosen by the kernel does not affect existing memory; the result
        // is checked before it is used.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE as usize,
                libc::PROT_READ | libc::PROT_EXEC,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { file, memory })
    }

    /// A page of breakpoints that contains the functions.
    fn code() -> Vec<u8> {
        const NOP_RET: [u8; 2] = [0x90, 0xc3];
        /// `xor %eax,%eax; ret`.
        const CLEAR_RET: [u8; 3] = [0x31, 0xc0, 0xc3];
        let mut code = vec![0xcc; PAGE as usize];
        for at in [Self::EMULATED, Self::RETURNING, Self::BARE] {
            code[at..at + NOP_RET.len()].copy_from_slice(&NOP_RET);
        }
        code[Self::SINGLE_STEPPED..Self::SINGLE_STEPPED + CLEAR_RET.len()].copy_from_slice(&CLEAR_RET);
        code
    }

    /// Calls one of the functions.
    ///
    /// # Panics
    /// If there is none at this offset.
    pub fn call(&self, offset: usize) {
        assert!([Self::EMULATED, Self::SINGLE_STEPPED, Self::RETURNING, Self::BARE].contains(&offset));
        let address = self.memory.as_ptr().wrapping_add(offset);
        // SAFETY: at these offsets of the mapping, which lives as long as `self`, is a function of the C calling
        // convention that takes no arguments, returns at once, and changes no register but %eax. The file is not
        // written to afterwards, as it is private. Probes replace an instruction for a moment, and the kernel then
        // executes it.
        let function: extern "C" fn() = unsafe { std::mem::transmute(address) };
        function();
    }
}

impl Drop for TestCode {
    fn drop(&mut self) {
        // SAFETY: exactly the region that `new` mapped; nothing runs in it, since calls borrow `self`.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), PAGE as usize) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};
    use std::os::fd::AsFd;

    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn values_are_distinct_and_shared_between_threads() {
        let mapped = Mapped::<[AtomicU64; 3]>::zeros(4);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for (n, words) in mapped.iter().enumerate() {
                        words[1].fetch_add(n as u64 + 1, Ordering::Relaxed);
                    }
                });
            }
        });
        let seen = mapped.iter().map(|words| [0, 1, 2].map(|at: usize| words[at].load(Ordering::Relaxed)));
        assert_eq!(seen.collect::<Vec<_>>(), [[0, 2, 0], [0, 4, 0], [0, 6, 0], [0, 8, 0]]);
    }

    #[test]
    #[cfg_attr(miri, ignore = "it maps files")]
    fn unmappable_map_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        for values in [0, usize::MAX / 4, usize::MAX] {
            assert!(Mapped::<AtomicU64>::new(file.as_fd(), values).is_err(), "{values}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "it maps files")]
    fn code_view_survives_truncation() {
        let mut file = tempfile::tempfile().unwrap();
        file.seek(SeekFrom::Start(3 * PAGE - 1)).unwrap();
        file.write_all(&[7, 8, 9]).unwrap();
        let view = CodeView::new(file.as_fd(), 2 * PAGE + 5, 3 * PAGE).unwrap();
        assert_eq!((view.byte(3 * PAGE - 1), view.byte(3 * PAGE)), (Some(7), Some(8)));
        assert_eq!(
            (view.byte(2 * PAGE), view.byte(2 * PAGE - 1), view.byte(4 * PAGE)),
            (Some(0), None, None)
        );
        file.set_len(PAGE).unwrap();
        assert_eq!(view.byte(3 * PAGE), None, "the file was cut off");
    }
}
