//! Attaches to libraries before any process loads them, in the directories where loaders will look.
//!
//! A program can call a library as soon as it has loaded it, sooner than the kernel can set a breakpoint. So files with
//! the name of a target's library are attached in advance, as candidates: only hits of selected processes count.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::state::Candidate;
use super::worker::Worker;
use crate::plan::TargetPlan;
use crate::regular;
use crate::selectors::{FileSelector, Pattern};

/// Files of one target that are attached before any process has loaded them.
const MAX_AHEAD: usize = 16;

/// Directories in which loaders always look, besides the one that a library was loaded from.
const USUAL: [&str; 6] =
    ["/usr/local/lib", "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/lib/x86_64-linux-gnu"];

impl Worker {
    /// Attaches to files of the target's library that processes may load, given the mappings that were just read.
    pub(super) fn attach_ahead(&mut self, target: usize, planned: &TargetPlan) {
        let FileSelector::Library(name) = &planned.selector.file else { return };
        if self.finder.directories.is_empty() {
            return;
        }
        let read = self.finder.directories.clone();
        let meant: HashSet<u32> = self.finder.of_target(target, &planned.selector).into_iter().collect();
        let mut looked = HashSet::new();
        for (pid, directories) in read.into_iter().filter(|(pid, _)| meant.contains(pid)) {
            let root = PathBuf::from(format!("/proc/{pid}/root"));
            let Ok(meta) = fs::metadata(&root) else { continue };
            for directory in places(pid, directories) {
                if looked.insert((meta.dev(), meta.ino(), directory.clone())) {
                    for file in files(&root, &directory, name) {
                        self.attach_one_ahead(target, planned, &root, &file);
                    }
                }
            }
        }
    }

    fn attach_one_ahead(&mut self, target: usize, planned: &TargetPlan, root: &Path, path: &Path) {
        let Some(at) = path_inside(root, path) else { return };
        let Ok(found) = self.finder.look_at(&at, path.display().to_string()) else { return };
        let state = &mut self.targets[target];
        let known = state.candidates.iter_mut().find(|of| of.attached.identity == found.identity);
        if let Some(candidate) = known {
            (candidate.path, candidate.since) = (Some(at), Instant::now());
            return;
        }
        let ahead = state.candidates.iter().filter(|candidate| candidate.path.is_some()).count();
        if state.knows(found.identity) || ahead >= MAX_AHEAD {
            return;
        }
        let Some(attached) = self.attach_candidate(planned, &found) else { return };
        let state = &mut self.targets[target];
        if attached.is_attached() {
            log::debug!("Target {}: {} may be loaded; attached ahead", planned.name, found.display);
            state.candidates.push(Candidate { attached, since: Instant::now(), path: Some(at) });
            self.publish_missing(target, planned);
        } else {
            state.leave(attached, false, &planned.name);
        }
    }
}

/// The directories in which a process may look for libraries, including those from which it has loaded one.
fn places(pid: u32, mut directories: BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
    let beside: Vec<_> =
        directories.iter().flat_map(|of| ["../lib", "../lib64"].map(|to| of.join(to))).collect();
    directories.extend(beside);
    directories.extend(fs::read_link(format!("/proc/{pid}/cwd")));
    directories.extend(USUAL.map(PathBuf::from));
    directories.retain(|directory| directory.is_absolute());
    directories
}

/// Paths below `root` of the files in a directory whose name matches.
fn files(root: &Path, directory: &Path, name: &Pattern) -> Vec<PathBuf> {
    if let Some(name) = name.as_literal() {
        return vec![directory.join(name)];
    }
    let all = regular::read_directory_inside(root, directory).unwrap_or_default();
    let fitting = all.into_iter().filter(|file| name.matches(&file.to_string_lossy()));
    fitting.take(MAX_AHEAD).map(|file| directory.join(file)).collect()
}

/// The path in this mount namespace, without links, of the file that the path below `root` leads to.
fn path_inside(root: &Path, path: &Path) -> Option<PathBuf> {
    let file = regular::open_inside(root, path).ok()?;
    let meta = file.metadata().ok()?;
    let inside = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    let below = root.join(inside.strip_prefix("/").ok()?);
    [below, inside].into_iter().find(|path| {
        fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (meta.dev(), meta.ino()))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn symlinks_resolve_inside_the_process_root() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("usr/lib")).unwrap();
        fs::write(root.join("usr/lib/libx.so.1.2"), "x").unwrap();
        symlink("/usr/lib/libx.so.1.2", root.join("usr/lib/libx.so.1")).unwrap();
        let found = path_inside(&root, Path::new("/usr/lib/libx.so.1"));
        assert_eq!(found, Some(root.join("usr/lib/libx.so.1.2")));
        assert_eq!(path_inside(&root, Path::new("/usr/lib")), None);
        assert_eq!(path_inside(&root, Path::new("/usr/lib/none")), None);
    }

    #[test]
    fn search_paths_include_directories_of_loaded_libraries() {
        let found = places(std::process::id(), BTreeSet::from(["/opt/app/modules".into(), "memfd:x".into()]));
        let own = std::env::current_dir().unwrap();
        for directory in
            ["/opt/app/modules", "/opt/app/modules/../lib", "/usr/local/lib", own.to_str().unwrap()]
        {
            assert!(found.contains(Path::new(directory)), "{directory}: {found:?}");
        }
        assert!(!found.contains(Path::new("memfd:x")));
    }
}
