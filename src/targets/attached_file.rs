//! The probes of one target in one file: resolved, attached, and detached when dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use super::debug_symbols::{DebugSymbols, debug_symbols, with_names};
use super::file::{Identity, Stamp, TargetFile};
use super::outcome::Outcome;
use super::status::{ProbeState, Status};
use crate::abi::site_flag;
use crate::config::model::Point;
use crate::elf::{Image, SharedSemaphore, SymbolIndex};
use crate::kernel::{Held, How, Kernel, Lease, Placed, Refusal, RefusalKind, release};
use crate::plan::{Plan, TargetPlan};
use crate::regular;
use crate::resolve::{ResolveError, ResolvedSite, resolve};

/// Numbers of sites, given back when a file is no longer probed.
#[derive(Debug)]
pub struct Cookies {
    free: Vec<u32>,
}

impl Cookies {
    pub fn new(sites: u32) -> Self {
        Self { free: (0..sites).rev().collect() }
    }

    /// These are in use.
    pub(super) fn remove(&mut self, used: &BTreeSet<u32>) {
        self.free.retain(|number| !used.contains(number));
    }

    fn take(&mut self, n: usize) -> Option<Vec<u32>> {
        let left = self.free.len().checked_sub(n)?;
        Some(self.free.split_off(left))
    }
}

/// One file's probes.
#[derive(Debug)]
pub struct AttachedFile {
    pub display: String,
    pub identity: Identity,
    pub stamp: Stamp,
    /// In the target's order.
    pub probes: Vec<Outcome>,
    /// Each with the unit of the probes that it is of.
    pub(super) links: Vec<(usize, Held)>,
    /// Likewise.
    pub(super) cookies: Vec<(usize, u32)>,
    /// All sites that are attached, each with its probe's position.
    sites: Vec<(usize, ResolvedSite)>,
    /// Those that are taken out for a while.
    shelved: Vec<(usize, ResolvedSite)>,
    /// Offsets of sites whose semaphores the kernel raises wrongly in processes that start later, and these semaphores.
    pub shared_semaphores: Vec<(u64, SharedSemaphore)>,
    /// Whether it was looked at what processes that ran it already have made of its code.
    pub is_code_checked: bool,
    /// Places in the file's code that no process ever runs.
    pub(super) idle: Vec<u64>,
    /// The file could not be read, for a reason that can pass.
    pub(super) unread: bool,
    again: Again,
    /// When it was attached to, by `CLOCK_MONOTONIC`, in nanoseconds.
    pub attached_at: u64,
    /// No process that is meant runs it any more: whether some other does is looked up again and again.
    pub(super) unused: Option<Unused>,
    /// An earlier exporter attached to it, and nobody holds its lease since.
    pub is_taken_over: bool,
    /// Of such a file, the sites that were refused for a reason that can pass: position of the probe, offset, and whether it
    /// is a return.
    pub(super) open: Vec<(usize, u64, bool)>,
    /// Keeps writers waiting, where the file system has that; given back last.
    pub lease: Option<Lease>,
}

/// Why a function of a library is not traced.
const ONLY_EXECUTABLE: &str =
    "functions are only searched in the executable; use `binary:` with the path of the library";

/// When what was refused is tried again.
#[derive(Debug)]
struct Again {
    due: Instant,
    pause: Duration,
}

const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Again {
    fn new() -> Self {
        Self { due: Instant::now() + SHORTEST_PAUSE, pause: SHORTEST_PAUSE }
    }

    /// Whether it is time; then the next time is twice as far away.
    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let is_due = now >= self.due;
        if is_due {
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            self.due = now + self.pause;
        }
        is_due
    }
}

/// What is known of a file that no process is known to run.
#[derive(Debug)]
pub(super) struct Unused {
    since: Instant,
    /// Another file has taken its place.
    pub(super) is_replaced: bool,
    check: Again,
}

/// How long a file that is still there stays attached to for the next process that runs it.
const KEPT: Duration = Duration::from_secs(60);

