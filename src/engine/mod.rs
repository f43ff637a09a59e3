//! The probes that are at work: those that were loaded together, and several such sets as one.
//!
//! A reload loads a set of its own for the probes that are new, and leaves the others where they are: their counts, links and
//! starts are not touched.

mod past;
mod takeover;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use self::past::Past;
use crate::costs::until_now;
use crate::drain::Drain;
use crate::kernel::{Attach, KernelError, Pinning, Shared};
use crate::layout::Layout;
use crate::metrics::{Bank, Seat};
use crate::pins::{Folder, PinError, Pins};
use crate::plan::Plan;
use crate::store::UserStore;
use crate::targets::{Beginning, ProbeManager, Status};

/// Probes that were loaded together, and what counts their events. Dropping it detaches everything.
#[derive(Debug)]
pub(crate) struct Engine {
    plan: Arc<Plan>,
    manager: ProbeManager,
    drain: Drain,
    bank: Bank,
    shared: Shared,
    status: Arc<Status>,
    /// Where its maps and links are, if they stay when the exporter ends.
    pins: Option<Arc<Pins>>,
}

impl Engine {
    /// Loads the probes of a plan and attaches what can be attached now, or goes on where an earlier exporter left off.
    ///
    /// # Errors
    /// If the kernel refuses the programs, or there is no thread.
    pub fn start(plan: Plan, attach: Attach, beginning: Beginning) -> Result<Self, KernelError> {
        let plan = Arc::new(plan);
        let layout = Arc::new(Layout::new(&plan));
        let pins = beginning.pinning.as_ref().map(|pinning| pinning.pins.clone());
        let manager = ProbeManager::begin(plan.clone(), layout.clone(), attach, beginning)?;
        let user = match &pins {
            Some(pins) => kept_store(&layout, plan.probes.len(), pins).map_err(pin_error)?,
            None => layout.user_store(plan.probes.len()),
        };
        let user = Arc::new(user);
        let (shared, status) = (manager.shared(), manager.status());
        let drain = Drain::start(plan.clone(), &layout, user.clone(), shared.clone()).map_err(|err| {
            let what = "starting the thread that drains the ring buffer".to_string();
            KernelError { what, source: err.into(), next: String::new() }
        })?;
        let bank = Bank { layout, kernel: shared.store.clone(), user };
        Ok(Self { plan, manager, drain, bank, shared, status, pins })
    }

    /// As [`Engine::start`], in a bank of its own of the folder, if there is one.
    fn start_in(plan: Plan, attach: Attach, folder: Option<&Folder>) -> Result<Self, KernelError> {
        let Some(folder) = folder else { return Self::start(plan, attach, Beginning::default()) };
        let pins = Arc::new(folder.new_bank().map_err(pin_error)?);
        let pinning = Some(Pinning { pins: pins.clone(), taken: None });
        let started = Self::start(plan, attach, Beginning { pinning, record: None });
        if started.is_err()
            && let Err(err) = pins.remove()
        {
            log::warn!("{err}");
        }
        started
    }
}

/// What is computed from events, in memory that outlives the exporter.
fn kept_store(layout: &Layout, probes: usize, pins: &Pins) -> Result<UserStore, PinError> {
    let user = &layout.user;
    let numbers = UserStore::numbers(user.slots, probes);
    let limits = user.interners.iter().map(|interner| interner.limit);
    let (memory, names) = pins.memory(numbers, limits.clone().map(|limit| limit as usize).sum())?;
    Ok(UserStore::kept(user.slots, limits, probes, memory, Box::new(names)))
}

fn pin_error(err: PinError) -> KernelError {
    KernelError { what: err.what, source: std::io::Error::other(err.reason).into(), next: err.next }
}

/// All probes of a configuration, wherever they were loaded.
#[derive(Debug)]
pub(crate) struct Engines {
    pub plan: Arc<Plan>,
    /// Those that have a probe of the plan come first.
    all: Vec<Arc<Engine>>,
    seats: Vec<Seat>,
    /// By engine, its probes that are not the plan's any more.
    left_out: Vec<Vec<usize>>,
    /// What is left of engines that have ended.
    past: Past,
    /// Where what they have in the kernel stays when the exporter ends.
    folder: Option<Arc<Folder>>,
}

/// Probes that are taken out together, by their numbers in the plan: at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub target: usize,
    pub probes: Vec<usize>,
}

impl Engines {
    /// Loads all probes of a plan.
    ///
    /// # Errors
    /// If the kernel refuses the programs.
    pub fn start(plan: Plan, attach: Attach, folder: Option<Arc<Folder>>) -> Result<Self, KernelError> {
        let seats = (0..plan.probes.len()).map(|probe| Seat { bank: 0, probe }).collect();
        let engine = Engine::start_in(plan, attach, folder.as_deref())?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let past = Past { since, ..Past::default() };
        Ok(Self::of(engine.plan.clone(), vec![Arc::new(engine)], seats, past, folder))
    }
    fn of(
        plan: Arc<Plan>,
        all: Vec<Arc<Engine>>,
        seats: Vec<Seat>,
        past: Past,
        folder: Option<Arc<Folder>>,
    ) -> Self {
        let mut is_seat: Vec<Vec<bool>> =
            all.iter().map(|engine| vec![false; engine.plan.probes.len()]).collect();
        seats.iter().for_each(|seat| is_seat[seat.bank][seat.probe] = true);
        let left_out = is_seat.iter().map(|of| (0..of.len()).filter(|probe| !of[*probe]).collect()).collect();
        Self { plan, all, seats, left_out, past, folder }
    }

