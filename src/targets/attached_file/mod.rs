//! The probes of one target in one file: resolved, attached, and detached when dropped.

mod again;
mod attach;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use self::again::RetrySchedule;
pub(super) use self::attach::{AttachContext, Attacher};
use super::attach_job::AttachJob;
use super::cookies::Cookies;
use super::detacher::Leaving;
use super::file::{Identity, Stamp, TargetFile};
use super::find::Finder;
use super::outcome::Outcome;
use super::probe_state::ProbeState;
use super::readers::Hidden;
use crate::elf::Semaphore;
use crate::kernel::{BREAKPOINT, Kernel, Lease, PinnableLink, ProcessEvents, Rearmed, TrappedCode};
use crate::plan::Plan;
use crate::resolve::ResolvedSite;

/// The probes of one file.
#[derive(Debug)]
pub struct AttachedFile {
    pub display: String,
    pub identity: Identity,
    pub stamp: Stamp,
    /// In the target's order.
    pub probes: Vec<Outcome>,
    /// Each with the unit of its probes.
    pub(super) links: Vec<(usize, PinnableLink)>,
    /// Likewise.
    pub(super) cookies: Vec<(usize, u32)>,
    /// All attached sites, each with the index of its probe.
    sites: Vec<(usize, ResolvedSite)>,
    /// Sites of shed probes.
    shelved: Vec<(usize, ResolvedSite)>,
    /// Offsets of sites whose semaphores the kernel might not raise everywhere, and these semaphores.
    pub semaphores: Vec<(u64, Semaphore)>,
    /// For these, a link that reports processes which load the file, unless the kernel refused it.
    loading: Option<libbpf_rs::Result<PinnableLink>>,
    /// The bytes that breakpoints hide, and the semaphores that they raise.
    pub(super) hidden: Hidden,
    /// Whether processes that ran the file before have been checked for changed code.
    pub is_code_checked: bool,
    /// A thread that is attaching further sites.
    pub(super) job: Option<AttachJob>,
    /// What the log does not say yet.
    news: News,
    /// It was a candidate when its sites were resolved, and is one no longer.
    is_admitted: bool,
    /// Places in the file's code that no process ever executes.
    pub(super) idle: Vec<u64>,
    /// The file could not be read for a temporary reason.
    pub(super) unread: bool,
    again: RetrySchedule,
    /// When it was attached, by `CLOCK_MONOTONIC`, in nanoseconds.
    pub attached_at: u64,
    /// No selected process runs it any more; whether any other does is checked repeatedly.
    pub(super) unused: Option<Unused>,
    /// It was attached by a previous exporter, and its lease has not been taken yet.
    pub is_taken_over: bool,
    /// For such a file, the sites that failed temporarily: index of the probe, offset, and whether it is a return.
    pub(super) open: Vec<(usize, u64, bool)>,
    /// Makes writers wait, where the file system supports it; released last.
    pub lease: Option<Lease>,
}

/// What has become of the probes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    None,
    /// They are attached, or what has failed was tried again.
    Changed,
    /// They are attached for the first time.
    Attached,
}

/// State of a file that no selected process runs.
#[derive(Debug)]
pub(super) struct Unused {
    since: Instant,
    /// Another file has replaced it.
    pub(super) is_replaced: bool,
    check: RetrySchedule,
}

/// How long a file that no process runs stays attached for the next one that does.
const UNUSED_TIMEOUT: Duration = Duration::from_secs(60);