/// Nanoseconds of `CLOCK_MONOTONIC`.
fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    (now.tv_sec as u64) * 1_000_000_000 + now.tv_nsec as u64
}

/// What attaching needs to know of the exporter.
#[derive(Debug, Clone, Copy)]
pub struct AttachContext<'a> {
    pub kernel: &'a Kernel,
    pub plan: &'a Plan,
    pub status: &'a Status,
    pub target: &'a TargetPlan,
    /// Probes that are taken out for a while.
    pub shed: &'a Shed,
}

/// Probes that are taken out for a while, and why.
pub type Shed = BTreeMap<usize, String>;

impl AttachedFile {
    /// Resolves and attaches all probes of the target in this file, as many as can be.
    pub fn attach(
        context: AttachContext<'_>,
        found: &TargetFile,
        lease: Option<Lease>,
        cookies: &mut Cookies,
    ) -> Self {
        let mut made = Self::new(found.display.clone(), found.identity, found.stamp);
        made.lease = lease;
        made.read_and_attach(context, found, cookies);
        made.attached_at = monotonic();
        made
    }

    pub(super) fn new(display: String, identity: Identity, stamp: Stamp) -> Self {
        Self {
            display,
            identity,
            stamp,
            probes: Vec::new(),
            lease: None,
            links: Vec::new(),
            cookies: Vec::new(),
            sites: Vec::new(),
            shelved: Vec::new(),
            shared_semaphores: Vec::new(),
            is_code_checked: false,
            idle: Vec::new(),
            unread: false,
            again: Again::new(),
            attached_at: 0,
            unused: None,
            is_taken_over: false,
            open: Vec::new(),
        }
    }

    fn read_and_attach(&mut self, context: AttachContext<'_>, found: &TargetFile, cookies: &mut Cookies) {
        self.probes.clear();
        (self.sites, self.shelved) = (Vec::new(), Vec::new());
        let file = found.open();
        let sites = self.resolve(context, found, file.as_ref());
        if let Ok(file) = &file {
            self.attach_sites(context, file, sites, cookies);
        }
    }

    /// Whether something was refused for a reason that can pass.
    pub fn wants_retry(&self) -> bool {
        self.unread || !self.open.is_empty() || self.probes.iter().any(|probe| !probe.open.is_empty())
    }

    /// Whether it has sites of the probe that are taken out.
    pub fn is_shelved(&self, probe: usize) -> bool {
        self.shelved.iter().any(|(at, _)| self.probes[*at].probe == probe)
    }

    /// Whether something is taken out that need not be any more.
    pub fn can_be_put_back(&self, shed: &Shed) -> bool {
        self.shelved.iter().any(|(at, _)| !shed.contains_key(&self.probes[*at].probe))
    }

    /// Takes the probes of these units out for a while.
    pub fn shelve(&mut self, units: &BTreeSet<usize>, plan: &Plan, cookies: &mut Cookies) {
        self.take_out(units, cookies);
        let unit = |at: usize| plan.probes[self.probes[at].probe].unit;
        let gone: Vec<_> = self.sites.extract_if(.., |(at, _)| units.contains(&unit(*at))).collect();
        // Another unit's probe may be at the same place.
        let sites = &self.sites;
        self.shared_semaphores.retain(|(offset, _)| sites.iter().any(|(_, site)| site.offset == *offset));
        gone.iter().for_each(|(at, _)| self.probes[*at].sites -= 1);
        self.shelved.extend(gone);
    }

    /// Puts back what is taken out no longer. Whether there was something.
    pub fn put_back(
        &mut self,
        context: AttachContext<'_>,
        found: &TargetFile,
        cookies: &mut Cookies,
    ) -> bool {
        if !self.can_be_put_back(context.shed) {
            return false;
        }
        let Ok(file) = found.open() else { return false };
        let probes = &self.probes;
        let is_back = |(at, _): &mut (usize, ResolvedSite)| !context.shed.contains_key(&probes[*at].probe);
        let back = self.shelved.extract_if(.., is_back).collect();
        self.attach_sites(context, &file, back, cookies);
        true
    }

