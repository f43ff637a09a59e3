//! The processes that targets mean: one table for all of them. What the kernel tells of processes keeps it true; where it
//! tells nothing, /proc is walked through again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::file::{Identity, TargetFile};
use super::libraries::Library;
use crate::kernel::{ProcessChange, ProcessEvent, id_of_container};
use crate::procfs::{Mapping, living_thread};

/// What tells whether a process is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meant {
    /// Its leader or executable is called so.
    Name(String),
    /// It is in a container whose id begins so.
    Container(String),
    Pid(u32),
}

/// The table.
#[derive(Debug, Default)]
pub struct Processes {
    /// By target; a target that means no processes has none. Without any, all processes are of interest.
    meant: Vec<Option<Meant>>,
    all: BTreeMap<u32, Process>,
    is_walked: bool,
    /// Processes that may not be looked into, as of the latest walk.
    hidden: usize,
    /// Targets that mean other processes than before, or others that run something else.
    changed: BTreeSet<usize>,
    /// By number of the control group.
    memberships: HashMap<u64, Arc<Membership>>,
    next: usize,
}

/// A process, and what selectors go by.
#[derive(Debug, Clone)]
pub struct Process {
    pub pid: u32,
    /// Of the leader; the kernel cuts it after 15 bytes.
    comm: String,
    /// Base name of what it runs; None for a thread of the kernel.
    exe: Option<String>,
    /// The right to see what it runs is missing.
    is_hidden: bool,
    membership: Arc<Membership>,
    /// What it runs, once that was looked up.
    pub file: Option<TargetFile>,
    /// All that it maps, if what it runs cannot be reached by any path.
    pub copied_up: Option<Vec<Identity>>,
    /// Files with probes that it has loaded, once they were looked up.
    pub libraries: Option<Vec<Library>>,
}

/// Containers that a process is in.
#[derive(Debug, Default, PartialEq, Eq)]
struct Membership {
    /// By control groups of version 2, which the kernel goes by.
    ids: Vec<String>,
    /// By those of version 1.
    old: Vec<String>,
}

/// Control groups that are remembered; then they are found out anew.
const MEMBERSHIPS: usize = 4096;

/// Processes whose mappings are read again at a time, where the kernel does not tell of new ones.
const AGAIN: usize = 64;

/// Processes that could be meant, for all that can be seen.
#[derive(Debug, Default)]
pub struct Uncovered {
    hidden: usize,
    version_1: bool,
}

impl Uncovered {
    /// What keeps the search from being complete; `refused` are processes that are meant.
    pub fn sentence(&self, refused: &[u32]) -> Option<String> {
        let needs = "cannot be inspected: CAP_SYS_PTRACE is needed";
        if let Some(first) = refused.first() {
            return Some(format!("{} matching processes (such as {first}) {needs}", refused.len()));
        }
        if self.version_1 {
            return Some("it only has cgroup v1, and containers need cgroup v2".into());
        }
        (self.hidden > 0).then(|| format!("{} processes {needs}", self.hidden))
    }
}

impl Meant {
    fn means(&self, process: &Process) -> bool {
        match self {
            Meant::Name(name) => process.is_called(name),
            Meant::Container(id) => {
                let membership = &process.membership;
                membership.ids.iter().chain(&membership.old).any(|of| is_container(of, id))
            }
            Meant::Pid(pid) => process.pid == *pid,
        }
    }
}

impl Processes {
    /// Of interest to these targets.
    pub fn of(meant: Vec<Option<Meant>>) -> Self {
        Self { meant, ..Self::default() }
    }

    /// The target means other processes from now on; these are found by the next walk.
    pub fn set_meant(&mut self, target: usize, meant: Meant) {
        self.meant[target] = Some(meant);
        self.forget();
    }

    /// The next search walks anew.
    pub fn forget(&mut self) {
        self.is_walked = false;
    }

    /// Processes that were found by a walk, if this call had to make one.
    pub fn walk_if_needed(&mut self) -> Option<Vec<u32>> {
        if self.is_walked {
            return None;
        }
        self.is_walked = true;
        let mut before = std::mem::take(&mut self.all);
        self.hidden = 0;
        for pid in numbers() {
            let Some(found) = self.look_at(pid, None) else { continue };
            self.hidden += usize::from(found.is_hidden);
            if !self.is_of_interest(&found) {
                continue;
            }
            // The same program under the same number: what it has loaded is most likely the same, too.
            let known = before.remove(&pid).filter(|old| (&old.comm, &old.exe) == (&found.comm, &found.exe));
            let libraries = known.and_then(|old| old.libraries);
            self.all.insert(pid, Process { libraries, ..found });
        }
        self.changed.extend((0..self.meant.len()).filter(|target| self.meant[*target].is_some()));
        Some(self.all.keys().copied().collect())
    }