    /// Those of another plan: what is the same stays, the rest is loaded and attached. Nothing is taken out yet.
    ///
    /// # Errors
    /// If the kernel refuses the programs.
    pub fn changed_to(&self, plan: Plan, attach: Attach) -> Result<Self, KernelError> {
        let twins = plan.same_in(&self.plan);
        let new: Vec<usize> = (0..twins.len()).filter(|probe| twins[*probe].is_none()).collect();
        let mut all = self.all.clone();
        if !new.is_empty() {
            all.push(Arc::new(Engine::start_in(plan.part(&new), attach, self.folder.as_deref())?));
        }
        let last = all.len() - 1;
        let seat = |(probe, twin): (usize, &Option<usize>)| match twin {
            Some(twin) => self.seats[*twin],
            None => Seat { bank: last, probe: new.binary_search(&probe).unwrap_or(0) },
        };
        let mut seats: Vec<Seat> = twins.iter().enumerate().map(seat).collect();
        let used: BTreeSet<usize> = seats.iter().map(|seat| seat.bank).collect();
        let order: Vec<usize> =
            used.iter().copied().chain((0..all.len()).filter(|bank| !used.contains(bank))).collect();
        for seat in &mut seats {
            seat.bank = order.iter().position(|bank| *bank == seat.bank).unwrap_or(0);
        }
        let all = order.into_iter().map(|bank| all[bank].clone()).collect();
        Ok(Self::of(Arc::new(plan), all, seats, self.past.clone(), self.folder.clone()))
    }

    /// How many probes are the same as in another, and were not touched.
    pub fn kept_of(&self, old: &Self) -> usize {
        let is_of_old = |seat: &&Seat| old.all.iter().any(|engine| Arc::ptr_eq(engine, &self.all[seat.bank]));
        self.seats.iter().filter(is_of_old).count()
    }

    /// Takes out what the plan has not, and lets go of engines that have nothing left to do.
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
        let mut past = self.past.clone();
        for (engine, gone) in self.all.iter().zip(&self.left_out).skip(used) {
            engine.drain.catch_up(Duration::from_secs(1));
            gone.iter().for_each(|probe| past.add(engine, *probe));
            past.status.push((engine.plan.clone(), engine.status.clone()));
            past.drain.push(engine.drain.stats().clone());
            engine.pins.iter().for_each(|pins| pins.end());
        }
        Self::of(self.plan.clone(), self.all[..used].to_vec(), self.seats.clone(), past, self.folder.clone())
    }

    /// Engines with a probe of the plan. The first one stays, to have somebody who counts time.
    fn used(&self) -> usize {
        self.seats.iter().map(|seat| seat.bank + 1).max().unwrap_or(0).max(1)
    }

    /// For the table of series.
    pub fn banks(&self) -> (Vec<Bank>, Vec<Seat>) {
        (self.all.iter().map(|engine| engine.bank.clone()).collect(), self.seats.clone())
    }

    /// When counting began, in seconds since 1970.
    pub fn since(&self) -> f64 {
        self.past.since
    }

    /// Where what stays when the exporter ends is.
    pub fn folder(&self) -> Option<Arc<Folder>> {
        self.folder.clone()
    }

    /// Waits until all events that are in the rings now have been counted, or for so long.
    pub fn catch_up(&self, patience: Duration) {
        for engine in &self.all {
            engine.drain.catch_up(patience);
        }
    }

    /// Whether the threads that drain rings work.
    pub fn is_alive(&self, patience: Duration) -> bool {
        self.all.iter().all(|engine| engine.drain.is_alive(patience))
    }

    pub fn attach_kind(&self) -> Option<Attach> {
        self.all.first().map(|engine| engine.manager.attach_kind())
    }

    /// How the plan's probes and targets are doing.
    pub fn status(&self) -> Status {
        let here = self.all.iter().map(|engine| (engine.plan.clone(), engine.status.clone()));
        let parts: Vec<_> = here.chain(self.past.status.iter().cloned()).collect();
        Status::of_parts(&self.plan, &parts, &self.seats)
    }

    /// What can be taken out for itself: probes that have their links in common, in one target.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries: BTreeMap<(usize, usize, usize), Vec<usize>> = BTreeMap::new();
        for (number, (probe, seat)) in self.plan.probes.iter().zip(&self.seats).enumerate() {
            let unit = self.all[seat.bank].plan.probes[seat.probe].unit;
            entries.entry((probe.target, seat.bank, unit)).or_default().push(number);
        }
        entries.into_iter().map(|((target, ..), probes)| Entry { target, probes }).collect()
    }

    /// Takes an entry out for a while, for this reason.
    pub fn shed(&self, entry: &Entry, reason: &str) {
        let (engine, probes) = self.there(entry);
        engine.manager.shed(probes.map(|probe| (probe, reason.to_string())).collect());
    }

    /// Puts it back.
    pub fn restore(&self, entry: &Entry) {
        let (engine, probes) = self.there(entry);
        engine.manager.restore(probes.collect());
    }

    /// The engine of an entry, and its probes' numbers there.
    fn there(&self, entry: &Entry) -> (&Engine, impl Iterator<Item = usize>) {
        let bank = self.seats[entry.probes[0]].bank;
        (&self.all[bank], entry.probes.iter().map(|probe| self.seats[*probe].probe))
    }

    /// Seconds that the hits of a probe have cost until now.
    pub fn cost(&self, probe: usize) -> f64 {
        let seat = self.seats[probe];
        let engine = &self.all[seat.bank];
        until_now(&engine.plan, &engine.shared, seat.probe)
    }
}