    fn take_out(&mut self, units: &BTreeSet<usize>, cookies: &mut Cookies) {
        let gone = self.links.extract_if(.., |(unit, _)| units.contains(unit));
        release(gone.map(|(_, link)| link).collect());
        let gone = self.cookies.extract_if(.., |(unit, _)| units.contains(unit));
        cookies.free.extend(gone.map(|(_, cookie)| cookie));
    }

    /// Tries again what was refused for a reason that can pass, if it is time. Whether anything is different now.
    pub fn retry(&mut self, context: AttachContext<'_>, found: &TargetFile, cookies: &mut Cookies) -> bool {
        if !self.wants_retry() || !self.again.is_due() {
            return false;
        }
        let before: Vec<_> = self.probes.iter().map(|probe| (probe.state.clone(), probe.sites)).collect();
        if self.unread {
            self.read_and_attach(context, found, cookies);
        } else if let Ok(file) = found.open() {
            self.reopen(context, found, &file);
            let open = self.probes.iter_mut().enumerate();
            let sites =
                open.flat_map(|(at, probe)| probe.open.drain(..).map(move |(site, _)| (at, site))).collect();
            self.attach_sites(context, &file, sites, cookies);
        }
        self.probes.iter().map(|probe| (&probe.state, probe.sites)).ne(before.iter().map(|(s, n)| (s, *n)))
    }

    /// Fills in how each probe fares before the kernel is asked; returns the sites, each with its probe's position.
    pub(super) fn resolve(
        &mut self,
        context: AttachContext<'_>,
        found: &TargetFile,
        file: Result<&File, &io::Error>,
    ) -> Vec<(usize, ResolvedSite)> {
        let AttachContext { plan, status, target, .. } = context;
        let read = |file| regular::read_all(file).map_err(|err| Refusal::of_file(&err));
        let bytes = file.map_err(Refusal::of_file).and_then(read);
        self.unread = bytes.as_ref().is_err_and(|refusal| refusal.kind.passes());
        let image = bytes
            .as_ref()
            .map_err(|refusal| format!("failed to read {}: {refusal}", found.display))
            .and_then(|bytes| Image::parse(bytes).map_err(|why| format!("{}: {why}", found.display)));
        let wants_names =
            target.probes.iter().any(|probe| matches!(plan.probes[*probe].point, Point::Function(_)));
        let debug = image
            .as_ref()
            .ok()
            .filter(|_| wants_names)
            .and_then(|image| debug_symbols(image, &found.path, &found.display));
        let image = image.map(|image| with_names(image, debug.as_ref()));
        let separate = debug.as_ref().and_then(DebugSymbols::image);
        let index = image.as_ref().map(|image| SymbolIndex::of(image).with_debug_file(separate));
        let mut sites = Vec::new();
        for &number in &target.probes {
            let mut outcome = Outcome::new(number);
            if found.is_library && matches!(plan.probes[number].point, Point::Function(_)) {
                outcome.state = ProbeState::Absent(ONLY_EXECUTABLE.to_string());
                self.probes.push(outcome);
                continue;
            }
            let mut name = |name: &str| status.function(number, name);
            let resolved = index.as_ref().map(|index| resolve(index, number as u32, plan, &mut name));
            match resolved {
                Err(why) => outcome.state = ProbeState::Refused((*why).clone()),
                Ok(Err(why)) if why.is_absent() => outcome.state = ProbeState::Absent(why.to_string()),
                Ok(Err(why)) => {
                    outcome.state = ProbeState::Refused(why.to_string());
                    if let ResolveError::NoneFit(sites) = why {
                        outcome.unfit = sites;
                    }
                }
                Ok(Ok(resolved)) => {
                    for remark in &resolved.remarks {
                        log::info!("Probe {}: {remark}", plan.probes[number].name);
                    }
                    for warning in &resolved.warnings {
                        log::warn!("{} in {}: {warning}", plan.probes[number].name, self.display);
                    }
                    outcome.unsigned = resolved.unsigned;
                    outcome.unfit = resolved.unfit;
                    sites.extend(resolved.sites.into_iter().map(|site| (self.probes.len(), site)));
                }
            }
            self.probes.push(outcome);
        }
        if found.is_candidate {
            sites.iter_mut().for_each(|(_, site)| site.entry.flags |= site_flag::SITE_CANDIDATE.0);
        }
        if sites.iter().any(|(_, site)| site.ref_ctr_offset != 0) {
            self.idle = image.map(|image| image.idle_code()).unwrap_or_default();
        }
        sites
    }

