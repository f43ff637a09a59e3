//! Dropping all capabilities in a process that has threads.
//!
//! capset(2) affects only the calling thread, and the C library has no wrapper that calls it in all threads, as it has
//! for setuid(2). So each thread is sent a signal whose handler calls it.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// `_LINUX_CAPABILITY_VERSION_3`, in which a set has two words.
const VERSION: u32 = 0x2008_0522;

/// Passes over all threads at most: each is signalled again, and handles it within milliseconds.
const MAX_ROUNDS: usize = 2000;
const PAUSE: Duration = Duration::from_millis(5);

/// A static because capabilities belong to the process, too: whatever fails without them must say that a restart is
/// needed.
static DROPPED: AtomicBool = AtomicBool::new(false);

/// Whether all capabilities were dropped on purpose: whatever needs one from then on needs a restart.
pub fn given_up() -> bool {
    DROPPED.load(Ordering::Relaxed)
}

/// Drops every capability in all threads, and so in future ones.
///
/// # Errors
/// If a thread does not; those that did have lost theirs.
pub fn drop_all_capabilities() -> io::Result<()> {
    DROPPED.store(true, Ordering::Relaxed);
    let signal = libc::SIGRTMIN() + 4;
    handle(signal)?;
    let own = std::process::id().cast_signed();
    // While threads are listed, one that has not handled the signal yet may create another: after two passes in which
    // no thread has capabilities, no thread can create one that has.
    let mut clean = 0;
    for _ in 0..MAX_ROUNDS {
        let having = threads_with_capabilities()?;
        clean = if having.is_empty() { clean + 1 } else { 0 };
        if clean == 2 {
            return Ok(());
        }
        for thread in having {
            // SAFETY: a system call without pointers. A thread that has exited gets nothing.
            unsafe { libc::syscall(libc::SYS_tgkill, own, thread, signal) };
        }
        if clean == 0 {
            std::thread::sleep(PAUSE);
        }
    }
    Err(io::Error::other("a thread does not answer"))
}

/// The threads of this process that have capabilities.
fn threads_with_capabilities() -> io::Result<Vec<i32>> {
    let mut having = Vec::new();
    for task in fs::read_dir("/proc/self/task")? {
        let path = task?.path();
        // It may have exited.
        let Ok(status) = fs::read_to_string(path.join("status")) else { continue };
        let has = |line: &str| {
            line.strip_prefix("CapPrm:").is_some_and(|set| set.trim().bytes().any(|c| c != b'0'))
        };
        if status.lines().any(has) {
            having.extend(path.file_name().and_then(|name| name.to_str()?.parse::<i32>().ok()));
        }
    }
    Ok(having)
}

/// Installs a handler for this signal that drops the capabilities of the thread.
fn handle(signal: i32) -> io::Result<()> {
    // SAFETY: a structure of integers and a pointer to a function with static lifetime.
    let failed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = give_up as extern "C" fn(i32) as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal, &raw const action, std::ptr::null_mut())
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Preserves errno for the interrupted code.
extern "C" fn give_up(_: i32) {
    let header = [VERSION, 0];
    let nothing = [0_u32; 6];
    // SAFETY: capset(2) only reads the two arrays, which have the size for this version, and may be called in a
    // handler.
    unsafe {
        let errno = *libc::__errno_location();
        libc::syscall(libc::SYS_capset, header.as_ptr(), nothing.as_ptr());
        *libc::__errno_location() = errno;
    }
}
