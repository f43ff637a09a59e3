//! Compares a target with the files that it matches now, attaches to new ones and releases others.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::attached_file::{AttachContext, AttachedFile};
use super::file::{Identity, Stamp, TargetFile};
use super::find::Finder;
use super::outcome::Outcome;
use super::probe_state::ProbeState;
use super::upgrade::lease;
use super::worker::Worker;
use crate::kernel::{Filter, LeaseBreaks};
use crate::plan::TargetPlan;

/// Scans for the descendants of one target at most; the scan that finds no more ends it.
const FAMILY_WALKS: usize = 5;

impl Worker {
    /// Updates the kernel's filter of the target's processes if it changed. It must be in place before a file is
    /// attached.
    pub(super) fn set_filter(&mut self, target: usize, planned: &TargetPlan) {
        let processes = &planned.selector.processes;
        if processes.predicates.is_empty() {
            return;
        }
        // The first process with this number is accepted; the kernel takes it if it hits a probe before it is seen
        // here.
        let known = self.targets[target].filter.as_ref().map_or(self.targets[target].began, Filter::began);
        let began = match processes.pid() {
            Some(pid) if known == 0 => self.finder.began(pid),
            _ => known,
        };
        let filter = Filter::of(processes, began, &self.finder.members(target));
        let state = &mut self.targets[target];
        if state.filter.as_ref() == Some(&filter) {
            return;
        }
        state.editions += 1;
        match self.attacher.kernel.set_filter(target, &filter, state.editions) {
            Ok(()) => state.filter = Some(filter),
            Err(err) => log::error!("Target {}: failed to update its filter: {err:#}", planned.name),
        }
    }

    /// Adds descendants of selected processes, as found by scans of /proc, to the kernel's filter; later ones are added
    /// by the kernel at fork.
    fn add_family(&mut self, target: usize, planned: &TargetPlan) {
        if !planned.selector.processes.children || self.targets[target].family_walk == Some(self.finder.walks)
        {
            return;
        }
        for _ in 0..FAMILY_WALKS {
            let mut is_new = false;
            for pid in self.finder.family(target) {
                let is_known = self.attacher.kernel.has_child(target, pid);
                if !is_known && let Err(err) = self.attacher.kernel.add_child(target, pid) {
                    log::warn!(
                        "Target {}: process {pid} cannot be tracked as a child: {err:#}",
                        planned.name
                    );
                }
                // It may have ended before.
                if !Path::new("/proc").join(pid.to_string()).exists() {
                    self.attacher.kernel.remove_child(target, pid);
                } else {
                    is_new |= !is_known;
                }
            }
            if !is_new {
                break;
            }
            // Scans again for children that were started before the kernel knew their parents.
            self.finder.begin_walk();
        }
        self.targets[target].family_walk = Some(self.finder.walks);
    }

    /// The files that a target matches now, and those that replaced its executables and do not run yet.
    pub(super) fn find(&mut self, target: usize, planned: &TargetPlan) -> Result<Vec<TargetFile>, String> {
        let state = &mut self.targets[target];
        let mut found = self.finder.find(&planned.selector, Some(target), &state.usdt);
        let mut remarks = std::mem::take(&mut self.finder.remarks);
        let attached = |inode: &Identity| {
            state.current.iter().chain(&state.replaced).any(|attached| attached.identity == *inode)
        };
        let copied_up = self.finder.copied_up.iter().filter(|process| !process.maps.iter().any(attached));
        remarks.extend(copied_up.map(|process| {
            format!(
                "process {} runs a version of {} from before overlayfs copied it up, which no path reaches: \
                 its hits are not counted until it restarts",
                process.pid, process.display
            )
        }));
        for new in remarks.iter().filter(|remark| !state.remarks.contains(remark)) {
            log::warn!("Target {}: {new}", planned.name);
        }
        state.remarks = remarks;
        if planned.selector.executable_name().is_none() {
            return found;
        }
        for file in found.iter().flatten().filter(|file| !file.is_library) {
            let path = PathBuf::from(&file.display);
            if state.paths.contains_key(&path)
                || self.finder.look_at(&path, String::new()).is_ok_and(|here| here.identity == file.identity)
            {
                state.paths.insert(path, Instant::now());
            }
        }
        state.forget_paths();
        for path in state.paths.keys() {
            let Ok(here) = self.finder.look_at(path, path.display().to_string()) else { continue };
            match &mut found {
                Ok(files) if files.iter().all(|file| file.identity != here.identity) => files.push(here),
                Ok(_) => {}
                Err(_) => found = Ok(vec![here]),
            }
        }
        found
    }

    /// Watches the paths of all files in this mount namespace.
    pub(super) fn follow(&mut self) {
        let paths: Vec<_> = (0..self.targets.len()).flat_map(|target| self.ways_of(target)).collect();
        self.watch.follow(&paths);
    }