    fn attach_sites(
        &mut self,
        context: AttachContext<'_>,
        file: &File,
        sites: Vec<(usize, ResolvedSite)>,
        cookies: &mut Cookies,
    ) {
        let is_shed =
            |(at, _): &mut (usize, ResolvedSite)| context.shed.contains_key(&self.probes[*at].probe);
        let mut sites = sites;
        let shelved: Vec<_> = sites.extract_if(.., is_shed).collect();
        for (at, _) in &shelved {
            let why = context.shed.get(&self.probes[*at].probe).cloned().unwrap_or_default();
            self.probes[*at].state = ProbeState::Shed(why);
        }
        self.shelved.extend(shelved);
        if sites.is_empty() {
            return;
        }
        let touched: BTreeSet<usize> = sites.iter().map(|(at, _)| *at).collect();
        match cookies.take(sites.len()) {
            None => {
                let text = format!("{} probe sites more than limits.sites; raise it", sites.len());
                let refusal = Refusal::new(RefusalKind::Sites, text);
                for (at, site) in sites {
                    self.probes[at].refuse(site, refusal.clone());
                }
            }
            Some(mut numbers) => {
                // Links of their own for each unit, so that one can be detached and the others left alone.
                let mut units: BTreeMap<usize, Vec<(usize, ResolvedSite)>> = BTreeMap::new();
                for (at, site) in sites {
                    let probe = &context.plan.probes[self.probes[at].probe];
                    units.entry(probe.unit).or_default().push((at, site));
                }
                for (unit, sites) in units {
                    let of_unit = numbers.split_off(numbers.len() - sites.len());
                    self.attach_unit(context, file, unit, sites, &of_unit, cookies);
                }
            }
        }
        touched.into_iter().for_each(|at| self.probes[at].settle());
    }

    fn attach_unit(
        &mut self,
        context: AttachContext<'_>,
        file: &File,
        unit: usize,
        sites: Vec<(usize, ResolvedSite)>,
        numbers: &[u32],
        cookies: &mut Cookies,
    ) {
        let attached = {
            let all: Vec<_> = sites.iter().map(|(_, site)| site).collect();
            let placed = place(context.plan, context.kernel.has_sessions(), &all, numbers);
            context.kernel.attach(file, &placed, &self.idle)
        };
        self.links.extend(attached.links.into_iter().map(|link| (unit, context.kernel.hold(link))));
        if attached.beside > 0 {
            log::info!(
                "Target {}: another tracer has attached {} sites without their semaphores; attached alongside it",
                context.target.name,
                attached.beside
            );
        }
        let mut refused = attached.refused;
        for (position, ((at, site), number)) in sites.into_iter().zip(numbers).enumerate() {
            match refused.remove(&position) {
                Some(refusal) => {
                    cookies.free.push(*number);
                    self.probes[at].refuse(site, refusal);
                }
                None => {
                    self.cookies.push((unit, *number));
                    self.shared_semaphores.extend(site.shared_semaphore.map(|shared| (site.offset, shared)));
                    self.probes[at].sites += 1;
                    self.sites.push((at, site));
                }
            }
        }
    }

    /// Takes the probes out of the file. Site numbers are given back only then: until it is detached, a hit could
    /// still name them.
    pub fn detach(&mut self, cookies: &mut Cookies) {
        release(self.links.drain(..).map(|(_, link)| link).collect());
        self.shared_semaphores.clear();
        (self.sites, self.shelved) = (Vec::new(), Vec::new());
        cookies.free.extend(self.cookies.drain(..).map(|(_, cookie)| cookie));
    }

