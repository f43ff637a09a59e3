//! Files that are replaced or overwritten while probes are attached.
//!
//! A file that is overwritten in place would get the old code's breakpoints into its new code. So the exporter holds a
//! read lease on it: the writer waits until the probes are detached. A file that is renamed over the target's is
//! reported by inotify, and is usually attached before that, when it is written beside it under another name.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use super::attached_file::{AttachContext, AttachedFile};
use super::file::TargetFile;
use super::find::Finder;
use super::libraries::has_any;
use super::overrun::Overrun;
use super::path_watcher::Sibling;
use super::probe_state::ProbeState;
use super::state::{Candidate, TargetState, Written};
use super::worker::Worker;
use crate::kernel::{Filter, Lease, LeaseBreak, LeaseBreaks, NoLease};
use crate::plan::TargetPlan;

/// How long a file may lie beside the target's file before it replaces it.
const CANDIDATE_TIMEOUT: Duration = Duration::from_secs(60);

/// Files of one target that may take the place of its file. One more takes that of the oldest.
const MAX_CANDIDATES: usize = 4;

/// A file that is being written is checked this often, for this long; then with all others.
const WRITER_PAUSE: Duration = Duration::from_millis(20);
const WRITER_TIMEOUT: Duration = Duration::from_secs(10);

/// Some programs, such as truncate(1), do not wait for the lease but fail at once. If one tries again within this time,
/// it finds the file without a lease for a while.
const RETRY_WINDOW: Duration = Duration::from_secs(10);
const FREE_TIME: Duration = Duration::from_secs(2);

/// Takes the lease on a file that is about to be attached; none if the file system does not support it.
///
/// # Errors
/// Why the file must not be attached now.
pub(super) fn lease(
    lease_breaks: &LeaseBreaks,
    finder: &mut Finder,
    file: &TargetFile,
) -> Result<Option<Lease>, String> {
    let opened = match file.open() {
        Ok(opened) => opened,
        // Attaching will report it.
        Err(_) => return Ok(None),
    };
    match Lease::take(opened, lease_breaks) {
        Ok(lease) => Ok(Some(lease)),
        // A running file is no longer written: its writer may have ended, and the program been started, since the first try. Or it
        // is written at its own risk: the memory of a memfd stays open.
        Err(NoLease::Written) if finder.is_mapped(file.identity) => {
            Ok(file.open().ok().and_then(|opened| Lease::take(opened, lease_breaks).ok()))
        }
        Err(NoLease::Written) => Err(being_written(&file.display)),
        Err(NoLease::Refused(err)) => {
            log::info!(
                "{}: no lease ({err}): overwriting it in place while it is traced can crash it at its next \
                 start; replace it by renaming, or give the exporter CAP_LEASE",
                file.display
            );
            Ok(None)
        }
    }
}

fn being_written(file: &str) -> String {
    format!("{file} is being written; it is attached afterwards")
}

impl Worker {
    /// Detaches from files that are about to be written, and lets the writers continue.
    pub(super) fn release_for_writers(&mut self, breaks: &[LeaseBreak]) {
        if breaks.is_empty() {
            return;
        }
        let is_broken = |attached: &AttachedFile| {
            attached.lease.as_ref().is_some_and(|lease| {
                let is_named = |broken: &LeaseBreak| {
                    *broken == LeaseBreak::Any || *broken == LeaseBreak::Of(lease.number())
                };
                breaks.iter().any(is_named) && !lease.is_held()
            })
        };
        let plan = self.plan.clone();
        for (target, planned) in plan.targets.iter().enumerate() {
            let state = &mut self.targets[target];
            let mut broken: Vec<AttachedFile> = state.current.extract_if(.., |g| is_broken(g)).collect();
            let is_current = !broken.is_empty();
            broken.extend(state.replaced.extract_if(.., |g| is_broken(g)));
            let candidates = state.candidates.extract_if(.., |candidate| is_broken(&candidate.attached));
            broken.extend(candidates.map(|candidate| candidate.attached));
            let overrun: Vec<Overrun> =
                broken.iter().filter_map(|attached| Overrun::of(&planned.name, attached)).collect();
            for attached in &broken {
                self.finder.forget_executed(attached.identity);
                log::info!("Target {}: {} is about to be written; detaching", planned.name, attached.display);
            }
            let reason =
                broken.first().filter(|_| is_current).map(|attached| being_written(&attached.display));
            if reason.is_some() {
                let mut written = Written::now();
                if state.broken.is_some_and(|before| before.elapsed() < RETRY_WINDOW) {
                    written.free_until += FREE_TIME;
                }
                (state.written, state.broken) = (Some(written), Some(written.since));
                self.note_writer(target, planned, reason);
            }
            let paths = broken.iter().map(|attached| Path::new(&attached.display));
            let is_path = |path: &&Path| {
                planned.selector.path() == Some(path) || self.targets[target].paths.contains_key(*path)
            };
            paths.filter(is_path).for_each(|path| self.watch.expect(path));
            // Then the writers may begin.
            let leaving_files = broken.into_iter().map(AttachedFile::into_leaving).collect();
            self.attacher.detacher.detach_then(leaving_files, move || overrun.iter().for_each(Overrun::mend));
        }
    }

