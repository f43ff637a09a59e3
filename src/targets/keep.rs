//! Records an engine's attached probes for the next exporter, and takes them over.
//!
//! The record is written after every change. An exporter killed before that leaves links that are not in the record,
//! which are removed, or a record of links that no longer exist, in which case the file is attached anew.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::attach_job::AttachJob;
use super::attached_file::{AttachContext, AttachedFile};
use super::file::TargetFile;
use super::look::guard;
use super::outcome::Outcome;
use super::readers::Hidden;
use super::record::{Changing, EngineRecord, ProbeRecord, Record, Role, Signature};
use super::state::{Candidate, TargetState};
use super::worker::Worker;
use crate::kernel::{PinnableLink, Refusal, RefusalKind, release};
use crate::plan::SavedPlan;

/// How long changes that are not urgent may wait to be written.
const WRITE_DELAY: Duration = Duration::from_secs(1);

impl Worker {
    /// As [`Worker::keep`], if anything may have changed.
    pub(super) fn record_if_changed(&mut self) {
        let is_due = self.last_kept.elapsed() >= WRITE_DELAY;
        if self.attacher.kernel.pins().is_some() && (is_due || self.signature() != self.signature) {
            self.keep();
        }
    }

    pub(super) fn signature(&self) -> Signature {
        let of = |(target, state): (usize, &TargetState)| {
            let files = state.current.iter().chain(&state.replaced).chain(&state.without_probes);
            let files = files.chain(state.candidates.iter().map(|candidate| &candidate.attached));
            let open = |file: &AttachedFile| file.probes.iter().map(|probe| probe.open.len()).sum::<usize>();
            files.map(|file| (target, file.links.len(), open(file), file.identity.number)).collect::<Vec<_>>()
        };
        self.targets.iter().enumerate().flat_map(of).collect()
    }

    /// Writes the current record, if state is pinned.
    pub(super) fn keep(&mut self) {
        (self.last_kept, self.signature) = (Instant::now(), self.signature());
        let Some(pins) = self.attacher.kernel.pins().filter(|pins| !pins.is_over()) else { return };
        if let Some(guard) = &mut self.guard {
            let files = self.targets.iter_mut().flat_map(TargetState::files_mut);
            let attached = files.filter(|file| file.is_attached() && file.identity.address != 0);
            guard.set_files(attached.map(|file| file.identity.address).collect());
        }
        let files = self.targets.iter().map(TargetState::records).collect();
        let changing = Changing { files, memory: self.attacher.status.memory() };
        if self.kept.as_ref() == Some(&changing) {
            // The plan is many times as long as what changes, so it is not serialized just to detect that nothing has.
            return;
        }
        let record = EngineRecord {
            plan: SavedPlan::of(&self.plan),
            shape: self.attacher.kernel.shape(),
            layout: self.layout.clone(),
            changing,
        };
        match pins.dir().save(&record) {
            Ok(()) => (self.kept, self.keep_error) = (Some(record.changing), None),
            Err(err) => {
                // Saving is tried every second: only a new error is logged.
                let text = err.to_string();
                if self.keep_error.as_ref() != Some(&text) {
                    log::error!("the pinned state cannot be taken over later: {text}");
                    self.keep_error = Some(text);
                }
            }
        }
    }

    /// Takes over what a previous exporter attached.
    pub(super) fn take_over(&mut self, record: EngineRecord) {
        let all = || record.changing.files.iter().flatten().map(|(_, file)| file);
        let names: BTreeSet<String> =
            all().flat_map(|file| &file.links).map(|(_, name)| name.clone()).collect();
        if let Some(pins) = self.attacher.kernel.pins() {
            pins.remove_links_but(&names);
        }
        self.attacher.status.recall(record.changing.memory);
        let mut used = BTreeSet::new();
        for (target, files) in record.changing.files.into_iter().enumerate().take(self.targets.len()) {
            for (role, file) in files {
                let opened: Vec<_> =
                    file.links.iter().map(|(unit, name)| (*unit, self.attacher.kernel.held(name))).collect();
                let (there, gone): (Vec<_>, Vec<_>) = opened.into_iter().partition(|(_, link)| link.is_ok());
                let links: Vec<_> =
                    there.into_iter().filter_map(|(unit, link)| Some((unit, link.ok()?))).collect();
                let name = self.plan.targets[target].name.clone();
                if let Some((_, Err(err))) = gone.into_iter().next() {
                    log::warn!(
                        "Target {name}: {} was attached again: a link is missing: {err:#}",
                        file.display
                    );
                    release(links.into_iter().map(|(_, link)| link).collect());
                    continue;
                }
                if !links.is_empty() {
                    log::info!("Target {name}: took over the probes in {}", file.display);
                }
                let ahead = file.ahead.as_ref().map(PathBuf::from);
                let mut file = AttachedFile::take_over(file, links);
                if matches!(role, Role::Candidate | Role::Replaced)
                    && let Err(reason) = self.retake_lease(&mut file, ahead.as_deref())
                {
                    let reason = reason.unwrap_or_else(|| format!("{} was written meanwhile", file.display));
                    log::info!("Target {name}: detached: {reason}");
                    // No other file has been given its numbers yet, so nothing else has to be undone.
                    release(file.into_leaving().links);
                    continue;
                }
                used.extend(file.cookies.iter().map(|(_, cookie)| *cookie));
                self.targets[target].put(role, file, ahead);
            }
        }
        self.cookies.remove(&used);
        for target in 0..self.targets.len() {
            (self.targets[target].editions, self.targets[target].began) =
                self.attacher.kernel.filter_now(target);
        }
        // Otherwise the filters would start with fewer processes than they had.
        self.finder.walk();
        let plan = self.plan.clone();
        for (target, planned) in plan.targets.iter().enumerate() {
            self.publish(target, planned);
        }
    }

