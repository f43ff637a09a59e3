//! Programs that replace their own code, usually to have it in huge pages.
//!
//! They copy it to anonymous memory and remap that over it. No breakpoint can be set there, so there are no hits. If
//! the code is copied while it is traced, the copy contains breakpoints that the kernel does not know, and the program
//! is killed by `SIGTRAP` at the first one.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use iced_x86::{Decoder, DecoderOptions};

use super::code_checks::Finding;
use super::detacher::Leaving;
use super::file::Identity;
use super::follow::ProcessChanges;
use super::pages::is_of_file;
use super::readers::translates;
use super::worker::Worker;
use crate::clock::thread_time;
use crate::elf::LONGEST_INSTRUCTION;
use crate::kernel::{BREAKPOINT, Rearmed, Refusal};
use crate::procfs::{Mapping, living_thread, text};

/// Processes of one file that may be ended by `SIGTRAP` within this time before the file is no longer traced, where
/// their code is unknown: one may have raised it itself.
const MAX_DEATHS: usize = 2;
const DEATH_WINDOW: Duration = Duration::from_secs(600);

/// Processes that have executed a file since the last check and are queued for the next one. Further ones have their turn with
/// all others.
const MAX_PENDING: usize = 256;

/// Processes that are checked in turn without a pause.
const BATCH: usize = 16;

/// Processes are checked for the first time for about this long, and the others a second later: one takes about a millisecond, and
/// a library may be mapped by thousands.
const MAX_TIME: Duration = Duration::from_millis(100);

/// Traced sites of one process that are checked at most.
const MAX_SITES: usize = 256;

/// A process's mappings of a file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Code {
    /// As offsets in the file.
    mapped: Vec<Range<u64>>,
    /// The address of each.
    starts: Vec<u64>,
}

impl Code {
    /// `starts` are the start addresses of the file's mappings.
    fn of(maps: &str, starts: &HashSet<u64>) -> Self {
        let maps = maps.lines().filter_map(Mapping::parse);
        let code = maps.filter(|map| map.is_executable() && starts.contains(&map.start));
        let code = code.map(|map| (map.offset..map.offset + (map.end - map.start), map.start));
        let (mapped, starts) = code.unzip();
        Self { mapped, starts }
    }

    /// The mapped sites without a breakpoint, each with its address.
    fn unarmed(&self, sites: &[u64], memory: &File) -> Vec<(u64, u64)> {
        let unarmed = |site: u64| {
            let mut byte = [0];
            let at = self.addresses(site).find(|at| {
                let read = memory.read_exact_at(&mut byte, *at);
                read.is_ok() && byte[0] != BREAKPOINT
            });
            at.map(|at| (site, at))
        };
        sites.iter().filter_map(|site| unarmed(*site)).collect()
    }

    /// The addresses of a site; a library that is loaded into several linker namespaces has several.
    fn addresses(&self, site: u64) -> impl Iterator<Item = u64> {
        let all = self.mapped.iter().zip(&self.starts).filter(move |(range, _)| range.contains(&site));
        all.map(move |(range, start)| start + (site - range.start))
    }

    /// Returns at how many of these sites the kernel executes an instruction that the process does not have: after the
    /// first byte, which is the breakpoint, it differs from the file's.
    fn changed(&self, sites: &[u64], memory: &File, file: &File) -> usize {
        let is_changed = |site: u64| {
            let (mut original, mut there) = ([0; LONGEST_INSTRUCTION], [0; LONGEST_INSTRUCTION]);
            let read = file.read_at(&mut original, site).unwrap_or_default();
            let length = Decoder::new(64, &original[..read], DecoderOptions::NONE).decode().len();
            self.addresses(site).any(|at| {
                let there = &mut there[..length];
                let is_read = memory.read_exact_at(there, at).is_ok();
                is_read && there.first() == Some(&BREAKPOINT) && there[1..] != original[1..length]
            })
        };
        sites.iter().filter(|site| is_changed(**site)).count()
    }

    fn is_mapped_again(&self) -> bool {
        let mut seen = HashSet::new();
        !self.mapped.iter().all(|range| seen.insert(range.start))
    }

