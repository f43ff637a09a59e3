//! The processes that targets mean: one table for all of them. What the kernel tells of processes keeps it true; where it
//! tells nothing, /proc is walked through again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::file::{Identity, TargetFile};
use super::libraries::Library;
use crate::containers::Containers;
use crate::kernel::{ProcessChange, ProcessEvent};
use crate::procfs::{Mapping, Stat, living_thread};
use crate::selectors::{Belongs, Facts, Who, command_line};

/// What tells whether a process is of interest to a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meant {
    /// It runs a file that is called so, as the target's is; this says which of those count.
    Runs(String, Who),
    Who(Who),
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
    containers: Containers,
    /// Containers and pods that the predicates of each target mean.
    members: Vec<Vec<BTreeSet<String>>>,
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
    /// If somebody asks for it.
    cmdline: String,
    /// Targets of which a process that is meant has started it.
    families: BTreeSet<usize>,
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

/// What a process belongs to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Membership {
    /// By its control group of version 2, which the kernel goes by.
    new: Belongs,
    /// By those of version 1.
    old: Belongs,
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
            return Some(match refused.len() {
                1 => format!("the matching process {first} {needs}"),
                many => format!("{many} matching processes (such as {first}) {needs}"),
            });
        }
        if self.version_1 {
            return Some("it only has cgroup v1, and containers need cgroup v2".into());
        }
        match self.hidden {
            0 => None,
            1 => Some(format!("1 process {needs}")),
            many => Some(format!("{many} processes {needs}")),
        }
    }
}

impl Meant {
    fn who(&self) -> &Who {
        match self {
            Meant::Who(who) | Meant::Runs(_, who) => who,
        }
    }
}

impl Processes {
    /// Of interest to these targets.
    pub fn of(meant: Vec<Option<Meant>>) -> Self {
        let members = meant.iter().map(|meant| match meant {
            Some(meant) => vec![BTreeSet::new(); meant.who().predicates.len()],
            None => Vec::new(),
        });
        Self { members: members.collect(), meant, ..Self::default() }
    }

    fn who(&self, target: usize) -> Option<&Who> {
        self.meant.get(target)?.as_ref().map(Meant::who)
    }

    /// The containers and pods that each of the target's predicates means, as far as they are known.
    pub fn members(&self, target: usize) -> &[BTreeSet<String>] {
        self.members.get(target).map_or(&[], Vec::as_slice)
    }

    /// Processes that can be the target's, by what they are called.
    pub fn of_target(&self, target: usize) -> Vec<u32> {
        self.all.values().filter(|process| self.means(target, process)).map(|process| process.pid).collect()
    }

    /// Processes that were started by those that the target means.
    pub fn family(&self, target: usize) -> impl Iterator<Item = u32> {
        self.all.values().filter(move |process| process.families.contains(&target)).map(|process| process.pid)
    }

    /// Notes whom the predicates of all targets mean of those that are in a control group.
    fn note_members(&mut self, belongs: &Belongs) {
        for (target, meant) in self.meant.iter().enumerate() {
            let Some(who) = meant.as_ref().map(Meant::who) else { continue };
            for (known, predicate) in self.members[target].iter_mut().zip(&who.predicates) {
                for id in predicate.members(belongs) {
                    if known.insert(id.to_owned()) {
                        self.changed.insert(target);
                    }
                }
            }
        }
    }

