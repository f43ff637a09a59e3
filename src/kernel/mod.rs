//! The probe programs: loading them, filling their tables, and the memory that is shared with them.

mod accounting;
mod armed;
mod attach;
mod beside;
mod control;
mod error;
mod events;
mod files;
mod filters;
mod lease;
mod link_kind;
mod links;
mod load;
mod misses;
mod placed;
mod refusal;
mod starts;
mod store;
mod tables;

pub use accounting::Accounting;
pub(crate) use accounting::{Counts, LOST, Losses};
pub use control::{Clock, Control};
pub use error::{KernelError, kernel_release};
pub(crate) use events::process_event;
pub use events::{FileKey, ProcessChange, ProcessEvent, ProcessEvents, Wanted};
pub use files::{Files, Inode, PidNamespace};
pub(crate) use filters::Filter;
pub use lease::{Break, Breaks, Lease, NoLease};
pub use link_kind::{Attach, choose};
pub use links::detach;
pub use load::{Kernel, Shared};
pub use misses::{Loaded, misses};
pub use placed::{Attached, How, Placed};
pub use refusal::{Refusal, RefusalKind};
pub use starts::Sweep;
pub use store::KernelStore;
