//! Atomic replacement of files: a reader, also after a crash, finds either the old content or the new. A file's
//! modification time is when its content was last known to be current.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::clock::wall_seconds;

/// Replaces a file. There must be only one writer.
///
/// # Errors
/// From the system; the old content stays.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    let mut file = File::create(&next)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&next, path)
}

/// Marks the content as still current.
///
/// # Errors
/// From the system.
pub(super) fn touch(path: &Path) -> io::Result<()> {
    File::options().write(true).open(path)?.set_modified(SystemTime::now())
}

/// Seconds since the content was known to be current; `None` if there is no such file.
pub(super) fn age(path: &Path) -> Option<i64> {
    let modified = fs::metadata(path).and_then(|data| data.modified()).ok()?;
    let modified = modified.duration_since(UNIX_EPOCH).ok()?.as_secs() as i64;
    Some((wall_seconds() - modified).max(0))
}
