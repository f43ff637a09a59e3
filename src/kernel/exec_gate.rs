//! Programs that wait in execve(2) until they are let in: permission events of fanotify(7) for single files.
//!
//! Whatever ends this process lets them in too, because the kernel answers for a group that is closed; while it is stopped, another one does
//! ([`exec_watchdog`]). An event is only read when
//! it is answered, one after the other: reading opens the file, and where no descriptor is left the kernel denies the exec.
//! So the thread that answers has a table of descriptors of its own ([`apart`]).
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

/// Descriptors of events that were read are smaller: the thread that reads them has few.
const EVENTS: RawFd = 1024;

/// The files whose execution waits.
#[derive(Debug)]
pub struct ExecGate {
    group: OwnedFd,
    /// What the watchdog is told by.
    watchdog: Option<OwnedFd>,
}

impl ExecGate {
    /// For no file yet. It works on when `CAP_SYS_ADMIN` is given up.
    ///
    /// # Errors
    /// What the kernel refuses: without `CAP_SYS_ADMIN` there is none.
    pub fn new() -> io::Result<Self> {
        let flags = libc::FAN_CLASS_CONTENT | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
        let opened = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_LARGEFILE;
        // SAFETY: a plain system call.
        let fd = checked(unsafe { libc::fanotify_init(flags, opened as _) })?;
        // SAFETY: a new descriptor that nothing else has.
        let mut gate = Self { group: unsafe { OwnedFd::from_raw_fd(fd) }, watchdog: None };
        let watchdog =
            exec_watchdog::start(gate.group.as_raw_fd(), || gate.waiting() > 0, || gate.let_all_in())?;
        gate.watchdog = Some(watchdog);
        Ok(gate)
    }

    /// All that is open.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        [Some(&self.group), self.watchdog.as_ref()].into_iter().flatten().map(AsRawFd::as_raw_fd)
    }

    /// Whoever executes the file from now on waits. `follow` says whether a symbolic link is followed, or means nothing.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn close(&self, path: &Path, follow: bool) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let more = if follow { 0 } else { libc::FAN_MARK_DONT_FOLLOW };
        self.mark(libc::FAN_MARK_ADD | more, libc::FAN_OPEN_EXEC_PERM, Some(&path))
    }

    /// Nobody waits from now on but those who wait already.
    pub fn open(&self) {
        if let Err(err) = self.mark(libc::FAN_MARK_FLUSH, 0, None) {
            log::error!("failed to stop holding back programs: {err}");
        }
    }

    /// Nobody waits any more: for the watchdog, which only makes system calls.
    fn let_all_in(&self) {
        let _ = self.mark(libc::FAN_MARK_FLUSH, 0, None);
        let _ = self.let_in(usize::MAX);
        // What the exporter has read and not answered.
        (0..EVENTS).for_each(|event| drop(self.answer(event)));
    }

    fn mark(&self, how: libc::c_uint, events: u64, path: Option<&CString>) -> io::Result<()> {
        let path = path.map_or(std::ptr::null(), |path| path.as_ptr());
        // SAFETY: the path lives through the call.
        checked(unsafe { libc::fanotify_mark(self.group.as_raw_fd(), how, events, libc::AT_FDCWD, path) })?;
        Ok(())
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the kernel writes one integer.
        let outcome = checked(unsafe { libc::ioctl(self.group.as_raw_fd(), libc::FIONREAD, &raw mut bytes) });
        outcome.map_or(0, |_| bytes as usize / size_of::<libc::fanotify_event_metadata>())
    }

    /// Lets in so many, those first who have waited longest; as many as there are. Returns the first failure.
    ///
    /// # Errors
    /// If the kernel could not open the file for one, which it has denied the execution then.
    pub fn let_in(&self, most: usize) -> io::Result<usize> {
        self.tell(exec_watchdog::READS);
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
        self.tell(exec_watchdog::HAS_ANSWERED);
        failed.map_or(Ok(let_in), Err)
    }

    /// Tells the watchdog.
    fn tell(&self, what: u8) {
        // A full pipe tells enough.
        if let Some(watchdog) = &self.watchdog {
            let _ = rustix::io::write(watchdog, &[what]);
        }
    }

    /// The file that the next one executes; no file where nobody waits for an answer, nothing where nobody waits.
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

    /// Lets in who executes the file that was read with this number.
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

/// Runs `work` in a thread that has a table of descriptors of its own. Those of `parts` are only in that one, and no others
/// are.
///
/// # Errors
/// If there is no such thread.
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

/// What sched_setattr(2) takes; the libc crate has it only for some C libraries.
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
    /// For the calling thread. Whether the kernel takes them.
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

/// The calling thread, and those that it creates, run before all ordinary threads from now on. That is for one that has little to do
/// at a time and has to do it at once. It needs `CAP_SYS_NICE`, unless the thread that created it had it; without, the thread
/// asks for short turns, and those who do run before others from Linux 6.12 on.
pub fn be_prompt() {
    const SHORTEST: u64 = 100_000;
    let policy = libc::SCHED_RR.cast_unsigned();
    if !(Attributes { policy, priority: 1, ..Attributes::default() }).apply() {
        Attributes { runtime: SHORTEST, ..Attributes::ordinary() }.apply();
    }
}

/// The calling thread is an ordinary one again.
pub fn be_ordinary() {
    Attributes::ordinary().apply();
}

/// A thread that can be woken where it reads its [`Breaks`](super::Breaks): by no descriptor, which only one table has.
#[derive(Debug, Clone, Copy)]
pub struct Waker(libc::pid_t);

impl Waker {
    /// Of the calling thread.
    pub fn own() -> Self {
        Self(rustix::thread::gettid().as_raw_nonzero().get())
    }

    /// Wakes it. It must not have ended.
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
    fn a_program_waits_until_it_is_let_in_as_root() {
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
            assert_eq!((gate.let_in(1).unwrap(), gate.waiting()), (1, 2));
            gate.open();
            assert_eq!((gate.let_in(9).unwrap(), gate.waiting()), (2, 0));
            assert!(runs.into_iter().all(|run| run.join().unwrap().success()));
            assert!(run().success(), "not held any more");
        });
    }

    #[test]
    fn descriptors_of_a_thread_apart_are_in_no_other_table() {
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
                std::thread::sleep(Duration::from_millis(1));
            }
            gate.tell(exec_watchdog::READS);
            let event = gate.read().unwrap();
            assert!(event.is_some_and(|event| event.is_some()));
            assert!(running.join().unwrap());
        });
    }
}
