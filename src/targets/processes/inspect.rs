//! Reads processes from /proc.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::Processes;
use super::process::Process;
use crate::procfs::{Mapping, is_denied, living_thread, processes, text};
use crate::selectors::{ProcessSelector, command_line};
use crate::targets::file::Identity;

impl Processes {
    pub(super) fn look_at(&mut self, pid: u32, cgroup: Option<u64>) -> Option<Process> {
        let directory = Path::new("/proc").join(pid.to_string());
        let comm = text(directory.join("comm")).ok()?;
        let exe = fs::read_link(format!("/proc/{}/exe", living_thread(pid)));
        let is_hidden = exe.as_ref().is_err_and(|err| is_denied(pid, err));
        let exe = exe.ok().and_then(|exe| Some(base_name(&exe.file_name()?.to_string_lossy()).to_string()));
        let cmdline =
            if self.asks_for(ProcessSelector::uses_cmdline) { command_line_of(pid) } else { String::new() };
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

    /// Whether any target's selector uses this; without targets, everything is used.
    pub(super) fn asks_for(&self, what: impl Fn(&ProcessSelector) -> bool) -> bool {
        self.filters.is_empty() || self.filters.iter().flatten().any(|filters| what(filters.selector()))
    }

    /// Whether any process maps the file, identified by device and inode.
    pub fn map(&mut self, identity: Identity) -> bool {
        processes().any(|pid| {
            text(format!("/proc/{}/maps", living_thread(pid)))
                .is_ok_and(|maps| maps.lines().any(|line| may_map(line, identity)))
        })
    }
}

/// Empty if the process has ended.
pub(super) fn command_line_of(pid: u32) -> String {
    command_line(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default())
}

/// The kernel marks the name of a deleted or replaced file.
fn base_name(display: &str) -> &str {
    display.strip_suffix(" (deleted)").unwrap_or(display)
}

/// Whether a line of /proc/PID/maps may be of the file. Inode numbers are per device, but the device number is the same
/// as in stat(2) only for block devices: on btrfs and overlayfs they differ. Detaching from a running file is worse
/// than staying attached.
fn may_map(line: &str, identity: Identity) -> bool {
    let is_it = |mapping: &Mapping<'_>| mapping.inode == identity.number && !mapping.is_shared();
    let Some(mapping) = Mapping::parse(line).filter(is_it) else { return false };
    let block = |(major, minor): (u32, u32)| (major != 0).then_some((major, minor));
    let known = block((libc::major(identity.device), libc::minor(identity.device)));
    block(mapping.device).zip(known).is_none_or(|(display, known)| display == known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_inode_on_another_device_is_a_different_file() {
        let file =
            |major, minor| Identity { device: libc::makedev(major, minor), number: 247_003, address: 0 };
        let line = "561d8f2e8000-561d8f2e9000 r--p 0001d000 fe:10 247003                     /usr/bin/a file";
        assert!(may_map(line, file(0xfe, 0x10)));
        assert!(!may_map(line, file(0xfe, 0x11)) && !may_map(line, file(8, 0x10)));
        assert!(!may_map(line, Identity { number: 247_004, ..file(0xfe, 0x10) }));
        // Without a block device, stat(2) may report another number: it may be the file.
        assert!(may_map(line, file(0, 41)));
        assert!(may_map(&line.replace("fe:10", "00:29"), file(0xfe, 0x10)));
        assert!(!may_map(&line.replace("r--p", "rw-s"), file(0xfe, 0x10)), "as a linker maps its output");
        assert!(!may_map("7ffd1000-7ffd2000 rw-p 00000000 00:00 0 [stack]", file(0, 41)));
    }

    #[test]
    fn deleted_suffix_is_stripped() {
        assert_eq!(base_name("bitcoind (deleted)"), "bitcoind");
        assert_eq!(base_name("bitcoind"), "bitcoind");
    }
}
