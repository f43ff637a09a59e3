//! Go programs: what their functions are named and where they can be probed. Go has its own calling convention, moves
//! its stacks, and keeps the names of functions in a table of its own.

mod entry;
mod exits;

pub(super) use entry::{entry, wrappers};
pub(super) use exits::exits;
