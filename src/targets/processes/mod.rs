//! One table of processes for all targets. Process events keep it current; without events, /proc is scanned again.

mod gaps;
mod inspect;
mod membership;
mod process;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

pub use self::gaps::SearchGaps;
use self::inspect::command_line_of;
use self::membership::Membership;
pub use self::process::Process;
use super::file::Identity;
use crate::containers::Containers;
use crate::kernel::{ProcessChange, ProcessEvent};
use crate::procfs::{Stat, processes};
use crate::selectors::{Pattern, ProcessFacts, ProcessSelector};

/// How a target selects processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessFilter {
    /// Processes that run a file with one of these names; the selector says which of them count.
    Runs(Vec<String>, ProcessSelector),
    Matching(ProcessSelector),
}

/// What is known of a process that has ended.
#[derive(Debug)]
pub struct EndedProcess {
    pub pid: u32,
    pub parent: u32,
    /// Of its leader, and of its file.
    pub names: [String; 2],
    pub cgroup: u64,
    /// Whether its command line matched one of the targets'.
    pub fits_line: bool,
}

/// The table.
#[derive(Debug, Default)]
pub struct Processes {
    /// By target; a target that selects no processes has none. Without any, all processes are relevant.
    filters: Vec<Option<ProcessFilter>>,
    all: BTreeMap<u32, Process>,
    is_walked: bool,
    /// The number of processes that could not be inspected in the latest scan.
    hidden: usize,
    /// Targets whose processes changed, or execute another file.
    changed: BTreeSet<usize>,
    /// By cgroup id.
    memberships: HashMap<u64, Arc<Membership>>,
    containers: Containers,
    /// Whether series have cgroup names as labels.
    pub are_cgroups_shown: bool,
    /// Containers and pods that the predicates of each target match.
    members: Vec<Vec<BTreeSet<String>>>,
    next: usize,
}

/// Names of the files that one path leads to.
const MAX_NAMES: usize = 8;

/// Processes whose mappings are read again at a time, where the kernel does not tell of new ones; and where it does: of what is mapped
/// at a place that the program has chosen it does not.
const REREADS: usize = 64;
const REREADS_WITH_EVENTS: usize = 4;

impl ProcessFilter {
    fn selector(&self) -> &ProcessSelector {
        match self {
            ProcessFilter::Matching(selector) | ProcessFilter::Runs(_, selector) => selector,
        }
    }
}

impl Processes {
    /// For targets that select by these filters.
    pub fn of(filters: Vec<Option<ProcessFilter>>) -> Self {
        let members = filters.iter().map(|filters| match filters {
            Some(filters) => vec![BTreeSet::new(); filters.selector().predicates.len()],
            None => Vec::new(),
        });
        Self { members: members.collect(), filters, ..Self::default() }
    }

    fn selector(&self, target: usize) -> Option<&ProcessSelector> {
        self.filters.get(target)?.as_ref().map(ProcessFilter::selector)
    }

    /// The containers and pods that each of the target's predicates matches, as far as they are known.
    pub fn members(&self, target: usize) -> &[BTreeSet<String>] {
        self.members.get(target).map_or(&[], Vec::as_slice)
    }

    /// Processes that may be the target's, by name.
    pub fn of_target(&self, target: usize) -> Vec<u32> {
        self.all.values().filter(|process| self.matches(target, process)).map(|process| process.pid).collect()
    }

    /// Descendants of processes that the target selects.
    pub fn family(&self, target: usize) -> impl Iterator<Item = u32> {
        self.all.values().filter(move |process| process.families.contains(&target)).map(|process| process.pid)
    }

    /// The next search scans again.
    pub fn forget(&mut self) {
        self.is_walked = false;
    }

