//! Follows the kernel's process events, and determines which targets they concern.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::file::Identity;
use super::find::{CACHE_SIZE, Finder};
use super::processes::EndedProcess;
use super::runs::{Program, Run};
use crate::clock::monotonic_now;
use crate::kernel::{
    FileUse, KnownUnless, NamedFile, ProcessChange, ProcessEvent, ProcessEvents, TrappedCode,
};

/// Changes of processes.
#[derive(Debug, Default)]
pub struct ProcessChanges {
    /// Targets that may match other files now.
    pub targets: BTreeSet<usize>,
    /// Programs that have ended already: their names, and paths.
    pub ended: Vec<(String, PathBuf)>,
    /// Processes that have executed a program.
    pub executed: Vec<Executed>,
    /// Processes that were killed by a breakpoint unknown to the kernel, and the files they ran.
    pub trapped: Vec<(u32, Identity)>,
    /// Processes that have reached such a breakpoint, the inode's address of each file that they map, and the code there.
    pub copied: Vec<(u32, u64, TrappedCode)>,
    pub mapped: Vec<MappedFile>,
    /// Processes that have loaded a file whose semaphores must be raised, and the address of its inode.
    pub loaded: Vec<(u32, u64)>,
    /// Events were lost: all processes must be scanned.
    pub has_lost: bool,
}

/// A process has mapped code of a file that has not been handled yet.
#[derive(Debug)]
pub struct MappedFile {
    pub pid: u32,
    pub file: NamedFile,
    pub address: u64,
}

/// A process that has executed a program.
#[derive(Debug)]
pub struct Executed {
    pub pid: u32,
    key: FileUse,
    /// It has ended and cannot be examined any more.
    pub has_ended: bool,
}

/// When the mappings of a new program are first read; each further interval is four times as long.
const FIRST_READ: Duration = Duration::from_millis(1);
const LAST_READ: Duration = Duration::from_secs(3);

/// Processes whose mappings are read at these intervals; further ones take their turn with all others.
const MAX_YOUNG: usize = 256;

/// Where more and more events are lost, all processes are scanned at most this often.
const SCAN_INTERVAL: Duration = Duration::from_secs(1);

impl Finder {
    /// Whether the kernel reports process events.
    pub fn has_events(&self) -> bool {
        self.events.is_some()
    }

