//! The thread that owns the loaded programs and their links, and looks after the targets.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::find::{Found, find, in_use, is_costly};
use super::generation::{Context, Cookies, Generation};
use super::outcome::Outcome;
use super::status::{ProbeState, Status, Ticks};
use crate::abi::book_cell;
use crate::kernel::{Attach, Clock, Kernel, KernelError, Shared};
use crate::layout::Layout;
use crate::plan::{Pairing, Plan, TargetPlan};

/// How often files are looked at: one stat(2) for each.
const LOOK: Duration = Duration::from_secs(1);

/// How often all processes are looked at, where a target is given by process, and for files that were replaced.
const WALK: Duration = Duration::from_secs(5);

/// Ticks of the kernel in a second, by its configuration.
const HZ: [f64; 4] = [100.0, 250.0, 300.0, 1000.0];

/// The running thread. Dropping it detaches everything and unloads the programs.
#[derive(Debug)]
pub struct Keeper {
    shared: Shared,
    status: Arc<Status>,
    attach: Attach,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Loads the programs and attaches what can be attached now; the rest is attached when it appears.
    ///
    /// # Errors
    /// If the kernel refuses the programs, or the thread cannot be made.
    pub fn start(plan: Arc<Plan>, layout: Arc<Layout>, attach: Attach) -> Result<Self, KernelError> {
        let status = Arc::new(Status::new(&plan));
        let (stop, stopped) = channel();
        let (ready, started) = sync_channel(1);
        let failed = |why: io::Error| KernelError {
            what: "starting the thread that attaches probes".to_string(),
            why: why.into(),
            next: String::new(),
        };
        let thread_status = status.clone();
        let thread = std::thread::Builder::new()
            .name("keeper".to_string())
            .spawn(move || match Kernel::load(&plan, &layout, attach) {
                Err(why) => {
                    let _ = ready.send(Err(why));
                }
                Ok(kernel) => {
                    let mut worker = Worker::new(plan, kernel, thread_status);
                    worker.look(true);
                    let _ = ready.send(Ok(worker.kernel.shared()));
                    worker.run(&stopped);
                }
            })
            .map_err(failed)?;
        let shared = started.recv().map_err(|_| failed(io::Error::other("it ended at once")))??;
        Ok(Self { shared, status, attach, stop: Some(stop), thread: Some(thread) })
    }

    pub fn shared(&self) -> Shared {
        self.shared.clone()
    }

    pub fn status(&self) -> Arc<Status> {
        self.status.clone()
    }

    pub fn attach_kind(&self) -> Attach {
        self.attach
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    plan: Arc<Plan>,
    kernel: Kernel,
    status: Arc<Status>,
    cookies: Cookies,
    targets: Vec<State>,
    first_clock: Option<Clock>,
    last_walk: Instant,
    /// Starts that found no room so far.
    starts_refused: u64,
}

/// One target's files.
#[derive(Debug, Default)]
struct State {
    current: Vec<Generation>,
    /// Replaced, but some process still runs them.
    replaced: Vec<Generation>,
    missing: Option<String>,
}

impl Worker {
    fn new(plan: Arc<Plan>, kernel: Kernel, status: Arc<Status>) -> Self {
        let targets = plan.targets.iter().map(|_| State::default()).collect();
        let cookies = Cookies::new(plan.settings.limits.sites);
        let first_clock = kernel.clock();
        Self {
            plan,
            kernel,
            status,
            cookies,
            targets,
            first_clock,
            last_walk: Instant::now(),
            starts_refused: 0,
        }
    }

    /// Until the other end of `stopped` is dropped.
    fn run(&mut self, stopped: &Receiver<()>) {
        let mut pause = LOOK / 5;
        while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            pause = LOOK;
            let walk = self.last_walk.elapsed() >= WALK;
            if walk || self.status.ticks().is_none() {
                self.measure_ticks();
            }
            if walk {
                self.last_walk = Instant::now();
            }
            if walk || self.found_no_room() {
                self.sweep_starts();
            }
            self.look(walk);
        }
        let mut all: Vec<_> = self
            .targets
            .drain(..)
            .flat_map(|state| state.current.into_iter().chain(state.replaced))
            .collect();
        std::thread::scope(|scope| {
            for generation in &mut all {
                scope.spawn(|| generation.detach(&mut Cookies::new(0)));
            }
        });
    }

    /// Whether a start found no room since the last look.
    fn found_no_room(&mut self) -> bool {
        let bank = self.kernel.shared().bank;
        let full = |probe| bank.book(probe, book_cell::BOOK_LOST_STARTS_FULL);
        let starts = self.plan.probes.iter().enumerate().filter(|(_, probe)| probe.span.is_some());
        let now = starts.map(|(number, _)| full(number)).sum();
        std::mem::replace(&mut self.starts_refused, now) != now
    }

    fn sweep_starts(&self) {
        if self.plan.spans == 0 {
            return;
        }
        let mut pairings = vec![Pairing::Thread; self.plan.spans as usize];
        for span in self.plan.probes.iter().filter_map(|probe| probe.span) {
            pairings[span.number as usize] = span.by;
        }
        self.status.add_sweep(&self.kernel.sweep_starts(&pairings));
    }

    /// Compares every target with the files that it means now. With `walk`, also what takes a walk over all processes.
    fn look(&mut self, walk: bool) {
        let plan = self.plan.clone();
        for (target, planned) in plan.targets.iter().enumerate() {
            if walk || !is_costly(&planned.selector) {
                self.look_at(target, planned);
            }
            if walk {
                self.drop_unused(target, planned);
            }
        }
    }

