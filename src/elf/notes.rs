//! USDT notes: where a program's own probes are and how each argument is to be found.
//!
//! The format is SystemTap's: section `.note.stapsdt`, owner `stapsdt`, type 3. Each description holds three
//! addresses (the probe, the link-time address of `.stapsdt.base`, the semaphore or 0) and three strings
//! (provider, name, arguments). See <https://sourceware.org/systemtap/wiki/UserSpaceProbeImplementation>.

use object::read::elf::SectionHeader;

use super::ElfError;
use super::headers::{Headers, LE};
use super::raw_notes::RawNotes;

const OWNER: &[u8] = b"stapsdt";
const TYPE: u32 = 3;

/// One site of one USDT probe, as the program's build recorded it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub provider: String,
    pub name: String,
    /// Address of the probed instruction, corrected for a program that was moved after linking (prelink).
    pub location: u64,
    /// Address of the 16-bit counter that the program tests before it prepares the arguments, corrected in
    /// the same way. 0 when the probe has none.
    pub semaphore: u64,
    /// The arguments' forms, for [`super::parse_args`].
    pub args: String,
}

/// Sections of notes that are read: a linker makes one, unless a script or `--unique` keeps those of its inputs apart.
const SECTIONS_MAX: usize = 4096;

/// All USDT notes of a file, in their order in it. An empty section gives no notes; no section is
/// [`ElfError::NoNotes`], and no sections at all are [`ElfError::NoSections`].
pub fn notes(image: &Headers<'_>) -> Result<Vec<Note>, ElfError> {
    let base = image.section(b".stapsdt.base").map(|s| s.sh_addr(LE));
    let mut found = None;
    let mut room = image.bytes().len();
    for section in image.sections_named(b".note.stapsdt").take(SECTIONS_MAX) {
        let malformed =
            |reason: &str| ElfError::Malformed { what: ".note.stapsdt section", reason: reason.to_owned() };
        let data =
            image.section_data(section).ok_or_else(|| malformed("it extends past the end of the file"))?;
        // Headers that all name the same bytes would multiply the work.
        room = room.checked_sub(data.len()).ok_or_else(|| malformed("several sections overlap"))?;
        let start = section.sh_offset(LE);
        let found = found.get_or_insert_with(Vec::new);
        for raw in RawNotes::new(data, section.sh_addralign(LE)) {
            let raw = raw.map_err(|(at, reason)| ElfError::BadNote { offset: start + at as u64, reason })?;
            if raw.owner == OWNER && raw.kind == TYPE {
                let bad = |reason| ElfError::BadNote { offset: start + raw.at as u64, reason };
                found.push(note(raw.desc, base).map_err(bad)?);
            }
        }
    }
    found.ok_or(if image.has_sections() { ElfError::NoNotes } else { ElfError::NoSections })
}

fn note(desc: &[u8], base: Option<u64>) -> Result<Note, &'static str> {
    let (addresses, strings) = desc.split_at_checked(24).ok_or("shorter than its three addresses")?;
    let address = |i: usize| u64_at(addresses, i * 8);
    // Notes that were not made by SystemTap's macros may leave out the base: it is never at address 0.
    let moved_by = base.filter(|_| address(1) != 0).map_or(0, |now| now.wrapping_sub(address(1)));
    let semaphore = match address(2) {
        0 => 0,
        linked => linked.wrapping_add(moved_by),
    };
    let mut strings = strings.split(|&b| b == 0);
    let mut string = |reason| strings.next().map(|s| String::from_utf8_lossy(s).into_owned()).ok_or(reason);
    let provider = string("no provider")?;
    let name = string("no name after the provider")?;
    let args = string("no arguments after the name")?;
    // split() gives one more piece than there are NULs, so a fourth one proves that the third was closed.
    string("the arguments are not NUL-terminated")?;
    Ok(Note { provider, name, location: address(0).wrapping_add(moved_by), semaphore, args })
}

/// The caller has checked that the bytes are there.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desc(location: u64, base: u64, semaphore: u64, strings: &[u8]) -> Vec<u8> {
        let mut desc = Vec::new();
        for address in [location, base, semaphore] {
            desc.extend(address.to_le_bytes());
        }
        desc.extend(strings);
        desc
    }

    #[test]
    fn a_description_is_three_addresses_and_three_strings() {
        let bytes = desc(0x1010, 0x2000, 0x3000, b"net\0inbound_message\08@%rax -4@$5\0");
        let read = note(&bytes, None).unwrap();
        assert_eq!(
            read,
            Note {
                provider: "net".into(),
                name: "inbound_message".into(),
                location: 0x1010,
                semaphore: 0x3000,
                args: "8@%rax -4@$5".into()
            }
        );
    }

    #[test]
    fn a_moved_base_moves_both_addresses_but_not_an_absent_semaphore() {
        let with = note(&desc(0x1010, 0x2000, 0x3000, b"p\0n\0\0"), Some(0x7000)).unwrap();
        assert_eq!((with.location, with.semaphore), (0x6010, 0x8000));
        let down = note(&desc(0x7010, 0x8000, 0, b"p\0n\0\0"), Some(0x2000)).unwrap();
        assert_eq!((down.location, down.semaphore), (0x1010, 0));
        let without = note(&desc(0x1010, 0, 0x3000, b"p\0n\0\0"), Some(0x7000)).unwrap();
        assert_eq!((without.location, without.semaphore), (0x1010, 0x3000));
    }

    #[test]
    fn a_short_description_and_an_unclosed_string_are_named() {
        assert_eq!(note(&[0; 23], None), Err("shorter than its three addresses"));
        assert_eq!(note(&desc(0, 0, 0, b"p\0n"), None), Err("no arguments after the name"));
        assert_eq!(note(&desc(0, 0, 0, b"p\0n\08@%rax"), None), Err("the arguments are not NUL-terminated"));
    }
}
