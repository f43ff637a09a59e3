//! Go programs: the names of their functions and where they can be probed. Go has its own calling convention, moves its
//! stacks, and stores the names of functions in a table of its own.

mod entry;
mod exits;

pub(super) use entry::{entry, wrappers};
pub(super) use exits::exits;
