//! A process that lets programs in which wait in execve(2), when the exporter does not: it is stopped, or gets no processor time.
//!
//! A group of fanotify(7) is closed with its last descriptor, so this process ends with the exporter: it is told through a pipe, whose other
//! end is closed then. It is a copy of one that may have had more threads, whose locks nobody releases in it: so it only makes system
//! calls.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::exec_gate::{ExecGate, only_descriptors};
use super::lease::checked;

/// Milliseconds that a program waits at most; the exporter itself lets it wait half as long.
const LONGEST: i32 = 1000;

/// Milliseconds between two looks while somebody waits.
const LOOK: i32 = 50;

/// What the exporter tells.
pub(super) const READS: u8 = b'r';
pub(super) const HAS_ANSWERED: u8 = b'a';

/// Descriptors of events that the exporter can have read are smaller: it has few in the thread that reads them.
const EVENTS: RawFd = 1024;

/// Starts the process. What is told goes into the returned end of a pipe; when that is closed, the process ends.
///
/// # Errors
/// What the kernel refuses.
pub(super) fn start(gate: &ExecGate) -> io::Result<OwnedFd> {
    let mut ends = [-1; 2];
    // SAFETY: the kernel writes two descriptors.
    checked(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) })?;
    // SAFETY: new descriptors that nothing else has.
    let [told, tell] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
    // SAFETY: the child only makes system calls, and never returns.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => watch(gate, told.as_raw_fd()),
        _ => Ok(tell),
    }
}

fn watch(gate: &ExecGate, told: RawFd) -> ! {
    give_up_rights();
    let mut kept = [gate.as_fd().as_raw_fd(), told];
    kept.sort_unstable();
    if only_descriptors(&kept).is_err() {
        end();
    }
    let mut reads = false;
    loop {
        wait_for(&[gate.as_fd().as_raw_fd(), told], -1);
        follow(told, &mut reads);
        let mut waited = 0;
        while waited < LONGEST && (reads || gate.waiting() > 0) {
            wait_for(&[told], LOOK);
            waited = if follow(told, &mut reads) { 0 } else { waited + LOOK };
        }
        if waited >= LONGEST {
            reads = false;
            let _ = gate.try_open();
            let _ = gate.let_in(usize::MAX);
            // What was read and not answered.
            (0..EVENTS).for_each(|event| drop(gate.answer(event)));
        }
    }
}

/// Signals that all processes of a group or a unit get are not meant for this one, which ends with the exporter.
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

/// Until one of them has something, or for so many milliseconds.
fn wait_for(descriptors: &[RawFd], milliseconds: i32) {
    let mut fds = [libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 }; 2];
    fds.iter_mut().zip(descriptors).for_each(|(of, fd)| of.fd = *fd);
    // SAFETY: the array lives through the call.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as _, milliseconds) };
}

/// Whether something was told. Ends with the exporter.
fn follow(told: RawFd, reads: &mut bool) -> bool {
    let mut bytes = [0u8; 64];
    // SAFETY: the kernel writes at most so many bytes.
    let read = unsafe { libc::read(told, bytes.as_mut_ptr().cast(), bytes.len()) };
    match usize::try_from(read) {
        Ok(0) => end(),
        Ok(read) => {
            *reads = bytes.get(read - 1) == Some(&READS);
            true
        }
        Err(_) => false,
    }
}

fn end() -> ! {
    // SAFETY: nothing of the exporter's that is to be done at its end is done in the copy.
    unsafe { libc::_exit(0) }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_program_does_not_wait_for_an_exporter_that_does_nothing_as_root() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        assert!(Command::new("cp").arg("/bin/true").arg(&program).status().unwrap().success());
        let gate = ExecGate::new().expect("these tests need root");
        let run = || Command::new(&program).status().unwrap().success();
        gate.close(&program, true).unwrap();
        assert!(run(), "nobody has read the event");
        assert!(run(), "nobody is held back any more");
        // Stopped in the moment between reading and answering.
        gate.close(&program, true).unwrap();
        std::thread::scope(|scope| {
            let running = scope.spawn(run);
            while gate.waiting() == 0 {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            gate.tell(READS);
            let event = gate.read().unwrap();
            assert!(event.is_some_and(|event| event.is_some()));
            assert!(running.join().unwrap());
        });
    }
}
