//! Resolves the sites of a file and attaches to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::{AttachedFile, News, Shed};
use crate::abi::site_flag;
use crate::clock::monotonic_now;
use crate::config::model::Point;
use crate::debug_symbols::DebugFiles;
use crate::elf::Image;
use crate::kernel::{Kernel, Lease, PinnableLink, Refusal, RefusalKind};
use crate::mapping::PAGE;
use crate::plan::{Plan, TargetPlan};
use crate::regular;
use crate::resolve::{ResolveError, ResolvedSite, resolve};
use crate::targets::attach_job::{AttachJob, Jobs, Links, UnitSites, Work};
use crate::targets::cookies::Cookies;
use crate::targets::detacher::{Detacher, Leaving};
use crate::targets::file::TargetFile;
use crate::targets::find::Finder;
use crate::targets::outcome::Outcome;
use crate::targets::probe_state::ProbeState;
use crate::targets::status::TargetsStatus;

/// Why a function of a library is not traced.
const ONLY_EXECUTABLE: &str =
    "functions are only searched in the executable; use `binary:` with the path of the library";

/// What attaching needs, whatever the target.
#[derive(Debug)]
pub(in crate::targets) struct Attacher {
    pub kernel: Arc<Kernel>,
    pub status: Arc<TargetsStatus>,
    /// Probes that are currently shed.
    pub shed: Shed,
    pub detacher: Detacher,
    pub jobs: Jobs,
}

/// The same, and the target.
#[derive(Debug, Clone, Copy)]
pub(in crate::targets) struct AttachContext<'a> {
    pub attacher: &'a Attacher,
    pub plan: &'a Arc<Plan>,
    pub target: &'a TargetPlan,
}

impl AttachedFile {
    /// Resolves and attaches all probes of the target in this file, as many as possible.
    pub fn attach(
        context: AttachContext<'_>,
        found: &TargetFile,
        lease: Option<Lease>,
        cookies: &mut Cookies,
        finder: &mut Finder,
    ) -> Self {
        let mut attached_file = Self::leased(found, lease);
        attached_file.read_and_attach(context, found, cookies, finder);
        attached_file
    }

    pub(super) fn read_and_attach(
        &mut self,
        context: AttachContext<'_>,
        found: &TargetFile,
        cookies: &mut Cookies,
        finder: &mut Finder,
    ) {
        self.probes.clear();
        (self.sites, self.shelved) = (Vec::new(), Vec::new());
        let file = found.open();
        let sites = self.resolve(context, found, file.as_ref());
        if let Ok(file) = file {
            self.attach_sites(context, file, sites, cookies, finder);
        }
    }

