//! Go programs: what their functions are named and where they can be probed. Go has its own calling convention, moves
//! its stacks, and keeps the names of functions in a table of its own.

mod entry;
mod exits;
mod pclntab;
mod text;

use super::Convention;

pub(super) use entry::{entry, wrappers};
pub(super) use exits::exits;
pub(super) use pclntab::{Layout, Pclntab, is_marked};

/// A function of a Go program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Function<'a> {
    /// As the linker has it: `net/http.(*conn).serve`, `main.main.func1`, `main.Map[...]`.
    pub name: &'a str,
    pub entry: u64,
    /// Where the next function begins; what lies between is padding.
    pub end: u64,
    /// Written in assembly, as far as the table says; before Go 1.18 it does not.
    pub is_assembly: bool,
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    data.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}
