//! Makes programs wait in execve(2): permission events of fanotify(7) for single files.
//!
//! When this process ends, they continue, because the kernel allows pending events of a closed group; while it is
//! stopped, another process allows them ([`exec_watchdog`]). An event is read only when it is answered, one after the
//! other: reading opens the file, and if no descriptor is left, the kernel denies the execution. So the thread that
//! answers has a descriptor table of its own ([`apart`]).
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc::sync_channel;

use super::exec_watchdog;
use super::lease::{checked, signal};

/// Descriptors of pending events are smaller: the thread that reads them has few.
const EVENT_DESCRIPTORS: RawFd = 1024;

/// The files whose execution waits.
#[derive(Debug)]
pub struct ExecGate {
    group: OwnedFd,
    /// Sends messages to the watchdog.
    watchdog: Option<OwnedFd>,
}

impl ExecGate {
    /// For no file yet. It keeps working after `CAP_SYS_ADMIN` is dropped.
    ///
    /// # Errors
    /// From the kernel: it requires `CAP_SYS_ADMIN`.
    pub fn new() -> io::Result<Self> {
        let flags = libc::FAN_CLASS_CONTENT | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
        let opened = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_LARGEFILE;
        // SAFETY: a plain system call.
        let fd = checked(unsafe { libc::fanotify_init(flags, opened as _) })?;
        // SAFETY: a new descriptor that nothing else has.
        let mut gate = Self { group: unsafe { OwnedFd::from_raw_fd(fd) }, watchdog: None };
        let watchdog =
            exec_watchdog::start(gate.group.as_raw_fd(), || gate.waiting() > 0, || gate.release_all())?;
        gate.watchdog = Some(watchdog);
        Ok(gate)
    }

    /// All open descriptors.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        [Some(&self.group), self.watchdog.as_ref()].into_iter().flatten().map(AsRawFd::as_raw_fd)
    }

    /// Processes that execute the file wait from now on. `follow` says whether a symbolic link is followed, or ignored.
    ///
    /// # Errors
    /// From the kernel.
    pub fn close(&self, path: &Path, follow: bool) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let more = if follow { 0 } else { libc::FAN_MARK_DONT_FOLLOW };
        self.mark(libc::FAN_MARK_ADD | more, libc::FAN_OPEN_EXEC_PERM, Some(&path))
    }

    /// Processes no longer wait, except those that wait already.
    pub fn open(&self) {
        if let Err(err) = self.mark(libc::FAN_MARK_FLUSH, 0, None) {
            log::error!("failed to stop holding back programs: {err}");
        }
    }

    /// Lets all waiting processes continue; for the watchdog, which may only make system calls.
    fn release_all(&self) {
        let _ = self.mark(libc::FAN_MARK_FLUSH, 0, None);
        let _ = self.release(usize::MAX);
        // What the exporter has read and not answered.
        (0..EVENT_DESCRIPTORS).for_each(|event| drop(self.answer(event)));
    }

    fn mark(&self, how: libc::c_uint, events: u64, path: Option<&CString>) -> io::Result<()> {
        let path = path.map_or(std::ptr::null(), |path| path.as_ptr());
        // SAFETY: the path lives through the call.
        checked(unsafe { libc::fanotify_mark(self.group.as_raw_fd(), how, events, libc::AT_FDCWD, path) })?;
        Ok(())
    }

    /// The number of waiting processes.
    pub fn waiting(&self) -> usize {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the kernel writes one integer.
        let outcome = checked(unsafe { libc::ioctl(self.group.as_raw_fd(), libc::FIONREAD, &raw mut bytes) });
        outcome.map_or(0, |_| bytes as usize / size_of::<libc::fanotify_event_metadata>())
    }

    /// Lets up to this many processes continue, in the order of waiting. Returns the first failure.
    ///
    /// # Errors
    /// If the kernel could not open the file for one, whose execution it has denied then.
    pub fn release(&self, most: usize) -> io::Result<usize> {
        self.notify_watchdog(exec_watchdog::READING);
        let (mut let_in, mut failed) = (0, None);
        while let_in < most {
            match self.read() {
                Ok(None) => break,
                Ok(Some(event)) => {
                    if let Some(Err(err)) = event.map(|file| self.answer(file.as_raw_fd())) {
                        failed.get_or_insert(err);
                    }
                    let_in += 1;
                }
                Err(err) => {
                    failed.get_or_insert(err);
                    let_in += 1;
                }
            }
        }
        self.notify_watchdog(exec_watchdog::ANSWERED);
        failed.map_or(Ok(let_in), Err)
    }

    /// Sends a message to the watchdog.
    fn notify_watchdog(&self, what: u8) {
        // A full pipe is message enough.
        if let Some(watchdog) = &self.watchdog {
            let _ = rustix::io::write(watchdog, &[what]);
        }
    }

    /// The file that the next process executes; no file if it does not wait for an answer, nothing if no process waits.
    fn read(&self) -> io::Result<Option<Option<OwnedFd>>> {
        let mut event = MaybeUninit::<libc::fanotify_event_metadata>::zeroed();
        let bytes = size_of::<libc::fanotify_event_metadata>();
        // SAFETY: the kernel writes at most so many bytes.
        let read = unsafe { libc::read(self.group.as_raw_fd(), event.as_mut_ptr().cast(), bytes) };
        if read < 0 {
            let err = io::Error::last_os_error();
            return if err.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(err) };
        }
        if usize::try_from(read) != Ok(bytes) {
            return Ok(None);
        }
        // SAFETY: written by the kernel; all bit patterns are valid.
        let event = unsafe { event.assume_init() };
        // SAFETY: the event's own descriptor, which nothing else has.
        Ok(Some((event.fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(event.fd) })))
    }

    /// Lets the process continue whose event was read with this descriptor.
    ///
    /// # Errors
    /// If there is none.
    fn answer(&self, number: RawFd) -> io::Result<()> {
        let answer = libc::fanotify_response { fd: number, response: libc::FAN_ALLOW };
        let bytes = size_of::<libc::fanotify_response>();
        // SAFETY: the structure that the kernel reads lives through the call.
        let written = unsafe { libc::write(self.group.as_raw_fd(), (&raw const answer).cast(), bytes) };
        if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for ExecGate {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }
}

