//! Where the symbols of a stripped program may be.

use std::path::{Path, PathBuf};

use super::headers::{Headers, bounded_str};

const DEBUG_ROOT: &str = "/usr/lib/debug";

/// The places where a separate debug file of the program at `path` may be, the likeliest first: by its
/// build-id, then by the name in its `.gnu_debuglink` section, as GDB looks for them. Nothing is opened; a
/// file found there is to be parsed and given to [`super::Image::with_debug_symbols`], which checks that it fits.
pub fn debug_file_candidates(image: &Headers<'_>, path: &Path) -> Vec<PathBuf> {
    let mut candidates = Vec::new();
    if let Some(id) = image.build_id().filter(|id| (2..=64).contains(&id.len())) {
        let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        candidates.push(
            Path::new(DEBUG_ROOT).join(".build-id").join(&hex[..2]).join(format!("{}.debug", &hex[2..])),
        );
    }
    if let (Some((name, _)), Some(dir)) = (debuglink(image), path.parent()) {
        candidates.push(dir.join(name));
        candidates.push(dir.join(".debug").join(name));
        candidates.push(Path::new(DEBUG_ROOT).join(dir.strip_prefix("/").unwrap_or(dir)).join(name));
        candidates.retain(|candidate| candidate != path);
    }
    candidates
}

/// The file name in `.gnu_debuglink`, and the checksum of that file's contents. A path there would lead out of the
/// directories that are looked at.
pub(super) fn debuglink<'a>(image: &Headers<'a>) -> Option<(&'a str, u32)> {
    let data = image.section_data(image.section(b".gnu_debuglink")?)?;
    let name = std::str::from_utf8(bounded_str(data, 0)?).ok()?;
    let checksum = data.get((name.len() + 1).next_multiple_of(4)..)?.first_chunk()?;
    let is_name = !name.is_empty() && name != "." && name != ".." && !name.contains('/');
    is_name.then_some((name, u32::from_le_bytes(*checksum)))
}

/// The checksum that `.gnu_debuglink` has of a debug file's contents.
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}
