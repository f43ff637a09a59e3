//! The thread that owns the loaded programs and their links, and manages the targets.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::attached_file::{AttachedFile, Shed};
use super::attaching::Attaching;
use super::detacher::Leaving;
use super::probe_state::ProbeState;
use super::record::StartState;
use super::state::Written;
use super::status::TargetsStatus;
use super::worker::Worker;
use crate::kernel::{Attach, Guard, KernelError, SharedHandles};
use crate::layout::Layout;
use crate::plan::Plan;

/// How often files are checked: one stat(2) each.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The same while all possible changes are reported by events, and none was.
pub(super) const REST_INTERVAL: Duration = Duration::from_secs(30);

/// How often hits are looked for then, while there are none: waking up is most of what an idle exporter costs.
const HITS_INTERVAL_AT_REST: Duration = Duration::from_secs(5);

/// The running thread. Dropping it detaches everything and unloads the programs.
#[derive(Debug)]
pub struct ProbeManager {
    shared: SharedHandles,
    status: Arc<TargetsStatus>,
    attach: Attach,
    stop: Option<UnixStream>,
    requests: Sender<Request>,
    thread: Option<JoinHandle<()>>,
}

/// A task, and where to signal that it is done.
type Request = (Task, SyncSender<()>);

/// Probes are given by their numbers in the plan.
#[derive(Debug)]
pub(super) enum Task {
    Retire(BTreeSet<usize>),
    /// Each with its reason.
    Shed(Shed),
    Restore(BTreeSet<usize>),
    /// Does nothing, once no thread is attaching.
    Wait,
}

impl ProbeManager {
    /// Loads the programs and attaches what can be attached now; the rest is attached when it appears.
    ///
    /// # Errors
    /// If the kernel rejects the programs, or the thread cannot be started.
    pub fn start(plan: Arc<Plan>, layout: Arc<Layout>, attach: Attach) -> Result<Self, KernelError> {
        Self::begin(plan, layout, &Attaching::new(attach), StartState::default())
    }

    /// As [`ProbeManager::start`], with attachments that may outlive the exporter, or are taken over from a previous
    /// one.
    pub(crate) fn begin(
        plan: Arc<Plan>,
        layout: Arc<Layout>,
        attaching: &Attaching,
        beginning: StartState,
    ) -> Result<Self, KernelError> {
        let status = Arc::new(TargetsStatus::new(&plan));
        let (ready, started) = sync_channel(1);
        let failed = |err: io::Error| KernelError {
            what: "start the thread that attaches probes".to_string(),
            source: err.into(),
            next: String::new(),
        };
        let (stop, stopped) = UnixStream::pair().map_err(failed)?;
        let (requests, requested) = channel();
        let thread_status = status.clone();
        let (attach, attaching) = (attaching.kind, attaching.clone());
        let thread = std::thread::Builder::new()
            .name("probe-manager".to_string())
            .spawn(move || match Worker::new(plan, &layout, attaching, thread_status, stopped, beginning) {
                Err(err) => {
                    let _ = ready.send(Err(err));
                }
                Ok(mut worker) => {
                    worker.look(true);
                    worker.update_readers();
                    // The guard holds the leases from now on.
                    worker.guard.iter().for_each(Guard::take_charge);
                    worker.keep();
                    let _ = ready.send(Ok(worker.attacher.kernel.shared()));
                    worker.run(&requested);
                }
            })
            .map_err(failed)?;
        let shared = started.recv().map_err(|_| failed(io::Error::other("it exited")))??;
        Ok(Self { shared, status, attach, stop: Some(stop), requests, thread: Some(thread) })
    }

    /// Detaches these probes for good, by their numbers in the plan, and waits until that is done. The others stay
    /// attached throughout.
    pub fn retire(&self, probes: BTreeSet<usize>) {
        self.request(Task::Retire(probes));
    }

    /// Detaches these probes for now, each for its reason, with all others of their units. Waits until that is done.
    pub fn shed(&self, probes: Shed) {
        self.request(Task::Shed(probes));
    }

    /// Attaches them again.
    pub fn restore(&self, probes: BTreeSet<usize>) {
        self.request(Task::Restore(probes));
    }

    /// Waits until everything is attached that can be attached now. Where that takes the kernel long, as in a library that
    /// thousands of processes map, [`ProbeManager::start`] returns before.
    pub fn wait_until_attached(&self) {
        self.request(Task::Wait);
    }

    fn request(&self, task: Task) {
        let (done, wait) = sync_channel(1);
        let asked = self.requests.send((task, done)).is_ok();
        // A thread that panicked has detached everything.
        if asked && self.stop.as_ref().is_some_and(|mut stop| stop.write_all(b"!").is_ok()) {
            let _ = wait.recv();
        }
    }

    pub fn shared(&self) -> SharedHandles {
        self.shared.clone()
    }

    pub fn status(&self) -> Arc<TargetsStatus> {
        self.status.clone()
    }

    pub fn attach_kind(&self) -> Attach {
        self.attach
    }
}