/// Runs `work` in a thread with a descriptor table of its own, which holds exactly the descriptors of `parts`.
///
/// # Errors
/// If the thread cannot be started.
pub fn apart<T: Send + 'static>(
    name: &str,
    parts: T,
    of_parts: impl Fn(&T) -> Vec<RawFd>,
    work: impl FnOnce(T) + Send + 'static,
) -> io::Result<()> {
    let mut moved = of_parts(&parts);
    moved.sort_unstable();
    let kept = moved.clone();
    let (ready, is_ready) = sync_channel(1);
    std::thread::Builder::new().name(name.to_string()).spawn(move || {
        let descriptors = exec_watchdog::only_descriptors(&kept);
        let is_apart = descriptors.is_ok();
        let _ = ready.send(descriptors);
        if is_apart {
            work(parts);
        }
    })?;
    is_ready.recv().map_err(io::Error::other)??;
    for fd in moved {
        // SAFETY: the thread has its own, and nothing else uses this one: what did was given to the thread.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    Ok(())
}

/// The argument of sched_setattr(2); the libc crate defines it only for some C libraries.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

impl Attributes {
    /// Applies them to the calling thread; returns whether the kernel accepted them.
    fn apply(self) -> bool {
        let attributes = Self { size: size_of::<Self>() as u32, ..self };
        // SAFETY: the structure, of the size that it says, lives through the call.
        unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) == 0 }
    }

    /// Those of an ordinary thread.
    fn ordinary() -> Self {
        // SAFETY: a plain system call.
        let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        Self { nice, ..Self::default() }
    }
}

