//! Keeping probes attached: to targets that start late, restart, or are replaced by an upgrade.

mod debug_symbols;
pub mod find;
mod generation;
mod keeper;
mod libraries;
mod outcome;
mod processes;
mod semaphores;
mod status;
mod upgrade;
mod watch;

pub(crate) use debug_symbols::{DebugSymbols, debug_symbols, with_names};
pub use generation::place;
pub use keeper::Keeper;
pub use status::{ProbeState, ProbeStatus, Reattached, Status, TargetCounts};