    /// Sets each probe's state before the kernel is involved; returns the sites, each with the index of its probe.
    pub(in crate::targets) fn resolve(
        &mut self,
        context: AttachContext<'_>,
        found: &TargetFile,
        file: Result<&File, &io::Error>,
    ) -> Vec<(usize, ResolvedSite)> {
        let AttachContext { attacher, plan, target } = context;
        let read = |file| regular::read_all(file).map_err(|err| Refusal::of_file(&err));
        let bytes = file.map_err(Refusal::of_file).and_then(read);
        self.unread = bytes.as_ref().is_err_and(|refusal| refusal.kind.passes());
        let image = bytes
            .as_ref()
            .map_err(|refusal| format!("failed to read {}: {refusal}", found.display))
            .and_then(|bytes| Image::parse(bytes).map_err(|err| format!("{}: {err}", found.display)));
        let wants_names =
            target.probes.iter().any(|probe| matches!(plan.probes[*probe].point, Point::Function(_)));
        let read = image.map(|image| {
            let debug = DebugFiles::of(&image, wants_names, &found.path, &found.display);
            (image, debug)
        });
        let index = read.as_ref().map(|(image, debug)| debug.index(*image));
        let mut sites = Vec::new();
        for &number in &target.probes {
            let mut outcome = Outcome::new(number);
            if found.is_library && matches!(plan.probes[number].point, Point::Function(_)) {
                outcome.state = ProbeState::Absent(ONLY_EXECUTABLE.to_string());
                self.probes.push(outcome);
                continue;
            }
            let mut name = |name: &str| attacher.status.function(number, name);
            let resolved = index.as_ref().map(|index| resolve(index, number as u32, plan, &mut name));
            match resolved {
                Err(err) => outcome.state = ProbeState::Refused((*err).clone()),
                Ok(Err(err)) if err.is_absent() => outcome.state = ProbeState::Absent(err.to_string()),
                Ok(Err(err)) => {
                    outcome.state = ProbeState::Refused(err.to_string());
                    if let ResolveError::NoneFit(sites) = err {
                        outcome.unusable = sites;
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
                    outcome.unusable = resolved.unusable;
                    sites.extend(resolved.sites.into_iter().map(|site| (self.probes.len(), site)));
                }
            }
            self.probes.push(outcome);
        }
        if found.is_candidate {
            sites.iter_mut().for_each(|(_, site)| site.entry.flags |= site_flag::SITE_CANDIDATE.0);
        }
        let pages = self.stamp.bytes().next_multiple_of(PAGE);
        let span = read.as_ref().map_or(0, |(image, _)| image.load_span());
        self.hidden.span = if span == pages { 0 } else { span };
        if sites.iter().any(|(_, site)| site.ref_ctr_offset != 0) {
            self.idle = read.map(|(image, _)| image.idle_code()).unwrap_or_default();
        }
        sites
    }

    /// Attaches to these sites, now or, where that takes long, on a thread whose result [`AttachedFile::finish`] takes.
    pub(super) fn attach_sites(
        &mut self,
        context: AttachContext<'_>,
        file: File,
        sites: Vec<(usize, ResolvedSite)>,
        cookies: &mut Cookies,
        finder: &mut Finder,
    ) {
        let is_shed =
            |(at, _): &mut (usize, ResolvedSite)| context.attacher.shed.contains_key(&self.probes[*at].probe);
        let mut sites = sites;
        let shelved: Vec<_> = sites.extract_if(.., is_shed).collect();
        for (at, _) in &shelved {
            let reason = context.attacher.shed.get(&self.probes[*at].probe).cloned().unwrap_or_default();
            self.probes[*at].state = ProbeState::Shed(reason);
        }
        self.shelved.extend(shelved);
        if sites.is_empty() {
            return;
        }
        let touched: BTreeSet<usize> = sites.iter().map(|(at, _)| *at).collect();
        let Some(mut numbers) = cookies.take(sites.len()) else {
            let text = format!("{} probe sites more than limits.sites; raise it", sites.len());
            let refusal = Refusal::new(RefusalKind::Sites, text);
            for (at, site) in sites {
                self.probes[at].refuse(site, refusal.clone());
            }
            touched.into_iter().for_each(|at| self.probes[at].settle());
            return;
        };
        // Before the first breakpoint: processes that copy the file through a mapping must not copy it.
        for (_, site) in &sites {
            let mut byte = [0];
            if file.read_exact_at(&mut byte, site.offset).is_ok() {
                self.hidden.originals.insert(site.offset, byte[0]);
            }
        }
        let mut units: BTreeMap<usize, Vec<(usize, ResolvedSite)>> = BTreeMap::new();
        for (at, site) in sites {
            let probe = &context.plan.probes[self.probes[at].probe];
            units.entry(probe.unit).or_default().push((at, site));
        }
        let units = units.into_iter().map(|(unit, sites)| {
            let numbers = numbers.split_off(numbers.len() - sites.len());
            UnitSites { unit, sites, numbers }
        });
        let work = Work {
            kernel: context.attacher.kernel.clone(),
            plan: context.plan.clone(),
            file,
            display: self.display.clone(),
            mappings: finder.mappings(self.identity),
            idle: self.idle.clone(),
            units: units.collect(),
        };
        let started = if work.is_large() { work.start(&context.attacher.jobs) } else { Err(work) };
        match started {
            Err(work) => self.record_links(context, work.run(), cookies),
            Ok(job) => {
                for at in touched {
                    let count = job.sites().filter(|(of, _)| *of == at).count();
                    let probe = &mut self.probes[at];
                    let reason =
                        format!("the kernel is attaching it at {count} sites in {} processes", job.processes);
                    let is_partly = probe.sites > 0;
                    probe.state =
                        if is_partly { ProbeState::Partly(reason) } else { ProbeState::Waiting(reason) };
                }
                self.job = Some(job);
            }
        }
    }

    /// Records what the file's thread has attached, if it has finished; returns whether it has.
    pub(in crate::targets) fn finish(&mut self, context: AttachContext<'_>, cookies: &mut Cookies) -> bool {
        let Some(job) = self.job.take_if(AttachJob::is_done) else { return false };
        self.record_links(context, job.wait(), cookies);
        self.tell(News::Changed);
        true
    }

    fn record_links(&mut self, context: AttachContext<'_>, all: Links, cookies: &mut Cookies) {
        let mut touched = BTreeSet::new();
        let (is_first, known) = (self.links.is_empty(), self.cookies.len());
        for (UnitSites { unit, sites, numbers }, attached) in all {
            let tried = attached.tried.into_iter().map(PinnableLink::new).collect();
            context.attacher.detacher.detach(vec![Leaving { links: tried, ..Leaving::default() }]);
            self.links
                .extend(attached.links.into_iter().map(|link| (unit, context.attacher.kernel.hold(link))));
            if attached.beside > 0 {
                log::info!(
                    "Target {}: another tracer has attached {} sites without their semaphores; attached alongside it",
                    context.target.name,
                    attached.beside
                );
            }
            let mut refused = attached.refused;
            for (position, ((at, site), number)) in sites.into_iter().zip(numbers).enumerate() {
                touched.insert(at);
                if let Some(refusal) = refused.remove(&position) {
                    cookies.free.push(number);
                    self.probes[at].refuse(site, refusal);
                    continue;
                }
                self.cookies.push((unit, number));
                self.semaphores.extend(site.semaphore.map(|semaphore| (site.offset, semaphore)));
                self.probes[at].sites += 1;
                if site.ref_ctr_offset != 0 {
                    self.hidden.semaphores.insert(site.offset, site.ref_ctr_offset);
                }
                self.sites.push((at, site));
            }
        }
        touched.into_iter().for_each(|at| self.probes[at].settle());
        if is_first && self.is_attached() {
            self.attached_at = monotonic_now();
        }
        if self.is_admitted {
            self.admit_sites(&context.attacher.kernel, known);
        }
    }
}