    /// Watches the paths of a target's files as they are now, before they are resolved.
    pub(super) fn follow_again(&mut self, target: usize) {
        self.watch.follow_also(&self.ways_of(target));
    }

    fn ways_of(&self, target: usize) -> Vec<(usize, PathBuf)> {
        let named = self.plan.targets[target].selector.path().map(Path::to_path_buf);
        named
            .into_iter()
            .chain(self.targets[target].paths.keys().cloned())
            .map(|path| (target, path))
            .collect()
    }

    pub(super) fn look_at(&mut self, target: usize, planned: &TargetPlan) {
        self.compare(target, planned);
        self.attach_ahead(target, planned);
    }

    fn compare(&mut self, target: usize, planned: &TargetPlan) {
        // Reloads have removed all of its probes.
        if planned.probes.is_empty() {
            return;
        }
        self.set_filter(target, planned);
        self.add_family(target, planned);
        let files = self.find(target, planned);
        let state = &mut self.targets[target];
        let files = match files {
            Ok(files) => files,
            Err(err) => {
                state.written = None;
                // That single process will not come back.
                if planned.selector.is_by_process() && planned.selector.processes.pid().is_some() {
                    for old in state.current.drain(..) {
                        self.finder.forget_executed(old.identity);
                        self.attacher.detacher.detach(vec![old.into_leaving()]);
                    }
                }
                // Attached files stay attached: their processes may still run, or the file may come back.
                if state.current.is_empty() {
                    // Numbers of processes change all the time; between two reasons, a target whose processes are short-lived
                    // changes all the time.
                    let is_new = state.told.insert(without_digits(&err));
                    if is_new {
                        let level = if planned.optional { log::Level::Info } else { log::Level::Warn };
                        log::log!(level, "Target {}: {err}; waiting for it", planned.name);
                    }
                    state.missing = Some(err);
                    self.publish_missing(target, planned);
                }
                return;
            }
        };
        state.missing = None;
        state.told.clear();
        let mut changed = false;
        let mut written = None;
        let known = std::mem::take(&mut state.current);
        let context = AttachContext { attacher: &self.attacher, plan: &self.plan, target: planned };
        for mut old in known {
            match files.iter().find(|file| file.identity == old.identity) {
                Some(file) if file.stamp == old.stamp || old.is_as_it_was() => {
                    if old.is_taken_over
                        && let Err(err) = guard(&mut old, file, &self.watch.breaks, &mut self.finder)
                    {
                        self.finder.forget_executed(old.identity);
                        self.attacher.detacher.detach(vec![old.into_leaving()]);
                        (changed, written) = (true, err);
                        continue;
                    }
                    old.stamp = file.stamp;
                    changed |= old.retry(context, file, &mut self.cookies, &mut self.finder);
                    state.current.push(old);
                }
                // Overwritten in place: the sites are elsewhere now.
                Some(_) => {
                    self.finder.forget_executed(old.identity);
                    self.attacher.detacher.detach(vec![old.into_leaving()]);
                    changed = true;
                }
                None => {
                    let is_replaced = !planned.selector.is_by_process()
                        || state.paths.contains_key(Path::new(&old.display));
                    state.leave(old, is_replaced, &planned.name);
                    changed = true;
                }
            }
        }
        let mut gone = Vec::new();
        let elsewhere = files.iter().any(|file| file.is_library);
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
            if let Some(new_file) = state.admit(&self.attacher.kernel, file) {
                state.current.push(new_file);
                changed = true;
                continue;
            }
            // Overwritten while no process ran it.
            if let Some(at) = state.replaced.iter().position(|old| old.identity == file.identity) {
                self.attacher.detacher.detach(vec![state.replaced.swap_remove(at).into_leaving()]);
            }
            if self.attacher.detacher.is_busy_with(file.identity) {
                written = Some(leaving(&file.display));
                continue;
            }
            // It is looked up again when another process runs it.
            if planned.selector.is_by_process() && file.is_gone() {
                gone.push(file.identity);
                continue;
            }
            // Before it is attached: a process that executes it meanwhile waits.
            if planned.selector.path().is_some() {
                self.finder.add_name(target, &file.path);
            }
            let lease = match lease(&self.watch.breaks, &mut self.finder, file) {
                Ok(lease) => lease,
                Err(err) => {
                    written = Some(err);
                    continue;
                }
            };
            let new_file = AttachedFile::attach(context, file, lease, &mut self.cookies, &mut self.finder);
            state.current.push(new_file);
            changed = true;
        }
        gone.into_iter().for_each(|identity| self.finder.forget_executed(identity));
        let state = &mut self.targets[target];
        for of in &mut state.current {
            let file = files.iter().find(|file| file.identity == of.identity);
            changed |=
                file.is_some_and(|file| of.restore(context, file, &mut self.cookies, &mut self.finder));
            if let (Some(file), Some(events)) = (file, &self.finder.events) {
                of.follow_loading(events, file);
            }
        }
        changed |=
            state.announce(&self.plan, planned, &self.attacher.status, target, elsewhere, &mut self.finder);
        if changed {
            self.raise_copies(target);
            self.publish(target, planned);
        }
        self.note_writer(target, planned, written);
    }

    /// Publishes why no file is attached, if that is so.
    pub(super) fn publish_missing(&self, target: usize, planned: &TargetPlan) {
        let state = &self.targets[target];
        let Some(reason) = &state.missing else { return };
        let ahead = state.candidates.iter().find(|candidate| candidate.path.is_some());
        let ahead =
            ahead.map(|candidate| format!("; {} is attached, in case one does", candidate.attached.display));
        let reason = format!("{reason}{}", ahead.unwrap_or_default());
        for probe in &planned.probes {
            self.attacher.status.set(*probe, ProbeState::Missing(reason.clone()), [0, 0], None);
        }
    }

    /// Detaches from replaced files that no process runs any more.
    pub(super) fn drop_unused(&mut self, target: usize, planned: &TargetPlan) {
        let state = &mut self.targets[target];
        let is_unused = |old: &mut AttachedFile| old.is_use_check_due() && !self.finder.in_use(old.identity);
        let unused: Vec<_> = state.replaced.extract_if(.., is_unused).collect();
        for old in &unused {
            log::info!("Target {}: no process runs {} any more; detaching", planned.name, old.display);
            self.finder.forget_executed(old.identity);
        }
        self.attacher.detacher.detach(unused.into_iter().map(AttachedFile::into_leaving).collect());
    }

    /// Publishes the states of a target's probes: attached if attached in any of its files, partly if not at all sites.
    pub(super) fn publish(&self, target: usize, planned: &TargetPlan) {
        let state = &self.targets[target];
        for (n, probe) in planned.probes.iter().enumerate() {
            if let Some(reason) = self.attacher.shed.get(probe) {
                self.attacher.status.set(*probe, ProbeState::Shed(reason.clone()), [0, 0], None);
                continue;
            }
            let of = |attached: &AttachedFile| attached.probes.get(n).cloned();
            let outcomes: Vec<Outcome> = state.current.iter().filter_map(of).collect();
            let Some(first) = outcomes.first() else { continue };
            let attached: Vec<_> = outcomes.iter().filter(|o| o.state.is_attached()).collect();
            let refused = outcomes.iter().map(Outcome::refused).sum();
            let sites = attached.iter().map(|o| o.sites).sum();
            let unsigned = attached.iter().fold(u32::MAX, |all, o| all & o.unsigned);
            let unsigned = (!attached.is_empty()).then_some(unsigned);
            let under_way = state.replaced.iter().filter(|old| old.is_attaching()).filter_map(of);
            let not_all = outcomes
                .iter()
                .cloned()
                .chain(under_way)
                .find(|o| {
                    matches!(o.state, ProbeState::Partly(_) | ProbeState::Refused(_) | ProbeState::Waiting(_))
                })
                .map(|o| ProbeState::Partly(o.state.reason().to_string()));
            let left_out = state.replaced.iter().any(|old| old.is_shelved(*probe));
            let not_all = not_all.or_else(|| left_out.then(|| ProbeState::Partly(LEFT_OUT.to_string())));
            let state = match (attached.is_empty(), not_all) {
                (true, _) => first.state.clone(),
                (false, Some(partly)) => partly,
                (false, None) => ProbeState::Attached,
            };
            self.attacher.status.set(*probe, state, [sites, refused], unsigned);
        }
    }
}

/// Why a site is not attached again.
const LEFT_OUT: &str = "it was shed, and a file that was replaced and still runs is not traced any more";

fn leaving(file: &str) -> String {
    format!("the probes of the previous contents of {file} are being detached; it is attached afterwards")
}

/// Takes the lease on a file that a previous exporter attached.
///
/// # Errors
/// If it is being written: why it has to wait, or `None` if it was written meanwhile.
pub(super) fn guard(
    old: &mut AttachedFile,
    file: &TargetFile,
    breaks: &LeaseBreaks,
    finder: &mut Finder,
) -> Result<(), Option<String>> {
    old.lease = lease(breaks, finder, file).map_err(Some)?;
    old.is_taken_over = false;
    let now = file.open().and_then(|file| file.metadata());
    if now.is_ok_and(|now| Stamp::of(&now) == old.stamp) { Ok(()) } else { Err(None) }
}

fn without_digits(text: &str) -> String {
    text.chars().filter(|character| !character.is_ascii_digit()).collect()
}
