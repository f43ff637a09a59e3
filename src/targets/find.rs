//! Determines the files that a target's selector matches at the moment.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::denied::{why_denied, why_not_shown};
use super::file::{CopiedUp, Identity, Stamp, TargetFile};
use super::libraries::{Libraries, Library};
use super::processes::{ProcessFilter, Processes, SearchGaps};
use super::runs::Runs;
use crate::clock::monotonic_now;
use crate::kernel::{FileUse, Files, KnownUnless, NamedFile, ProcessEvents};
use crate::procfs::{Stat, is_denied};
use crate::selectors::{FileSelector, Pattern, Selector};

/// Finds files, and caches what it learns about them.
#[derive(Debug, Default)]
pub struct Finder {
    pub(super) files: Option<Files>,
    /// Process events from the kernel; without them, /proc is scanned.
    pub(super) events: Option<ProcessEvents>,
    /// By device and inode according to stat(2).
    pub(super) known: HashMap<(u64, u64), (Stamp, Identity)>,
    pub(super) processes: Processes,
    pub(super) libraries: Libraries,
    /// Processes that targets select by number.
    pub(super) pinned: HashSet<u32>,
    /// Their start times.
    pub(super) begun: HashMap<u32, u64>,
    /// Processes that run the file to which their executable's path leads.
    pub(super) checked: HashMap<u32, Identity>,
    /// Whether a file was in use, and when that was determined.
    pub(super) used: Option<(Identity, Instant, bool)>,
    /// Files executed by processes, as identified in the kernel's events.
    pub(super) executed: HashMap<FileUse, (Identity, KnownUnless)>,
    /// The files that processes started since then run.
    pub(super) running: HashMap<u32, FileUse>,
    /// Those of which it is not settled whether they went without probes.
    pub(super) runs: Runs,
    /// When command lines were last read again, by `CLOCK_MONOTONIC`, in nanoseconds.
    pub(super) lines_read: u64,
    /// When events were last taken, by `CLOCK_MONOTONIC`, in nanoseconds.
    pub(super) taken: u64,
    /// The same before the first of those events that were lost since the last scan.
    pub(super) lost_since: Option<u64>,
    /// When the last scan because of lost events began.
    pub(super) scanned: Option<Instant>,
    /// Number of process events that were lost.
    pub lost_events: u64,
    /// Recently started processes that may not have loaded all of their libraries: when to read their mappings again,
    /// and the interval after that. None if no target needs libraries.
    pub(super) young: Option<Vec<(Instant, Duration, u32)>>,
    /// Processes whose mappings were read in this round, and the directories from which they loaded something.
    pub(super) directories: Vec<(u32, BTreeSet<PathBuf>)>,
    /// Addresses where processes have just mapped what may be the first segment of a library, before its code.
    pub(super) loading: HashMap<u32, Vec<u64>>,
    /// Files whose mappings are no longer reported, because they have been handled.
    pub(super) mapped: HashMap<NamedFile, Identity>,
    /// Number of full scans of /proc.
    pub walks: u64,
    /// Remarks for the user about the latest search, which may have succeeded.
    pub remarks: Vec<String>,
    /// Processes of the latest search that run another file than their executable's path leads to: on overlayfs, the
    /// lower file, which was copied up meanwhile.
    pub copied_up: Vec<CopiedUp>,
}

/// Cached files; when full, the cache is cleared.
pub(super) const CACHE_SIZE: usize = 4096;

/// The files that the selector matches now, distinguished by stat(2).
///
/// # Errors
/// Why there are none, as a sentence for the user.
pub fn find(selector: &Selector) -> Result<Vec<TargetFile>, String> {
    let mut finder = Finder::default();
    finder.libraries.select(selector);
    finder.find(selector, None, &[])
}

impl Finder {
    /// Uses the kernel's identities of files, and its events about processes that targets select.
    /// `needs_libraries` if any target has probes that can be in libraries.
    pub fn new(
        files: Files,
        selectors: &[Selector],
        events: Option<ProcessEvents>,
        needs_libraries: bool,
    ) -> Self {
        let young = (needs_libraries && events.is_some()).then(Vec::new);
        let lines_read = monotonic_now();
        let mut finder = Self { files: Some(files), events, young, lines_read, ..Self::default() };
        finder.processes = Processes::of(selectors.iter().map(filters).collect());
        finder.processes.refresh_names();
        selectors.iter().for_each(|selector| finder.libraries.select(selector));
        let by_process = selectors.iter().filter(|selector| selector.is_by_process());
        finder.pinned = by_process.filter_map(|selector| selector.processes.pid()).collect();
        if let Some(events) = &finder.events {
            finder.pinned.iter().for_each(|pid| events.pin(*pid));
        }
        finder
    }

    /// Scans all processes again when a selector next needs them.
    pub fn begin_walk(&mut self) {
        self.processes.forget();
    }

    /// Reads mappings again, because processes may have loaded files without an event: those of processes started a
    /// while ago, and a few of all others in turn.
    pub fn reread_mappings(&mut self) {
        let are_told = self.reports_mappings();
        self.processes.forget_some_libraries(are_told);
    }

