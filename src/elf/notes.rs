//! USDT notes: where a program's own probes are and how each argument is to be found.
//!
//! The format is SystemTap's: section `.note.stapsdt`, owner `stapsdt`, type 3. Each description holds three
//! addresses (the probe, the link-time address of `.stapsdt.base`, the semaphore or 0) and three strings
//! (provider, name, arguments). See <https://sourceware.org/systemtap/wiki/UserSpaceProbeImplementation>.

use object::read::elf::SectionHeader;

use super::image::LE;
use super::{ElfError, Image};

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

/// All USDT notes of a file, in their order in it. An empty section gives no notes; no section is
/// [`ElfError::NoNotes`].
pub fn notes(image: &Image<'_>) -> Result<Vec<Note>, ElfError> {
    // A linked file has one section of that name.
    let section = image.section(b".note.stapsdt").ok_or(ElfError::NoNotes)?;
    let data = image.section_data(section).ok_or_else(|| ElfError::Malformed {
        what: ".note.stapsdt section",
        why: "it extends past the end of the file".to_owned(),
    })?;
    let start = section.sh_offset(LE);
    let base = image.section(b".stapsdt.base").map(|s| s.sh_addr(LE));

    let mut found = Vec::new();
    for raw in RawNotes::new(data, section.sh_addralign(LE)) {
        let raw = raw.map_err(|(at, why)| ElfError::BadNote { offset: start + at as u64, why })?;
        if raw.owner == OWNER && raw.kind == TYPE {
            let bad = |why| ElfError::BadNote { offset: start + raw.at as u64, why };
            found.push(note(raw.desc, base).map_err(bad)?);
        }
    }
    Ok(found)
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
    let mut string = |why| strings.next().map(|s| String::from_utf8_lossy(s).into_owned()).ok_or(why);
    let provider = string("no provider")?;
    let name = string("no name after the provider")?;
    let args = string("no arguments after the name")?;
    // split() gives one more piece than there are NULs, so a fourth one proves that the third was closed.
    string("the arguments are not NUL-terminated")?;
    Ok(Note { provider, name, location: address(0).wrapping_add(moved_by), semaphore, args })
}

/// A note of any kind.
pub(super) struct RawNote<'a> {
    /// Where it starts in the section or segment.
    pub at: usize,
    /// The owner's name without its NUL.
    pub owner: &'a [u8],
    pub kind: u32,
    pub desc: &'a [u8],
}

/// Walks a block of notes; stops after the first malformed one, which it gives as (offset, reason).
pub(super) struct RawNotes<'a> {
    data: &'a [u8],
    at: usize,
    align: usize,
}

impl<'a> RawNotes<'a> {
    /// `align` is the section's or segment's: 8 only where it says so, else 4, as binutils has it.
    pub fn new(data: &'a [u8], align: u64) -> RawNotes<'a> {
        RawNotes { data, at: 0, align: if align == 8 { 8 } else { 4 } }
    }

    fn read(&self) -> Result<(RawNote<'a>, usize), &'static str> {
        let rest = &self.data[self.at..];
        let header = rest.get(..12).ok_or("shorter than a note header")?;
        let (owner_size, desc_size) = (u32_at(header, 0) as usize, u32_at(header, 4) as usize);
        let owner =
            rest.get(12..).and_then(|r| r.get(..owner_size)).ok_or("its owner extends past the end")?;
        // Both sizes are below 2^32 and inside the data, so these sums cannot overflow.
        let desc_at = (12 + owner_size).next_multiple_of(self.align);
        let desc = rest.get(desc_at..).and_then(|r| r.get(..desc_size)).ok_or("it extends past the end")?;
        let owner = owner.split(|&b| b == 0).next().unwrap_or(owner);
        let next = self.at + (desc_at + desc_size).next_multiple_of(self.align);
        Ok((RawNote { at: self.at, owner, kind: u32_at(header, 8), desc }, next))
    }
}

impl<'a> Iterator for RawNotes<'a> {
    type Item = Result<RawNote<'a>, (usize, &'static str)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.data.len() {
            return None;
        }
        match self.read() {
            Ok((note, next)) => {
                self.at = next;
                Some(Ok(note))
            }
            Err(why) => {
                let at = std::mem::replace(&mut self.at, self.data.len());
                Some(Err((at, why)))
            }
        }
    }
}

/// The caller has checked that the bytes are there.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

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

    fn raw(owner: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((owner.len() as u32).to_le_bytes());
        bytes.extend((desc.len() as u32).to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(owner);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(desc);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
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

    #[test]
    fn walks_notes_of_any_owner_and_stops_at_a_malformed_one() {
        let mut block = raw(b"GNU\0", 3, b"abcde");
        let second = block.len();
        block.extend(raw(b"stapsdt\0", 3, b"xy"));
        let third = block.len();
        block.extend([0xff; 12]);
        let mut walk = RawNotes::new(&block, 4);
        let one = walk.next().unwrap().unwrap();
        assert_eq!((one.at, one.owner, one.kind, one.desc), (0, &b"GNU"[..], 3, &b"abcde"[..]));
        let two = walk.next().unwrap().unwrap();
        assert_eq!((two.at, two.owner, two.desc), (second, &b"stapsdt"[..], &b"xy"[..]));
        assert_eq!(walk.next().unwrap().err(), Some((third, "its owner extends past the end")));
        assert!(walk.next().is_none());
    }
}