    /// Records why a target has to wait, or that it need not.
    pub(super) fn note_writer(&mut self, target: usize, planned: &TargetPlan, reason: Option<String>) {
        let state = &mut self.targets[target];
        let Some(reason) = reason else {
            state.written = None;
            return;
        };
        state.written.get_or_insert_with(Written::now);
        if state.current.is_empty() {
            for probe in &planned.probes {
                self.attacher.status.set(*probe, ProbeState::Waiting(reason.clone()), [0, 0], None);
            }
        }
    }

    /// How long to wait for events while a target waits for a writer, or probes are being attached or detached that
    /// something waits for.
    pub(super) fn pause_for_writers(&self, pause: Duration) -> Duration {
        let waits = |state: &TargetState| {
            state.written.is_some_and(|written| written.since.elapsed() < WRITER_TIMEOUT)
        };
        let is_due = self.targets.iter().any(waits) || !self.shedding.is_empty() || self.is_attaching();
        if is_due { WRITER_PAUSE } else { pause }
    }

    /// Sets the file names that the kernel reports as possible targets.
    pub(super) fn set_candidate_names(&self) {
        for (target, planned) in self.plan.targets.iter().enumerate() {
            let Some(path) = planned.selector.path() else { continue };
            let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if let Err(err) =
                self.attacher.kernel.set_filter(self.plan.targets.len() + target, &Filter::name(name), 0)
            {
                log::debug!("Target {}: failed to attach candidates ahead: {err:#}", planned.name);
            }
        }
    }

    /// Attaches to files that were written beside a target's file.
    pub(super) fn prepare(&mut self, beside: &[Sibling]) {
        let plan = self.plan.clone();
        for Sibling { target, path, is_called_like } in beside {
            let planned = &plan.targets[*target];
            // Under any other name, it must have the target's own probes to be taken for another version.
            if !is_called_like && !has_any(path, &self.targets[*target].usdt) {
                continue;
            }
            let Ok(mut found) = self.finder.look_at(path, path.display().to_string()) else { continue };
            // What is selected by name is filtered anyway.
            found.is_candidate = planned.selector.path().is_some();
            let state = &self.targets[*target];
            let all = state.current.iter().chain(&state.replaced);
            let mut known = all.chain(state.candidates.iter().map(|candidate| &candidate.attached));
            if known.any(|known| known.identity == found.identity) {
                continue;
            }
            let Some(attached) = self.attach_candidate(planned, &found) else { continue };
            if !attached.is_attached() {
                continue;
            }
            log::debug!("Target {}: {} may replace it; attached ahead", planned.name, found.display);
            let candidates = &mut self.targets[*target].candidates;
            let mut beside = candidates.iter().enumerate().filter(|(_, candidate)| candidate.path.is_none());
            let oldest = beside.next().map(|(at, _)| at);
            if let Some(oldest) = oldest.filter(|_| beside.count() + 1 == MAX_CANDIDATES) {
                self.attacher.detacher.detach(vec![candidates.remove(oldest).attached.into_leaving()]);
            }
            candidates.push(Candidate { attached, since: Instant::now(), path: None });
        }
    }

    /// Attaches to a file that is not the target's yet; None if it must not be attached now.
    pub(super) fn attach_candidate(
        &mut self,
        planned: &TargetPlan,
        found: &TargetFile,
    ) -> Option<AttachedFile> {
        if !is_elf(found) || self.attacher.detacher.is_busy_with(found.identity) {
            return None;
        }
        let lease = lease(&self.watch.breaks, &mut self.finder, found).ok()?;
        let context = AttachContext { attacher: &self.attacher, plan: &self.plan, target: planned };
        Some(AttachedFile::attach(context, found, lease, &mut self.cookies, &mut self.finder))
    }

    /// Releases candidates that did not become the target's.
    pub(super) fn drop_candidates(&mut self) {
        for state in &mut self.targets {
            for candidate in &mut state.candidates {
                let Some(path) = &candidate.path else { continue };
                let here = self.finder.look_at(path, String::new());
                if here.is_ok_and(|here| here.identity == candidate.attached.identity) {
                    candidate.since = Instant::now();
                }
            }
            let old =
                state.candidates.extract_if(.., |candidate| candidate.since.elapsed() > CANDIDATE_TIMEOUT);
            self.attacher.detacher.detach(old.map(|candidate| candidate.attached.into_leaving()).collect());
        }
    }
}

fn is_elf(file: &TargetFile) -> bool {
    let mut magic = [0; 4];
    file.open().and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}
