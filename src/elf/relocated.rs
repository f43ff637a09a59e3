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
