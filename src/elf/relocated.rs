//! Instructions that the loader changes before they run (text relocations).
//!
//! The kernel sets its breakpoint when the loader maps the code, and executes the instruction that it found in the file then. The
//! loader changes that instruction in memory later, next to the breakpoint, so a probed one would run unrelocated.

use iced_x86::{Decoder, DecoderOptions};
use object::elf;

use super::Headers;
use super::headers::LE;
use super::probeable::LONGEST_INSTRUCTION;

/// Bytes that a relocation changes at most.
const MAX_BYTES: u64 = 8;

impl Headers<'_> {
    /// Returns whether the loader changes the instruction at this address, whose code this is.
    pub(super) fn is_relocated(&self, vaddr: u64, code: &[u8]) -> bool {
        if !self.has_relocated_code {
            return false;
        }
        let code = &code[..code.len().min(LONGEST_INSTRUCTION)];
        let length = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE).decode().len() as u64;
        let changed = |at: u64| at < vaddr.saturating_add(length) && vaddr < at.saturating_add(MAX_BYTES);
        self.relocation_table().unwrap_or_default().iter().any(|entry| changed(entry.r_offset.get(LE)))
            || self.packed_relocations().into_iter().any(changed)
    }

    /// Returns the addresses of the pointers in the packed table of relocations (`DT_RELR`): even words are addresses,
    /// odd ones sets of bits for the 63 words that follow.
    fn packed_relocations(&self) -> Vec<u64> {
        let dynamic = self.dynamic();
        let value = |tag| dynamic.iter().find(|(of, _)| *of == tag).map(|(_, value)| *value);
        let (Some(at), Some(size)) = (value(elf::DT_RELR), value(elf::DT_RELRSZ)) else { return Vec::new() };
        let table = self.loaded_from(at).unwrap_or_default();
        let table = &table[..table.len().min(usize::try_from(size).unwrap_or(usize::MAX))];
        let (mut found, mut next) = (Vec::new(), 0u64);
        for word in table.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)) {
            if word & 1 == 0 {
                found.push(word);
                next = word.wrapping_add(8);
            } else {
                let set = (1..64).filter(|bit| word >> bit & 1 == 1);
                found.extend(set.map(|bit| next.wrapping_add(8 * (bit - 1))));
                next = next.wrapping_add(8 * 63);
            }
        }
        found
    }

    /// Returns whether the file asks the loader to make the code writable and to change it.
    pub(super) fn asks_to_relocate_code(&self) -> bool {
        self.dynamic().into_iter().any(|(tag, value)| match tag {
            elf::DT_TEXTREL => true,
            elf::DT_FLAGS => value & elf::DF_TEXTREL.0 != 0,
            _ => false,
        })
    }
}
