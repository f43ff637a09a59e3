//! Keeping probes attached: to targets that start late, restart, or are replaced by an upgrade.

pub mod find;
mod generation;
mod keeper;
mod outcome;
mod status;

pub use generation::place;
pub(crate) use generation::{debug_file, with_names};
pub use keeper::Keeper;
pub use status::{ProbeState, ProbeStatus, Status};