    /// Targets for which something has changed since this was asked last.
    pub fn take_changed(&mut self) -> BTreeSet<usize> {
        std::mem::take(&mut self.changed)
    }

    pub fn get(&self, pid: u32) -> Option<&Process> {
        self.all.get(&pid)
    }

    pub fn get_mut(&mut self, pid: u32) -> Option<&mut Process> {
        self.all.get_mut(&pid)
    }

    /// Those whose leader or executable is called so, as `is_called` of `bpf/filter.bpf.h` has it.
    pub fn named(&mut self, name: &str) -> (Vec<u32>, Uncovered) {
        self.walk_if_needed();
        let named = self.all.values().filter(|process| process.is_called(name));
        (named.map(|process| process.pid).collect(), Uncovered { hidden: self.hidden, version_1: false })
    }

    /// Those in a container whose id begins so.
    pub fn in_container(&mut self, id: &str) -> (Vec<u32>, Uncovered) {
        self.walk_if_needed();
        let is_in = |ids: &[String]| ids.iter().any(|of| is_container(of, id));
        let all = || self.all.values();
        let found = all().filter(|process| is_in(&process.membership.ids)).map(|process| process.pid);
        let version_1 =
            all().any(|process| !is_in(&process.membership.ids) && is_in(&process.membership.old));
        (found.collect(), Uncovered { hidden: 0, version_1 })
    }

    /// Follows what the kernel tells of a process. Whether the process is of interest, and in containers of which nothing was
    /// known before.
    pub fn apply(&mut self, event: &ProcessEvent) -> Applied {
        let mut applied = Applied::default();
        let pid = event.pid;
        match &event.change {
            ProcessChange::Executed { cgroup, .. } | ProcessChange::Moved { cgroup } => {
                applied.is_new_cgroup = !self.memberships.contains_key(cgroup);
                let found = self.look_at(pid, Some(*cgroup));
                applied.containers = found.as_ref().map_or(0, |found| found.membership.ids.len());
                self.replace(pid, found);
            }
            ProcessChange::Renamed { comm } => {
                let renamed = self.all.get(&pid).map(|old| Process { comm: comm.clone(), ..old.clone() });
                let renamed = renamed.or_else(|| self.look_at(pid, None));
                self.replace(pid, renamed);
            }
            ProcessChange::Forked { parent } => {
                let child = self.all.get(parent).map(|parent| parent.forked(pid));
                let is_named = self.meant.contains(&Some(Meant::Pid(pid)));
                let child = if is_named { child.or_else(|| self.look_at(pid, None)) } else { child };
                self.replace(pid, child);
            }
            ProcessChange::Ended => self.replace(pid, None),
        }
        applied.is_of_interest = self.all.contains_key(&pid);
        applied
    }

    fn replace(&mut self, pid: u32, process: Option<Process>) {
        let old = match process.filter(|process| self.is_of_interest(process)) {
            Some(process) => {
                self.note(&process);
                self.all.insert(pid, process)
            }
            None => self.all.remove(&pid),
        };
        if let Some(old) = old {
            self.note(&old);
        }
    }

    fn note(&mut self, process: &Process) {
        let means = |(target, meant): (usize, &Option<Meant>)| {
            meant.as_ref().is_some_and(|meant| meant.means(process)).then_some(target)
        };
        self.changed.extend(self.meant.iter().enumerate().filter_map(means));
    }

    /// All targets that mean the process have to be looked at.
    pub fn touch(&mut self, pid: u32) {
        if let Some(process) = self.all.get(&pid).cloned() {
            self.note(&process);
        }
    }

    fn is_of_interest(&self, process: &Process) -> bool {
        self.meant.is_empty() || self.meant.iter().flatten().any(|meant| meant.means(process))
    }

    /// Whether a target means processes of the control group; None if nothing is known of it.
    pub fn means_cgroup(&self, cgroup: u64) -> Option<bool> {
        let membership = self.memberships.get(&cgroup)?;
        let is_in = |meant: &Meant| match meant {
            Meant::Container(id) => membership.ids.iter().any(|of| is_container(of, id)),
            Meant::Name(_) | Meant::Pid(_) => false,
        };
        Some(self.meant.iter().flatten().any(is_in))
    }

