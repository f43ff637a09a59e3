//! The thread that owns the loaded programs and their links, and looks after the targets.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::find::{Finder, Found, Identity, News, is_by_process};
use super::generation::{Context, Cookies, Generation};
use super::outcome::Outcome;
use super::status::{ProbeState, Reattached, Status, Ticks};
use super::upgrade::{Candidate, Written, lease};
use super::watch::Watch;
use crate::abi::accounting_slot;
use crate::config::model::{Point, Selector};
use crate::kernel::{
    Attach, Clock, Files, Filter, Kernel, KernelError, PidNamespace, ProcessEvents, Shared, Wanted,
};
use crate::layout::Layout;
use crate::plan::{Pairing, Plan, TargetPlan};

/// How often files are looked at: one stat(2) for each.
const LOOK: Duration = Duration::from_secs(1);

/// How often is looked at what nothing tells of: whether replaced files still run, and, where the kernel does not tell what
/// processes do, all of these.
const WALK: Duration = Duration::from_secs(5);

/// How often container engines are asked for names, which can change without any process doing something.
const NAMES: Duration = Duration::from_secs(60);

/// Ticks of the kernel in a second, by its configuration.
const HZ: [f64; 4] = [100.0, 250.0, 300.0, 1000.0];

/// The running thread. Dropping it detaches everything and unloads the programs.
#[derive(Debug)]
pub struct Keeper {
    shared: Shared,
    status: Arc<Status>,
    attach: Attach,
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Loads the programs and attaches what can be attached now; the rest is attached when it appears.
    ///
    /// # Errors
    /// If the kernel refuses the programs, or the thread cannot be made.
    pub fn start(plan: Arc<Plan>, layout: Arc<Layout>, attach: Attach) -> Result<Self, KernelError> {
        let status = Arc::new(Status::new(&plan));
        let (ready, started) = sync_channel(1);
        let failed = |why: io::Error| KernelError {
            what: "starting the thread that attaches probes".to_string(),
            why: why.into(),
            next: String::new(),
        };
        let (stop, stopped) = UnixStream::pair().map_err(failed)?;
        let thread_status = status.clone();
        let thread = std::thread::Builder::new()
            .name("keeper".to_string())
            .spawn(move || match Worker::new(plan, &layout, attach, thread_status, stopped) {
                Err(why) => {
                    let _ = ready.send(Err(why));
                }
                Ok(mut worker) => {
                    worker.look(true);
                    let _ = ready.send(Ok(worker.kernel.shared()));
                    worker.run();
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

pub(super) struct Worker {
    pub(super) plan: Arc<Plan>,
    pub(super) kernel: Kernel,
    pub(super) status: Arc<Status>,
    pub(super) cookies: Cookies,
    pub(super) targets: Vec<State>,
    pub(super) finder: Finder,
    pub(super) watch: Watch,
    first_clock: Option<Clock>,
    last_walk: Instant,
    last_look: Instant,
    last_names: Instant,
    /// Events of processes were lost: all have to be looked at.
    is_behind: bool,
    selectors: Vec<Selector>,
    /// Starts that found no room so far.
    starts_refused: u64,
}

/// One target's files.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) current: Vec<Generation>,
    /// Replaced, but some process still runs them.
    pub(super) replaced: Vec<Generation>,
    /// Files without any of the probes that ran a while ago: they need not be read again.
    barren: Vec<Generation>,
    /// Beside the target's file, and not it yet.
    pub(super) candidates: Vec<Candidate>,
    /// Since when a file that is being written keeps the target waiting.
    pub(super) written: Option<Written>,
    /// When somebody last wanted to write a file.
    pub(super) broken: Option<Instant>,
    missing: Option<String>,
    remarks: Vec<String>,
    /// Where the executables of a target that is given by name are, as far as paths of this mount namespace lead to them.
    paths: BTreeSet<PathBuf>,
    /// What was attached to by each name of a file.
    attached: HashMap<String, Identity>,
    filter: Option<Filter>,
    editions: u32,
    /// Its USDT probes, as `provider:name`.
    pub(super) usdt: Vec<String>,
}

/// Files without probes that are remembered of one target.
const BARREN: usize = 64;

/// Names of files that are remembered of one target.
const NAMES_OF_FILES: usize = 1024;

impl State {
    /// Counts a file that is attached to in place of another, or again.
    fn note_attached(&mut self, made: &Generation, target: usize, status: &Status) {
        if !made.is_attached() {
            return;
        }
        if self.attached.len() >= NAMES_OF_FILES {
            self.attached.clear();
        }
        match self.attached.insert(made.shown.clone(), made.identity) {
            Some(before) if before == made.identity => status.add_reattached(target, Reattached::Written),
            Some(_) => status.add_reattached(target, Reattached::Replaced),
            None => {}
        }
    }

    /// Notes that no process which is meant runs the file, or that another one has its place.
    fn leave(&mut self, mut old: Generation, is_replaced: bool, target: &str) {
        if old.is_attached() {
            if is_replaced {
                log::info!("Target {target}: {} was replaced", old.shown);
            }
            old.leave(is_replaced);
            self.replaced.push(old);
        } else if !old.wants_retry() {
            if self.barren.len() >= BARREN {
                self.barren.remove(0);
            }
            // A file that is not probed can be written over by anyone.
            old.lease = None;
            self.barren.push(old);
        }
    }

    /// The probes of a file that runs again, or that has got its place back, as when an upgrade is undone.
    fn take_back(&mut self, file: &Found) -> Option<Generation> {
        let is_it = |old: &Generation| {
            old.identity == file.identity && (old.stamp == file.stamp || old.is_as_it_was())
        };
        let at = |all: &[Generation]| all.iter().position(is_it);
        let mut old = match (at(&self.replaced), at(&self.barren)) {
            (Some(at), _) => self.replaced.swap_remove(at),
            (None, Some(at)) => self.barren.swap_remove(at),
            (None, None) => return None,
        };
        old.come_back();
        old.stamp = file.stamp;
        Some(old)
    }
}

impl Worker {
    fn new(
        plan: Arc<Plan>,
        layout: &Layout,
        attach: Attach,
        status: Arc<Status>,
        stopped: UnixStream,
    ) -> Result<Self, KernelError> {
        let failed = |what: &str, err: io::Error, next: &str| KernelError {
            what: what.to_string(),
            why: err.into(),
            next: next.to_string(),
        };
        let mut files = Files::load()?;
        let namespace = files.pid_namespace().map_err(|err| {
            failed("finding out whose process ids /proc shows", err, "run it with the host's pid namespace")
        })?;
        if namespace != PidNamespace::default() {
            log::info!(
                "Process ids are those of this pid namespace; processes outside of it are traced too, and have the id 0"
            );
        }
        let kernel = Kernel::load(&plan, layout, attach, namespace)?;
        let watch = Watch::new(stopped)
            .map_err(|err| failed("watching files", err, "raise fs.inotify.max_user_instances"))?;
        let usdt_of = |target: &TargetPlan| {
            let names = target.probes.iter().filter_map(|probe| match &plan.probes[*probe].point {
                Point::Usdt { provider, name } => Some(format!("{provider}:{name}")),
                Point::Function(_) => None,
            });
            names.collect()
        };
        let targets =
            plan.targets.iter().map(|target| State { usdt: usdt_of(target), ..State::default() }).collect();
        let cookies = Cookies::new(plan.settings.limits.sites);
        let first_clock = kernel.clock();
        let (last_walk, last_look) = (Instant::now(), Instant::now());
        let selectors: Vec<Selector> = plan.targets.iter().map(|target| target.selector.clone()).collect();
        let events = process_events(&selectors, namespace);
        let needs_libraries = |state: &State| !state.usdt.is_empty();
        let needs_libraries =
            selectors.iter().zip(&targets).any(|(of, state)| is_by_process(of) && needs_libraries(state));
        let finder = Finder::new(files, &selectors, events, needs_libraries);
        let worker = Self {
            plan,
            kernel,
            status,
            cookies,
            targets,
            finder,
            watch,
            first_clock,
            last_walk,
            last_look,
            last_names: Instant::now(),
            is_behind: false,
            selectors,
            starts_refused: 0,
        };
        worker.name_candidates();
        Ok(worker)
    }

    /// Until the other end of the watch's stream is dropped.
    fn run(&mut self) {
        let mut pause = LOOK / 5;
        loop {
            let due = self.finder.due_in().unwrap_or(pause);
            let news = self.watch.wait(self.pause_for_writers(pause).min(due), self.finder.told());
            // Before anything else: somebody waits.
            self.give_way(&news.breaks);
            if news.is_over {
                break;
            }
            self.prepare(&news.beside);
            if news.processes || self.finder.due_in().is_some_and(|due| due.is_zero()) {
                self.follow_processes();
            }
            let plan = self.plan.clone();
            for (target, planned) in plan.targets.iter().enumerate() {
                if news.targets.contains(&target) || self.targets[target].written.is_some_and(Written::is_due)
                {
                    self.look_at(target, planned);
                }
            }
            if !news.targets.is_empty() {
                self.follow();
            }
            if self.last_look.elapsed() >= pause {
                pause = LOOK;
                self.last_look = Instant::now();
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
        }
        // Or the kernel could not lower them.
        self.raise_all_semaphores();
        let mut all: Vec<_> = self
            .targets
            .drain(..)
            .flat_map(|state| {
                let candidates = state.candidates.into_iter().map(|candidate| candidate.generation);
                state.current.into_iter().chain(state.replaced).chain(candidates)
            })
            .collect();
        std::thread::scope(|scope| {
            for generation in &mut all {
                scope.spawn(|| generation.detach(&mut Cookies::new(0)));
            }
        });
    }

    /// Looks at the targets for which processes have begun or changed.
    fn follow_processes(&mut self) {
        let Some(news) = self.finder.follow(&self.selectors) else {
            log::debug!("more has happened to processes than could be told: all are looked at");
            self.is_behind = true;
            return;
        };
        self.status.set_walks(self.finder.walks);
        self.look_for(&news);
    }

    fn look_for(&mut self, news: &News) {
        let plan = self.plan.clone();
        for (target, planned) in plan.targets.iter().enumerate() {
            let Selector::Process(name) = &planned.selector else { continue };
            let ended = news.ended.iter().filter(|(of, _)| of == name);
            let before = self.targets[target].paths.len();
            self.targets[target].paths.extend(ended.map(|(_, path)| path.clone()));
            if before < self.targets[target].paths.len() && !news.targets.contains(&target) {
                self.look_at(target, planned);
            }
        }
        for target in &news.targets {
            self.look_at(*target, &plan.targets[*target]);
        }
        for executed in &news.executed {
            let Some(identity) = self.finder.file_of(executed) else { continue };
            self.raise_semaphores(executed.pid, identity);
            for (target, state) in self.targets.iter().enumerate() {
                let of = state.current.iter().find(|of| of.identity == identity && of.is_attached());
                let late = of.map_or(0, |of| of.attached.saturating_sub(executed.time));
                if late > 0 {
                    self.status.add_unprobed(target, late);
                }
            }
        }
        let states = &self.targets;
        let needs_semaphores = |identity| {
            let generations = states.iter().flat_map(|state| &state.current);
            generations.filter(|of| of.identity == identity).any(|of| !of.shared_semaphores.is_empty())
        };
        self.finder.note_executed(news, needs_semaphores);
    }

    /// Whether a start found no room since the last look.
    fn found_no_room(&mut self) -> bool {
        let store = self.kernel.shared().store;
        let full = |probe| store.accounting(probe, accounting_slot::ACCT_LOST_STARTS_FULL);
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

    /// Compares targets with the files that they mean now: those given by files, and those of which something says that there
    /// may be news. With `walk`, also what is looked at rarely.
    fn look(&mut self, walk: bool) {
        let plan = self.plan.clone();
        if walk {
            self.begin_walk();
        }
        self.follow_processes();
        for (target, planned) in plan.targets.iter().enumerate() {
            let state = &self.targets[target];
            let is_free = state.written.is_none_or(Written::is_due);
            let is_told = is_by_process(&planned.selector) && self.finder.has_events();
            let may_differ = if is_told {
                state.written.is_some() || state.current.iter().any(Generation::wants_retry)
            } else {
                walk || !is_by_process(&planned.selector)
            };
            if is_free && may_differ {
                self.look_at(target, planned);
            }
            if walk {
                self.drop_unused(target, planned);
            }
        }
        if walk {
            self.raise_all_semaphores();
            self.drop_candidates();
            self.follow();
        }
    }

    fn begin_walk(&mut self) {
        if !self.finder.has_events() || std::mem::take(&mut self.is_behind) {
            self.finder.begin_walk();
        }
        if !self.finder.has_events() || self.last_names.elapsed() >= NAMES {
            self.last_names = Instant::now();
            self.finder.name_containers(&self.selectors);
        }
        let by_process = self.selectors.iter().zip(&self.targets).filter(|(of, _)| is_by_process(of));
        let by_process: Vec<&State> = by_process.map(|(_, state)| state).collect();
        if by_process.iter().any(|state| !state.usdt.is_empty()) {
            self.finder.read_mappings_again();
        }
        let generations = by_process.iter().flat_map(|state| &state.current);
        let unsure: Vec<_> = generations.filter(|g| !g.is_as_it_was()).map(|g| g.identity).collect();
        self.finder.check_again(&unsure);
    }

    /// Tells the kernel which processes the target means, if that is another answer than before. It must know before a file
    /// is attached to.
    fn set_filter(&mut self, target: usize, planned: &TargetPlan) {
        let filter = match (planned.pid, &planned.selector) {
            (Some(pid), _) => {
                // The first one with the number is it; the kernel takes it if it hits a probe before it is seen here.
                let known = self.targets[target].filter.as_ref().map_or(0, Filter::began);
                Filter::process(pid, if known > 0 { known } else { self.finder.began(pid) })
            }
            (None, Selector::Process(name)) => Filter::name(name),
            (None, Selector::Container(name)) => Filter::container(&self.finder.container_id(name)),
            (None, Selector::Binary(_) | Selector::Pid(_)) => return,
        };
        let state = &mut self.targets[target];
        if state.filter.as_ref() == Some(&filter) {
            return;
        }
        state.editions += 1;
        match self.kernel.set_filter(target, &filter.clone().numbered(state.editions)) {
            Ok(()) => state.filter = Some(filter),
            Err(err) => log::error!("Target {}: the kernel keeps its old filter: {err:#}", planned.name),
        }
    }

    /// The files that a target means now, and those that took the place of its executables and do not run yet.
    fn find(&mut self, target: usize, planned: &TargetPlan) -> Result<Vec<Found>, String> {
        let state = &mut self.targets[target];
        let mut found = self.finder.find(&planned.selector, &state.usdt);
        let mut remarks = std::mem::take(&mut self.finder.remarks);
        let attached = |inode: &Identity| {
            state.current.iter().chain(&state.replaced).any(|generation| generation.identity == *inode)
        };
        let copied_up = self.finder.copied_up.iter().filter(|process| !process.maps.iter().any(attached));
        remarks.extend(copied_up.map(|process| {
            format!(
                "process {} runs {} as it was before it was copied up to another layer, to which no path leads: what it does \
                 is not counted until it is started again",
                process.pid, process.shown
            )
        }));
        for news in remarks.iter().filter(|remark| !state.remarks.contains(remark)) {
            log::warn!("Target {}: {news}", planned.name);
        }
        state.remarks = remarks;
        if !matches!(planned.selector, Selector::Process(_)) {
            return found;
        }
        for file in found.iter().flatten().filter(|file| !file.is_library) {
            let path = PathBuf::from(&file.shown);
            if !state.paths.contains(&path)
                && self.finder.look_at(&path, String::new()).is_ok_and(|here| here.identity == file.identity)
            {
                state.paths.insert(path);
            }
        }
        for path in &state.paths {
            let Ok(here) = self.finder.look_at(path, path.display().to_string()) else { continue };
            match &mut found {
                Ok(files) if files.iter().all(|file| file.identity != here.identity) => files.push(here),
                Ok(_) => {}
                Err(_) => found = Ok(vec![here]),
            }
        }
        found
    }

    /// Watches the ways to all files that paths of this mount namespace lead to.
    fn follow(&mut self) {
        let mut paths = Vec::new();
        for (target, planned) in self.plan.targets.iter().enumerate() {
            if let Selector::Binary(path) = &planned.selector {
                paths.push((target, path.clone()));
            }
            paths.extend(self.targets[target].paths.iter().map(|path| (target, path.clone())));
        }
        self.watch.follow(&paths);
    }

    fn look_at(&mut self, target: usize, planned: &TargetPlan) {
        self.set_filter(target, planned);
        let files = self.find(target, planned);
        let state = &mut self.targets[target];
        let files = match files {
            Ok(files) => files,
            Err(why) => {
                state.written = None;
                // That one process will not come back.
                if matches!(planned.selector, Selector::Pid(_)) {
                    for mut old in state.current.drain(..) {
                        old.detach(&mut self.cookies);
                        self.finder.forget_executed(old.identity);
                    }
                }
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
                Some(file) if file.stamp == old.stamp || old.is_as_it_was() => {
                    old.stamp = file.stamp;
                    if old.retry(context, file, &mut self.cookies) {
                        announce(&self.plan, planned, file, &old, false);
                        changed = true;
                    }
                    state.current.push(old);
                }
                // Written over in place: the sites are elsewhere now.
                Some(_) => {
                    old.detach(&mut self.cookies);
                    self.finder.forget_executed(old.identity);
                    changed = true;
                }
                None => {
                    let is_replaced =
                        !is_by_process(&planned.selector) || state.paths.contains(Path::new(&old.shown));
                    state.leave(old, is_replaced, &planned.name);
                    changed = true;
                }
            }
        }
        let elsewhere = files.iter().any(|file| file.is_library);
        let mut written = None;
        for file in &files {
            let state = &mut self.targets[target];
            if state.current.iter().any(|known| known.identity == file.identity) {
                continue;
            }
            if let Some(old) = state.take_back(file) {
                state.current.push(old);
                changed = true;
                continue;
            }
            if let Some(made) = state.admit(&self.kernel, file) {
                state.note_attached(&made, target, &self.status);
                announce(&self.plan, planned, file, &made, elsewhere);
                state.current.push(made);
                changed = true;
                continue;
            }
            let lease = match lease(&self.watch.breaks, &mut self.finder, file) {
                Ok(lease) => lease,
                Err(why) => {
                    written = Some(why);
                    continue;
                }
            };
            // Written over while nobody ran it.
            if let Some(at) = state.replaced.iter().position(|old| old.identity == file.identity) {
                let mut old = state.replaced.swap_remove(at);
                old.detach(&mut self.cookies);
            }
            let made = Generation::attach(context, file, lease, &mut self.cookies);
            state.note_attached(&made, target, &self.status);
            announce(&self.plan, planned, file, &made, elsewhere);
            state.current.push(made);
            changed = true;
        }
        if changed {
            self.publish(target, planned);
        }
        self.wait_for_writer(target, planned, written);
    }

    /// Probes stay in a replaced file as long as a process runs it.
    fn drop_unused(&mut self, target: usize, planned: &TargetPlan) {
        let state = &mut self.targets[target];
        let cookies = &mut self.cookies;
        state.replaced.retain_mut(|old| {
            let used = !old.wants_check_of_use() || self.finder.in_use(old.identity);
            if !used {
                log::info!("Target {}: {} no longer runs, and was detached from", planned.name, old.shown);
                old.detach(cookies);
                self.finder.forget_executed(old.identity);
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

/// What the kernel tells of the processes that targets mean; None where it does not tell.
fn process_events(selectors: &[Selector], namespace: PidNamespace) -> Option<ProcessEvents> {
    let mut wanted = Wanted::default();
    for selector in selectors {
        match selector {
            Selector::Process(name) => wanted.names.push(name.clone()),
            Selector::Container(_) => wanted.by_cgroup = true,
            Selector::Binary(path) => {
                wanted.names.extend(path.file_name().map(|name| name.to_string_lossy().into()))
            }
            Selector::Pid(_) => {}
        }
    }
    if selectors.is_empty() {
        return None;
    }
    let started = ProcessEvents::start(&wanted, namespace);
    started.inspect_err(|err| log::info!("Processes are looked for every {} s: {err}", WALK.as_secs())).ok()
}

/// With `elsewhere`, what this file lacks is in libraries that its process has loaded.
fn announce(plan: &Plan, planned: &TargetPlan, file: &Found, made: &Generation, elsewhere: bool) {
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
            ProbeState::Absent(_) if elsewhere => {}
            state => log::warn!("Probe {name} is {}: {}", state.word(), state.reason()),
        }
    }
    let line =
        format!("Attached {attached}/{} probes to {} ({})", made.probes.len(), planned.name, file.shown);
    if attached == 0 && elsewhere {
        log::debug!("{line}");
    } else if attached == 0 {
        log::error!("{line}; `exporter probes {}` lists what the file has", file.shown);
    } else {
        log::info!("{line}");
    }
}