    /// Asks container engines again for the names of containers and pods.
    pub fn refresh_container_names(&mut self) {
        if self.processes.refresh_names()
            && let Some(events) = &self.events
        {
            events.forget_cgroups();
        }
    }

    /// Adds the name of the file that the target's path leads to: processes that execute it by that name are reported,
    /// too.
    pub(super) fn add_name(&mut self, target: usize, path: &Path) {
        let Ok(path) = path.canonicalize() else { return };
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return };
        if self.processes.call(target, name)
            && let Some(events) = &self.events
        {
            events.add_name(name);
        }
    }

    /// The containers and pods that each of the target's predicates matches.
    pub fn members(&self, target: usize) -> Vec<BTreeSet<String>> {
        self.processes.members(target).to_vec()
    }

    /// Processes that the target selects.
    pub fn of_target(&mut self, target: usize, selector: &Selector) -> Vec<u32> {
        self.processes.fitting(&selector.processes, Some(target)).0
    }

    /// Descendants of processes that the target selects.
    pub fn family(&mut self, target: usize) -> Vec<u32> {
        self.walk();
        self.processes.family(target).collect()
    }

    /// Checks again whether the contents of these files have changed.
    pub fn recheck(&mut self, files: &[Identity]) {
        self.processes.forget_files(files);
    }

    /// The files that the selector matches now. They include files loaded by its processes if these have one of the
    /// given USDT probes, written `provider:name`.
    ///
    /// # Errors
    /// Why there are none, as a sentence for the user.
    pub fn find(
        &mut self,
        selector: &Selector,
        target: Option<usize>,
        usdt: &[String],
    ) -> Result<Vec<TargetFile>, String> {
        self.remarks.clear();
        self.copied_up.clear();
        let processes = &selector.processes;
        if let FileSelector::Path(path) = &selector.file {
            let found = self.look_at(path, path.display().to_string());
            return found.map(|found| vec![found]).map_err(|err| format!("{}: {err}", path.display()));
        }
        if let Some(pid) = processes.pid() {
            self.check_number(pid)?;
        }
        self.walk();
        let (wanted, uncovered) = self.processes.fitting(processes, target);
        if let FileSelector::Library(name) = &selector.file {
            return self.of_library(&wanted, &uncovered, name);
        }
        match (processes.pid(), wanted.as_slice()) {
            // For a single process, the reason is more specific.
            (Some(pid), [] | [_]) if processes.predicates.len() == 1 => self.of_one(pid, usdt),
            _ => self.of_all(&wanted, &uncovered, format!("no process is {processes}"), usdt),
        }
    }

    /// The files with this name or soname that the processes have loaded.
    fn of_library(
        &mut self,
        processes: &[u32],
        uncovered: &SearchGaps,
        name: &Pattern,
    ) -> Result<Vec<TargetFile>, String> {
        let all = self.libraries_that(processes, |library| library.is_called(name));
        if !all.is_empty() {
            return Ok(all);
        }
        // Without their number: a reason that changes is logged again.
        let none = match processes {
            [] => format!("no selected process is running, so none has loaded {name}"),
            _ => format!("none of the selected processes has loaded {name}"),
        };
        Err(with_gaps(none, uncovered.sentence(&[])))
    }

    /// The library files that the processes have loaded, each once.
    fn libraries_that(&mut self, processes: &[u32], are_meant: impl Fn(&Library) -> bool) -> Vec<TargetFile> {
        let mut all: Vec<TargetFile> = Vec::new();
        let mut seen = HashSet::new();
        for library in self.loaded_by(processes) {
            if !are_meant(&library) || !seen.insert(library.file) {
                continue;
            }
            let Ok(found) = self.look_at(&library.path, library.display) else {
                // Another process that has loaded it may still exist.
                seen.remove(&library.file);
                continue;
            };
            if all.iter().all(|known| known.identity != found.identity) {
                all.push(found);
            }
        }
        all
    }

    fn loaded_by(&mut self, processes: &[u32]) -> Vec<Library> {
        let mut all = Vec::new();
        for pid in processes {
            let known = self.processes.get(*pid).and_then(|process| process.libraries.clone());
            all.extend(known.unwrap_or_else(|| {
                let loading = self.loading.get(pid).map_or(&[][..], Vec::as_slice);
                let (found, directories) = self.libraries.of(*pid, loading);
                self.directories.push((*pid, directories));
                if let Some(process) = self.processes.get_mut(*pid) {
                    process.libraries = Some(found.clone());
                }
                found
            }));
        }
        all
    }

    /// Whether the number still belongs to the same process.
    fn check_number(&mut self, pid: u32) -> Result<(), String> {
        let failed = |err: &io::Error| format!("process {pid}: {}", process_error(err));
        let began = Stat::of(pid).map_err(|err| failed(&err))?.start_ticks;
        if *self.begun.entry(pid).or_insert(began) == began {
            return Ok(());
        }
        Err(format!(
            "process {pid} has exited and its id was reused: use the id of the new process, or `process:`"
        ))
    }

    fn of_one(&mut self, pid: u32, usdt: &[String]) -> Result<Vec<TargetFile>, String> {
        let found = self.of_process(pid).map_err(|err| format!("process {pid}: {}", process_error(&err)))?;
        let mut all = vec![found];
        self.add_libraries(&[pid], usdt, &mut all);
        Ok(all)
    }

    fn of_all(
        &mut self,
        wanted: &[u32],
        uncovered: &SearchGaps,
        none: String,
        usdt: &[String],
    ) -> Result<Vec<TargetFile>, String> {
        let mut all: Vec<TargetFile> = Vec::new();
        let mut seen = HashSet::new();
        let mut refused = Vec::new();
        for pid in wanted {
            match self.of_process(*pid) {
                Ok(found) => {
                    if seen.insert(found.identity) {
                        all.push(found);
                    }
                }
                Err(err) if is_denied(*pid, &err) => refused.push(*pid),
                Err(_) => {}
            }
        }
        let unseen = uncovered.sentence(&refused);
        if all.is_empty() {
            return Err(with_gaps(none, unseen));
        }
        if !refused.is_empty() {
            self.remarks.extend(unseen);
        }
        self.add_libraries(wanted, usdt, &mut all);
        Ok(all)
    }

    fn add_libraries(&mut self, processes: &[u32], wanted: &[String], all: &mut Vec<TargetFile>) {
        if wanted.is_empty() {
            return;
        }
        for found in self.libraries_that(processes, |library| library.has_any(wanted)) {
            if all.iter().all(|known| known.identity != found.identity) {
                all.push(TargetFile { is_library: true, ..found });
            }
        }
    }
}

