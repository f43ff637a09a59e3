//! Keeping probes attached: to targets that start late, restart, or are replaced by an upgrade.

mod attached_file;
mod cookies;
mod debug_symbols;
mod file;
mod find;
mod follow;
mod gate;
mod identify;
mod keep;
mod libraries;
mod look;
mod manager;
mod moved_code;
mod outcome;
mod processes;
mod record;
mod semaphores;
mod shed;
mod state;
mod status;
mod upgrade;
mod upkeep;
mod usage;
mod watch;
mod ways;
mod worker;

pub use attached_file::{Shed, place};
pub(crate) use debug_symbols::{DebugSymbols, debug_symbols, with_names};
pub use file::TargetFile;
pub use find::find;
pub use gate::prepare_gate;
pub(crate) use libraries::has_probes;
pub use manager::ProbeManager;
pub(crate) use record::{EngineRecord, StartState};
pub use status::{ProbeState, ProbeStatus, Reattached, Status, TargetCounts, Ticks, Usage};
