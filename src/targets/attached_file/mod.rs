//! The probes of one target in one file: resolved, attached, and detached when dropped.

mod again;
mod attach;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use self::again::RetrySchedule;
pub use self::attach::{AttachContext, place};
use super::cookies::Cookies;
use super::detacher::Leaving;
use super::file::{Identity, Stamp, TargetFile};
use super::find::Finder;
use super::outcome::Outcome;
use super::readers::Hidden;
use super::status::ProbeState;
use crate::elf::Semaphore;
use crate::kernel::{Kernel, Lease, PinnableLink, ProcessEvents, Rearmed};
use crate::plan::Plan;
use crate::resolve::ResolvedSite;

/// One file's probes.
#[derive(Debug)]
pub struct AttachedFile {
    pub display: String,
    pub identity: Identity,
    pub stamp: Stamp,
    /// In the target's order.
    pub probes: Vec<Outcome>,
    /// Each with the unit of the probes that it is of.
    pub(super) links: Vec<(usize, PinnableLink)>,
    /// Likewise.
    pub(super) cookies: Vec<(usize, u32)>,
    /// All sites that are attached, each with its probe's position.
    sites: Vec<(usize, ResolvedSite)>,
    /// Those that are taken out for a while.
    shelved: Vec<(usize, ResolvedSite)>,
    /// Offsets of sites whose semaphores the kernel may not raise everywhere, and these semaphores.
    pub semaphores: Vec<(u64, Semaphore)>,
    /// Tells of processes that load the file, for these, unless the kernel has refused it.
    loading: Option<libbpf_rs::Result<PinnableLink>>,
    /// What breakpoints hide, and what they raise.
    pub(super) hidden: Hidden,
    /// Whether it was looked at what processes that ran it already have made of its code.
    pub is_code_checked: bool,
    /// Places at which a process had other code than the file when they were to be attached last, and that process.
    patched: BTreeMap<u64, u32>,
    /// How many processes mapped it then.
    processes: usize,
    /// Places in the file's code that no process ever runs.
    pub(super) idle: Vec<u64>,
    /// The file could not be read, for a reason that can pass.
    pub(super) unread: bool,
    again: RetrySchedule,
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

/// What is known of a file that no process is known to run.
#[derive(Debug)]
pub(super) struct Unused {
    since: Instant,
    /// Another file has taken its place.
    pub(super) is_replaced: bool,
    check: RetrySchedule,
}

/// How long a file that is still there stays attached to for the next process that runs it.
const KEPT: Duration = Duration::from_secs(60);

/// Probes that are taken out for a while, and why.
pub type Shed = BTreeMap<usize, String>;

impl AttachedFile {
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
            semaphores: Vec::new(),
            loading: None,
            hidden: Hidden::default(),
            is_code_checked: false,
            patched: BTreeMap::new(),
            processes: 0,
            idle: Vec::new(),
            unread: false,
            again: RetrySchedule::new(),
            attached_at: 0,
            unused: None,
            is_taken_over: false,
            open: Vec::new(),
        }
    }

    /// A file on which the lease was taken, with the contents that it has since: between the look at it and the lease its writer
    /// may have finished it.
    fn leased(found: &TargetFile, lease: Option<Lease>) -> Self {
        let now = lease.as_ref().and_then(|lease| lease.file().metadata().ok());
        let stamp = now.map_or(found.stamp, |now| Stamp::of(&now));
        Self { lease, ..Self::new(found.display.clone(), found.identity, stamp) }
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
    pub fn shelve(&mut self, units: &BTreeSet<usize>, plan: &Plan) -> Leaving {
        let leaving = self.take_out(units);
        let unit = |at: usize| plan.probes[self.probes[at].probe].unit;
        let gone: Vec<_> = self.sites.extract_if(.., |(at, _)| units.contains(&unit(*at))).collect();
        // Another unit's probe may be at the same place.
        let sites = &self.sites;
        self.semaphores.retain(|(offset, _)| sites.iter().any(|(_, site)| site.offset == *offset));
        gone.iter().for_each(|(at, _)| self.probes[*at].sites -= 1);
        self.shelved.extend(gone);
        leaving
    }

    /// Puts back what is taken out no longer. Whether there was something.
    pub fn put_back(
        &mut self,
        context: AttachContext<'_>,
        found: &TargetFile,
        cookies: &mut Cookies,
        finder: &mut Finder,
    ) -> bool {
        if !self.can_be_put_back(context.shed) {
            return false;
        }
        let Ok(file) = found.open() else { return false };
        let probes = &self.probes;
        let is_back = |(at, _): &mut (usize, ResolvedSite)| !context.shed.contains_key(&probes[*at].probe);
        let back = self.shelved.extract_if(.., is_back).collect();
        self.attach_sites(context, &file, back, cookies, finder);
        true
    }

    fn take_out(&mut self, units: &BTreeSet<usize>) -> Leaving {
        let links = self.links.extract_if(.., |(unit, _)| units.contains(unit)).map(|(_, link)| link);
        let mut links: Vec<_> = links.collect();
        if self.links.is_empty() {
            links.extend(self.loading.take().and_then(Result::ok));
        }
        let numbers = self.cookies.extract_if(.., |(unit, _)| units.contains(unit)).map(|(_, number)| number);
        Leaving { identity: self.identity, links, numbers: numbers.collect(), lease: None }
    }

    /// Tries again what was refused for a reason that can pass, if it is time. Whether anything is different now.
    pub fn retry(
        &mut self,
        context: AttachContext<'_>,
        found: &TargetFile,
        cookies: &mut Cookies,
        finder: &mut Finder,
    ) -> bool {
        if !self.wants_retry() || !self.again.is_due() {
            return false;
        }
        let before: Vec<_> = self.probes.iter().map(|probe| (probe.state.clone(), probe.sites)).collect();
        if self.unread {
            self.read_and_attach(context, found, cookies, finder);
        } else if let Ok(file) = found.open() {
            self.reopen(context, found, &file);
            let open = self.probes.iter_mut().enumerate();
            let sites =
                open.flat_map(|(at, probe)| probe.open.drain(..).map(move |(site, _)| (at, site))).collect();
            self.attach_sites(context, &file, sites, cookies, finder);
        }
        self.probes.iter().map(|probe| (&probe.state, probe.sites)).ne(before.iter().map(|(s, n)| (s, *n)))
    }

    /// Takes the probes out of the file. Site numbers are given back only when that is done: until then a hit could
    /// still name them.
    pub fn leave_all(&mut self) -> Leaving {
        self.semaphores.clear();
        (self.sites, self.shelved) = (Vec::new(), Vec::new());
        Leaving {
            identity: self.identity,
            links: self
                .links
                .drain(..)
                .map(|(_, link)| link)
                .chain(self.loading.take().and_then(Result::ok))
                .collect(),
            numbers: self.cookies.drain(..).map(|(_, number)| number).collect(),
            lease: None,
        }
    }

    /// Likewise, with the lease, which writers wait for.
    pub fn into_leaving(mut self) -> Leaving {
        Leaving { lease: self.lease.take(), ..self.leave_all() }
    }

    /// Takes the probes out of the file for as long as it is what it is.
    pub fn give_up(&mut self, reason: &str) -> Leaving {
        let leaving = self.leave_all();
        for probe in &mut self.probes {
            (probe.sites, probe.state) = (0, ProbeState::Refused(reason.to_string()));
            probe.open.clear();
        }
        self.unread = false;
        leaving
    }

    /// Takes the probes of these units out of the file, and leaves the others alone. `is_left` says which probes remain, by
    /// their positions.
    pub fn retire(&mut self, units: &BTreeSet<usize>, is_left: &[bool]) -> Leaving {
        let leaving = self.take_out(units);
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
        leaving
    }

    /// Notes that no process that is meant runs the file.
    pub fn leave(&mut self, is_replaced: bool) {
        self.unused = Some(Unused { since: Instant::now(), is_replaced, check: RetrySchedule::new() });
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

    /// Has it told who loads the file, if semaphores have to be raised in such processes.
    pub fn follow_loading(&mut self, events: &ProcessEvents, found: &TargetFile) {
        let first_code = self.semaphores.first().map_or(0, |(_, semaphore)| semaphore.first_code);
        if self.loading.is_some() || first_code == 0 || self.identity.address == 0 {
            return;
        }
        let mut byte = [0];
        let Ok(file) = found.open() else { return };
        if file.read_exact_at(&mut byte, first_code).is_err() {
            return;
        }
        let again = !self.has_semaphores_on_shared_pages();
        let told = events.tell_loading(&file, self.identity.address, first_code, again);
        match &told {
            // Who copies the file through a mapping must not copy this breakpoint either.
            Ok(_) => drop(self.hidden.originals.insert(first_code, byte[0])),
            Err(err) => log::debug!("{}: semaphores will be raised late: {err:#}", self.display),
        }
        self.loading = Some(told);
    }

    /// Whether the kernel raises semaphores wrongly in processes that start later.
    pub fn has_semaphores_on_shared_pages(&self) -> bool {
        self.semaphores.iter().any(|(_, semaphore)| semaphore.is_on_shared_page)
    }

    /// Whether the file's contents cannot have changed, whatever its times say.
    pub fn is_as_it_was(&self) -> bool {
        self.lease.as_ref().is_some_and(Lease::is_held)
    }

    pub fn is_attached(&self) -> bool {
        !self.links.is_empty()
    }

    /// Of all sites that are attached, by which the kernel sets their breakpoints.
    pub fn places(&self) -> Vec<Rearmed> {
        let sites = self.sites.iter().map(|(_, site)| site);
        sites.map(|site| Rearmed { offset: site.offset, semaphore: site.ref_ctr_offset }).collect()
    }

    /// Offsets of all sites that are attached.
    pub fn offsets(&self) -> Vec<u64> {
        self.sites.iter().map(|(_, site)| site.offset).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::PathBuf;

    use super::*;
    use crate::kernel::LeaseBreaks;
    use crate::targets::file::key;

    #[test]
    fn what_is_written_before_the_lease_belongs_to_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path: PathBuf = directory.path().join("program");
        fs::write(&path, "half").unwrap();
        let seen = fs::metadata(&path).unwrap();
        let found = TargetFile {
            path: path.clone(),
            display: String::new(),
            identity: Identity { device: 1, number: 2, address: 3 },
            key: key(&seen),
            stamp: Stamp::of(&seen),
            is_library: false,
            is_candidate: true,
        };
        fs::write(&path, "half and half").unwrap();
        let breaks = LeaseBreaks::new().unwrap();
        let lease = Lease::take(File::open(&path).unwrap(), &breaks).unwrap();
        let attached = AttachedFile::leased(&found, Some(lease));
        assert_eq!(attached.stamp, Stamp::of(&fs::metadata(&path).unwrap()));
        assert_ne!(attached.stamp, found.stamp);
    }
}
