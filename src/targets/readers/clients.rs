//! The files that all engines of a process trace, for the one thread that hides breakpoints from readers.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::restore::Hidden;
use super::{NOT_TOLD, ReadersThread};
use crate::kernel::PidNamespace;
use crate::targets::file::Identity;
use crate::targets::record::Signature;
use crate::targets::status::{Foreign, TargetsStatus};

/// What an engine traces in a file.
#[derive(Debug, Clone, Default)]
pub(in crate::targets) struct TracedFile {
    /// Targets by number, with their names.
    pub targets: BTreeMap<usize, String>,
    pub display: String,
    pub hidden: Hidden,
}

pub(in crate::targets) type TracedFiles = HashMap<Identity, TracedFile>;

/// What all engines trace in a file.
#[derive(Debug, Default)]
pub(super) struct SharedFile {
    /// Targets by name; an engine that was loaded later can have some of the same.
    targets: BTreeMap<String, (Arc<TargetsStatus>, usize)>,
    pub display: String,
    pub hidden: Hidden,
}

impl SharedFile {
    /// The names of the targets, for messages.
    pub fn names(&self) -> String {
        self.targets.keys().cloned().collect::<Vec<_>>().join(", ")
    }

    pub fn count(&self, kind: Foreign) {
        self.targets.values().for_each(|(status, target)| status.add_foreign(*target, kind));
    }
}

/// The thread, as the engines see it.
#[derive(Debug, Default)]
pub(in crate::targets) struct SharedReaders {
    state: Mutex<ReadersState>,
    /// Its programs are loaded, or failed to load.
    is_ready: Condvar,
}

#[derive(Debug, Default)]
struct ReadersState {
    /// Wakes the thread, and ends it when dropped; None before the first engine.
    wake: Option<UnixStream>,
    is_ready: bool,
    clients: Vec<Client>,
    last_client: u64,
    has_changed: bool,
}

#[derive(Debug)]
struct Client {
    number: u64,
    status: Arc<TargetsStatus>,
    files: TracedFiles,
}

impl ReadersState {
    fn wake(&mut self) {
        self.has_changed = true;
        // A full socket wakes it as well.
        self.wake.iter().for_each(|mut wake| drop(io::Write::write(&mut wake, &[0])));
    }
}

impl SharedReaders {
    fn lock(&self) -> MutexGuard<'_, ReadersState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its programs are loaded, or failed to load.
    pub(super) fn set_ready(&self) {
        self.lock().is_ready = true;
        self.is_ready.notify_all();
    }

    /// The files of all engines, if they changed.
    pub(super) fn take_changed(&self) -> Option<HashMap<Identity, SharedFile>> {
        let mut state = self.lock();
        if !std::mem::take(&mut state.has_changed) {
            return None;
        }
        let mut all: HashMap<Identity, SharedFile> = HashMap::new();
        for Client { status, files, .. } in &state.clients {
            for (identity, file) in files {
                let shared = all.entry(*identity).or_default();
                let targets = file.targets.iter();
                shared.targets.extend(targets.map(|(at, name)| (name.clone(), (status.clone(), *at))));
                shared.display.clone_from(&file.display);
                shared.hidden.add(&file.hidden);
            }
        }
        Some(all)
    }
}

/// An engine's share. Dropping it withdraws its files.
#[derive(Debug)]
pub(in crate::targets) struct ReadersHandle {
    shared: Arc<SharedReaders>,
    number: u64,
    /// Identifies what was last reported: what is attached, and what has been detached.
    pub told: (Signature, u64),
}

impl ReadersHandle {
    /// The first one starts the thread. None, with the reason in the log, if that fails.
    pub fn new(
        shared: &Arc<SharedReaders>,
        namespace: PidNamespace,
        status: Arc<TargetsStatus>,
    ) -> Option<Self> {
        let mut state = shared.lock();
        if state.wake.is_none() {
            let started = UnixStream::pair().and_then(|(wake, woken)| {
                wake.set_nonblocking(true)?;
                ReadersThread::start(Arc::downgrade(shared), woken, namespace)?;
                Ok(wake)
            });
            state.wake = started.inspect_err(|err| log::warn!("{NOT_TOLD}: {err}")).ok();
            state.wake.as_ref()?;
        }
        state.last_client += 1;
        let number = state.last_client;
        state.clients.push(Client { number, status, files: TracedFiles::new() });
        drop(state);
        Some(Self { shared: shared.clone(), number, told: Default::default() })
    }

    /// Sets the traced files; files that are being detached still have breakpoints, too.
    pub fn set_files(&self, mut files: TracedFiles, is_leaving: impl Fn(Identity) -> bool) {
        let state = self.shared.lock();
        let ready = self.shared.is_ready.wait_while(state, |state| !state.is_ready);
        let mut state = ready.unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = state.clients.iter_mut().find(|client| client.number == self.number) {
            let before = std::mem::take(&mut client.files);
            for (identity, file) in before.into_iter().filter(|(identity, _)| is_leaving(*identity)) {
                files.entry(identity).or_insert(file);
            }
            client.files = files;
        }
        state.wake();
    }
}

impl Drop for ReadersHandle {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.clients.retain(|client| client.number != self.number);
        state.wake();
    }
}
