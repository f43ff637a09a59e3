//! The probe programs: loading them, filling their tables, and the memory that is shared with them.

mod bank;
mod control;
mod error;
mod load;
mod mapping;
mod misses;
mod starts;
mod tables;

pub use bank::KernelBank;
pub use control::{Clock, Control};
pub use error::{KernelError, kernel_release};
pub(crate) use load::log_libbpf;
pub use load::{Attach, How, Kernel, Placed, Shared, choose, detach};
pub(crate) use mapping::Mapping;
pub use misses::{Loaded, misses};
pub use starts::Sweep;