/// Decides whether a process is relevant to a target.
fn filters(selector: &Selector) -> Option<ProcessFilter> {
    match selector.path() {
        // The file's name, so that the kernel reports processes that execute it.
        Some(path) => {
            let name = path.file_name().and_then(|name| name.to_str());
            name.map(|name| ProcessFilter::Runs(vec![name.to_string()], selector.processes.clone()))
        }
        None => Some(ProcessFilter::Matching(selector.processes.clone())),
    }
}

/// Why nothing was found, with what could not be seen.
fn with_gaps(none: String, unseen: Option<String>) -> String {
    match unseen {
        Some(unseen) => format!("{none}; {unseen}"),
        None => none,
    }
}

fn process_error(err: &io::Error) -> String {
    match err.kind() {
        io::ErrorKind::NotFound => with_gaps("does not exist, or is a kernel thread".into(), why_not_shown()),
        io::ErrorKind::PermissionDenied => {
            format!("permission denied reading its executable; {}", why_denied())
        }
        _ => err.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn finds_this_process_by_pid_name_and_file() {
        let exe = std::env::current_exe().unwrap();
        let by_file = find(&Selector::binary(exe.clone())).unwrap();
        let by_pid = find(&Selector::pid(std::process::id())).unwrap();
        assert_eq!(by_file[0].identity, by_pid[0].identity);
        let name = exe.file_name().unwrap().to_str().unwrap().to_string();
        let by_name = find(&Selector::process(&name)).unwrap();
        assert!(by_name.iter().any(|found| found.identity == by_file[0].identity));
        assert!(
            Finder::default().in_use(by_file[0].identity) && Finder::default().is_mapped(by_file[0].identity)
        );
    }

    #[test]
    fn missing_targets_are_reported() {
        let missing = find(&Selector::binary("/nonexistent/x")).unwrap_err();
        assert!(missing.contains("/nonexistent/x") && missing.contains("No such file"), "{missing}");
        assert!(find(&Selector::binary("/")).unwrap_err().contains("not a regular file"));
        assert!(find(&Selector::process("no such process")).is_err());
        assert!(find(&Selector::pid(u32::MAX)).unwrap_err().contains("does not exist"));
    }

    #[test]
    fn file_is_gone_when_its_process_executes_another() {
        let mut shell = Command::new("sh")
            .args(["-c", "read line; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let exe = || fs::read_link(format!("/proc/{}/exe", shell.id())).unwrap();
        let (before, found) = (exe(), find(&Selector::pid(shell.id())).unwrap());
        assert!(!found[0].is_gone());
        shell.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while fs::read_link(format!("/proc/{}/exe", shell.id())).unwrap() == before {
            assert!(std::time::Instant::now() < deadline, "it does not execute the other one");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(found[0].is_gone());
        drop(shell.stdin.take());
        assert!(shell.wait().unwrap().success());
    }

    #[test]
    fn replaced_file_is_not_opened() {
        let directory = tempfile::tempdir().unwrap();
        let [path, other] = ["file", "other"].map(|name| directory.path().join(name));
        fs::write(&path, "one").unwrap();
        fs::write(&other, "two").unwrap();
        let found = Finder::default().look_at(&path, "display".to_string()).unwrap();
        assert_eq!(found.read().unwrap(), b"one");
        fs::rename(&other, &path).unwrap();
        assert_eq!(found.open().unwrap_err().to_string(), "the file was replaced meanwhile");
    }
}
