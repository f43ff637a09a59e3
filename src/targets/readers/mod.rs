//! Hides breakpoints from processes that read traced files as memory instead of executing them.
//!
//! The kernel sets breakpoints in every private mapping that could be made executable. A program that copies a file
//! through such a mapping (llvm-strip, llvm-objcopy, git) copies them, too, and the copy is killed when it runs; a
//! program that translates code (Valgrind, QEMU's user mode, DynamoRIO) kills what it runs. So a dedicated thread
//! writes the file's own bytes over them; the kernel tolerates missing breakpoints.

mod clients;
mod restore;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Weak;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::clients::SharedFile;
pub(super) use self::clients::{ReadersHandle, SharedReaders, TracedFiles};
pub(super) use self::restore::Hidden;
use self::restore::{Memory, Part, Restored, executable_name, is_there};
use super::file::Identity;
use super::status::Foreign;
use crate::clock::monotonic_now;
use crate::kernel::{Files, MAX_READER_WAIT, PidNamespace, ReaderChange, ReaderEvent, Readers, be_prompt};
use crate::procfs::processes;

/// Executables that translate other programs' code, and which of their mappings they translate: Valgrind's tools;
/// QEMU's user mode, which maps what it translates without the executable flag; DynamoRIO.
const TRANSLATORS: &[(&str, Part)] = &[
    ("memcheck-amd64-linux", Part::All),
    ("cachegrind-amd64-linux", Part::All),
    ("callgrind-amd64-linux", Part::All),
    ("helgrind-amd64-linux", Part::All),
    ("drd-amd64-linux", Part::All),
    ("massif-amd64-linux", Part::All),
    ("dhat-amd64-linux", Part::All),
    ("exp-bbv-amd64-linux", Part::All),
    ("lackey-amd64-linux", Part::All),
    ("none-amd64-linux", Part::All),
    ("libdynamorio.so", Part::All),
    ("qemu-x86_64", Part::NotExecutable),
    ("qemu-x86_64-static", Part::NotExecutable),
];

/// How often it is checked whether a translator has ended.
const CHECK_INTERVAL: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Of the log.
const NOT_TOLD: &str =
    "Programs that copy or translate a traced file may find breakpoints in it (cp and strip do not)";

struct ReadersThread {
    readers: Readers,
    kernel: Files,
    shared: Weak<SharedReaders>,
    woken: UnixStream,
    files: HashMap<Identity, SharedFile>,
    /// Files whose mapping processes must be determined.
    changed: BTreeSet<Identity>,
    /// Translator processes, and the files that they translate.
    translators: BTreeMap<u32, HashSet<Identity>>,
    /// What was logged: the reader's name, and the inode.
    told: BTreeSet<(String, u64)>,
}

impl ReadersThread {
    /// # Errors
    /// If the thread cannot be started. Kernel errors are logged.
    fn start(shared: Weak<SharedReaders>, woken: UnixStream, namespace: PidNamespace) -> io::Result<()> {
        std::thread::Builder::new().name("readers".to_string()).spawn(move || {
            let names = TRANSLATORS.iter().map(|(name, _)| *name);
            let loaded = Readers::start(names, namespace).and_then(|readers| Ok((readers, Files::load()?)));
            shared.upgrade().iter().for_each(|shared| shared.set_ready());
            match loaded {
                Ok((readers, kernel)) => {
                    be_prompt();
                    let (files, changed) = (HashMap::new(), BTreeSet::new());
                    let (translators, told) = (BTreeMap::new(), BTreeSet::new());
                    Self { readers, kernel, shared, woken, files, changed, translators, told }.run();
                }
                Err(err) => log::warn!("{NOT_TOLD}: {err:#}"),
            }
        })?;
        Ok(())
    }

    fn run(mut self) {
        self.find_translators();
        while self.wait() {
            let files = self.shared.upgrade().and_then(|shared| shared.take_changed());
            files.into_iter().for_each(|files| self.take_files(files));
            for event in self.readers.take() {
                self.follow(&event);
            }
            self.forget_translators();
            self.handle_changed();
        }
    }

    /// Waits for an event or the next deadline; returns whether to continue.
    fn wait(&self) -> bool {
        let pause = match (self.changed.is_empty(), self.translators.is_empty()) {
            (false, _) => Some(Timespec { tv_sec: 0, tv_nsec: 0 }),
            (true, false) => Some(CHECK_INTERVAL),
            (true, true) => None,
        };
        let mut fds = [PollFd::new(&self.readers, PollFlags::IN), PollFd::new(&self.woken, PollFlags::IN)];
        let _ = poll(&mut fds, pause.as_ref());
        let is_woken = !fds[1].revents().is_empty();
        !is_woken || io::Read::read(&mut &self.woken, &mut [0; 64]).is_ok_and(|read| read > 0)
    }

    /// Finds translators that run already.
    fn find_translators(&mut self) {
        processes().for_each(|pid| self.add_translator_process(pid));
    }

    fn add_translator_process(&mut self, pid: u32) {
        if part_of(pid).is_none() {
            return;
        }
        // It may run another program than before.
        self.translators.insert(pid, HashSet::new());
        self.readers.add_translator(pid);
        if let Err(err) = self.readers.follow_translators(true) {
            log::warn!("process {pid} translates code, and may be killed by a breakpoint in it: {err:#}");
        }
        self.handle_translator(pid);
    }

    fn forget_translators(&mut self) {
        self.translators.retain(|pid, _| part_of(*pid).is_some());
        if self.translators.is_empty() {
            // It cannot fail.
            let _ = self.readers.follow_translators(false);
        }
    }

