//! The probe programs: loading them, filling their tables, and the memory that is shared with them.

mod bank;
mod control;
mod load;
mod mapping;
mod tables;

pub use bank::KernelBank;
pub use control::{Clock, Control};
pub use load::{Attach, How, Kernel, KernelError, Placed, Shared, Sweep, choose, detach, kernel_release};
