//! Files that are replaced at once: a reader, and whoever comes after a crash, finds the one before or the new one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

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
