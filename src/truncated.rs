//! Reading files that a library has mapped while another program truncates them.
//!
//! Accessing a page of a mapping beyond the file's new end raises SIGBUS, which ends the process. The exporter itself
//! reads files by read(2), but blazesym maps them. Such a page is replaced by zeros while blazesym is working, so that
//! it finds a damaged file instead.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::sync::OnceLock;

thread_local! {
    /// How deeply this thread is nested in [`reading`]. A constant without a destructor, so that a signal handler may
    /// access it.
    static READING: Cell<u32> = const { Cell::new(0) };
}

const PAGE: usize = crate::mapping::PAGE as usize;

/// Runs code that reads mapped files, whose pages may vanish.
pub(crate) fn reading<T>(work: impl FnOnce() -> T) -> T {
    struct Reading;
    impl Drop for Reading {
        fn drop(&mut self) {
            READING.with(|depth| depth.set(depth.get() - 1));
        }
    }
    // Once per process, as signal handlers are process-wide.
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        if let Err(err) = install() {
            log::warn!("failed to install the SIGBUS handler: a traced file that is truncated may end the exporter: {err}");
        }
    });
    READING.with(|depth| depth.set(depth.get() + 1));
    let _end = Reading;
    work()
}

fn install() -> io::Result<()> {
    // SAFETY: a structure of integers and a pointer to a function with static lifetime. The handler runs on the
    // alternate signal stack that the standard library has given each thread, if it has.
    let failed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction =
            on_bus_error as extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut())
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Afterwards the failed instruction is executed again: on a page of zeros, or to end the process as without a handler.
extern "C" fn on_bus_error(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid structure, whose address is that of the fault for this signal.
    let (code, at) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    let is_vanished = code == libc::BUS_ADRERR && READING.with(Cell::get) > 0;
    // SAFETY: system calls that are allowed in a handler. The replaced page is no longer readable by anyone, and is in
    // a mapping of the library that is running.
    unsafe {
        let errno = *libc::__errno_location();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let page = (at / PAGE * PAGE) as *mut libc::c_void;
        if !is_vanished || libc::mmap(page, PAGE, libc::PROT_READ, flags, -1, 0) == libc::MAP_FAILED {
            libc::signal(signal, libc::SIG_DFL);
        }
        *libc::__errno_location() = errno;
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn truncated_pages_read_as_zeros() {
        let file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut &file, &[7; 3 * PAGE]).unwrap();
        // SAFETY: a new mapping of three pages.
        let mapped = unsafe {
            let memory = libc::mmap(
                std::ptr::null_mut(),
                3 * PAGE,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            );
            assert_ne!(memory, libc::MAP_FAILED);
            memory.cast::<u8>()
        };
        // SAFETY: within the three pages.
        let byte = |at: usize| unsafe { mapped.add(at).read_volatile() };
        let read = reading(|| {
            let before = byte(2 * PAGE);
            file.set_len(PAGE as u64).unwrap();
            (before, byte(0), byte(PAGE), byte(3 * PAGE - 1))
        });
        assert_eq!(read, (7, 7, 0, 0));
    }
}
