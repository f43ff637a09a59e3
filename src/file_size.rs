//! The limit on a file's size (`ulimit -f`, `LimitFSIZE=`).
//!
//! A write beyond it raises SIGXFSZ, which ends the process silently. With a handler the write fails instead, as on a
//! full disk, and is counted or reported in the same way.
#![allow(unsafe_code)]

use std::io;

/// Makes writes beyond the limit fail. The signal is not ignored, as started programs would inherit that.
///
/// # Errors
/// If the kernel refuses the handler.
pub(crate) fn fail_beyond_limit() -> io::Result<()> {
    // SAFETY: a structure of integers and a pointer to a function with static lifetime that does nothing. The handler
    // runs on the alternate signal stack that the standard library has given each thread, if it has.
    let failed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_limit as extern "C" fn(i32) as usize;
        action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
        libc::sigaction(libc::SIGXFSZ, &raw const action, std::ptr::null_mut())
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn on_limit(_: i32) {}