/// Probes that are shed, and why.
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
            job: None,
            news: News::Attached,
            is_admitted: false,
            idle: Vec::new(),
            unread: false,
            again: RetrySchedule::new(),
            attached_at: 0,
            unused: None,
            is_taken_over: false,
            open: Vec::new(),
        }
    }

    /// An attached file with its lease and the stamp since then: its writer may have finished between the look-up and
    /// the lease. With the older stamp, a file without a lease would be taken for overwritten, and detached while it runs.
    fn leased(found: &TargetFile, lease: Option<Lease>) -> Self {
        let now = match &lease {
            Some(lease) => lease.file().metadata(),
            None => found.open().and_then(|file| file.metadata()),
        };
        let stamp = now.map_or(found.stamp, |now| Stamp::of(&now));
        Self { lease, ..Self::new(found.display.clone(), found.identity, stamp) }
    }

    /// Whether any attachment failed temporarily.
    pub fn wants_retry(&self) -> bool {
        self.unread || !self.open.is_empty() || self.probes.iter().any(|probe| !probe.open.is_empty())
    }

    /// Whether sites of the probe are detached because it is shed.
    pub fn is_shelved(&self, probe: usize) -> bool {
        self.shelved.iter().any(|(at, _)| self.probes[*at].probe == probe)
    }

    /// Whether a detached site belongs to a probe that is no longer shed.
    pub fn can_be_restored(&self, shed: &Shed) -> bool {
        self.shelved.iter().any(|(at, _)| !shed.contains_key(&self.probes[*at].probe))
    }

    /// Detaches the probes of these units because they are shed.
    pub fn shelve(&mut self, units: &BTreeSet<usize>, plan: &Plan) -> Leaving {
        let leaving = self.detach_units(units);
        let unit = |at: usize| plan.probes[self.probes[at].probe].unit;
        let gone: Vec<_> = self.sites.extract_if(.., |(at, _)| units.contains(&unit(*at))).collect();
        // Another unit's probe may be at the same address.
        let sites = &self.sites;
        self.semaphores.retain(|(offset, _)| sites.iter().any(|(_, site)| site.offset == *offset));
        gone.iter().for_each(|(at, _)| self.probes[*at].sites -= 1);
        self.shelved.extend(gone);
        leaving
    }

    /// Attaches sites of probes that are no longer shed; returns whether there were any.
    pub fn restore(
        &mut self,
        context: AttachContext<'_>,
        found: &TargetFile,
        cookies: &mut Cookies,
        finder: &mut Finder,
    ) -> bool {
        if self.is_attaching() || !self.can_be_restored(&context.attacher.shed) {
            return false;
        }
        let Ok(file) = found.open() else { return false };
        let probes = &self.probes;
        let is_back =
            |(at, _): &mut (usize, ResolvedSite)| !context.attacher.shed.contains_key(&probes[*at].probe);
        let back = self.shelved.extract_if(.., is_back).collect();
        self.attach_sites(context, file, back, cookies, finder);
        self.tell(News::Changed);
        true
    }

    fn detach_units(&mut self, units: &BTreeSet<usize>) -> Leaving {
        let links = self.links.extract_if(.., |(unit, _)| units.contains(unit)).map(|(_, link)| link);
        let mut links: Vec<_> = links.collect();
        if self.links.is_empty() {
            links.extend(self.loading.take().and_then(Result::ok));
        }
        let numbers = self.cookies.extract_if(.., |(unit, _)| units.contains(unit)).map(|(_, number)| number);
        Leaving { identity: Some(self.identity), links, numbers: numbers.collect(), ..Leaving::default() }
    }

    /// Retries temporary failures if it is time; returns whether anything changed.
    pub fn retry(
        &mut self,
        context: AttachContext<'_>,
        found: &TargetFile,
        cookies: &mut Cookies,
        finder: &mut Finder,
    ) -> bool {
        if self.is_attaching() || !self.wants_retry() || !self.again.is_due() {
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
            self.attach_sites(context, file, sites, cookies, finder);
        }
        let now = self.probes.iter().map(|probe| (&probe.state, probe.sites));
        let is_changed = now.ne(before.iter().map(|(state, sites)| (state, *sites)));
        if is_changed {
            self.tell(News::Changed);
        }
        is_changed
    }

    fn tell(&mut self, news: News) {
        if self.news == News::None {
            self.news = news;
        }
    }

    /// What is to be logged about it; nothing while a thread is attaching.
    pub(super) fn take_news(&mut self) -> News {
        if self.is_attaching() { News::None } else { std::mem::replace(&mut self.news, News::None) }
    }

    /// Detaches all probes. Site numbers are freed only when that is done: until then a hit could still carry them.
    pub fn leave_all(&mut self) -> Leaving {
        self.semaphores.clear();
        (self.sites, self.shelved) = (Vec::new(), Vec::new());
        let job = self.job.take();
        let links = self.links.drain(..).map(|(_, link)| link);
        let numbers = self.cookies.drain(..).map(|(_, number)| number);
        Leaving {
            identity: Some(self.identity),
            links: links.chain(self.loading.take().and_then(Result::ok)).collect(),
            numbers: numbers.chain(job.iter().flat_map(AttachJob::numbers)).collect(),
            job,
            lease: None,
        }
    }

    /// Likewise, with the lease, which writers wait for.
    pub fn into_leaving(mut self) -> Leaving {
        Leaving { lease: self.lease.take(), ..self.leave_all() }
    }

    /// Detaches all probes until the file changes.
    pub fn abandon(&mut self, reason: &str) -> Leaving {
        let leaving = self.leave_all();
        for probe in &mut self.probes {
            (probe.sites, probe.state) = (0, ProbeState::Refused(reason.to_string()));
            probe.open.clear();
        }
        self.unread = false;
        leaving
    }

    /// Detaches the probes of these units for good and leaves the others alone. `is_left` says which probes remain, by
    /// index.
    pub fn retire(&mut self, units: &BTreeSet<usize>, is_left: &[bool]) -> Leaving {
        let leaving = self.detach_units(units);
        // Indexes shift when probes are removed.
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

    /// Notes that no selected process runs the file.
    pub fn leave(&mut self, is_replaced: bool) {
        self.unused = Some(Unused { since: Instant::now(), is_replaced, check: RetrySchedule::new() });
    }

    /// A process runs the file again.
    pub fn come_back(&mut self) {
        self.unused = None;
    }

    /// Whether it is time to check if any process still runs an unused file.
    pub fn is_use_check_due(&mut self) -> bool {
        self.unused.as_mut().is_some_and(|unused| {
            (unused.is_replaced || unused.since.elapsed() > UNUSED_TIMEOUT) && unused.check.is_due()
        })
    }

    /// The file has become the target's: its hits count, whatever process runs it.
    pub fn admit(&mut self, kernel: &Kernel, found: &TargetFile) {
        (self.display, self.stamp) = (found.display.clone(), found.stamp);
        self.is_admitted = true;
        self.admit_sites(kernel, 0);
    }

    /// The same for the sites from this one on.
    fn admit_sites(&mut self, kernel: &Kernel, from: usize) {
        let cookies: Vec<u32> = self.cookies[from..].iter().map(|(_, cookie)| *cookie).collect();
        if let Err(err) = kernel.admit(&cookies) {
            log::error!("{}: hits of processes with other names are not counted: {err:#}", self.display);
        }
    }

    /// Requests reports of processes that load the file, if semaphores must be raised in them.
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
        let told = events.report_loading(&file, self.identity.address, first_code, again);
        match &told {
            // Processes that copy the file through a mapping must not copy this breakpoint either.
            Ok(_) => drop(self.hidden.originals.insert(first_code, byte[0])),
            Err(err) => log::debug!("{}: semaphores will be raised late: {err:#}", self.display),
        }
        self.loading = Some(told);
    }

    /// Returns whether the kernel raises semaphores in the wrong place in processes that start later.
    pub fn has_semaphores_on_shared_pages(&self) -> bool {
        self.semaphores.iter().any(|(_, semaphore)| semaphore.is_on_shared_page)
    }

    /// Whether the file's contents are certainly unchanged, whatever its times say.
    pub fn is_as_it_was(&self) -> bool {
        self.lease.as_ref().is_some_and(Lease::is_held)
    }

    /// Whether it has breakpoints, or is getting them.
    pub fn is_attached(&self) -> bool {
        !self.links.is_empty() || self.is_attaching()
    }

    /// Waits for the thread, if one is attaching further sites.
    pub(super) fn wait(&mut self) {
        self.job.iter_mut().for_each(AttachJob::wait_until_done);
    }

    /// Whether a thread is attaching further sites.
    pub fn is_attaching(&self) -> bool {
        self.job.is_some()
    }

    /// All attached sites, in the form in which breakpoints are set again.
    pub fn places(&self) -> Vec<Rearmed> {
        let sites = self.sites.iter().map(|(_, site)| site);
        sites.map(|site| Rearmed { offset: site.offset, semaphore: site.ref_ctr_offset }).collect()
    }

    /// Returns whether the code, which begins with a breakpoint, is a copy of that at one of the sites. Unknown without a
    /// lease, which keeps the file open.
    pub fn has_breakpoint_in(&self, code: &TrappedCode) -> bool {
        let Some(file) = self.lease.as_ref().map(Lease::file) else { return false };
        let sites: BTreeSet<u64> = self.sites.iter().map(|(_, site)| site.offset).collect();
        let is_copy = |site: &u64| {
            let mut original = [0; size_of::<TrappedCode>()];
            let is_same = |(at, (there, here)): (u64, (&u8, &u8))| {
                there == here || *there == BREAKPOINT && sites.contains(&at)
            };
            file.read_exact_at(&mut original, *site).is_ok()
                && original[0] != BREAKPOINT
                && (*site..).zip(code.iter().zip(&original)).all(is_same)
        };
        sites.iter().any(is_copy)
    }

    /// Offsets of all attached sites.
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
    fn writes_before_the_lease_are_part_of_the_file() {
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
        for lease in [Some(lease), None] {
            let attached = AttachedFile::leased(&found, lease);
            assert_eq!(attached.stamp, Stamp::of(&fs::metadata(&path).unwrap()));
            assert_ne!(attached.stamp, found.stamp);
        }
    }
}
