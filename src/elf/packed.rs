//! The contents of sections, which linkers and `objcopy` compress in several ways.

use std::borrow::Cow;
use std::io::Read;

use flate2::read::ZlibDecoder;
use object::elf::{ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD, SHF_COMPRESSED};
use object::read::elf::SectionHeader;
use ruzstd::decoding::StreamingDecoder;

use super::Image;
use super::headers::LE;

/// Larger sections are not read.
const MAX_BYTES: u64 = 1 << 30;

/// Returns whether a section of this name exists, including one compressed by older binutils (`.zdebug_info`).
pub(super) fn is_there(image: &Image<'_>, name: &[u8]) -> bool {
    image.section(name).is_some() || old_name(name).is_some_and(|old| image.section(&old).is_some())
}

/// Returns a section's decompressed bytes; empty if there is no such section. `None` if it is damaged, too large, or
/// compressed in an unsupported way.
pub(super) fn contents<'a>(image: &Image<'a>, name: &[u8]) -> Option<Cow<'a, [u8]>> {
    let Some(section) = image.section(name) else { return old_section(image, name) };
    let data = image.section_data(section)?;
    if !section.sh_flags(LE).contains(SHF_COMPRESSED) {
        return (data.len() as u64 <= MAX_BYTES).then_some(Cow::Borrowed(data));
    }
    // Elf64_Chdr: type, reserved, size, alignment.
    let kind = u32::from_le_bytes(*data.first_chunk()?);
    let size = u64::from_le_bytes(*data.get(8..)?.first_chunk()?);
    let packed = data.get(24..)?;
    match kind {
        kind if kind == ELFCOMPRESS_ZLIB.0 => unpacked(ZlibDecoder::new(packed), size),
        kind if kind == ELFCOMPRESS_ZSTD.0 => unpacked(StreamingDecoder::new(packed).ok()?, size),
        _ => None,
    }
}

/// Returns a section compressed by older binutils: `.zdebug_info` starts with `ZLIB` and the big-endian size, followed
/// by the contents.
fn old_section<'a>(image: &Image<'a>, name: &[u8]) -> Option<Cow<'a, [u8]>> {
    let Some(section) = old_name(name).and_then(|old| image.section(&old)) else {
        return Some(Cow::Borrowed(&[]));
    };
    let data = image.section_data(section)?.strip_prefix(b"ZLIB")?;
    unpacked(ZlibDecoder::new(data.get(8..)?), u64::from_be_bytes(*data.first_chunk()?))
}

fn old_name(name: &[u8]) -> Option<Vec<u8>> {
    Some([b".z", name.get(1..)?].concat())
}

fn unpacked<'a>(decoder: impl Read, size: u64) -> Option<Cow<'a, [u8]>> {
    if size > MAX_BYTES {
        return None;
    }
    let mut unpacked = Vec::new();
    decoder.take(size).read_to_end(&mut unpacked).ok()?;
    Some(Cow::Owned(unpacked))
}
