//! Which files a target's selector means at this moment.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::config::model::Selector;
use crate::containers::Containers;

/// Different files that one selector may mean at once.
const MOST_FILES: usize = 16;

/// A file to set probes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// A path that opens it now.
    pub path: PathBuf,
    /// As it is shown to people.
    pub shown: String,
    pub identity: Identity,
    pub stamp: Stamp,
}

/// Which file it is, whatever it is called: probes are set on this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    pub device: u64,
    pub inode: u64,
}

/// Which contents it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
}

/// The files that the selector means now.
///
/// # Errors
/// Why there is none, as a sentence for people.
pub fn find(selector: &Selector) -> Result<Vec<Found>, String> {
    match selector {
        Selector::Binary(path) => look_at(path, path.display().to_string())
            .map(|found| vec![found])
            .map_err(|why| format!("{}: {why}", path.display())),
        Selector::Pid(pid) => of_process(*pid)
            .map(|found| vec![found])
            .map_err(|why| format!("process {pid}: {}", process_error(&why))),
        Selector::Process(name) => {
            of_processes(|pid| is_called(pid, name)).ok_or_else(|| format!("no process is called {name}"))
        }
        Selector::Container(name) => {
            let id = Containers::default().id(name).unwrap_or_else(|| name.clone());
            of_processes(|pid| is_in_container(pid, &id)).ok_or_else(|| {
                format!("no process runs in a container called {name}, or whose id begins with that")
            })
        }
    }
}

/// Whether selecting means a walk over all processes.
pub fn is_costly(selector: &Selector) -> bool {
    matches!(selector, Selector::Process(_) | Selector::Container(_))
}

/// Whether any process still has the file mapped.
pub fn in_use(identity: Identity) -> bool {
    processes().any(|pid| {
        fs::read_to_string(format!("/proc/{pid}/maps"))
            .is_ok_and(|maps| maps.lines().any(|line| may_map(line, identity)))
    })
}

/// Whether a line of /proc/PID/maps can be of the file. Inodes are numbered by device, but only a block device has the same
/// number here as in stat(2): on btrfs and overlayfs they differ. To detach from a file that runs is worse than to stay.
fn may_map(line: &str, identity: Identity) -> bool {
    let mut fields = line.split_ascii_whitespace().skip(3);
    let device = fields.next().and_then(|device| device.split_once(':'));
    if fields.next().and_then(|inode| inode.parse().ok()) != Some(identity.inode) {
        return false;
    }
    let block = |major: u32, minor: u32| (major != 0).then_some((major, minor));
    let hex = |digits| u32::from_str_radix(digits, 16).ok();
    let shown = device.and_then(|(major, minor)| block(hex(major)?, hex(minor)?));
    let known = block(libc::major(identity.device), libc::minor(identity.device));
    shown.zip(known).is_none_or(|(shown, known)| shown == known)
}

fn look_at(path: &Path, shown: String) -> io::Result<Found> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(Found {
        path: path.to_path_buf(),
        shown,
        identity: Identity { device: meta.dev(), inode: meta.ino() },
        stamp: Stamp { modified: meta.modified().ok(), bytes: meta.len() },
    })
}

/// Through /proc, so that it is the file that runs, in whatever mount namespace, even if it has been replaced.
fn of_process(pid: u32) -> io::Result<Found> {
    let exe = PathBuf::from(format!("/proc/{pid}/exe"));
    let shown = fs::read_link(&exe)?.display().to_string();
    look_at(&exe, shown)
}

fn process_error(why: &io::Error) -> String {
    match why.kind() {
        io::ErrorKind::NotFound => "does not exist, or is a thread of the kernel".to_string(),
        io::ErrorKind::PermissionDenied => {
            "its executable may not be read; CAP_SYS_PTRACE is needed".to_string()
        }
        _ => why.to_string(),
    }
}

fn of_processes(wanted: impl Fn(u32) -> bool) -> Option<Vec<Found>> {
    let mut files: Vec<Found> = Vec::new();
    for pid in processes().filter(|pid| wanted(*pid)) {
        let Ok(found) = of_process(pid) else { continue };
        if files.iter().all(|known| known.identity != found.identity) {
            files.push(found);
        }
        if files.len() == MOST_FILES {
            break;
        }
    }
    (!files.is_empty()).then_some(files)
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// By the thread group leader's name, or by the executable's base name. A name of more than 15 bytes is cut by the
/// kernel.
fn is_called(pid: u32, name: &str) -> bool {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if comm.trim_end() == name {
        return true;
    }
    fs::read_link(format!("/proc/{pid}/exe"))
        .is_ok_and(|exe| exe.file_name().and_then(|base| base.to_str()) == Some(name))
}

/// Docker, Podman, containerd and CRI-O all put the container's id into the name of its cgroup.
fn is_in_container(pid: u32, id: &str) -> bool {
    id.len() >= 8
        && fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroups| {
            cgroups
                .split(|c: char| !c.is_ascii_alphanumeric())
                .any(|part| part.len() == 64 && part.starts_with(id))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_by_pid_by_name_and_by_file() {
        let exe = std::env::current_exe().unwrap();
        let by_file = find(&Selector::Binary(exe.clone())).unwrap();
        let by_pid = find(&Selector::Pid(std::process::id())).unwrap();
        assert_eq!(by_file[0].identity, by_pid[0].identity);
        let name = exe.file_name().unwrap().to_str().unwrap().to_string();
        let by_name = find(&Selector::Process(name)).unwrap();
        assert!(by_name.iter().any(|found| found.identity == by_file[0].identity));
        assert!(in_use(by_file[0].identity));
    }

    #[test]
    fn a_file_of_another_device_with_the_same_number_is_another() {
        let file = |major, minor| Identity { device: libc::makedev(major, minor), inode: 247_003 };
        let line = "561d8f2e8000-561d8f2e9000 r--p 0001d000 fe:10 247003                     /usr/bin/a file";
        assert!(may_map(line, file(0xfe, 0x10)));
        assert!(!may_map(line, file(0xfe, 0x11)) && !may_map(line, file(8, 0x10)));
        assert!(!may_map(line, Identity { inode: 247_004, ..file(0xfe, 0x10) }));
        // What has no block device is numbered otherwise by stat(2): it may be the file.
        assert!(may_map(line, file(0, 41)));
        assert!(may_map(&line.replace("fe:10", "00:29"), file(0xfe, 0x10)));
        assert!(!may_map("7ffd1000-7ffd2000 rw-p 00000000 00:00 0 [stack]", file(0, 41)));
    }

    #[test]
    fn what_is_not_there_is_said() {
        let missing = find(&Selector::Binary("/nonexistent/x".into())).unwrap_err();
        assert!(missing.contains("/nonexistent/x") && missing.contains("No such file"), "{missing}");
        assert!(find(&Selector::Binary("/".into())).unwrap_err().contains("not a regular file"));
        assert!(find(&Selector::Process("no such process".into())).is_err());
        assert!(find(&Selector::Pid(u32::MAX)).unwrap_err().contains("does not exist"));
    }
}
