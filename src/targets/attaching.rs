//! What managers of one process have in common.

use std::sync::Arc;

use super::gate::Gate;
use super::readers::SharedReaders;
use crate::kernel::{Attach, SharedPrices, can_make_wait};

/// How probes are attached, and what all who attach share.
#[derive(Debug, Clone)]
pub struct Attaching {
    pub kind: Attach,
    /// What a hit costs.
    pub prices: SharedPrices,
    /// Holds back programs whose file is being replaced; None where the right to that is missing, and where it is not needed: a kernel that
    /// makes programs wait itself lets them go on by itself, too.
    pub(super) gate: Option<Arc<Gate>>,
    /// Keeps breakpoints from those who read traced files.
    pub(super) readers: Arc<SharedReaders>,
}

impl Attaching {
    /// Makes what needs rights that are given up later; `give_up` gives them up, before any thread is created.
    pub fn prepare<T>(kind: Attach, give_up: impl FnOnce() -> T) -> (Self, T) {
        let gate = if can_make_wait() { None } else { Gate::prepare() };
        let given_up = give_up();
        gate.iter().for_each(|gate| gate.start());
        (Self { kind, prices: SharedPrices::default(), gate, readers: Arc::default() }, given_up)
    }

    /// Where no rights are given up.
    pub fn new(kind: Attach) -> Self {
        Self::prepare(kind, || ()).0
    }
}
