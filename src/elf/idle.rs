//! Places in a program's code that no process ever executes.
//!
//! A process maps whole pages: after the last byte of a code segment, its page contains the linker's padding, and so do
//! gaps between its sections. A probe there is never hit, but exists: see `kernel::attach`.

use std::ops::Range;

use object::elf;
use object::read::elf::{ProgramHeader, SectionHeader};

use super::Image;
use super::headers::{LE, PAGE, executable};
use super::probeable::{Verdict, verdict};

/// Padding between two sections is shorter than any alignment that linkers use; anything longer is not padding.
const MAX_PADDING: u64 = 64;

/// One for each semaphore is enough.
const MAX_RANGES: usize = 256;

impl Image<'_> {
    /// Returns file offsets in executable pages at which no instruction is ever executed and no data read, and at which
    /// the kernel accepts a probe.
    pub fn idle_code(&self) -> Vec<u64> {
        let bytes_left = |offset: u64| {
            let start = usize::try_from(offset).ok()?;
            self.bytes().get(start..)
        };
        let is_probeable = |offset: &u64| {
            let code = bytes_left(*offset).unwrap_or_default();
            let code = &code[..code.len().min(16)];
            matches!(verdict(code), Verdict::SingleStepped | Verdict::Emulated)
        };
        let after = self.loads().filter(|segment| executable(segment)).flat_map(|segment| {
            let end = segment.p_offset(LE).saturating_add(segment.p_filesz(LE));
            let whole = segment.p_memsz(LE) == segment.p_filesz(LE);
            let page_end = end.checked_next_multiple_of(PAGE).filter(|_| whole).unwrap_or(end);
            (end..page_end).filter(|offset| !self.is_loaded(*offset))
        });
        after.chain(self.fill()).filter(is_probeable).take(MAX_RANGES).collect()
    }

    fn is_loaded(&self, offset: u64) -> bool {
        self.loads().any(|segment| {
            offset.checked_sub(segment.p_offset(LE)).is_some_and(|into| into < segment.p_filesz(LE))
        })
    }

    /// Iterates over the offsets between the sections of a code segment.
    fn fill(&self) -> impl Iterator<Item = u64> {
        let mut code: Vec<Range<u64>> = self
            .sections()
            .iter()
            .filter(|section| {
                let flags = section.sh_flags(LE);
                section.sh_type(LE) != elf::SHT_NOBITS
                    && flags.contains(elf::SHF_ALLOC)
                    && flags.contains(elf::SHF_EXECINSTR)
            })
            .map(|section| {
                let start = section.sh_offset(LE);
                start..start.saturating_add(section.sh_size(LE))
            })
            .collect();
        code.sort_by_key(|range| range.start);
        let gaps: Vec<Range<u64>> = code
            .windows(2)
            .map(|pair| pair[0].end..pair[1].start)
            .filter(|gap| gap.start < gap.end && gap.end - gap.start < MAX_PADDING)
            .collect();
        gaps.into_iter().flatten()
    }
}