    fn lacks(&self, sites: &[u64]) -> usize {
        sites.iter().filter(|site| !self.mapped.iter().any(|range| range.contains(site))).count()
    }
}

impl Worker {
    /// Detaches from files whose breakpoints were copied together with the code: where the code at such a breakpoint
    /// shows that, and otherwise where several processes that ran the file were killed by one.
    pub(super) fn detach_killing_probes(&mut self, changes: &ProcessChanges) {
        let plan = self.plan.clone();
        for (pid, inode, code) in &changes.copied {
            for target in 0..plan.targets.len() {
                let state = &mut self.targets[target];
                let all = state.current.iter_mut().chain(&mut state.replaced);
                let copied = all.into_iter().find(|of| {
                    of.identity.address == *inode && of.is_attached() && of.has_breakpoint_in(code)
                });
                let Some(identity) = copied.map(|file| file.identity) else { continue };
                self.detach_killing(
                    target,
                    identity,
                    &format!("process {pid} reached a copy of a breakpoint in it"),
                );
            }
        }
        for (pid, identity) in &changes.trapped {
            for (target, planned) in plan.targets.iter().enumerate() {
                let state = &mut self.targets[target];
                let all = state.current.iter().chain(&state.replaced);
                let Some(file) = all.into_iter().find(|of| of.identity == *identity && of.is_attached())
                else {
                    continue;
                };
                let name = &planned.name;
                log::warn!("Target {name}: process {pid}, which ran {}, was killed by SIGTRAP", file.display);
                state.trapped.retain(|(_, at)| at.elapsed() < DEATH_WINDOW);
                state.trapped.push((*identity, Instant::now()));
                if state.trapped.iter().filter(|(of, _)| of == identity).count() >= MAX_DEATHS {
                    let why = format!("{MAX_DEATHS} processes that ran it were ended by SIGTRAP");
                    self.detach_killing(target, *identity, &why);
                }
            }
        }
    }

    fn detach_killing(&mut self, target: usize, identity: Identity, why: &str) {
        let plan = self.plan.clone();
        let state = &mut self.targets[target];
        let mut all = state.current.iter_mut().chain(&mut state.replaced);
        let Some(file) = all.find(|of| of.identity == identity && of.is_attached()) else { return };
        let reason = format!(
            "{}: {why}: a program that copies its code, as into huge pages, copies the breakpoints in it, and they end it. It \
             is traced again when its file is replaced or the exporter restarts; turn that off in the program before",
            file.display
        );
        let leaving = file.abandon(&reason);
        let planned = &plan.targets[target];
        // Logged afterwards: a process that is started because of the message copies no breakpoint any more.
        let message = format!("Target {}: not traced any more: {reason}", planned.name);
        self.attacher.detacher.detach_then(vec![leaving], move || log::error!("{message}"));
        self.publish(target, planned);
    }

    pub(super) fn queue_code_check(&mut self, pid: u32, identity: Identity) {
        if self.fresh.len() < MAX_PENDING {
            self.fresh.push((pid, identity));
        }
    }

    /// Queues processes that may have replaced traced code: those that ran a file when it was attached, and those that
    /// executed one since the previous call.
    pub(super) fn queue_code_checks(&mut self) {
        self.code_checks.add(std::mem::take(&mut self.fresh));
        for file in self.targets.iter_mut().flat_map(|state| &mut state.current) {
            if !file.is_attaching()
                && file.is_attached()
                && !std::mem::replace(&mut file.is_code_checked, true)
            {
                let mapping = self.finder.mapping(file.identity);
                self.code_checks.add(mapping.into_iter().map(|pid| (pid, file.identity)));
            }
        }
    }

    /// Reports queued processes that have replaced traced code.
    pub(super) fn report_moved_code(&mut self) {
        let begun = Instant::now();
        while begun.elapsed() < MAX_TIME
            && let Some((pid, identity)) = self.code_checks.next_new()
        {
            self.report_if_moved(pid, identity);
        }
    }