    /// Processes that were found by a scan, if this call had to make one.
    pub fn walk_if_needed(&mut self) -> Option<Vec<u32>> {
        if self.is_walked {
            return None;
        }
        self.is_walked = true;
        let mut before = std::mem::take(&mut self.all);
        self.hidden = 0;
        let mut found: BTreeMap<u32, Process> =
            processes().filter_map(|pid| Some((pid, self.look_at(pid, None)?))).collect();
        for process in found.values_mut() {
            // The same program with the same number has most likely loaded the same libraries.
            let known = before.remove(&process.pid);
            let is_same = |old: &Process| (&old.comm, &old.exe) == (&process.comm, &process.exe);
            let Some(known) = known.filter(is_same) else { continue };
            (process.libraries, process.families) = (known.libraries, known.families);
        }
        self.find_families(&mut found);
        self.hidden = found.values().filter(|process| process.is_hidden).count();
        self.all = found.into_iter().filter(|(_, process)| self.is_of_interest(process)).collect();
        self.changed.extend((0..self.filters.len()).filter(|target| self.filters[*target].is_some()));
        Some(self.all.keys().copied().collect())
    }

    /// Finds processes that have overwritten their command lines since they started, which no event reports, so that a target
    /// selects them now. Only where nothing else selects them: otherwise they are known already.
    pub fn reread_command_lines(&mut self) -> Vec<u32> {
        let selectors = self.filters.iter().flatten().map(ProcessFilter::selector);
        let lines: Vec<Pattern> =
            selectors.filter(|of| of.is_by_line()).filter_map(ProcessSelector::line_glob).cloned().collect();
        if lines.is_empty() {
            return Vec::new();
        }
        let is_new = |pid: &u32| !self.all.contains_key(pid);
        let is_selected = |pid: &u32| {
            let line = command_line_of(*pid);
            lines.iter().any(|pattern| pattern.matches(&line))
        };
        let found: Vec<u32> = processes().filter(is_new).filter(is_selected).collect();
        for pid in &found {
            let process = self.look_at(*pid, None);
            self.replace(*pid, process);
        }
        found
    }

    /// Targets with changes since the previous call.
    pub fn take_changed(&mut self) -> BTreeSet<usize> {
        std::mem::take(&mut self.changed)
    }

    pub fn get(&self, pid: u32) -> Option<&Process> {
        self.all.get(&pid)
    }

    pub fn get_mut(&mut self, pid: u32) -> Option<&mut Process> {
        self.all.get_mut(&pid)
    }

    /// The selected processes: those that match entirely, and for a target also their descendants.
    pub fn fitting(&mut self, selector: &ProcessSelector, target: Option<usize>) -> (Vec<u32>, SearchGaps) {
        self.walk_if_needed();
        let is_family = |process: &Process| target.is_some_and(|target| process.families.contains(&target));
        let (mut found, mut version_1) = (Vec::new(), false);
        for process in self.all.values() {
            if selector.may_fit(&process.facts()) || is_family(process) {
                found.push(process.pid);
            } else {
                version_1 |= matches_by_v1(selector, process);
            }
        }
        let hidden = if selector.is_by_cgroup() { 0 } else { self.hidden };
        (found, SearchGaps { hidden, version_1 })
    }

    /// Finds descendants of selected processes for targets with `children`.
    fn find_families(&self, all: &mut BTreeMap<u32, Process>) {
        for target in 0..self.filters.len() {
            let Some(selector) = self.selector(target).filter(|selector| selector.children) else { continue };
            let parents: Vec<(u32, u32)> =
                all.keys().filter_map(|pid| Some((*pid, Stat::of(*pid).ok()?.parent))).collect();
            loop {
                let is_meant = |pid: &u32| {
                    all.get(pid).is_some_and(|of| of.families.contains(&target) || selector.fits(&of.facts()))
                };
                let is_new = |pid: &u32| all.get(pid).is_some_and(|of| !of.families.contains(&target));
                let of_family = parents.iter().filter(|(pid, parent)| is_new(pid) && is_meant(parent));
                let found: Vec<u32> = of_family.map(|(pid, _)| *pid).collect();
                if found.is_empty() {
                    break;
                }
                for pid in found {
                    if let Some(process) = all.get_mut(&pid) {
                        process.families.insert(target);
                    }
                }
            }
        }
    }