    /// Takes the probes out of the file for as long as it is what it is.
    pub fn give_up(&mut self, why: &str, cookies: &mut Cookies) {
        self.detach(cookies);
        for probe in &mut self.probes {
            (probe.sites, probe.state) = (0, ProbeState::Refused(why.to_string()));
            probe.open.clear();
        }
        self.unread = false;
    }

    /// Takes the probes of these units out of the file, and leaves the others alone. `is_left` says which probes remain, by
    /// their positions.
    pub fn retire(&mut self, units: &BTreeSet<usize>, is_left: &[bool], cookies: &mut Cookies) {
        self.take_out(units, cookies);
        // Positions change with those that go.
        let mut kept = 0;
        let positions: Vec<Option<usize>> = (0..self.probes.len())
            .map(|at| {
                let is_kept = is_left.get(at).copied().unwrap_or(true);
                kept += usize::from(is_kept);
                is_kept.then(|| kept - 1)
            })
            .collect();
        let moved = |at: &mut usize| {
            let now = positions.get(*at).copied().flatten();
            *at = now.unwrap_or(*at);
            now.is_some()
        };
        self.open.retain_mut(|(at, ..)| moved(at));
        for sites in [&mut self.sites, &mut self.shelved] {
            sites.retain_mut(|(at, _)| moved(at));
        }
        let mut is_kept = positions.iter().map(Option::is_some);
        self.probes.retain(|_| is_kept.next().unwrap_or(true));
    }

    /// Notes that no process that is meant runs the file.
    pub fn leave(&mut self, is_replaced: bool) {
        self.unused = Some(Unused { since: Instant::now(), is_replaced, check: Again::new() });
    }

    /// A process runs the file again.
    pub fn come_back(&mut self) {
        self.unused = None;
    }

    /// Whether it is time to look up if any process still runs a file that was left.
    pub fn wants_check_of_use(&mut self) -> bool {
        self.unused.as_mut().is_some_and(|unused| {
            (unused.is_replaced || unused.since.elapsed() > KEPT) && unused.check.is_due()
        })
    }

    /// The file has taken the target's place: its hits count, whatever runs it.
    pub fn admit(&mut self, kernel: &Kernel, found: &TargetFile) {
        (self.display, self.stamp) = (found.display.clone(), found.stamp);
        let cookies: Vec<u32> = self.cookies.iter().map(|(_, cookie)| *cookie).collect();
        if let Err(err) = kernel.admit(&cookies) {
            log::error!("{}: hits of processes with other names are not counted: {err:#}", self.display);
        }
    }

    /// Whether the file's contents cannot have changed, whatever its times say.
    pub fn is_as_it_was(&self) -> bool {
        self.lease.as_ref().is_some_and(Lease::is_held)
    }

    pub fn is_attached(&self) -> bool {
        !self.links.is_empty()
    }

    /// Offsets of all sites that are attached.
    pub fn offsets(&self) -> Vec<u64> {
        self.sites.iter().map(|(_, site)| site.offset).collect()
    }
}

/// Gives every site its number and says how it is attached. The return of a function whose entry is traced too needs no
/// link of its own where the kernel has session uprobes: the entry's site names the return's.
pub fn place<'a>(
    plan: &Plan,
    sessions: bool,
    sites: &[&'a ResolvedSite],
    numbers: &[u32],
) -> Vec<Placed<'a>> {
    let mut placed: Vec<Placed<'a>> = Vec::new();
    let span = |site: &ResolvedSite| plan.probes[site.entry.probe as usize].span.map(|span| span.number);
    for (&site, &cookie) in sites.iter().zip(numbers) {
        let mut how = if site.is_return { How::Return } else { How::Entry };
        if sessions && site.is_return && span(site).is_some() {
            let entry = placed.iter_mut().find(|other| {
                other.how == How::Entry && other.site.offset == site.offset && span(other.site) == span(site)
            });
            if let Some(entry) = entry {
                entry.how = How::Session { on_return: cookie };
                how = How::InSession;
            }
        }
        placed.push(Placed { cookie, site, how, span: span(site) });
    }
    placed
}