    /// Takes the lease on a file that a previous exporter attached and that no target may select any more; for selected
    /// files it is taken once that is known.
    ///
    /// # Errors
    /// Those of [`guard`].
    fn retake_lease(&mut self, file: &mut AttachedFile, ahead: Option<&Path>) -> Result<(), Option<String>> {
        let path = ahead.unwrap_or(Path::new(&file.display));
        let found = self.finder.look_at(path, file.display.clone());
        match found.ok().filter(|found| found.identity == file.identity) {
            Some(found) => guard(file, &found, &self.watch.breaks, &mut self.finder),
            // A file that no path leads to is not written.
            None => Ok(()),
        }
    }
}

impl TargetState {
    fn records(&self) -> Vec<(Role, Record)> {
        let of =
            |role, files: &[AttachedFile]| files.iter().map(|file| (role, file.record())).collect::<Vec<_>>();
        let mut all = of(Role::Current, &self.current);
        all.extend(of(Role::Replaced, &self.replaced));
        all.extend(of(Role::WithoutProbes, &self.without_probes));
        all.extend(self.candidates.iter().map(|candidate| {
            let ahead = candidate.path.as_deref().and_then(Path::to_str).map(str::to_string);
            (Role::Candidate, Record { ahead, ..candidate.attached.record() })
        }));
        all
    }

    fn put(&mut self, role: Role, file: AttachedFile, ahead: Option<PathBuf>) {
        if file.is_attached() {
            // Where it was found is not known any more.
            for is_here in [true, false] {
                self.identities.insert((file.display.clone(), is_here), file.identity);
            }
        }
        match role {
            Role::Current => self.current.push(file),
            Role::Replaced => self.replaced.push(file),
            Role::WithoutProbes => self.without_probes.push(file),
            Role::Candidate => {
                self.candidates.push(Candidate { attached: file, since: Instant::now(), path: ahead })
            }
        }
    }
}

impl AttachedFile {
    /// The record of this file.
    pub(super) fn record(&self) -> Record {
        let names = self.links.iter().filter_map(|(unit, link)| Some((*unit, link.name()?)));
        let probe = |(at, probe): (usize, &Outcome)| {
            let open = probe.open.iter().map(|(site, _)| (site.offset, site.is_return));
            // Until its links are pinned, the next exporter has to attach to them.
            let under_way = self.job.iter().flat_map(AttachJob::sites).filter(|(of, _)| *of == at);
            let open = open.chain(under_way.map(|(_, site)| (site.offset, site.is_return)));
            let before =
                self.open.iter().filter(|(of, ..)| *of == at).map(|(_, offset, back)| (*offset, *back));
            ProbeRecord {
                probe: probe.probe,
                state: probe.state.clone(),
                sites: probe.sites,
                unsigned: probe.unsigned,
                unusable: probe.unusable.clone(),
                open: open.chain(before).collect(),
            }
        };
        Record {
            display: self.display.clone(),
            identity: self.identity,
            stamp: self.stamp,
            probes: self.probes.iter().enumerate().map(probe).collect(),
            links: names.collect(),
            cookies: self.cookies.clone(),
            shared_semaphores: self.semaphores.clone(),
            originals: self.hidden.originals.iter().map(|(offset, byte)| (*offset, *byte)).collect(),
            semaphores: self.hidden.semaphores.iter().map(|(offset, of)| (*offset, *of)).collect(),
            span: self.hidden.span,
            unread: self.unread,
            attached_at: self.attached_at,
            unused: self.unused.as_ref().map(|unused| unused.is_replaced),
            ahead: None,
        }
    }

    /// Restores a file with its links from a previous exporter's record.
    pub(super) fn take_over(record: Record, links: Vec<(usize, PinnableLink)>) -> Self {
        let mut attached = Self::new(record.display, record.identity, record.stamp);
        for (at, probe) in record.probes.into_iter().enumerate() {
            attached.open.extend(probe.open.into_iter().map(|(offset, is_return)| (at, offset, is_return)));
            attached.probes.push(Outcome {
                probe: probe.probe,
                state: probe.state,
                sites: probe.sites,
                unsigned: probe.unsigned,
                unusable: probe.unusable,
                open: Vec::new(),
            });
        }
        attached.links = links;
        attached.cookies = record.cookies;
        attached.semaphores = record.shared_semaphores;
        attached.hidden = Hidden {
            originals: record.originals.into_iter().collect(),
            semaphores: record.semaphores.into_iter().collect(),
            span: record.span,
        };
        attached.unread = record.unread;
        attached.attached_at = record.attached_at;
        attached.is_taken_over = true;
        attached.take_news();
        if let Some(is_replaced) = record.unused {
            attached.leave(is_replaced);
        }
        attached
    }

    /// Restores the sites that a previous exporter could not attach yet.
    pub(super) fn reopen(&mut self, context: AttachContext<'_>, found: &TargetFile, file: &File) {
        let open = std::mem::take(&mut self.open);
        if open.is_empty() {
            return;
        }
        let mut scratch = Self::new(found.display.clone(), found.identity, found.stamp);
        for (at, site) in scratch.resolve(context, found, Ok(file)) {
            if open.contains(&(at, site.offset, site.is_return)) {
                let refusal = Refusal::new(RefusalKind::Busy, "it was refused before the restart; retrying");
                self.probes[at].open.push((site, refusal));
            }
        }
        self.idle = scratch.idle;
    }
}
