//! Keeping probes attached: to targets that start late, restart, or are replaced by an upgrade.

mod debug_symbols;
mod file;
mod find;
mod follow;
mod generation;
mod identify;
mod libraries;
mod look;
mod manager;
mod outcome;
mod processes;
mod semaphores;
mod state;
mod status;
mod upgrade;
mod upkeep;
mod watch;
mod worker;

pub(crate) use debug_symbols::{DebugSymbols, debug_symbols, with_names};
pub use file::Found;
pub use find::find;
pub use generation::place;
pub use manager::Keeper;
pub use status::{ProbeState, ProbeStatus, Reattached, Status, TargetCounts};