    /// Asks the engines again what containers and pods are called. Whether targets mean others than before.
    pub fn name_again(&mut self) -> bool {
        if !self.meant.iter().flatten().any(|meant| meant.who().is_by_cgroup()) {
            return false;
        }
        let before = self.members.clone();
        self.containers.forget();
        self.members.iter_mut().flatten().for_each(BTreeSet::clear);
        for belongs in self.containers.all() {
            self.note_members(&belongs);
        }
        let (mut memberships, mut all) =
            (std::mem::take(&mut self.memberships), std::mem::take(&mut self.all));
        let mut named: HashMap<(String, String), Arc<Membership>> = HashMap::new();
        for membership in memberships.values_mut().chain(all.values_mut().map(|of| &mut of.membership)) {
            let paths = (membership.new.path.clone(), membership.old.path.clone());
            let now =
                named.entry(paths).or_insert_with_key(|(new, old)| Arc::new(self.membership_at(new, old)));
            *membership = now.clone();
        }
        (self.memberships, self.all) = (memberships, all);
        let has_changed = before != self.members;
        if has_changed {
            self.forget();
        }
        has_changed
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
        let mut found: BTreeMap<u32, Process> =
            numbers().filter_map(|pid| Some((pid, self.look_at(pid, None)?))).collect();
        for process in found.values_mut() {
            // The same program under the same number: what it has loaded is most likely the same, too.
            let known = before.remove(&process.pid);
            let is_same = |old: &Process| (&old.comm, &old.exe) == (&process.comm, &process.exe);
            let Some(known) = known.filter(is_same) else { continue };
            (process.libraries, process.families) = (known.libraries, known.families);
        }
        self.find_families(&mut found);
        self.hidden = found.values().filter(|process| process.is_hidden).count();
        self.all = found.into_iter().filter(|(_, process)| self.is_of_interest(process)).collect();
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

    /// Those that are meant: of which all of it holds, and, of a target, those that were started by such.
    pub fn fitting(&mut self, who: &Who, target: Option<usize>) -> (Vec<u32>, Uncovered) {
        self.walk_if_needed();
        let is_family = |process: &Process| target.is_some_and(|target| process.families.contains(&target));
        let (mut found, mut version_1) = (Vec::new(), false);
        for process in self.all.values() {
            if who.may_fit(&process.facts()) || is_family(process) {
                found.push(process.pid);
            } else {
                version_1 |= who.may_fit(&Facts { belongs: &process.membership.old, ..process.facts() });
            }
        }
        let hidden = if who.is_by_cgroup() { 0 } else { self.hidden };
        (found, Uncovered { hidden, version_1 })
    }

    /// Whom processes have started that targets with children mean.
    fn find_families(&self, all: &mut BTreeMap<u32, Process>) {
        for target in 0..self.meant.len() {
            let Some(who) = self.who(target).filter(|who| who.children) else { continue };
            let parents: Vec<(u32, u32)> =
                all.keys().filter_map(|pid| Some((*pid, Stat::of(*pid).ok()?.parent))).collect();
            loop {
                let is_meant = |pid: &u32| {
                    all.get(pid).is_some_and(|of| of.families.contains(&target) || who.fits(&of.facts()))
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

    /// Follows what the kernel tells of a process. Whether the process is of interest.
    pub fn apply(&mut self, event: &ProcessEvent) -> bool {
        let pid = event.pid;
        match &event.change {
            ProcessChange::Executed { cgroup, .. } | ProcessChange::Moved { cgroup } => {
                let families = self.all.get(&pid).map(|old| old.families.clone()).unwrap_or_default();
                let found = self.look_at(pid, Some(*cgroup)).map(|found| Process { families, ..found });
                self.replace(pid, found);
            }
            ProcessChange::Renamed { comm } => {
                let renamed = self.all.get(&pid).map(|old| Process { comm: comm.clone(), ..old.clone() });
                let renamed = renamed.or_else(|| self.look_at(pid, None));
                self.replace(pid, renamed);
            }
            ProcessChange::Forked { parent } => {
                let child = self.all.get(parent).map(|parent| self.forked(parent, pid));
                let is_named = self.meant.iter().flatten().any(|meant| match meant {
                    Meant::Who(who) => who.pid() == Some(pid),
                    Meant::Runs(..) => false,
                });
                let child = if is_named { child.or_else(|| self.look_at(pid, None)) } else { child };
                self.replace(pid, child);
            }
            ProcessChange::Ended { .. } => self.replace(pid, None),
        }
        self.all.contains_key(&pid)
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
        let means = (0..self.meant.len()).filter(|target| self.means(*target, process));
        self.changed.extend(means.collect::<Vec<_>>());
    }

    fn means(&self, target: usize, process: &Process) -> bool {
        match self.meant.get(target) {
            Some(Some(Meant::Runs(name, who))) if process.is_called(name) || who.predicates.is_empty() => {
                process.is_called(name)
            }
            Some(Some(meant)) => process.families.contains(&target) || meant.who().may_fit(&process.facts()),
            _ => false,
        }
    }

    fn forked(&self, parent: &Process, pid: u32) -> Process {
        let mut child = Process { pid, ..parent.clone() };
        if let Some(file) = &mut child.file {
            file.path = format!("/proc/{pid}/exe").into();
        }
        let is_family =
            |target: &usize| self.who(*target).is_some_and(|who| who.children && who.fits(&parent.facts()));
        let families = (0..self.meant.len()).filter(is_family);
        child.families.extend(families);
        child
    }

    /// All targets that mean the process have to be looked at.
    pub fn touch(&mut self, pid: u32) {
        if let Some(process) = self.all.get(&pid).cloned() {
            self.note(&process);
        }
    }

    fn is_of_interest(&self, process: &Process) -> bool {
        self.meant.is_empty() || (0..self.meant.len()).any(|target| self.means(target, process))
    }

    /// Whether a target means processes of the control group; None if nothing is known of it.
    pub fn means_cgroup(&self, cgroup: u64) -> Option<bool> {
        let membership = self.memberships.get(&cgroup)?;
        let is_in = |meant: &Meant| meant.who().means_cgroup(&membership.new);
        // What is not named yet may be soon.
        (!membership.new.is_unnamed() || self.meant.iter().flatten().any(is_in))
            .then(|| self.meant.iter().flatten().any(is_in))
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
        let cmdline = if self.asks_for(Who::asks_for_cmdline) {
            command_line(&fs::read(directory.join("cmdline")).unwrap_or_default())
        } else {
            String::new()
        };
        Some(Process {
            pid,
            comm: comm.trim_end_matches('\n').to_string(),
            exe,
            cmdline,
            families: BTreeSet::new(),
            is_hidden,
            membership: self.membership(pid, cgroup),
            file: None,
            copied_up: None,
            libraries: None,
        })
    }

    /// Whether any target does; without targets all is asked for.
    fn asks_for(&self, what: impl Fn(&Who) -> bool) -> bool {
        self.meant.is_empty() || self.meant.iter().flatten().any(|meant| what(meant.who()))
    }

    fn membership(&mut self, pid: u32, cgroup: Option<u64>) -> Arc<Membership> {
        if !self.asks_for(Who::is_by_cgroup) {
            return Arc::default();
        }
        let known = cgroup.and_then(|cgroup| self.memberships.get(&cgroup));
        if let Some(known) = known.filter(|known| !known.new.is_unnamed()) {
            return known.clone();
        }
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return Arc::default() };
        let (new, old) = paths_of(&text);
        let found = Arc::new(self.membership_at(&new, &old));
        // On a host with version 1 all processes are in the root of version 2.
        if let Some(cgroup) = cgroup.filter(|_| found.old.containers.is_empty()) {
            if self.memberships.len() >= MEMBERSHIPS {
                self.memberships.clear();
            }
            self.memberships.insert(cgroup, found.clone());
        }
        found
    }

    fn membership_at(&mut self, new: &str, old: &str) -> Membership {
        let mut found = Membership { new: Belongs::parse(new), old: Belongs::parse(old) };
        self.containers.describe(&mut found.new);
        self.containers.describe(&mut found.old);
        self.note_members(&found.new);
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

impl Process {
    fn is_called(&self, name: &str) -> bool {
        self.comm == name || self.exe.as_deref() == Some(name)
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            pid: self.pid,
            comm: &self.comm,
            exe: self.exe.as_deref(),
            cmdline: &self.cmdline,
            belongs: &self.membership.new,
        }
    }
}

/// The control groups of `/proc/PID/cgroup`: of version 2, and those of version 1 together.
fn paths_of(text: &str) -> (String, String) {
    let new = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    let old =
        text.lines().filter(|line| !line.starts_with("0::")).filter_map(|line| line.splitn(3, ':').nth(2));
    (new.to_owned(), old.collect())
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
    use crate::selectors::Selector;

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
        assert!(hidden.sentence(&[7]).unwrap().starts_with("the matching process 7 cannot be inspected"));
        assert!(hidden.sentence(&[7, 8]).unwrap().contains("(such as 7)"));
        assert_eq!(Uncovered::default().sentence(&[]), None);
    }

    #[test]
    fn containers_of_either_version() {
        let id = "0123456789abcdef".repeat(4);
        let text = format!("1:cpu:/docker/{id}\n0::/system.slice/docker-{id}.scope/init\n");
        let (new, old) = paths_of(&text);
        assert_eq!(Belongs::parse(&new).containers[0].id, id);
        assert_eq!(Belongs::parse(&old).containers[0].id, id);
        assert_eq!(paths_of("0::/\n"), ("/".to_owned(), String::new()));
    }

    fn called(name: &str) -> Meant {
        Meant::Who(Selector::process(name).who)
    }

    #[test]
    fn the_table_follows_what_processes_do() {
        let own = std::process::id();
        let me = Processes::default().look_at(own, None).unwrap();
        let meant = vec![
            None,
            Some(called(&me.comm)),
            Some(called("nobody")),
            Some(Meant::Who(Selector::pid(own).who)),
        ];
        let mut processes = Processes::of(meant);
        let mut tell = |pid: u32, change| {
            let is_of_interest = processes.apply(&ProcessEvent { pid, change });
            (is_of_interest, processes.take_changed().into_iter().collect::<Vec<_>>())
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
        assert!(!tell(child, ProcessChange::Ended { signal: 0 }).0);
        assert_eq!(tell(child, ProcessChange::Forked { parent: child }), (false, vec![]));
        assert_eq!(tell(own, ProcessChange::Ended { signal: 0 }), (false, vec![1, 3]));
    }
}