impl Drop for ProbeManager {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Worker {
    /// Runs until the other end of the watch's stream is dropped.
    fn run(&mut self, requests: &Receiver<Request>) {
        let mut pause = LOOK_INTERVAL / 5;
        // Those that wait until a file is attached.
        let mut tasks = Vec::new();
        loop {
            let due = self.finder.due_in().unwrap_or(pause);
            let wakeup = self.watch.wait(self.pause_for_writers(pause).min(due), self.finder.events_fd());
            self.is_disturbed |= wakeup.has_event() || self.finder.due_in().is_some();
            if self.is_disturbed {
                pause = pause.min(LOOK_INTERVAL);
            }
            // First: a writer waits.
            self.release_for_writers(&wakeup.breaks);
            self.attacher.detacher.give_back(&mut self.cookies);
            self.end_shedding();
            self.finish_attaching();
            if wakeup.is_over {
                self.watch.open_gate();
                break;
            }
            tasks.extend(requests.try_iter());
            for (task, done) in std::mem::take(&mut tasks) {
                if self.is_attaching_for(&task) {
                    tasks.push((task, done));
                    continue;
                }
                match task {
                    Task::Wait => drop(done.try_send(())),
                    Task::Retire(probes) => {
                        let leaving_files = self.retire(&probes);
                        self.keep();
                        self.attacher.detacher.detach_and_signal(leaving_files, done);
                    }
                    Task::Shed(probes) => self.shed(probes, done),
                    Task::Restore(probes) => {
                        self.restore(&probes);
                        let _ = done.try_send(());
                    }
                }
            }
            self.prepare(&wakeup.sibling);
            if wakeup.processes || self.finder.due_in().is_some_and(|due| due.is_zero()) {
                self.follow_processes();
            }
            let plan = self.plan.clone();
            // A file that is executed is no longer written.
            let is_free = |written: Written| wakeup.asked.is_some() || written.is_due();
            for (target, planned) in plan.targets.iter().enumerate() {
                let has_moved = wakeup.targets.contains(&target);
                if has_moved {
                    self.follow_again(target);
                }
                if has_moved || self.targets[target].written.is_some_and(is_free) {
                    self.look_at(target, planned);
                }
            }
            if !wakeup.targets.is_empty() {
                self.follow();
            }
            if self.last_look.elapsed() >= pause {
                self.last_look = Instant::now();
                self.is_disturbed |= self.measure_usage();
                if self.last_walk.elapsed() >= REST_INTERVAL || !self.is_at_rest() {
                    self.run_periodic_check();
                }
                let is_at_rest = self.is_at_rest() && self.attacher.status.is_at_rest();
                pause = if is_at_rest { HITS_INTERVAL_AT_REST } else { LOOK_INTERVAL };
            }
            // Those that began before their file was attached.
            self.settle_runs();
            self.report_lost_events();
            self.update_readers();
            self.watch.answer(&wakeup);
            self.record_if_changed();
        }
        self.attacher.detacher.end();
        if self.attacher.kernel.pins().is_some() {
            self.wait_for_links();
        }
        // This engine's usage is added to that of the engines that continue.
        self.attacher.status.end_usage();
        self.keep();
        if self.attacher.kernel.pins().is_some_and(|pins| !pins.is_over()) {
            // Pinned probes stay.
            return;
        }
        // Detaching lowers every semaphore: those that are not raised yet are raised first.
        self.raise_all_semaphores();
        let all: Vec<_> = self
            .targets
            .drain(..)
            .flat_map(|state| {
                let candidates = state.candidates.into_iter().map(|candidate| candidate.attached);
                state.current.into_iter().chain(state.replaced).chain(candidates)
            })
            .collect();
        self.attacher.detacher.detach(all.into_iter().map(AttachedFile::into_leaving).collect());
        self.attacher.detacher.end();
        self.guard.iter_mut().for_each(Guard::end);
        self.attacher.kernel.unpin();
    }

    /// Removes probes from the plan; returns what must be detached.
    fn retire(&mut self, probes: &BTreeSet<usize>) -> Vec<Leaving> {
        // Detaching lowers every semaphore: those that are not raised yet are raised first.
        self.raise_all_semaphores();
        let mut plan = Plan::clone(&self.plan);
        let units = probes.iter().map(|probe| plan.probes[*probe].unit).collect();
        let mut leaving_files = Vec::new();
        for (target, state) in plan.targets.iter_mut().zip(&mut self.targets) {
            let is_left: Vec<bool> = target.probes.iter().map(|probe| !probes.contains(probe)).collect();
            leaving_files.extend(state.files_mut().map(|file| file.retire(&units, &is_left)));
            target.probes.retain(|probe| !probes.contains(probe));
        }
        self.plan = Arc::new(plan);
        let reason = "it is not in the configuration any more";
        for probe in probes {
            self.attacher.status.set(*probe, ProbeState::Absent(reason.to_string()), [0, 0], None);
        }
        leaving_files
    }
}