    /// Becomes readable when there are events.
    pub fn events_fd(&self) -> Option<BorrowedFd<'_>> {
        self.events.as_ref().map(AsFd::as_fd)
    }

    /// Handles the kernel's events. If some were lost, all processes are scanned.
    pub fn follow(&mut self) -> ProcessChanges {
        let mut changes = ProcessChanges::default();
        self.directories.clear();
        self.loading.clear();
        let Some(events) = &mut self.events else { return changes };
        let now = monotonic_now();
        let received = events.take();
        let lost = events.take_lost();
        let taken = std::mem::replace(&mut self.taken, now);
        if lost > 0 {
            self.lost_events += lost;
            self.lost_since.get_or_insert(taken);
            self.running.clear();
            if self.scanned.is_none_or(|scanned| scanned.elapsed() >= SCAN_INTERVAL) {
                self.scanned = Some(Instant::now());
                self.processes.forget();
            } else {
                changes.has_lost = true;
            }
        }
        // Nothing can be looked up of a process that has ended.
        let ends = |event: &&ProcessEvent| matches!(event.change, ProcessChange::Ended { .. });
        let ended: HashSet<u32> = received.iter().filter(ends).map(|event| event.pid).collect();
        for event in &received {
            self.follow_one(event, ended.contains(&event.pid), &mut changes);
        }
        self.read_recent();
        self.walk();
        changes.targets = self.processes.take_changed();
        changes
    }

    /// Lets programs run that wait because of a reported file: the files have been examined.
    pub fn release_waiting(&mut self) {
        self.events.iter_mut().for_each(ProcessEvents::answer);
    }

    /// When [`follow`](Self::follow) has something to do, even without events.
    pub fn due_in(&self) -> Option<Duration> {
        let due = self.young.iter().flatten().map(|(due, ..)| *due).min();
        due.map(|due| due.saturating_duration_since(Instant::now()))
    }

    /// Schedules reading the process's mappings, soon and then at growing intervals.
    pub(super) fn read_soon(&mut self, pid: u32) {
        if let Some(young) = self.young.as_mut().filter(|young| young.len() < MAX_YOUNG) {
            young.retain(|(_, _, of)| *of != pid);
            young.push((Instant::now() + FIRST_READ, 4 * FIRST_READ, pid));
        }
    }

    /// Whether the kernel reports when processes load libraries.
    pub(super) fn reports_mappings(&self) -> bool {
        self.events.as_ref().is_some_and(ProcessEvents::reports_mappings)
    }

    /// Whether the kernel reports everything that processes do and that concerns targets.
    pub(super) fn sees_all_changes(&self) -> bool {
        self.has_events() && (self.young.is_none() || self.reports_mappings())
    }

    fn read_recent(&mut self) {
        let now = Instant::now();
        for (due, pause, pid) in self.young.iter_mut().flatten() {
            if *due <= now {
                self.processes.forget_libraries(*pid);
                (*due, *pause) = (now + *pause, *pause * 4);
            }
        }
        if let Some(young) = &mut self.young {
            young.retain(|(_, pause, pid)| *pause <= LAST_READ * 4 && self.processes.get(*pid).is_some());
        }
    }

    fn follow_one(&mut self, event: &ProcessEvent, has_ended: bool, changes: &mut ProcessChanges) {
        let pid = event.pid;
        match event.change {
            ProcessChange::Loaded { inode, .. } => return changes.loaded.push((pid, inode)),
            ProcessChange::Trapped { inode, code } => return changes.copied.push((pid, inode, code)),
            _ => {}
        }
        let is_end = matches!(event.change, ProcessChange::Ended { .. });
        self.track_run(event, changes);
        let is_of_interest = (is_end || !has_ended) && self.processes.apply(event);
        let Some(events) = &self.events else { return };
        if let ProcessChange::Executed { cgroup, .. } | ProcessChange::Moved { cgroup } = event.change
            && let Some(is_meant) = self.processes.matches_cgroup(cgroup)
        {
            events.set_cgroup(cgroup, is_meant);
        }
        if let ProcessChange::Executed { cgroup, .. } = event.change
            && has_ended
        {
            self.processes.name_cgroup(pid, cgroup);
        }
        let is_pinned = self.pinned.contains(&pid);
        // The kernel has removed its own state of an ended process; another one may have the number by now.
        if !is_of_interest && !is_end && !has_ended && !is_pinned {
            events.forget(pid);
        }
        if let ProcessChange::Mapped { file, address, .. } = event.change
            && is_of_interest
        {
            self.loading.entry(pid).or_default().push(address);
            changes.mapped.push(MappedFile { pid, file, address });
        }
        let ProcessChange::Executed { path, parent, file, .. } = &event.change else { return };
        let is_seen = self.executed.contains_key(file) || (is_of_interest && self.is_there(pid));
        if !is_seen {
            // It ended before it could be examined, even if its name could still be read; the file should be attached
            // for the next one.
            let path = absolute(path, *parent);
            self.note_unexamined(event, path.as_deref());
            if let Some(path) =
                path.filter(|path| fs::metadata(path).is_ok_and(|meta| meta.ino() == file.file.number))
            {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                changes.ended.push((name, path));
            }
        } else {
            let executed = Executed { pid, key: *file, has_ended };
            self.note_examined(event, &executed);
            changes.executed.push(executed);
            if !self.reports_mappings() {
                self.read_soon(pid);
            }
        }
    }

    /// Tracks what processes run, because it cannot be determined after they have ended.
    fn track_run(&mut self, event: &ProcessEvent, changes: &mut ProcessChanges) {
        if let ProcessChange::Executed { time, .. } | ProcessChange::Ended { time, .. } = event.change {
            self.runs.end(event.pid, time);
        }
        match event.change {
            ProcessChange::Executed { file, .. } => drop(self.running.insert(event.pid, file)),
            ProcessChange::Forked { parent } => {
                let of_parent = self.running.get(&parent).copied();
                self.running.extend(of_parent.map(|file| (event.pid, file)));
            }
            ProcessChange::Ended { signal, .. } => {
                let ran = self.running.remove(&event.pid);
                if i32::try_from(signal) == Ok(libc::SIGTRAP) {
                    let known = ran.and_then(|file| self.executed.get(&file).map(|(identity, _)| *identity));
                    let process = self.processes.get(event.pid).and_then(|process| process.file.as_ref());
                    let looked_up = known.or(process.map(|file| file.identity));
                    let identity = looked_up.or(ran.map(|ran| ran.file.unstacked()));
                    changes.trapped.extend(identity.map(|identity| (event.pid, identity)));
                }
            }
            _ => {}
        }
    }

    /// Notes the run of a process whose file is known.
    fn note_examined(&mut self, event: &ProcessEvent, executed: &Executed) {
        let ProcessChange::Executed { time, ticket, .. } = event.change else { return };
        let pid = event.pid;
        let known = self.executed.get(&executed.key).map(|(identity, _)| (*identity, Program::Known));
        let examined = |finder: &mut Self| {
            let file = finder.of_process(pid).ok()?;
            Some((file.identity, Program::Examined(file.display.into())))
        };
        let Some((identity, program)) = known.or_else(|| examined(self)) else { return };
        let targets = if executed.has_ended {
            self.targets_of_ended(event, "")
        } else {
            self.processes.targets_of(pid)
        };
        let (from, until, is_held) = (time, None, ticket > 0);
        self.runs.begin(Run { pid, identity, program, targets, from, until, is_held });
    }

    /// Notes the run of a process that cannot be examined any more. `path` leads to its file, unless that is gone, too.
    fn note_unexamined(&mut self, event: &ProcessEvent, path: Option<&Path>) {
        let ProcessChange::Executed { file, path: executed, time, .. } = &event.change else { return };
        let here = path.and_then(|path| self.look_at(path, String::new()).ok());
        let here = here.filter(|here| here.key.1 == file.file.number);
        let real = path.filter(|_| here.is_some()).and_then(|path| path.canonicalize().ok());
        let identity = here.map_or_else(|| file.file.unstacked(), |here| here.identity);
        let name = real.as_deref().unwrap_or(executed).file_name().unwrap_or_default();
        let targets = self.targets_of_ended(event, &name.to_string_lossy());
        let (pid, from, until, is_held) = (event.pid, *time, None, false);
        let program = Program::Unexamined(path.map(Path::to_path_buf));
        self.runs.begin(Run { pid, identity, program, targets, from, until, is_held });
    }

    /// The targets that may select a process which has ended. `name` is that of its file.
    fn targets_of_ended(&mut self, event: &ProcessEvent, name: &str) -> Vec<usize> {
        let ProcessChange::Executed { file, parent, cgroup, fits_line, .. } = event.change else {
            return Vec::new();
        };
        let comm = file.comm.split(|byte| *byte == 0).next().unwrap_or_default();
        let names = [String::from_utf8_lossy(comm).into_owned(), name.to_owned()];
        self.processes.targets_of_ended(EndedProcess { pid: event.pid, parent, names, cgroup, fits_line })
    }

    /// Forgets processes that are no longer reported, not even their end.
    pub(super) fn forget_runs(&mut self) {
        let Self { running, processes, pinned, .. } = self;
        running.retain(|pid, _| processes.get(*pid).is_some() || pinned.contains(pid));
    }

    /// Scans /proc, if necessary, and requests events for the processes that were found.
    pub(super) fn walk(&mut self) {
        let Some(found) = self.processes.walk_if_needed() else { return };
        self.walks += 1;
        self.report_from_now_on(&found);
        if let Some(lost) = self.lost_since.take() {
            self.begin_runs_since(lost, &found);
        }
    }

    /// Finds processes that a target selects since they have overwritten their command lines.
    pub fn reread_command_lines(&mut self) {
        let since = std::mem::replace(&mut self.lines_read, monotonic_now());
        let found = self.processes.reread_command_lines();
        self.report_from_now_on(&found);
        self.begin_runs_since(since, &found);
    }

    fn report_from_now_on(&mut self, found: &[u32]) {
        for &pid in found {
            let Some(events) = &self.events else { return };
            if !self.pinned.contains(&pid) {
                events.track(pid);
            }
            // It may have ended before.
            if !Path::new("/proc").join(pid.to_string()).exists() {
                let change = ProcessChange::Ended { signal: 0, time: 0 };
                self.processes.apply(&ProcessEvent { pid, change });
                if !self.pinned.contains(&pid) {
                    events.forget(pid);
                }
            }
        }
    }

    /// Called after all targets that select these processes were updated: further processes that run the same files
    /// need no immediate action. Where semaphores have to be raised, all such processes are still reported, and
    /// otherwise those that may be selected by another target that does not have the file yet. All processes of a file
    /// that is waiting to be attached are reported, too: it may be attachable when the next one starts.
    pub fn update_known_files(
        &mut self,
        changes: &ProcessChanges,
        is_waiting: impl Fn(Identity) -> bool,
        needs_semaphores: impl Fn(Identity) -> bool,
        unless: impl Fn(Identity) -> KnownUnless,
    ) {
        for executed in &changes.executed {
            let Some(identity) = self.file_of(executed).filter(|of| !is_waiting(*of)) else { continue };
            let Some(events) = &self.events else { return };
            if self.executed.len() >= CACHE_SIZE {
                self.executed.drain().for_each(|(key, _)| events.forget_file(key));
            }
            let known = (identity, unless(identity));
            if self.executed.insert(executed.key, known) != Some(known) {
                events.set_known(executed.key, needs_semaphores(identity), known.1);
            }
        }
    }

    /// The file that the process runs.
    pub fn file_of(&mut self, executed: &Executed) -> Option<Identity> {
        let known = self.executed.get(&executed.key).map(|(identity, _)| *identity);
        known.or_else(|| Some(self.of_process(executed.pid).ok()?.identity))
    }

    /// The file is no longer attached: the next process that executes it must be reported.
    pub fn forget_executed(&mut self, identity: Identity) {
        let Some(events) = &self.events else { return };
        self.executed.retain(|key, (of, _)| {
            let is_other = *of != identity;
            if !is_other {
                events.forget_file(*key);
            }
            is_other
        });
        self.mapped.retain(|key, of| {
            let is_other = *of != identity;
            if !is_other {
                events.forget_library(*key);
            }
            is_other
        });
    }
}

/// Resolves a path that an ended process executed: usually relative to its parent's working directory.
fn absolute(path: &Path, parent: u32) -> Option<PathBuf> {
    if path.is_absolute() {
        return Some(path.to_path_buf());
    }
    let from = fs::read_link(format!("/proc/{parent}/cwd")).ok()?;
    Some(from.join(path).components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_untracked_processes_are_forgotten() {
        // Numbers that no process has.
        let [stranger, pinned] = [u32::MAX - 1, u32::MAX];
        let mut finder = Finder { pinned: HashSet::from([pinned]), ..Finder::default() };
        for pid in [stranger, pinned] {
            let (file, path) = (FileUse::default(), PathBuf::new());
            let (parent, cgroup, fits_line, time, ticket) = (0, 0, false, 0, 0);
            let change = ProcessChange::Executed { file, path, parent, cgroup, fits_line, time, ticket };
            finder.follow_one(&ProcessEvent { pid, change }, false, &mut ProcessChanges::default());
        }
        finder.forget_runs();
        assert_eq!(finder.running.into_keys().collect::<Vec<_>>(), [pinned]);
    }
}