/// From now on the calling thread, and those that it creates, run before all ordinary threads. For threads that have
/// little work but must do it at once. It needs `CAP_SYS_NICE`, unless the creating thread had it; without it, the
/// thread requests short time slices, with which it runs before others from Linux 6.12 on.
pub fn be_prompt() {
    const MIN_HOLD: u64 = 100_000;
    let policy = libc::SCHED_RR.cast_unsigned();
    if !(Attributes { policy, priority: 1, ..Attributes::default() }).apply() {
        Attributes { runtime: MIN_HOLD, ..Attributes::ordinary() }.apply();
    }
}

/// The calling thread is an ordinary one again.
pub fn be_ordinary() {
    Attributes::ordinary().apply();
}

/// Wakes a thread that reads [`Breaks`](super::Breaks), by a signal: descriptors belong to a single table.
#[derive(Debug, Clone, Copy)]
pub struct Waker(libc::pid_t);

impl Waker {
    /// For the calling thread.
    pub fn own() -> Self {
        Self(rustix::thread::gettid().as_raw_nonzero().get())
    }

    /// Wakes the thread, which must not have ended.
    pub fn wake(self) {
        // SAFETY: a plain system call; the thread blocks the signal.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.0, signal()) };
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn program_waits_until_released_as_root() {
        let directory = tempfile::tempdir().unwrap();
        let [program, link] = ["program", "link"].map(|name| directory.path().join(name));
        std::fs::copy("/bin/true", &program).unwrap();
        std::os::unix::fs::symlink(&program, &link).unwrap();
        let gate = ExecGate::new().expect("these tests need root");
        std::thread::scope(|scope| {
            gate.close(&link, false).unwrap();
            let run = || Command::new(&program).status().unwrap();
            assert!(run().success() && gate.waiting() == 0, "a link that is not followed means nothing");
            gate.close(&link, true).unwrap();
            let runs: Vec<_> = (0..3).map(|_| scope.spawn(run)).collect();
            let began = Instant::now();
            while gate.waiting() < 3 {
                assert!(began.elapsed() < Duration::from_secs(60), "nobody waits");
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(runs.iter().all(|run| !run.is_finished()));
            assert_eq!((gate.release(1).unwrap(), gate.waiting()), (1, 2));
            gate.open();
            assert_eq!((gate.release(9).unwrap(), gate.waiting()), (2, 0));
            assert!(runs.into_iter().all(|run| run.join().unwrap().success()));
            assert!(run().success(), "not held any more");
        });
    }

    #[test]
    fn isolated_thread_has_its_own_descriptor_table() {
        let [given, kept] = [(); 2].map(|()| std::fs::File::open("/dev/null").unwrap());
        let fd = given.as_raw_fd();
        let (done, is_done) = std::sync::mpsc::channel();
        let of_parts = |given: &std::fs::File| vec![given.as_raw_fd()];
        let (go, gone) = std::sync::mpsc::channel::<()>();
        apart("apart", given, of_parts, move |given| {
            gone.recv().unwrap();
            let left = std::fs::read_dir("/proc/thread-self/fd").unwrap().count();
            done.send((left, given.metadata().is_ok())).unwrap();
        })
        .unwrap();
        let path = std::fs::read_link(format!("/proc/self/fd/{fd}"));
        assert!(path.is_err() || path.unwrap().as_os_str() != "/dev/null", "closed in this table");
        go.send(()).unwrap();
        assert_eq!(is_done.recv().unwrap(), (2, true), "what was given, and the directory that is read");
        assert!(kept.metadata().is_ok());
    }

    #[test]
    fn program_does_not_wait_for_a_hung_exporter_as_root() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        assert!(Command::new("cp").arg("/bin/true").arg(&program).status().unwrap().success());
        let gate = ExecGate::new().expect("these tests need root");
        let run = || Command::new(&program).status().unwrap().success();
        gate.close(&program, true).unwrap();
        assert!(run(), "nobody has read the event");
        assert!(run(), "nobody is held back any more");
        // Stopped between reading and answering.
        gate.close(&program, true).unwrap();
        std::thread::scope(|scope| {
            let running = scope.spawn(run);
            while gate.waiting() == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            gate.notify_watchdog(exec_watchdog::READING);
            let event = gate.read().unwrap();
            assert!(event.is_some_and(|event| event.is_some()));
            assert!(running.join().unwrap());
        });
    }
}