    /// One file after the other, and a few processes of it at a time.
    pub(super) fn check_code_in_turn(&mut self) {
        if !self.code_checks.is_due() {
            return;
        }
        // Not the time it waits for the kernel, or for a processor.
        let before = thread_time();
        if self.code_checks.is_idle() {
            let attached = self.targets.iter().flat_map(|state| &state.current).filter(|of| of.is_attached());
            let files: BTreeSet<Identity> = attached.map(|of| of.identity).collect();
            let Some(next) = self.code_checks.next_of(&files) else { return };
            let mut processes = self.finder.mapping(next);
            processes.remove(&std::process::id());
            self.code_checks.begin(next, processes);
        }
        for _ in 0..BATCH {
            let Some((pid, identity)) = self.code_checks.next_process() else { break };
            self.report_if_moved(pid, identity);
        }
        self.code_checks.rest(thread_time().saturating_sub(before));
    }

    fn report_if_moved(&mut self, pid: u32, identity: Identity) {
        let Ok(starts) = self.finder.starts_of_mappings(pid, identity) else { return };
        let thread = living_thread(pid);
        let Ok(maps) = text(format!("/proc/{thread}/maps")) else { return };
        let code = Code::of(&maps, &starts);
        // A process that only reads the file does not run it.
        if code.mapped.is_empty() && !self.finder.of_process(pid).is_ok_and(|runs| runs.identity == identity)
        {
            return;
        }
        if code.is_mapped_again() {
            self.raise_semaphores(pid, identity);
        }
        // Translators have no breakpoints, on purpose.
        let memory = (!translates(pid)).then(|| File::open(format!("/proc/{thread}/mem")));
        let memory = memory.and_then(Result::ok);
        // The file that the process runs, whatever its path leads to.
        let own_file = code.starts.first().and_then(|start| {
            let map = maps.lines().filter_map(Mapping::parse).find(|map| map.start == *start)?;
            File::open(format!("/proc/{thread}/map_files/{}", map.entry())).ok()
        });
        let mut thrown_away = Vec::new();
        for (target, (state, planned)) in self.targets.iter().zip(&self.plan.targets).enumerate() {
            let Some(file) = state.current.iter().find(|of| of.identity == identity) else { continue };
            let offsets = file.offsets();
            let lacks = code.lacks(&offsets);
            if lacks > 0 && self.code_checks.is_new(pid, identity, Finding::Replaced) {
                log::warn!(
                    "Target {}: process {pid} has replaced the code at {lacks} of {} traced sites of {} \
                     with memory of its own, as programs do to use huge pages: hits there are not counted, \
                     and code that it copies while it is traced would kill it; turn that off in the program",
                    planned.name,
                    offsets.len(),
                    file.display
                );
            }
            let step = (offsets.len() / MAX_SITES).max(1);
            let looked_at: Vec<u64> = offsets.iter().copied().step_by(step).collect();
            let changed = memory.as_ref().zip(own_file.as_ref());
            let changed = changed.map_or(0, |(memory, file)| code.changed(&looked_at, memory, file));
            if changed > 0 && self.code_checks.is_new(pid, identity, Finding::Changed) {
                log::error!(
                    "Target {}: process {pid} has changed its code behind the breakpoints at {changed} of {} traced sites of {}: it executes wrong instructions there; restart it",
                    planned.name,
                    looked_at.len(),
                    file.display
                );
            }
            let gone = memory.as_ref().map_or_else(Vec::new, |memory| code.unarmed(&looked_at, memory));
            if gone.is_empty() {
                continue;
            }
            let (of_file, written) = by_content(thread, &gone);
            if !of_file.is_empty() {
                thrown_away.push(target);
            }
            if written > 0 && self.code_checks.is_new(pid, identity, Finding::Written) {
                log::warn!(
                    "Target {}: process {pid} has no breakpoint at {written} of {} traced sites of {}: it has written over its \
                     code, as live patches and XRay do, or made it writable; no hits come from there",
                    planned.name,
                    looked_at.len(),
                    file.display
                );
            }
        }
        for target in thrown_away {
            self.rearm(target, pid, identity, &code);
        }
    }

