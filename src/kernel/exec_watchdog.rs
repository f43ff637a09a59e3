//! A process that lets programs continue which wait in execve(2) when the exporter does not: it is stopped, or gets no
//! CPU time.
//!
//! A fanotify(7) group is closed with its last descriptor, so this process must end with the exporter: it notices when
//! the other end of its pipe is closed. It is forked from a process that may have more threads, whose locks are never
//! released in it, so it only makes system calls.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::lease::checked;

/// Milliseconds that a program waits at most; the exporter itself makes it wait half as long.
const MAX_WAIT: i32 = 1000;

/// Milliseconds between two checks while a program waits.
const CHECK_INTERVAL: i32 = 50;

/// What the exporter reports.
pub(super) const READING: u8 = b'r';
pub(super) const ANSWERED: u8 = b'a';

/// Starts the process, which checks with the first function whether a process waits, and lets all continue with the
/// second; both may only make system calls. Messages go into the returned end of a pipe; when that is closed, the
/// process ends.
///
/// # Errors
/// From the kernel.
pub(super) fn start(
    group: RawFd,
    is_waited_for: impl Fn() -> bool,
    release_all: impl Fn(),
) -> io::Result<OwnedFd> {
    let mut ends = [-1; 2];
    // SAFETY: the kernel writes two descriptors.
    checked(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) })?;
    // SAFETY: new descriptors that nothing else has.
    let [told, tell] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
    // SAFETY: the child only makes system calls, and never returns.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => watch(group, told.as_raw_fd(), is_waited_for, release_all),
        _ => Ok(tell),
    }
}

fn watch(group: RawFd, told: RawFd, is_waited_for: impl Fn() -> bool, release_all: impl Fn()) -> ! {
    give_up_rights();
    let mut kept = [group, told];
    kept.sort_unstable();
    if only_descriptors(&kept).is_err() {
        end();
    }
    let mut reads = false;
    loop {
        wait_for(&[group, told], -1);
        follow(told, &mut reads);
        let mut waited = 0;
        while waited < MAX_WAIT && (reads || is_waited_for()) {
            wait_for(&[told], CHECK_INTERVAL);
            waited = if follow(told, &mut reads) { 0 } else { waited + CHECK_INTERVAL };
        }
        if waited >= MAX_WAIT {
            reads = false;
            release_all();
        }
    }
}

/// Ignores signals that are sent to a whole process group or unit: this process ends with the exporter.
fn give_up_rights() {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    const VERSION: u32 = 0x2008_0522;
    let header = Header { version: VERSION, pid: 0 };
    let none = [0u32; 6];
    // SAFETY: plain system calls; what they are given lives through them.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"exec-watchdog".as_ptr());
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr());
    }
}

/// Waits until one of them is readable, up to a number of milliseconds.
fn wait_for(descriptors: &[RawFd], milliseconds: i32) {
    let mut fds = [libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 }; 2];
    fds.iter_mut().zip(descriptors).for_each(|(of, fd)| of.fd = *fd);
    // SAFETY: the array lives through the call.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as _, milliseconds) };
}

/// Returns whether there was a message. Exits with the exporter.
fn follow(told: RawFd, reads: &mut bool) -> bool {
    let mut bytes = [0u8; 64];
    // SAFETY: the kernel writes at most so many bytes.
    let read = unsafe { libc::read(told, bytes.as_mut_ptr().cast(), bytes.len()) };
    match usize::try_from(read) {
        Ok(0) => end(),
        Ok(read) => {
            *reads = bytes.get(read - 1) == Some(&READING);
            true
        }
        Err(_) => false,
    }
}

fn end() -> ! {
    // SAFETY: nothing of the exporter's that is to be done at its end is done in the copy.
    unsafe { libc::_exit(0) }
}

/// Gives the calling thread a descriptor table of its own with exactly these descriptors, in order.
pub(super) fn only_descriptors(keep: &[RawFd]) -> io::Result<()> {
    let unshare = libc::CLOSE_RANGE_UNSHARE.cast_signed();
    let mut first = 0;
    for fd in keep.iter().copied().chain([RawFd::MAX]) {
        if fd > first {
            // SAFETY: what belongs to other threads stays open in their table, and this one uses only what is kept.
            checked(unsafe { libc::close_range(first as _, (fd - 1) as _, unshare) })?;
        }
        first = fd.saturating_add(1);
    }
    Ok(())
}