    /// Applies a process event; returns whether the process is relevant.
    pub fn apply(&mut self, event: &ProcessEvent) -> bool {
        let pid = event.pid;
        match &event.change {
            ProcessChange::Executed { cgroup, .. } | ProcessChange::Moved { cgroup } => {
                let families = self.all.get(&pid).map(|old| old.families.clone()).unwrap_or_default();
                let found = self.look_at(pid, Some(*cgroup)).map(|found| Process { families, ..found });
                self.replace(pid, found);
                if self.all.contains_key(&pid) {
                    self.name_cgroup(pid, *cgroup);
                }
            }
            ProcessChange::Renamed { comm } => {
                let renamed = self.all.get(&pid).map(|old| Process { comm: comm.clone(), ..old.clone() });
                let renamed = renamed.or_else(|| self.look_at(pid, None));
                self.replace(pid, renamed);
            }
            ProcessChange::Forked { parent } => {
                let child = self.all.get(parent).map(|parent| self.forked(parent, pid));
                let is_named = self.filters.iter().flatten().any(|filters| match filters {
                    ProcessFilter::Matching(selector) => selector.pid() == Some(pid),
                    ProcessFilter::Runs(..) => false,
                });
                let child = if is_named { child.or_else(|| self.look_at(pid, None)) } else { child };
                self.replace(pid, child);
            }
            ProcessChange::Ended { .. } => self.replace(pid, None),
            ProcessChange::Mapped { .. } => self.forget_libraries(pid),
            ProcessChange::Loaded { .. } | ProcessChange::Trapped { .. } => {}
        }
        self.all.contains_key(&pid)
    }

    fn replace(&mut self, pid: u32, process: Option<Process>) {
        let old = match process.filter(|process| self.is_of_interest(process)) {
            Some(process) => {
                self.index_file(&process);
                self.all.insert(pid, process)
            }
            None => self.all.remove(&pid),
        };
        if let Some(old) = old {
            self.index_file(&old);
        }
    }

    fn index_file(&mut self, process: &Process) {
        self.changed.extend(self.meaning(process));
    }

    /// The targets that select the process.
    fn meaning(&self, process: &Process) -> Vec<usize> {
        (0..self.filters.len()).filter(|target| self.matches(*target, process)).collect()
    }

    /// The targets that select a process.
    pub fn targets_of(&self, pid: u32) -> Vec<usize> {
        self.all.get(&pid).map_or_else(Vec::new, |process| self.meaning(process))
    }

    /// Likewise for one that has ended, whose command line is not known, only whether it matches any target's.
    pub fn targets_of_ended(&mut self, ended: EndedProcess) -> Vec<usize> {
        let EndedProcess { pid, parent, names, cgroup, fits_line } = ended;
        let families = self.all.get(&parent).map(|parent| self.forked(parent, pid).families);
        let [comm, exe] = names;
        let process = Process {
            pid,
            comm,
            exe: Some(exe),
            cmdline: String::new(),
            families: families.unwrap_or_default(),
            is_hidden: false,
            membership: self.membership_of_cgroup(cgroup),
            file: None,
            copied_up: None,
            libraries: None,
        };
        let is_by_line =
            |target: &usize| fits_line && self.selector(*target).is_some_and(ProcessSelector::is_by_line);
        (0..self.filters.len()).filter(|of| self.matches(*of, &process) || is_by_line(of)).collect()
    }

    fn matches(&self, target: usize, process: &Process) -> bool {
        match self.filters.get(target) {
            Some(Some(ProcessFilter::Runs(names, selector))) => {
                let is_called = names.iter().any(|name| process.is_called(name));
                is_called || (!selector.predicates.is_empty() && self.is_meant(target, selector, process))
            }
            Some(Some(ProcessFilter::Matching(selector))) => self.is_meant(target, selector, process),
            _ => false,
        }
    }

