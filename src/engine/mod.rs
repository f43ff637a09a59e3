//! The active probes: sets that were loaded together, and several such sets as one.
//!
//! A reload loads a new set for the new probes, and leaves the others alone: their counts, links and open starts are
//! not touched.

mod retired;
mod takeover;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use self::retired::RetiredCounts;
use crate::clock::unix_now;
use crate::costs::so_far;
use crate::drain::Drain;
use crate::kernel::{Attach, KernelError, Pinning, SharedHandles, SharedPrices};
use crate::layout::Layout;
use crate::metrics::{CounterStore, ProbeRef};
use crate::pins::{EnginePins, PinError, StateDirectory};
use crate::plan::Plan;
use crate::slow::SlowRecorder;
use crate::store::UserStore;
use crate::targets::{Attaching, ProbeManager, StartState, TargetsStatus};

/// Probes that were loaded together, and the consumers of their events. Dropping it detaches everything.
#[derive(Debug)]
pub(crate) struct Engine {
    plan: Arc<Plan>,
    manager: ProbeManager,
    drain: Drain,
    counters: CounterStore,
    shared: SharedHandles,
    prices: SharedPrices,
    status: Arc<TargetsStatus>,
    /// Where its maps and links are, if they outlive the exporter.
    pins: Option<Arc<EnginePins>>,
}

impl Engine {
    /// Loads the probes of a plan and attaches what can be attached now, or continues where an earlier exporter left
    /// off.
    ///
    /// # Errors
    /// If the kernel refuses the programs, or a thread cannot be created.
    pub fn start(
        plan: Plan,
        attaching: &Attaching,
        beginning: StartState,
        recorder: &Arc<SlowRecorder>,
    ) -> Result<Self, KernelError> {
        let plan = Arc::new(plan);
        let layout = Arc::new(Layout::new(&plan));
        let pins = beginning.pinning.as_ref().map(|pinning| pinning.pins.clone());
        let manager = ProbeManager::begin(plan.clone(), layout.clone(), attaching, beginning)?;
        let user = match &pins {
            Some(pins) => kept_store(&layout, plan.probes.len(), pins).map_err(pin_error)?,
            None => layout.user_store(plan.probes.len()),
        };
        let user = Arc::new(user);
        let (shared, status) = (manager.shared(), manager.status());
        let recorder = Some(recorder.clone());
        let drain =
            Drain::start(plan.clone(), &layout, user.clone(), shared.clone(), recorder).map_err(|err| {
                let what = "start the thread that drains the ring buffer".to_string();
                KernelError { what, source: err.into(), next: String::new() }
            })?;
        let counters = CounterStore { layout, kernel: shared.store.clone(), user };
        let prices = attaching.prices.clone();
        Ok(Self { plan, manager, drain, counters, shared, prices, status, pins })
    }

    /// As [`Engine::start`], with a new engine in the directory, if there is one.
    fn start_in(
        plan: Plan,
        attaching: &Attaching,
        directory: Option<&StateDirectory>,
        recorder: &Arc<SlowRecorder>,
    ) -> Result<Self, KernelError> {
        let Some(directory) = directory else {
            return Self::start(plan, attaching, StartState::default(), recorder);
        };
        let pins = Arc::new(directory.new_engine().map_err(pin_error)?);
        let pinning = Some(Pinning { pins: pins.clone(), taken: None });
        let started = Self::start(plan, attaching, StartState { pinning, record: None }, recorder);
        if started.is_err()
            && let Err(err) = pins.remove()
        {
            log::warn!("{err}");
        }
        started
    }
}

/// The store of metrics computed from events, in memory that outlives the exporter.
fn kept_store(layout: &Layout, probes: usize, pins: &EnginePins) -> Result<UserStore, PinError> {
    let user = &layout.user;
    let numbers = UserStore::numbers(user.slots, probes);
    let limits = user.interners.iter().map(|interner| interner.limit);
    let (memory, names) = pins.memory(numbers, limits.clone().map(|limit| limit as usize).sum())?;
    Ok(UserStore::kept(user.slots, limits, probes, memory, Box::new(names)))
}

fn pin_error(err: PinError) -> KernelError {
    KernelError { what: err.what, source: std::io::Error::other(err.reason).into(), next: err.next }
}

