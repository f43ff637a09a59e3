//! Names of cgroups.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::containers::Containers;

/// Folders that are looked at for one name.
const MOST_FOLDERS: usize = 10_000;

/// Looks up names, and remembers them.
#[derive(Debug, Default)]
pub struct Cgroups {
    known: HashMap<u64, String>,
}

impl Cgroups {
    /// The path of the cgroup with this id (of version 2, where it is the inode of its folder), from the root of the
    /// hierarchy; of a container's, the container's name, or its id cut to twelve digits. A cgroup that is gone is its number.
    pub fn name(&mut self, id: u64) -> &str {
        self.known.entry(id).or_insert_with(|| {
            hierarchy()
                .and_then(|root| find(&root, id).map(|path| shown(&path, &root, &Containers::default())))
                .unwrap_or_else(|| id.to_string())
        })
    }
}

/// Where the hierarchy of version 2 is mounted.
fn hierarchy() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (at, kind) = (words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(at))
    })
}

fn find(root: &Path, id: u64) -> Option<PathBuf> {
    let mut folders = vec![root.to_path_buf()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        seen += 1;
        if seen > MOST_FOLDERS {
            return None;
        }
        if fs::metadata(&folder).is_ok_and(|meta| meta.ino() == id) {
            return Some(folder);
        }
        let inside = fs::read_dir(&folder).into_iter().flatten().flatten();
        folders.extend(inside.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()));
    }
    None
}

fn shown(path: &Path, root: &Path, names: &Containers) -> String {
    let path = path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned();
    let container = path.split(|c: char| !c.is_ascii_hexdigit()).find(|part| part.len() == 64);
    match container {
        Some(id) => names.name(id).unwrap_or_else(|| id[..12].to_string()),
        None => format!("/{path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_shown_by_their_short_id() {
        let none = Containers::default();
        let id = "0123456789abcdef".repeat(4);
        let path = PathBuf::from(format!("/c/system.slice/docker-{id}.scope"));
        assert_eq!(shown(&path, Path::new("/c"), &none), "0123456789ab");
        assert_eq!(shown(Path::new("/c/user.slice/a.scope"), Path::new("/c"), &none), "/user.slice/a.scope");
        assert_eq!(shown(Path::new("/c"), Path::new("/c"), &none), "/");
    }

    #[test]
    fn a_cgroup_that_is_not_there_is_its_number() {
        assert_eq!(Cgroups::default().name(u64::MAX), u64::MAX.to_string());
    }
}