    /// Reads the mappings of some processes again when they are needed next.
    pub fn forget_some_libraries(&mut self) {
        let count = self.all.len();
        let first = self.next % count.max(1);
        let some: Vec<u32> = self.all.keys().skip(first).take(AGAIN).copied().collect();
        for pid in some {
            if let Some(process) = self.all.get_mut(&pid) {
                process.libraries = None;
            }
            self.touch(pid);
        }
        self.next = if first + AGAIN < count { first + AGAIN } else { 0 };
    }

    /// Looks at each of the files again through one process that runs it.
    pub fn forget_files(&mut self, files: &[Identity]) {
        let mut left = files.to_vec();
        let mut touched = Vec::new();
        for process in self.all.values_mut().filter(|_| !files.is_empty()) {
            let identity = process.file.as_ref().map(|file| file.identity);
            if let Some(at) = left.iter().position(|of| Some(*of) == identity) {
                left.swap_remove(at);
                process.file = None;
                touched.push(process.pid);
            }
        }
        touched.into_iter().for_each(|pid| self.touch(pid));
    }

    fn look_at(&mut self, pid: u32, cgroup: Option<u64>) -> Option<Process> {
        let directory = Path::new("/proc").join(pid.to_string());
        let comm = fs::read_to_string(directory.join("comm")).ok()?;
        let exe = fs::read_link(format!("/proc/{}/exe", living_thread(pid)));
        let is_hidden = exe.as_ref().is_err_and(|err| err.kind() == io::ErrorKind::PermissionDenied);
        let exe = exe.ok().and_then(|exe| Some(base_name(exe.file_name()?.to_str()?).to_string()));
        Some(Process {
            pid,
            comm: comm.trim_end_matches('\n').to_string(),
            exe,
            is_hidden,
            membership: self.membership(pid, cgroup),
            file: None,
            copied_up: None,
            libraries: None,
        })
    }

    fn membership(&mut self, pid: u32, cgroup: Option<u64>) -> Arc<Membership> {
        let wants = |meant: &Option<Meant>| matches!(meant, Some(Meant::Container(_)));
        if !self.meant.is_empty() && !self.meant.iter().any(wants) {
            return Arc::default();
        }
        if let Some(known) = cgroup.and_then(|cgroup| self.memberships.get(&cgroup)) {
            return known.clone();
        }
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return Arc::default() };
        let found = Arc::new(Membership::parse(&text));
        // On a host with version 1 all processes are in the root of version 2.
        if let Some(cgroup) = cgroup.filter(|_| found.old.is_empty()) {
            if self.memberships.len() >= MEMBERSHIPS {
                self.memberships.clear();
            }
            self.memberships.insert(cgroup, found.clone());
        }
        found
    }

    /// Whether any maps the file, told by device and inode.
    pub fn map(&mut self, identity: Identity) -> bool {
        numbers().any(|pid| {
            fs::read_to_string(format!("/proc/{}/maps", living_thread(pid)))
                .is_ok_and(|maps| maps.lines().any(|line| may_map(line, identity)))
        })
    }
}

/// What came of an event.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub is_of_interest: bool,
    pub is_new_cgroup: bool,
    /// That the process is in, whether they are meant or not.
    pub containers: usize,
}

impl Process {
    fn is_called(&self, name: &str) -> bool {
        self.comm == name || self.exe.as_deref() == Some(name)
    }

    fn forked(&self, pid: u32) -> Self {
        let mut child = Self { pid, ..self.clone() };
        if let Some(file) = &mut child.file {
            file.path = format!("/proc/{pid}/exe").into();
        }
        child
    }
}

impl Membership {
    /// From `/proc/PID/cgroup`.
    fn parse(text: &str) -> Self {
        let ids = |lines: &mut dyn Iterator<Item = &str>| {
            lines.flat_map(|line| line.split('/')).filter_map(id_of_container).map(str::to_string).collect()
        };
        let is_new = |line: &&str| line.starts_with("0::");
        Self {
            ids: ids(&mut text.lines().filter(is_new)),
            old: ids(&mut text.lines().filter(|l| !is_new(l))),
        }
    }
}

