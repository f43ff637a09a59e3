//! Read leases on traced files: the kernel makes a process that opens such a file for writing wait until the lease is
//! released.
//!
//! Without that, code that is overwritten in place gets the breakpoints of the old code, and a program that is started
//! at once crashes. The kernel reports a break by a signal, which is blocked and read from a descriptor.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A lease, released when dropped.
#[derive(Debug)]
pub struct Lease(File);

/// Why a lease could not be taken.
#[derive(Debug)]
pub enum NoLease {
    /// The file is open for writing.
    Written,
    /// The file system does not support leases, or the permission is missing.
    Refused(io::Error),
}

/// Receives the kernel's reports that a lease must be released. They go to the thread that created this, which must
/// also take the leases.
#[derive(Debug)]
pub struct LeaseBreaks(OwnedFd);

/// A file that a process waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseBreak {
    /// The descriptor of the lease.
    Of(RawFd),
    /// More signals than the kernel could queue: any lease.
    Any,
}

// From Linux's fcntl.h; the libc crate lacks some of them.
const F_SETSIG: libc::c_int = 10;
const F_SETOWN_EX: libc::c_int = 15;
const F_OWNER_TID: libc::c_int = 0;

#[repr(C)]
struct Owner {
    kind: libc::c_int,
    pid: libc::pid_t,
}

pub(super) fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(super) fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 3
}

impl LeaseBreaks {
    /// Blocks the signal in this thread.
    ///
    /// # Errors
    /// From the kernel.
    pub fn new() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set, and the others are given valid signals and that set.
        let fd = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), signal());
            // Sent instead of the other when the queue is full.
            libc::sigaddset(set.as_mut_ptr(), libc::SIGIO);
            let failed = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            if failed != 0 {
                return Err(io::Error::from_raw_os_error(failed));
            }
            checked(libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?
        };
        // SAFETY: a new descriptor that nothing else has.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The reports since the previous call.
    pub fn take(&self) -> Vec<LeaseBreak> {
        let mut found = Vec::new();
        loop {
            let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
            let bytes = size_of::<libc::signalfd_siginfo>();
            // SAFETY: the kernel writes at most so many bytes to it.
            let read = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), bytes) };
            if usize::try_from(read) != Ok(bytes) {
                return found;
            }
            // SAFETY: written by the kernel; all bit patterns are valid.
            let info = unsafe { info.assume_init() };
            // Only woken, by a thread of this process.
            if info.ssi_code <= 0 {
                continue;
            }
            let is_lease = info.ssi_signo == signal() as u32;
            found.push(if is_lease { LeaseBreak::Of(info.ssi_fd) } else { LeaseBreak::Any });
        }
    }
}

impl AsFd for LeaseBreaks {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// NFS, CIFS and SMB 3, as numbered in <linux/magic.h>: without a delegation from the server they give no lease, even
/// if nobody has the file open, and report it as open for writing.
const NETWORKED: [u64; 3] = [0x6969, 0xff53_4d42, 0xfe53_4d42];

/// Interprets fcntl(2)'s error on such a file system.
fn refused(err: io::Error, file_system: Option<u64>) -> NoLease {
    match err.raw_os_error() {
        Some(libc::EAGAIN) if file_system.is_some_and(|number| NETWORKED.contains(&number)) => {
            NoLease::Refused(io::Error::other("the file is on another machine, which has granted none"))
        }
        Some(libc::EAGAIN) => NoLease::Written,
        _ => NoLease::Refused(err),
    }
}

impl Lease {
    /// Takes a lease on a file that is open for reading only.
    ///
    /// # Errors
    /// Why it could not be taken.
    pub fn take(file: File, _told: &LeaseBreaks) -> Result<Self, NoLease> {
        let fd = file.as_raw_fd();
        let owner = Owner { kind: F_OWNER_TID, pid: rustix::thread::gettid().as_raw_nonzero().get() };
        // SAFETY: fcntl(2) with arguments as it documents them; the owner lives through the call.
        let taken = unsafe {
            checked(libc::fcntl(fd, F_SETSIG, signal()))
                .and_then(|_| checked(libc::fcntl(fd, F_SETOWN_EX, &raw const owner)))
                .and_then(|_| checked(libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK)))
        };
        match taken {
            // Taking the lease makes this thread the owner.
            Ok(_) => Ok(Self(file)),
            Err(err) => {
                let file_system = rustix::fs::fstatfs(&file).map(|about| about.f_type as u64);
                Err(refused(err, file_system.ok()))
            }
        }
    }

    /// Whether no process has opened the file for writing since.
    pub fn is_held(&self) -> bool {
        // SAFETY: a plain fcntl(2).
        unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_GETLEASE) == libc::F_RDLCK }
    }

    /// The file, open for reading.
    pub fn file(&self) -> &File {
        &self.0
    }

    /// The number in [`Break::Of`].
    pub fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::time::Duration;

    use super::*;

    #[test]
    fn lease_refused_by_network_file_system_is_not_a_writer() {
        let of = |number, file_system| refused(io::Error::from_raw_os_error(number), file_system);
        for network in NETWORKED {
            assert!(matches!(of(libc::EAGAIN, Some(network)), NoLease::Refused(_)));
        }
        assert!(matches!(of(libc::EAGAIN, Some(0xef53)), NoLease::Written));
        assert!(matches!(of(libc::EAGAIN, None), NoLease::Written));
        assert!(matches!(of(libc::EINVAL, Some(0x6969)), NoLease::Refused(_)));
    }

    #[test]
    fn writer_waits_until_the_lease_is_released() {
        let breaks = LeaseBreaks::new().unwrap();
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = file.path().to_path_buf();
        assert!(matches!(Lease::take(File::open(&path).unwrap(), &breaks), Err(NoLease::Written)));
        let path = file.into_temp_path();
        let lease = Lease::take(File::open(&path).unwrap(), &breaks).unwrap();
        assert!(lease.is_held() && breaks.take().is_empty());
        let kept = path.to_path_buf();
        let writer = std::thread::spawn(move || {
            use std::io::Write;
            OpenOptions::new().write(true).open(kept).unwrap().write_all(b"x").unwrap();
        });
        let mut info = Vec::new();
        while info.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
            info = breaks.take();
        }
        assert_eq!(info, [LeaseBreak::Of(lease.number())]);
        assert!(!lease.is_held() && fs::read(&path).unwrap().is_empty(), "nothing is written yet");
        drop(lease);
        writer.join().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"x");
    }
}
