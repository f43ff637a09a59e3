//! The processes that run now, as /proc shows them.

use std::fs;
use std::io;
use std::path::Path;

use super::find::Identity;
use crate::kernel::id_of_container;

/// One walk over all processes, made when it is needed first.
#[derive(Debug, Default)]
pub struct Processes {
    all: Option<Vec<Process>>,
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
}

impl Process {
    /// Of which only the number matters.
    pub fn numbered(pid: u32) -> Self {
        Self { pid, comm: String::new(), exe: None, is_hidden: false }
    }
}

/// Processes that could be meant, for all that can be seen.
#[derive(Debug, Default)]
pub struct Uncovered {
    hidden: usize,
    version_1: bool,
}

impl Uncovered {
    /// What keeps the search from being complete; `refused` are processes that are meant.
    pub fn sentence(&self, refused: &[u32]) -> Option<String> {
        let needs = "may not be looked into: CAP_SYS_PTRACE is needed";
        if let Some(first) = refused.first() {
            return Some(format!(
                "{} of the processes that are meant (such as {first}) {needs}",
                refused.len()
            ));
        }
        if self.version_1 {
            return Some(
                "it has control groups of version 1 only, by which the kernel cannot tell a container".into(),
            );
        }
        (self.hidden > 0).then(|| format!("{} processes {needs}", self.hidden))
    }
}

impl Processes {
    /// The next search walks anew.
    pub fn forget(&mut self) {
        self.all = None;
    }

    fn all(&mut self) -> &[Process] {
        self.all.get_or_insert_with(|| numbers().filter_map(look_at).collect())
    }

    /// Those whose leader or executable is called so, as `is_called` of `bpf/filter.bpf.h` has it.
    pub fn named(&mut self, name: &str) -> (Vec<Process>, Uncovered) {
        let all = self.all();
        let is_called = |process: &&Process| process.comm == name || process.exe.as_deref() == Some(name);
        let hidden = all.iter().filter(|process| process.is_hidden).count();
        (all.iter().filter(is_called).cloned().collect(), Uncovered { hidden, version_1: false })
    }

    /// Those in a container whose id begins so.
    pub fn in_container(&mut self, id: &str) -> (Vec<Process>, Uncovered) {
        let mut uncovered = Uncovered::default();
        let mut found = Vec::new();
        for process in self.all() {
            match place(process.pid, id) {
                Some(true) => found.push(process.clone()),
                Some(false) => uncovered.version_1 = true,
                None => {}
            }
        }
        (found, uncovered)
    }

    /// Whether any maps the file, told by device and inode.
    pub fn map(&mut self, identity: Identity) -> bool {
        numbers().any(|pid| {
            fs::read_to_string(format!("/proc/{pid}/maps"))
                .is_ok_and(|maps| maps.lines().any(|line| may_map(line, identity)))
        })
    }
}

/// When the process began, in ticks since boot.
///
/// # Errors
/// If there is no such process.
pub fn started(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything; the 22nd field is the 20th after it.
    let after = stat.rsplit_once(')').map(|(_, after)| after);
    after
        .and_then(|after| after.split_ascii_whitespace().nth(19)?.parse().ok())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

fn numbers() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn look_at(pid: u32) -> Option<Process> {
    let folder = Path::new("/proc").join(pid.to_string());
    let comm = fs::read_to_string(folder.join("comm")).ok()?;
    let exe = fs::read_link(folder.join("exe"));
    let is_hidden = exe.as_ref().is_err_and(|err| err.kind() == io::ErrorKind::PermissionDenied);
    let exe = exe.ok().and_then(|exe| Some(base_name(exe.file_name()?.to_str()?).to_string()));
    Some(Process { pid, comm: comm.trim_end_matches('\n').to_string(), exe, is_hidden })
}

/// The kernel marks the name of a file that was deleted, or replaced.
fn base_name(shown: &str) -> &str {
    shown.strip_suffix(" (deleted)").unwrap_or(shown)
}

/// Whether the process is in the container: by its control group of version 2, else not so that the kernel could tell.
fn place(pid: u32, id: &str) -> Option<bool> {
    if id.len() < 8 {
        return None;
    }
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let is_in =
        |line: &str| line.split('/').any(|part| id_of_container(part).is_some_and(|of| of.starts_with(id)));
    if cgroups.lines().any(|line| line.starts_with("0::") && is_in(line)) {
        return Some(true);
    }
    cgroups.lines().any(is_in).then_some(false)
}

/// Whether a line of /proc/PID/maps can be of the file. Inodes are numbered by device, but only a block device has the same
/// number here as in stat(2): on btrfs and overlayfs they differ. To detach from a file that runs is worse than to stay.
fn may_map(line: &str, identity: Identity) -> bool {
    let mut fields = line.split_ascii_whitespace().skip(3);
    let device = fields.next().and_then(|device| device.split_once(':'));
    if fields.next().and_then(|inode| inode.parse().ok()) != Some(identity.number) {
        return false;
    }
    let block = |major: u32, minor: u32| (major != 0).then_some((major, minor));
    let hex = |digits| u32::from_str_radix(digits, 16).ok();
    let shown = device.and_then(|(major, minor)| block(hex(major)?, hex(minor)?));
    let known = block(libc::major(identity.device), libc::minor(identity.device));
    shown.zip(known).is_none_or(|(shown, known)| shown == known)
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
        assert!(started(std::process::id()).unwrap() > 0 && started(u32::MAX).is_err());
    }

    #[test]
    fn what_could_not_be_seen_is_said() {
        let hidden = Uncovered { hidden: 3, version_1: false };
        assert!(hidden.sentence(&[]).unwrap().starts_with("3 processes may not be looked into"));
        assert!(hidden.sentence(&[7]).unwrap().contains("such as 7"));
        assert_eq!(Uncovered::default().sentence(&[]), None);
    }
}
