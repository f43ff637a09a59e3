//! Keeping probes attached: to targets that start late, restart, or are replaced by an upgrade.

pub mod find;
mod generation;
mod keeper;
mod status;

pub use keeper::Keeper;
pub use status::{ProbeState, ProbeStatus, Status};