    fn look_at(&mut self, target: usize, planned: &TargetPlan) {
        let state = &mut self.targets[target];
        let files = match find(&planned.selector) {
            Ok(files) => files,
            Err(why) => {
                // Files that are attached stay so: their processes may still run, or the file may come back.
                if state.current.is_empty() {
                    let news = state.missing.as_ref() != Some(&why);
                    if news {
                        log::warn!("Target {}: {why}; waiting for it", planned.name);
                    }
                    for probe in &planned.probes {
                        self.status.set(*probe, ProbeState::Waiting(why.clone()), [0, 0], None);
                    }
                    state.missing = Some(why);
                }
                return;
            }
        };
        state.missing = None;
        let mut changed = false;
        let known = std::mem::take(&mut state.current);
        let context =
            Context { kernel: &self.kernel, plan: &self.plan, status: &self.status, target: planned };
        for mut old in known {
            match files.iter().find(|file| file.identity == old.identity) {
                Some(file) if file.stamp == old.stamp => {
                    if old.retry(context, file, &mut self.cookies) {
                        announce(&self.plan, planned, file, &old);
                        changed = true;
                    }
                    state.current.push(old);
                }
                // Written over in place: the sites are elsewhere now.
                Some(_) => {
                    old.detach(&mut self.cookies);
                    changed = true;
                }
                None if old.is_attached() => {
                    log::info!("Target {}: {} was replaced", planned.name, old.shown);
                    state.replaced.push(old);
                    changed = true;
                }
                None => changed = true,
            }
        }
        for file in &files {
            let state = &mut self.targets[target];
            if state.current.iter().any(|known| known.identity == file.identity) {
                continue;
            }
            // A file that came back, as when an upgrade is undone.
            if let Some(at) = state.replaced.iter().position(|old| old.identity == file.identity) {
                let mut old = state.replaced.swap_remove(at);
                old.detach(&mut self.cookies);
            }
            let made = Generation::attach(context, file, &mut self.cookies);
            announce(&self.plan, planned, file, &made);
            state.current.push(made);
            changed = true;
        }
        if changed {
            self.publish(target, planned);
        }
    }

    /// Probes stay in a replaced file as long as a process runs it.
    fn drop_unused(&mut self, target: usize, planned: &TargetPlan) {
        let state = &mut self.targets[target];
        let cookies = &mut self.cookies;
        state.replaced.retain_mut(|old| {
            let used = in_use(old.identity);
            if !used {
                log::info!("Target {}: the replaced {} no longer runs", planned.name, old.shown);
                old.detach(cookies);
            }
            used
        });
    }

    /// The states of a target's probes: attached if it is so in any of its files, and partly if not at all sites.
    fn publish(&self, target: usize, planned: &TargetPlan) {
        let state = &self.targets[target];
        for (n, probe) in planned.probes.iter().enumerate() {
            let of = |generation: &Generation| generation.probes.get(n).cloned();
            let outcomes: Vec<Outcome> = state.current.iter().filter_map(of).collect();
            let Some(first) = outcomes.first() else { continue };
            let attached: Vec<_> = outcomes.iter().filter(|o| o.state.is_attached()).collect();
            let refused = outcomes.iter().map(Outcome::refused).sum();
            let sites = attached.iter().map(|o| o.sites).sum();
            let unsigned = attached.iter().fold(u32::MAX, |all, o| all & o.unsigned);
            let unsigned = (!attached.is_empty()).then_some(unsigned);
            let not_all = outcomes
                .iter()
                .find(|o| matches!(o.state, ProbeState::Partly(_) | ProbeState::Refused(_)))
                .map(|o| ProbeState::Partly(o.state.reason().to_string()));
            let state = match (attached.is_empty(), not_all) {
                (true, _) => first.state.clone(),
                (false, Some(partly)) => partly,
                (false, None) => ProbeState::Attached,
            };
            self.status.set(*probe, state, [sites, refused], unsigned);
        }
    }

    /// The kernel notes a hit's time in jiffies, which costs it nothing; here is learnt what a jiffy is.
    fn measure_ticks(&mut self) {
        let (Some(first), Some(now)) = (self.first_clock, self.kernel.clock()) else { return };
        let seconds = now.nanoseconds.saturating_sub(first.nanoseconds) as f64 / 1e9;
        let measured = now.jiffies.saturating_sub(first.jiffies) as f64 / seconds.max(1e-3);
        let hz = HZ.into_iter().min_by(|a, b| (a - measured).abs().total_cmp(&(b - measured).abs()));
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        if let Some(hz) = hz {
            self.status.set_ticks(Ticks { jiffies: now.jiffies, unix, hz });
        }
    }
}

fn announce(plan: &Plan, planned: &TargetPlan, file: &Found, made: &Generation) {
    let mut attached = 0;
    for outcome in &made.probes {
        let name = &plan.probes[outcome.probe].name;
        match &outcome.state {
            ProbeState::Attached => {
                attached += 1;
                let sites = if outcome.sites == 1 { "" } else { "s" };
                log::info!("Attached probe: {name} ({} site{sites})", outcome.sites);
            }
            ProbeState::Partly(why) => {
                attached += 1;
                log::warn!("Attached probe in part: {name}: {why}");
            }
            state => log::warn!("Probe {name} is {}: {}", state.word(), state.reason()),
        }
    }
    let line =
        format!("Attached {attached}/{} probes to {} ({})", made.probes.len(), planned.name, file.shown);
    if attached == 0 {
        log::error!("{line}; `exporter probes {}` lists what the file has", file.shown);
    } else {
        log::info!("{line}");
    }
}
