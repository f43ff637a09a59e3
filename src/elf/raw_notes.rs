//! Notes of any kind: a sequence of owner, type and description.

/// A note of any kind.
pub(super) struct RawNote<'a> {
    /// Its offset in the section or segment.
    pub at: usize,
    /// The owner's name without its NUL.
    pub owner: &'a [u8],
    pub kind: u32,
    pub desc: &'a [u8],
}

/// Iterates over a block of notes; stops after the first malformed one, which it returns as (offset, reason).
pub(super) struct RawNotes<'a> {
    data: &'a [u8],
    at: usize,
    align: usize,
}

impl<'a> RawNotes<'a> {
    /// `align` is the alignment of the section or segment: 8 is honored, anything else means 4, as in binutils.
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
            Err(err) => {
                let at = std::mem::replace(&mut self.at, self.data.len());
                Some(Err((at, err)))
            }
        }
    }
}

/// The caller has checked the bounds.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn walks_any_owner_and_stops_at_a_malformed_note() {
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