fn is_container(of: &str, id: &str) -> bool {
    id.len() >= 8 && of.starts_with(id)
}

fn numbers() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// The kernel marks the name of a file that was deleted, or replaced.
fn base_name(display: &str) -> &str {
    display.strip_suffix(" (deleted)").unwrap_or(display)
}

/// Whether a line of /proc/PID/maps can be of the file. Inodes are numbered by device, but only a block device has the same
/// number here as in stat(2): on btrfs and overlayfs they differ. To detach from a file that runs is worse than to stay.
fn may_map(line: &str, identity: Identity) -> bool {
    let Some(mapping) = Mapping::parse(line).filter(|mapping| mapping.inode == identity.number) else {
        return false;
    };
    let block = |(major, minor): (u32, u32)| (major != 0).then_some((major, minor));
    let known = block((libc::major(identity.device), libc::minor(identity.device)));
    block(mapping.device).zip(known).is_none_or(|(display, known)| display == known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_device_with_the_same_number_is_another() {
        let file =
            |major, minor| Identity { device: libc::makedev(major, minor), number: 247_003, address: 0 };
        let line = "561d8f2e8000-561d8f2e9000 r--p 0001d000 fe:10 247003                     /usr/bin/a file";
        assert!(may_map(line, file(0xfe, 0x10)));
        assert!(!may_map(line, file(0xfe, 0x11)) && !may_map(line, file(8, 0x10)));
        assert!(!may_map(line, Identity { number: 247_004, ..file(0xfe, 0x10) }));
        // What has no block device is numbered otherwise by stat(2): it may be the file.
        assert!(may_map(line, file(0, 41)));
        assert!(may_map(&line.replace("fe:10", "00:29"), file(0xfe, 0x10)));
        assert!(!may_map("7ffd1000-7ffd2000 rw-p 00000000 00:00 0 [stack]", file(0, 41)));
    }

    #[test]
    fn a_file_that_was_replaced_keeps_its_name() {
        assert_eq!(base_name("bitcoind (deleted)"), "bitcoind");
        assert_eq!(base_name("bitcoind"), "bitcoind");
    }

    #[test]
    fn what_could_not_be_seen_is_said() {
        let hidden = Uncovered { hidden: 3, version_1: false };
        assert!(hidden.sentence(&[]).unwrap().starts_with("3 processes cannot be inspected"));
        assert!(hidden.sentence(&[7]).unwrap().contains("such as 7"));
        assert_eq!(Uncovered::default().sentence(&[]), None);
    }

    #[test]
    fn containers_of_either_version() {
        let id = "0123456789abcdef".repeat(4);
        let text = format!("1:cpu:/docker/{id}\n0::/system.slice/docker-{id}.scope/init\n");
        let found = Membership::parse(&text);
        assert_eq!((found.ids.len(), found.old.len()), (1, 1));
        assert!(is_container(&found.ids[0], &id[..12]) && !is_container(&found.ids[0], &id[..4]));
        assert_eq!(Membership::parse("0::/\n"), Membership::default());
    }

    fn named(process: &Process) -> Meant {
        Meant::Name(process.comm.clone())
    }

    #[test]
    fn the_table_follows_what_processes_do() {
        let own = std::process::id();
        let me = Processes::default().look_at(own, None).unwrap();
        let meant = vec![None, Some(named(&me)), Some(Meant::Name("nobody".into())), Some(Meant::Pid(own))];
        let mut processes = Processes::of(meant);
        let mut tell = |pid: u32, change| {
            let applied = processes.apply(&ProcessEvent { pid, change });
            (applied.is_of_interest, processes.take_changed().into_iter().collect::<Vec<_>>())
        };
        let child = u32::MAX - 1;
        let executed =
            |cgroup| ProcessChange::Executed { file: Default::default(), path: "".into(), cgroup, time: 0 };
        assert_eq!(tell(own, executed(1)), (true, vec![1, 3]));
        assert_eq!(tell(child, ProcessChange::Forked { parent: own }), (true, vec![1]));
        assert_eq!(
            tell(child, ProcessChange::Renamed { comm: "x".into() }),
            (me.exe == Some(me.comm), vec![1])
        );
        assert!(!tell(child, ProcessChange::Ended).0);
        assert_eq!(tell(child, ProcessChange::Forked { parent: child }), (false, vec![]));
        assert_eq!(tell(own, ProcessChange::Ended), (false, vec![1, 3]));
    }
}
