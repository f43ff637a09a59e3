//! The two calls that no safe wrapper has: links with attach flags, and the monotonic clock.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Attaches a program to a network interface by a link; closing the descriptor detaches it.
///
/// # Errors
/// The kernel's, unchanged; a link brings no text with it.
pub(crate) fn create_link(
    program: BorrowedFd<'_>,
    ifindex: i32,
    kind: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as _,
        flags,
        ..Default::default()
    };
    // SAFETY: the options outlive the call and say their own size.
    let fd = unsafe { libbpf_sys::bpf_link_create(program.as_raw_fd(), ifindex, kind, &options) };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Nanoseconds of `CLOCK_MONOTONIC_COARSE`, the clock of the tables.
pub(crate) fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to the structure that it is given. It cannot fail for a clock that exists since Linux 2.6.32.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