    /// Sets the traced files and sites. The kernel sets all breakpoints of a file again in all mappings when one is
    /// added.
    fn take_files(&mut self, files: HashMap<Identity, SharedFile>) {
        self.readers.set_files(files.keys().map(|identity| identity.address).collect());
        let before = std::mem::replace(&mut self.files, files);
        let is_new = |(identity, file): &(&Identity, &SharedFile)| {
            before.get(*identity).is_none_or(|before| before.hidden != file.hidden)
        };
        self.changed.extend(self.files.iter().filter(is_new).map(|(identity, _)| *identity));
        let translators: Vec<u32> = self.translators.keys().copied().collect();
        translators.into_iter().for_each(|pid| self.handle_translator(pid));
    }

    /// Handles processes that mapped a file before its breakpoints were set. That inspects all processes, so it is done
    /// for one file at a time, and waiting processes are handled first.
    fn handle_changed(&mut self) {
        let Some(identity) = self.changed.pop_first() else { return };
        let all = self.kernel.mapping(identity).unwrap_or_default();
        for pid in all.into_iter().filter(|pid| !is_exporter(*pid)) {
            if !self.translators.contains_key(&pid) {
                self.restore_read(pid, None, identity);
            }
        }
    }

    fn follow(&mut self, event: &ReaderEvent) {
        let ReaderEvent { pid, comm, change, ticket, time } = event;
        let late = || Duration::from_nanos(monotonic_now().saturating_sub(*time));
        match *change {
            ReaderChange::Translates => self.add_translator_process(*pid),
            ReaderChange::TranslatesMore => self.handle_translator(*pid),
            ReaderChange::Maps { inode, address } => {
                let identity = self.files.keys().find(|identity| identity.address == inode).copied();
                if let Some(identity) = identity.filter(|_| !is_exporter(*pid)) {
                    let restored = self.restore_read(*pid, Some(address), identity);
                    let late = Some(late()).filter(|late| *ticket == 0 || *late >= MAX_READER_WAIT);
                    if !restored.is_loading {
                        self.files[&identity].count(Foreign::Read);
                        self.log_reader(*pid, comm, identity, restored, late);
                    }
                }
            }
        }
        self.readers.answer(*ticket);
    }

    /// Removes the breakpoints from mappings that are not executable: from the one at an address, which may not exist
    /// yet, or from all.
    fn restore_read(&mut self, pid: u32, at: Option<u64>, identity: Identity) -> Restored {
        let Some(file) = self.files.get(&identity) else { return Restored::default() };
        let began = Instant::now();
        loop {
            let restored = match Memory::of(&mut self.kernel, pid) {
                Ok(memory) => memory.restore(identity, &file.hidden, Part::OnlyRead, at),
                Err(err) => Restored { failure: Some(err), ..Restored::default() },
            };
            let is_mapped = |at: u64| restored.mapped.iter().any(|range| range.contains(&at));
            let is_done = at.is_none_or(is_mapped) || restored.failure.is_some();
            // It may also be unmapped again.
            if is_done || began.elapsed() > MAX_READER_WAIT / 10 {
                return restored;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn log_reader(
        &mut self,
        pid: u32,
        comm: &str,
        identity: Identity,
        restored: Restored,
        late: Option<Duration>,
    ) {
        let Some(file) = self.files.get(&identity) else { return };
        let (display, names) = (&file.display, file.names());
        let failure = restored.failure.filter(|_| is_there(pid));
        if !self.told.insert((comm.to_string(), identity.address)) {
            return;
        }
        let what = format!("Target {names}: process {pid} ({comm}) has mapped {display} to read it");
        match (failure, late) {
            (Some(err), _) => log::warn!(
                "{what}, and finds breakpoints in it, which could not be removed ({err}): a copy that it makes cannot be \
                 run; let it read a copy made by cp(1)"
            ),
            (None, Some(late)) => log::warn!(
                "{what}; the breakpoints in it were removed after {} us, so it may have read some: a copy that it has \
                 made may not run; let it read a copy made by cp(1)",
                late.as_micros()
            ),
            (None, None) => {
                log::info!("{what}; the breakpoints in it were removed before it could read them");
            }
        }
    }

    fn handle_translator(&mut self, pid: u32) {
        let Some(part) = part_of(pid) else { return };
        let Ok(memory) = Memory::of(&mut self.kernel, pid) else { return };
        let mapped: HashSet<Identity> =
            memory.files().filter(|identity| self.files.contains_key(identity)).collect();
        for identity in mapped {
            let file = &self.files[&identity];
            let restored = memory.restore(identity, &file.hidden, part, None);
            if let Some(err) = restored.failure.filter(|_| part_of(pid).is_some()) {
                log::warn!(
                    "Target {}: process {pid} translates {}, and will be killed by a breakpoint in it: they could not be \
                     removed ({err})",
                    file.names(),
                    file.display
                );
            }
            let known = self.translators.entry(pid).or_default();
            if restored.bytes > 0 && known.insert(identity) {
                log::info!(
                    "Target {}: process {pid} translates the code of {} and is not traced: {} breakpoints were removed from \
                     its memory",
                    file.names(),
                    file.display,
                    restored.bytes
                );
                file.count(Foreign::Translated);
            }
        }
    }
}

/// Whether the process is an exporter, which inspects the breakpoints that it has set.
fn is_exporter(pid: u32) -> bool {
    pid == std::process::id() || executable_name(pid) == executable_name(std::process::id())
}

/// What the process translates, if it is a translator.
fn part_of(pid: u32) -> Option<Part> {
    let name = executable_name(pid)?;
    TRANSLATORS.iter().find(|(known, _)| *known == name).map(|(_, part)| *part)
}

/// Whether the process is a translator.
pub(super) fn translates(pid: u32) -> bool {
    part_of(pid).is_some()
}
