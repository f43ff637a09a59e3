//! Reading files that a library has mapped, and that somebody else makes shorter meanwhile.
//!
//! A page of a mapping that lies behind the file's end now is a SIGBUS, which ends the process. What the exporter reads
//! itself it reads by read(2); blazesym maps what it is given. Such a page is replaced by zeros while it works, so that it
//! finds a damaged file instead.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::sync::OnceLock;

thread_local! {
    /// How often this thread is within [`reading`]. A constant without a destructor: a handler may look at it.
    static READING: Cell<u32> = const { Cell::new(0) };
}

const PAGE: usize = crate::mapping::PAGE as usize;

/// Runs what reads mapped files, of which pages may vanish.
pub(crate) fn reading<T>(work: impl FnOnce() -> T) -> T {
    struct Reading;
    impl Drop for Reading {
        fn drop(&mut self) {
            READING.with(|depth| depth.set(depth.get() - 1));
        }
    }
    // Once for the process, to which signal handlers belong.
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
    // SAFETY: a structure of integers and a pointer to a function that is there for ever. The handler runs on the stack that
    // the standard library has given each thread for signals, if it has.
    let failed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction =
            on_bus_error as extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut())
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The instruction that failed is done again after it: on a page of zeros, or to end the process as without a handler.
extern "C" fn on_bus_error(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands out a valid structure, whose address is that of the fault for this signal.
    let (code, at) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    let is_vanished = code == libc::BUS_ADRERR && READING.with(Cell::get) > 0;
    // SAFETY: system calls that may be made in a handler. What is replaced is a page that nobody can read any more, in a
    // mapping of the library that is at work.
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
    fn pages_that_vanish_are_zeros() {
        let file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut &file, &[7; 3 * PAGE]).unwrap();
        // SAFETY: a fresh mapping of three pages.
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
