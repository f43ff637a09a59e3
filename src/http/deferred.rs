//! Connections that the kernel keeps until their client has sent something (`TCP_DEFER_ACCEPT`, see tcp(7)).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{IPPROTO_TCP, TCP_DEFER_ACCEPT, c_int, socklen_t};

/// Makes accept(2) on a TCP listener return a connection only once its first byte has arrived, or when the client has been
/// silent for `seconds`, which the kernel rounds up to the times at which it repeats its part of the handshake (1, 3, 7 s).
///
/// # Errors
/// If the kernel refuses it.
pub(super) fn accept_at_first_byte(listener: BorrowedFd<'_>, seconds: c_int) -> io::Result<()> {
    let size = size_of::<c_int>() as socklen_t;
    // SAFETY: the descriptor is open as long as it is borrowed, and the kernel reads `size` bytes of an integer that lives as
    // long as the call.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            IPPROTO_TCP,
            TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            size,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