/// All probes of a configuration, whichever engine they are in.
#[derive(Debug)]
pub(crate) struct Engines {
    pub plan: Arc<Plan>,
    /// Engines with a probe of the plan come first.
    all: Vec<Arc<Engine>>,
    probe_refs: Vec<ProbeRef>,
    /// For each engine, its probes that are no longer in the plan.
    left_out: Vec<Vec<usize>>,
    /// The counts of engines that have been dropped.
    retired: RetiredCounts,
    /// Where kernel objects are pinned so that they outlive the exporter.
    directory: Option<Arc<StateDirectory>>,
}

/// Probes that are shed together, by their indices in the plan: at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShedUnit {
    pub target: usize,
    pub probes: Vec<usize>,
}

impl Engines {
    /// Loads all probes of a plan.
    ///
    /// # Errors
    /// If the kernel refuses the programs.
    pub fn start(
        plan: Plan,
        attaching: &Attaching,
        directory: Option<Arc<StateDirectory>>,
        recorder: &Arc<SlowRecorder>,
    ) -> Result<Self, KernelError> {
        let probe_refs = (0..plan.probes.len()).map(|probe| ProbeRef { engine: 0, probe }).collect();
        let engine = Engine::start_in(plan, attaching, directory.as_deref(), recorder)?;
        let since = unix_now();
        let retired = RetiredCounts { since, ..RetiredCounts::default() };
        Ok(Self::of(engine.plan.clone(), vec![Arc::new(engine)], probe_refs, retired, directory))
    }
    fn of(
        plan: Arc<Plan>,
        all: Vec<Arc<Engine>>,
        probe_refs: Vec<ProbeRef>,
        retired: RetiredCounts,
        directory: Option<Arc<StateDirectory>>,
    ) -> Self {
        let mut is_used: Vec<Vec<bool>> =
            all.iter().map(|engine| vec![false; engine.plan.probes.len()]).collect();
        probe_refs.iter().for_each(|probe_ref| is_used[probe_ref.engine][probe_ref.probe] = true);
        let left_out = is_used.iter().map(|of| (0..of.len()).filter(|probe| !of[*probe]).collect()).collect();
        Self { plan, all, probe_refs, left_out, retired, directory }
    }

    /// Changes to another plan: identical probes stay, the others are loaded and attached. Nothing is detached yet.
    ///
    /// # Errors
    /// If the kernel refuses the programs.
    pub fn changed_to(
        &self,
        plan: Plan,
        attaching: &Attaching,
        recorder: &Arc<SlowRecorder>,
    ) -> Result<Self, KernelError> {
        let unchanged = plan.same_in(&self.plan);
        let new: Vec<usize> = (0..unchanged.len()).filter(|probe| unchanged[*probe].is_none()).collect();
        let mut all = self.all.clone();
        if !new.is_empty() {
            let directory = self.directory.as_deref();
            let engine = Engine::start_in(plan.part(&new), attaching, directory, recorder)?;
            // Until then, the probes that they replace go on counting.
            engine.manager.wait_until_attached();
            all.push(Arc::new(engine));
        }
        let last = all.len() - 1;
        let probe_ref = |(probe, twin): (usize, &Option<usize>)| match twin {
            Some(twin) => self.probe_refs[*twin],
            None => ProbeRef { engine: last, probe: new.binary_search(&probe).unwrap_or(0) },
        };
        let mut probe_refs: Vec<ProbeRef> = unchanged.iter().enumerate().map(probe_ref).collect();
        let used: BTreeSet<usize> = probe_refs.iter().map(|probe_ref| probe_ref.engine).collect();
        let order: Vec<usize> =
            used.iter().copied().chain((0..all.len()).filter(|engine| !used.contains(engine))).collect();
        for probe_ref in &mut probe_refs {
            probe_ref.engine = order.iter().position(|engine| *engine == probe_ref.engine).unwrap_or(0);
        }
        let all = order.into_iter().map(|engine| all[engine].clone()).collect();
        Ok(Self::of(Arc::new(plan), all, probe_refs, self.retired.clone(), self.directory.clone()))
    }

    /// The number of probes that are shared with `old`, and were not touched.
    pub fn kept_of(&self, old: &Self) -> usize {
        let is_of_old = |probe_ref: &&ProbeRef| {
            old.all.iter().any(|engine| Arc::ptr_eq(engine, &self.all[probe_ref.engine]))
        };
        self.probe_refs.iter().filter(is_of_old).count()
    }

