//! The probe programs: loading them, filling their tables, and the memory shared with them.

mod accounting;
mod armed;
mod attach;
mod beside;
mod bytes;
mod control;
mod error;
mod events;
mod exec_gate;
mod exec_watchdog;
mod files;
mod filtering;
mod filters;
mod guard;
mod lease;
mod link_kind;
mod links;
mod load;
mod misses;
mod pinnable_link;
mod pinned_maps;
mod placed;
mod prices;
mod readers;
mod refusal;
mod ring;
mod sizes;
mod starts;
mod storage;
mod store;
mod tables;
mod tickets;

pub use accounting::Accounting;
pub(crate) use accounting::{Counts, LOST, Losses, SLOW_LOST, SlowCounts};
pub use armed::BREAKPOINT;
pub use attach::AttachRequest;
pub(crate) use attach::is_large;
pub use control::{Clock, Control};
pub use error::{KernelError, kernel_release};
pub(crate) use events::process_event;
pub use events::{
    FileKey, FileUse, KnownUnless, MAX_HOLD, NamedFile, ProcessChange, ProcessEvent, ProcessEvents,
    TrappedCode, Wanted,
};
pub use exec_gate::{ExecGate, Waker, apart, be_ordinary, be_prompt};
pub use files::{Files, Inode, MappedPart, PidNamespace};
pub(crate) use filters::Filter;
pub(crate) use guard::Guard;
pub use lease::{Lease, LeaseBreak, LeaseBreaks, NoLease};
pub use link_kind::{Attach, choose};
pub use links::Rearmed;
pub(crate) use load::Pinning;
pub use load::{Kernel, Shape, SharedHandles};
pub use misses::{LoadedProgram, misses};
pub use pinnable_link::{PinnableLink, detach, release};
pub use placed::{AttachMethod, Attached, PlacedSite};
pub use prices::{Prices, SharedPrices};
pub use readers::{MAX_READER_WAIT, ReaderChange, ReaderEvent, Readers};
pub use refusal::{Refusal, RefusalKind};
pub use starts::Sweep;
pub use store::KernelStore;
pub use tickets::can_make_wait;
