//! Where the symbols of a stripped program may be found.

use std::path::{Path, PathBuf};

use super::headers::{Headers, bounded_str};

const DEBUG_ROOT: &str = "/usr/lib/debug";

/// Returns where a separate debug file of the program at `path` may be, the likeliest first: by its build ID, then by
/// the name in its `.gnu_debuglink` section, in the order in which GDB searches. Nothing is opened; the caller parses a
/// file found there and passes it to [`super::Image::with_debug_symbols`], which checks that it matches.
pub fn debug_file_candidates(image: &Headers<'_>, path: &Path) -> Vec<PathBuf> {
    let mut candidates = Vec::new();
    if let Some(id) = image.build_id().filter(|id| (2..=64).contains(&id.len())) {
        candidates.push(by_build_id(&id));
    }
    if let (Some((name, _)), Some(dir)) = (debuglink(image), path.parent()) {
        candidates.push(dir.join(name));
        candidates.push(dir.join(".debug").join(name));
        candidates.push(Path::new(DEBUG_ROOT).join(dir.strip_prefix("/").unwrap_or(dir)).join(name));
        candidates.retain(|candidate| candidate != path);
    }
    candidates
}

/// Returns the path of a debug file by its build ID, which is not empty.
fn by_build_id(id: &[u8]) -> PathBuf {
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    Path::new(DEBUG_ROOT).join(".build-id").join(&hex[..2]).join(format!("{}.debug", &hex[2..]))
}

/// Returns the file name in `.gnu_debuglink`, and the checksum of that file's contents. A path instead of a name is
/// rejected: it would lead out of the searched directories.
pub(super) fn debuglink<'a>(image: &Headers<'a>) -> Option<(&'a str, u32)> {
    let data = image.section_data(image.section(b".gnu_debuglink")?)?;
    let name = std::str::from_utf8(bounded_str(data, 0)?).ok()?;
    let checksum = data.get((name.len() + 1).next_multiple_of(4)..)?.first_chunk()?;
    let is_name = !name.is_empty() && name != "." && name != ".." && !name.contains('/');
    is_name.then_some((name, u32::from_le_bytes(*checksum)))
}

/// Returns the path in `.gnu_debugaltlink`, and the build ID, of the file that holds the debug information which this
/// file shares with others.
pub(super) fn altlink<'a>(image: &Headers<'a>) -> Option<(&'a str, &'a [u8])> {
    let data = image.section_data(image.section(b".gnu_debugaltlink")?)?;
    let name = bounded_str(data, 0)?;
    let id = data.get(name.len() + 1..).filter(|id| (2..=64).contains(&id.len()))?;
    Some((std::str::from_utf8(name).ok().filter(|name| !name.is_empty())?, id))
}

/// Returns where the file may be that holds the debug information which the file at `path` shares with others, in the
/// order in which GDB searches. The caller passes a file found there to [`super::SymbolIndex::with_shared_debug`],
/// which checks that it matches. Empty if there is no such file.
pub fn shared_debug_candidates(image: &Headers<'_>, path: &Path) -> Vec<PathBuf> {
    let Some((name, id)) = altlink(image) else { return Vec::new() };
    // An absolute path is left unchanged.
    let beside = path.parent().map(|directory| directory.join(name));
    beside.into_iter().chain([by_build_id(id)]).collect()
}

/// Computes the checksum of a debug file's contents that `.gnu_debuglink` records.
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}
