//! What the probe managers of one process share.

use std::sync::Arc;

use super::gate::Gate;
use super::readers::SharedReaders;
use crate::kernel::{Attach, SharedPrices, can_make_wait};

/// The attach method and other state shared by all managers.
#[derive(Debug, Clone)]
pub struct Attaching {
    pub kind: Attach,
    /// The cost of a hit.
    pub prices: SharedPrices,
    /// Holds back programs whose file is being replaced. None without the necessary capabilities, and where it is not
    /// needed because the kernel itself makes programs wait.
    pub(super) gate: Option<Arc<Gate>>,
    /// Hides breakpoints from processes that read traced files.
    pub(super) readers: Arc<SharedReaders>,
}

impl Attaching {
    /// Creates what needs capabilities that are dropped later; `give_up` drops them, before any thread is created.
    pub fn prepare<T>(kind: Attach, give_up: impl FnOnce() -> T) -> (Self, T) {
        let gate = if can_make_wait() { None } else { Gate::prepare() };
        let given_up = give_up();
        gate.iter().for_each(|gate| gate.start());
        (Self { kind, prices: SharedPrices::default(), gate, readers: Arc::default() }, given_up)
    }

    /// Without dropping capabilities.
    pub fn new(kind: Attach) -> Self {
        Self::prepare(kind, || ()).0
    }
}
