//! Detaches probes on threads of their own.
//!
//! The kernel releases a probe only when none of its programs can still be running, including the one that makes a
//! process wait until its file has been examined. So the thread that examines files must not wait for a detachment: it
//! would wait for the process, and the process for it, until the time limit.

use std::collections::{BTreeSet, HashMap};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::attach_job::AttachJob;
use super::cookies::Cookies;
use super::file::Identity;
use super::raised::RaisedCopies;
use crate::kernel::{Lease, PinnableLink, release};
use crate::mutex::lock;

/// The probes of a file that are being detached.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    /// The file; none if nothing is counted by them, so that nothing has to wait for this.
    pub(super) identity: Option<Identity>,
    pub(super) links: Vec<PinnableLink>,
    /// Is still creating links, which are detached then.
    pub(super) job: Option<AttachJob>,
    /// Numbers of its sites: a hit can carry them until the links are gone.
    pub(super) numbers: Vec<u32>,
    /// Writers wait for it until then.
    pub(super) lease: Option<Lease>,
}

/// Runs when the probes are detached.
type Afterwards = Box<dyn FnOnce() + Send>;

/// Probes that are being detached because they are shed.
pub(super) struct Shedding {
    /// Signals that they are detached.
    pub(super) out: Receiver<()>,
    /// Their targets.
    pub(super) targets: BTreeSet<usize>,
    /// The spans that they start.
    pub(super) spans: BTreeSet<u32>,
    /// Is signaled then.
    pub(super) done: SyncSender<()>,
}

/// Tracks what is being detached.
#[derive(Debug, Default)]
pub(super) struct Detacher {
    shared: Arc<Mutex<DetachState>>,
    /// Semaphores to lower because the kernel does not.
    raised: Arc<RaisedCopies>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct DetachState {
    /// Files with probes that are being detached, and the number of batches.
    files: HashMap<Identity, usize>,
    /// Of sites that are detached.
    numbers: Vec<u32>,
    changes: u64,
}

impl Leaving {
    fn has_links(&self) -> bool {
        !self.links.is_empty() || self.job.is_some()
    }
}

impl Detacher {
    pub(super) fn new(raised: Arc<RaisedCopies>) -> Self {
        Self { raised, ..Self::default() }
    }

    /// Detaches all of these at the same time, because the kernel needs as long for one, and then releases the leases.
    pub(super) fn detach(&self, leaving_files: Vec<Leaving>) {
        self.start(leaving_files, None, None);
    }

    /// As [`Detacher::detach`], and signals `done` afterwards.
    pub(super) fn detach_and_signal(&self, leaving_files: Vec<Leaving>, done: SyncSender<()>) {
        self.start(leaving_files, None, Some(done));
    }

    /// As [`Detacher::detach`], and runs `then` between detaching and releasing the leases.
    pub(super) fn detach_then(&self, leaving_files: Vec<Leaving>, then: impl FnOnce() + Send + 'static) {
        self.start(leaving_files, Some(Box::new(then)), None);
    }

    fn start(&self, leaving_files: Vec<Leaving>, then: Option<Afterwards>, done: Option<SyncSender<()>>) {
        lock(&self.threads).retain(|thread| !thread.is_finished());
        if !leaving_files.iter().any(Leaving::has_links) {
            then.into_iter().for_each(|then| then());
            finish(&self.shared, leaving_files, done);
            return;
        }
        {
            let mut state = lock(&self.shared);
            state.changes += 1;
            let identities = leaving_files.iter().filter_map(|leaving| leaving.identity);
            identities.for_each(|identity| *state.files.entry(identity).or_default() += 1);
        }
        let (shared, raised) = (self.shared.clone(), self.raised.clone());
        // The batch is not lost if no thread can be started.
        let (give, given) = sync_channel(1);
        let work = move || {
            given.iter().for_each(|(leaving_files, then, done)| {
                detach_all(&shared, &raised, leaving_files, then, done)
            })
        };
        match std::thread::Builder::new().name("detach".to_string()).spawn(work) {
            Ok(thread) => {
                let _ = give.send((leaving_files, then, done));
                lock(&self.threads).push(thread);
            }
            Err(err) => {
                log::debug!("failed to start a thread that detaches: {err}");
                detach_all(&self.shared, &self.raised, leaving_files, then, done);
            }
        }
    }

    /// Whether previous probes of the file are still being detached: with new ones, hits would count twice.
    pub(super) fn is_busy_with(&self, identity: Identity) -> bool {
        lock(&self.shared).files.contains_key(&identity)
    }

    /// How many times detaching has begun or ended.
    pub(super) fn changes(&self) -> u64 {
        lock(&self.shared).changes
    }

    /// Frees the site numbers whose probes are detached.
    pub(super) fn give_back(&self, cookies: &mut Cookies) {
        cookies.free.append(&mut lock(&self.shared).numbers);
    }

    /// Waits until everything is detached.
    pub(super) fn end(&self) {
        let threads = std::mem::take(&mut *lock(&self.threads));
        threads.into_iter().for_each(|thread| drop(thread.join()));
    }
}

fn detach_all(
    shared: &Mutex<DetachState>,
    raised: &RaisedCopies,
    mut leaving_files: Vec<Leaving>,
    then: Option<Afterwards>,
    done: Option<SyncSender<()>>,
) {
    let identities: Vec<Identity> = leaving_files.iter().filter_map(|leaving| leaving.identity).collect();
    for leaving in &mut leaving_files {
        leaving.links.extend(leaving.job.take().into_iter().flat_map(AttachJob::into_links));
    }
    release(leaving_files.iter_mut().flat_map(|leaving| leaving.links.drain(..)).collect());
    identities.iter().for_each(|identity| raised.lower(*identity));
    // Before the file can be attached again.
    then.into_iter().for_each(|then| then());
    {
        let mut state = lock(shared);
        state.changes += 1;
        for identity in identities {
            if let Some(lots) = state.files.get_mut(&identity) {
                *lots -= 1;
            }
        }
        state.files.retain(|_, lots| *lots > 0);
    }
    finish(shared, leaving_files, done);
}

/// Once the writer continues, the file can be attached.
fn finish(shared: &Mutex<DetachState>, leaving_files: Vec<Leaving>, done: Option<SyncSender<()>>) {
    lock(shared).numbers.extend(leaving_files.iter().flat_map(|leaving| &leaving.numbers));
    leaving_files.into_iter().for_each(|leaving| drop(leaving.lease));
    if let Some(done) = done {
        let _ = done.try_send(());
    }
}