    /// Sets breakpoints again that a process discarded with pages of its code: the kernel still considers them set.
    fn rearm(&mut self, target: usize, pid: u32, identity: Identity, code: &Code) {
        let thread = living_thread(pid);
        let state = &self.targets[target];
        let Some(file) = state.current.iter().find(|of| of.identity == identity) else { return };
        let Ok(memory) = File::open(format!("/proc/{thread}/mem")) else { return };
        let places = file.places();
        let all: Vec<u64> = places.iter().map(|place| place.offset).collect();
        let (lost, _) = by_content(thread, &code.unarmed(&all, &memory));
        let places: Vec<Rearmed> = places.into_iter().filter(|place| lost.contains(&place.offset)).collect();
        let name = &self.plan.targets[target].name;
        if places.is_empty() || !self.code_checks.may_rearm(pid, identity) {
            return;
        }
        // The file that the process maps, whatever its path leads to.
        let at = code.addresses(places[0].offset).next().unwrap_or_default();
        let maps = text(format!("/proc/{thread}/maps")).unwrap_or_default();
        let map = maps.lines().filter_map(Mapping::parse).find(|map| map.contains(at));
        let opened = map.map(|map| File::open(format!("/proc/{thread}/map_files/{}", map.entry())));
        let Some(opened) = opened else { return };
        let rearmed = opened.map_err(|err| Refusal::of_file(&err));
        let rearmed = rearmed.and_then(|opened| self.attacher.kernel.rearm(pid, &opened, &places));
        let left = by_content(thread, &code.unarmed(&lost, &memory)).0.len();
        let is_new = self.code_checks.is_new(pid, identity, Finding::ThrownAway);
        let what = format!(
            "Target {name}: process {pid} has discarded the breakpoints at {} of {} traced sites of {} with pages of its code, as by \
             madvise(2) with MADV_DONTNEED: what it called there since was not counted",
            lost.len(),
            all.len(),
            file.display
        );
        match (&rearmed, left) {
            (Ok(_), 0) if !is_new => log::debug!("{what}; they are set again"),
            (Ok(_), 0) => log::warn!("{what}; they are set again"),
            (Ok(_), _) if is_new => log::warn!("{what}, nor will it be"),
            (Err(err), _) if is_new => log::warn!("{what}, nor will it be ({err})"),
            _ => {}
        }
        self.attacher.status.add_thrown_away(target, lost.len() as u64);
        if let Ok(links) = rearmed {
            self.attacher.detacher.detach(vec![Leaving {
                identity: Some(identity),
                links,
                ..Leaving::default()
            }]);
        }
    }
}

/// Of the sites without a breakpoint, those whose pages are unmodified, and the number of the others.
fn by_content(thread: u32, sites: &[(u64, u64)]) -> (Vec<u64>, usize) {
    let Ok(pages) = File::open(format!("/proc/{thread}/pagemap")) else { return (Vec::new(), sites.len()) };
    let of_file: Vec<u64> =
        sites.iter().filter(|(_, at)| is_of_file(&pages, *at)).map(|(site, _)| *site).collect();
    let others = sites.len() - of_file.len();
    (of_file, others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_code_mapped_from_the_file() {
        let maps = "1000-3000 r-xp 00001000 fe:10 7 /bin/app\n3000-5000 r-xp 00000000 00:00 0 \n5000-6000 r-xp \
                    00005000 fe:10 7 /bin/app\n6000-7000 r--p 00006000 fe:10 7 /bin/app\n8000-9000 r-xp 00000000 fe:10 8 \
                    /lib/other\n";
        let code = Code::of(maps, &HashSet::from([0x1000, 0x5000, 0x6000]));
        assert_eq!(code.mapped, [0x1000..0x3000, 0x5000..0x6000]);
        assert_eq!(code.starts, [0x1000, 0x5000]);
        assert_eq!(code.lacks(&[0x1000, 0x2fff, 0x5010]), 0);
        assert_eq!(code.lacks(&[0x2fff, 0x3000, 0x4fff, 0x6000, 0x10]), 4);
        assert_eq!(Code::of("", &HashSet::new()), Code::default());
    }
}