    fn is_meant(&self, target: usize, selector: &ProcessSelector, process: &Process) -> bool {
        process.families.contains(&target) || selector.may_fit(&process.facts())
    }

    /// Adds a name of the file at the target's path; returns whether it is new.
    pub fn call(&mut self, target: usize, name: &str) -> bool {
        let Some(Some(ProcessFilter::Runs(names, _))) = self.filters.get_mut(target) else { return false };
        let is_new = !names.iter().any(|known| known == name);
        if is_new {
            // The first one is the path's own.
            if names.len() >= MAX_NAMES {
                names.remove(1);
            }
            names.push(name.to_string());
        }
        is_new
    }

    fn forked(&self, parent: &Process, pid: u32) -> Process {
        let mut child = Process { pid, ..parent.clone() };
        if let Some(file) = &mut child.file {
            file.path = format!("/proc/{pid}/exe").into();
        }
        let is_family = |target: &usize| {
            self.selector(*target).is_some_and(|selector| selector.children && selector.fits(&parent.facts()))
        };
        let families = (0..self.filters.len()).filter(is_family);
        child.families.extend(families);
        child
    }

    /// The process's mappings are read again at the next use.
    pub fn forget_libraries(&mut self, pid: u32) {
        if let Some(process) = self.all.get_mut(&pid) {
            process.libraries = None;
        }
        self.touch(pid);
    }

    /// All targets that select the process must be handled.
    fn touch(&mut self, pid: u32) {
        if let Some(process) = self.all.get(&pid) {
            self.changed.extend(self.meaning(process));
        }
    }

    fn is_of_interest(&self, process: &Process) -> bool {
        let by_version_1 = |filters: &ProcessFilter| matches_by_v1(filters.selector(), process);
        self.filters.is_empty()
            || (0..self.filters.len()).any(|target| self.matches(target, process))
            || self.filters.iter().flatten().any(by_version_1)
    }

    /// Whether a target selects processes of the cgroup; None if the cgroup is unknown.
    pub fn matches_cgroup(&self, cgroup: u64) -> Option<bool> {
        let membership = self.memberships.get(&cgroup)?;
        let is_in = |filters: &ProcessFilter| filters.selector().matches_cgroup(&membership.new);
        // It may get a name soon.
        (!membership.new.is_unnamed() || self.filters.iter().flatten().any(is_in))
            .then(|| self.filters.iter().flatten().any(is_in))
    }

    /// Marks the mappings of some processes to be read again at the next use.
    pub fn forget_some_libraries(&mut self, are_told: bool) {
        let most = if are_told { REREADS_WITH_EVENTS } else { REREADS };
        let asked: Vec<u32> = self
            .all
            .values()
            .filter(|process| process.libraries.is_some())
            .map(|process| process.pid)
            .collect();
        let first = self.next % asked.len().max(1);
        asked.iter().skip(first).take(most).for_each(|pid| self.forget_libraries(*pid));
        self.next = if first + most < asked.len() { first + most } else { 0 };
    }

    /// Reads each of the files again through one process that runs it.
    pub fn forget_files(&mut self, files: &[Identity]) {
        if files.is_empty() {
            return;
        }
        let mut left = files.to_vec();
        let mut touched = Vec::new();
        for process in self.all.values_mut() {
            let identity = process.file.as_ref().map(|file| file.identity);
            if let Some(at) = left.iter().position(|of| Some(*of) == identity) {
                left.swap_remove(at);
                process.file = None;
                touched.push(process.pid);
            }
        }
        touched.into_iter().for_each(|pid| self.touch(pid));
    }
}

/// Whether it would match if filters used cgroups v1: such processes are reported as not traced.
fn matches_by_v1(selector: &ProcessSelector, process: &Process) -> bool {
    selector.is_by_cgroup()
        && selector.may_fit(&ProcessFacts { belongs: &process.membership.old, ..process.facts() })
}

#[cfg(test)]
mod tests;