    /// Detaches probes that are no longer in the plan, and drops engines that have no probes left.
    #[must_use]
    pub fn settled(&self) -> Self {
        std::thread::scope(|scope| {
            for (engine, gone) in self.all.iter().zip(&self.left_out) {
                let gone: BTreeSet<usize> = gone.iter().copied().collect();
                if !gone.is_empty() {
                    scope.spawn(move || engine.manager.retire(gone));
                }
            }
        });
        let used = self.used();
        let mut retired = self.retired.clone();
        for (engine, gone) in self.all.iter().zip(&self.left_out).skip(used) {
            engine.drain.catch_up(Duration::from_secs(1));
            gone.iter().for_each(|probe| retired.add(engine, *probe));
            retired.status.push((engine.plan.clone(), engine.status.clone()));
            retired.drain.push(engine.drain.stats().clone());
            engine.pins.iter().for_each(|pins| pins.end());
        }
        Self::of(
            self.plan.clone(),
            self.all[..used].to_vec(),
            self.probe_refs.clone(),
            retired,
            self.directory.clone(),
        )
    }

    /// The number of engines with a probe of the plan. The first one always stays, to keep accounting for time.
    fn used(&self) -> usize {
        self.probe_refs.iter().map(|probe_ref| probe_ref.engine + 1).max().unwrap_or(0).max(1)
    }

    /// The stores and probe references, for the table of series.
    pub fn stores(&self) -> (Vec<CounterStore>, Vec<ProbeRef>) {
        (self.all.iter().map(|engine| engine.counters.clone()).collect(), self.probe_refs.clone())
    }

    /// When counting began, as a Unix time in seconds.
    pub fn since(&self) -> f64 {
        self.retired.since
    }

    /// Waits up to `timeout` until all events that are now in the rings have been counted.
    pub fn catch_up(&self, timeout: Duration) {
        for engine in &self.all {
            engine.drain.catch_up(timeout);
        }
    }

    /// Whether the threads that drain the rings are working.
    pub fn is_alive(&self, timeout: Duration) -> bool {
        self.all.iter().all(|engine| engine.drain.is_alive(timeout))
    }

    /// Waits until everything is attached that can be attached now.
    pub fn wait_until_attached(&self) {
        self.all.iter().for_each(|engine| engine.manager.wait_until_attached());
    }

    pub fn attach_kind(&self) -> Option<Attach> {
        self.all.first().map(|engine| engine.manager.attach_kind())
    }

    /// The state of the plan's probes and targets.
    pub fn status(&self) -> TargetsStatus {
        let here = self.all.iter().map(|engine| (engine.plan.clone(), engine.status.clone()));
        let parts: Vec<_> = here.chain(self.retired.status.iter().cloned()).collect();
        TargetsStatus::of_parts(&self.plan, &parts, &self.probe_refs)
    }

    /// Whether no share is known and no probe is shed: determined without copying the whole state.
    pub fn are_at_rest(&self) -> bool {
        self.all.iter().all(|engine| engine.status.is_at_rest())
    }

    /// What can be shed separately: probes of one target that share their links.
    pub fn entries(&self) -> Vec<ShedUnit> {
        let mut entries: BTreeMap<(usize, usize, usize), Vec<usize>> = BTreeMap::new();
        for (number, (probe, probe_ref)) in self.plan.probes.iter().zip(&self.probe_refs).enumerate() {
            let unit = self.all[probe_ref.engine].plan.probes[probe_ref.probe].unit;
            entries.entry((probe.target, probe_ref.engine, unit)).or_default().push(number);
        }
        entries.into_iter().map(|((target, ..), probes)| ShedUnit { target, probes }).collect()
    }

    /// Detaches an entry temporarily, for this reason.
    pub fn shed(&self, entry: &ShedUnit, reason: &str) {
        let (engine, probes) = self.there(entry);
        engine.manager.shed(probes.map(|probe| (probe, reason.to_string())).collect());
    }

    /// Attaches it again.
    pub fn restore(&self, entry: &ShedUnit) {
        let (engine, probes) = self.there(entry);
        engine.manager.restore(probes.collect());
    }

    /// The engine of an entry, and its probes' indices there.
    fn there(&self, entry: &ShedUnit) -> (&Engine, impl Iterator<Item = usize>) {
        let engine = self.probe_refs[entry.probes[0]].engine;
        (&self.all[engine], entry.probes.iter().map(|probe| self.probe_refs[*probe].probe))
    }

    /// Seconds that the hits of a probe have cost so far.
    pub fn cost(&self, probe: usize) -> f64 {
        let probe_ref = self.probe_refs[probe];
        let engine = &self.all[probe_ref.engine];
        so_far(&engine.plan, &engine.shared, &engine.prices.get(), probe_ref.probe)
    }
}
