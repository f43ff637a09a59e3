//! Directories of pinned objects: listing and removal.

use std::fs;
use std::path::{Path, PathBuf};

use super::{PinError, failed};

/// Links that are removed concurrently: the kernel waits for each.
const THREADS: usize = 32;

/// Names of a directory's entries; none if it cannot be read.
pub(super) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Removes a directory and its content: links first, several concurrently.
pub(super) fn remove_tree(directory: &Path) -> Result<(), PinError> {
    let (mut files, mut directories) = (Vec::new(), vec![directory.to_path_buf()]);
    let mut at = 0;
    while let Some(directory) = directories.get(at).cloned() {
        for name in names(&directory) {
            let path = directory.join(name);
            if path.symlink_metadata().is_ok_and(|about| about.is_dir()) {
                directories.push(path);
            } else {
                files.push(path);
            }
        }
        at += 1;
    }
    remove_files(files);
    directories
        .iter()
        .rev()
        .try_for_each(|directory| fs::remove_dir(directory).map_err(failed("remove", directory)))
}

/// Removes files, several concurrently.
pub(super) fn remove_files(files: Vec<PathBuf>) {
    let each = files.len().div_ceil(THREADS).max(1);
    std::thread::scope(|scope| {
        for some in files.chunks(each) {
            scope.spawn(|| some.iter().for_each(|path| drop(fs::remove_file(path))));
        }
    });
}
