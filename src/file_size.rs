//! The limit of a file's size (`ulimit -f`, `LimitFSIZE=`).
//!
//! A write beyond it sends SIGXFSZ, which ends the process without a word. With a handler the write fails instead, as on a
//! full disk, and is counted or told like that.
#![allow(unsafe_code)]

use std::io;

/// Lets writes beyond the limit fail. Not by ignoring the signal, which programs that are started would inherit.
///
/// # Errors
/// If the kernel takes no handler.
pub(crate) fn fail_beyond_limit() -> io::Result<()> {
    // SAFETY: a structure of integers and a pointer to a function that is there for ever and does nothing. The handler runs
    // on the stack that the standard library has given each thread for signals, if it has.
    let failed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_limit as extern "C" fn(i32) as usize;
        action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
        libc::sigaction(libc::SIGXFSZ, &raw const action, std::ptr::null_mut())
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn on_limit(_: i32) {}
