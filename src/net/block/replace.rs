//! Files that are replaced at once: a reader, and whoever comes after a crash, finds the one before or the new one. When they were
//! last modified is when what is in them was last known to be so.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::clock::wall_seconds;

/// Writes a file in the place of the one before. Nobody else is to write the same one.
///
/// # Errors
/// What the system says; then the one before is there.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    let mut file = File::create(&next)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&next, path)
}

/// What is in the file is still so.
///
/// # Errors
/// What the system says.
pub(super) fn touch(path: &Path) -> io::Result<()> {
    File::options().write(true).open(path)?.set_modified(SystemTime::now())
}

/// How many seconds ago that was; `None` if there is no such file.
pub(super) fn age(path: &Path) -> Option<i64> {
    let modified = fs::metadata(path).and_then(|data| data.modified()).ok()?;
    let modified = modified.duration_since(UNIX_EPOCH).ok()?.as_secs() as i64;
    Some((wall_seconds() - modified).max(0))
}
