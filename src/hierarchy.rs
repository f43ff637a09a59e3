//! The hierarchy of cgroups (version 2), and where it and the host's files are, seen from the exporter's own namespaces.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use crate::procfs::{processes, text};

/// Cgroup directories that are read at most.
const MAX_CGROUPS: usize = 10_000;

/// The root of the host's files: that of process 1 if it is in another mount namespace.
pub fn host() -> PathBuf {
    let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/mnt")).ok();
    let is_elsewhere = namespace("1").is_some_and(|first| namespace("self") != Some(first));
    let root = PathBuf::from("/proc/1/root");
    if is_elsewhere && root.join("proc").is_dir() { root } else { PathBuf::from("/") }
}

/// Where the version 2 hierarchy is mounted. Uses the mounts of process 1 if the exporter is in a container, as in a
/// separate cgroup namespace it sees only its own part; and those of any other process that sees all of it if there are
/// none, because `ip netns exec` hides them by another `/sys`.
pub fn cgroup_root() -> Option<PathBuf> {
    let host = host();
    let of = if host == Path::new("/") { "self" } else { "1" };
    mounted(of, &host).or_else(|| {
        let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/mnt")).ok();
        let own = namespace("self");
        processes().map(|pid| pid.to_string()).filter(|pid| namespace(pid) != own).find_map(|pid| {
            let root = mounted(&pid, Path::new(&format!("/proc/{pid}/root")))?;
            is_whole(&root).then_some(root)
        })
    })
}

/// Where a process whose root directory is at `root` has the version 2 hierarchy mounted.
fn mounted(process: &str, root: &Path) -> Option<PathBuf> {
    let mounts = text(format!("/proc/{process}/mounts")).ok()?;
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (at, kind) = (words.next()?, words.next()?);
        let at = root.join(at.trim_start_matches('/'));
        // Another file system may be mounted over it.
        (kind == "cgroup2" && at.join("cgroup.procs").exists()).then_some(at)
    })
}

/// Whether this is the root of the hierarchy, the only cgroup without events.
fn is_whole(cgroup: &Path) -> bool {
    !cgroup.join("cgroup.events").exists()
}

/// The path in the version 2 hierarchy below [`cgroup_root`] of a cgroup that `/proc/PID/cgroup` shows as `shown`: that
/// is relative to the exporter's cgroup namespace, where `/../b` is a sibling whose slice and pod are not shown.
pub fn whole_cgroup_path(shown: &str) -> String {
    static NAMESPACE: LazyLock<String> = LazyLock::new(|| namespace_path().unwrap_or_default());
    if NAMESPACE.is_empty() { shown.to_owned() } else { below_namespace(&NAMESPACE, shown) }
}

fn below_namespace(namespace: &str, shown: &str) -> String {
    let mut names: Vec<&str> = namespace.split('/').filter(|name| !name.is_empty()).collect();
    for name in shown.split('/').filter(|name| !name.is_empty()) {
        if name == ".." {
            names.pop();
        } else {
            names.push(name);
        }
    }
    format!("/{}", names.join("/"))
}

/// The path of the cgroup that is the root of the exporter's cgroup namespace, if process 1 is outside of it.
fn namespace_path() -> Option<String> {
    let shown = |pid: &str| version_2(&text(format!("/proc/{pid}/cgroup")).ok()?).map(str::to_owned);
    if !shown("1")?.starts_with("/..") {
        return None;
    }
    let (root, pid) = (cgroup_root()?, std::process::id().to_string());
    let holds_this = |path: &str| {
        let members = text(root.join(path.trim_start_matches('/')).join("cgroup.procs"));
        members.is_ok_and(|members| members.lines().any(|member| member == pid))
    };
    let (_, own) = cgroups(&root).find(|(_, path)| holds_this(path))?;
    Some(own.strip_suffix(shown("self")?.trim_end_matches('/'))?.to_owned())
}

/// Whether process 1 is in the same cgroup, as in a container with a pid namespace of its own.
pub fn is_with_first_process() -> bool {
    let cgroups = |pid: &str| text(format!("/proc/{pid}/cgroup")).ok();
    cgroups("self").is_some_and(|own| cgroups("1") == Some(own))
}

/// The version 2 cgroup in `/proc/PID/cgroup`.
pub fn version_2(cgroups: &str) -> Option<&str> {
    cgroups.lines().find_map(|line| line.strip_prefix("0::"))
}

/// Ids (the inodes of their directories) and paths of cgroups, from the root of the hierarchy.
pub fn cgroups(root: &Path) -> impl Iterator<Item = (u64, String)> {
    let mut directories = vec![root.to_path_buf()];
    let found = std::iter::from_fn(move || {
        let directory = directories.pop()?;
        let inside = fs::read_dir(&directory).into_iter().flatten().flatten();
        let is_directory = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        directories.extend(inside.filter(is_directory).map(|entry| entry.path()));
        Some(directory)
    });
    found.take(MAX_CGROUPS).filter_map(move |directory| {
        let path = directory.strip_prefix(root).unwrap_or(&directory).to_string_lossy();
        // It may have been removed meanwhile.
        Some((fs::metadata(&directory).ok()?.ino(), format!("/{path}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_a_cgroup_namespace_are_completed() {
        let whole = |shown| below_namespace("/kubepods/podA/exporter", shown);
        assert_eq!(whole("/"), "/kubepods/podA/exporter");
        assert_eq!(whole("/init"), "/kubepods/podA/exporter/init");
        assert_eq!(whole("/../web"), "/kubepods/podA/web");
        assert_eq!(whole("/../../../system.slice/a.service"), "/system.slice/a.service");
        assert_eq!((whole("/../../.."), whole("/../../../..")), ("/".into(), "/".into()));
    }
}
