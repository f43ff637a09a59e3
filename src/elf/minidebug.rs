//! MiniDebugInfo: the names of a stripped program's own functions, compressed and embedded in the program, as on Fedora
//! and related distributions.

use super::Image;

/// The largest symbol file that is decompressed. That of a whole browser has 10 MiB.
const MAX_UNPACKED: u64 = 64 << 20;

/// Returns the decompressed ELF file in `.gnu_debugdata`. `None` if there is none, it is damaged, or it is too large.
pub fn embedded_symbols(image: &Image<'_>) -> Option<Vec<u8>> {
    let packed = image.section_data(image.section(b".gnu_debugdata")?)?;
    let size = unpacked_size(packed).filter(|size| *size <= MAX_UNPACKED)?;
    let mut unpacked = Vec::with_capacity(usize::try_from(size).ok()?);
    let mut input = packed;
    lzma_rs::xz_decompress(&mut input, &mut unpacked).ok()?;
    Some(unpacked)
}

/// Returns the decompressed size of an xz file according to the headers of its chunks: a decoder produces no more than
/// that, whatever the file's index says.
fn unpacked_size(xz: &[u8]) -> Option<u64> {
    let header = xz.first_chunk::<12>().filter(|header| header.starts_with(b"\xfd7zXZ\0"))?;
    let check: usize = match header[7] & 0x0f {
        0 => 0,
        n => 4 << ((n - 1) / 3),
    };
    let byte = |at: usize| xz.get(at).copied();
    let half = |at: usize| Some(u64::from(u16::from_be_bytes([byte(at)?, byte(at + 1)?])));
    let mut at = header.len();
    let mut size = 0_u64;
    // An index begins with 0.
    while byte(at)? != 0 {
        let block = at;
        at += (usize::from(byte(at)?) + 1) * 4;
        loop {
            let control = byte(at)?;
            let packed = match control {
                0 => break,
                1 | 2 => {
                    let bytes = half(at + 1)? + 1;
                    size = size.checked_add(bytes)?;
                    at += 3;
                    bytes
                }
                0x80.. => {
                    size = size.checked_add((u64::from(control & 0x1f) << 16) + half(at + 1)? + 1)?;
                    let packed = half(at + 3)? + 1;
                    at += if control >= 0xc0 { 6 } else { 5 };
                    packed
                }
                _ => return None,
            };
            at = at.checked_add(usize::try_from(packed).ok()?)?;
        }
        at = block + (at + 1 - block).next_multiple_of(4) + check;
    }
    Some(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacked_xz_size_is_known_beforehand() {
        use std::io::Cursor;
        for length in [0_usize, 1, 100, 200_000] {
            let text: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            let mut packed = Vec::new();
            lzma_rs::xz_compress(&mut Cursor::new(&text), &mut packed).unwrap();
            assert_eq!(unpacked_size(&packed), Some(length as u64));
            for cut in 0..packed.len().min(60) {
                let _ = unpacked_size(&packed[..cut]);
            }
        }
        assert_eq!(unpacked_size(b"not xz at all"), None);
    }
}
