//! The page that is shared with the probe programs: what the drain thread waits for, and which time it is.

use std::sync::atomic::Ordering;

use crate::abi::{ControlView, wake};
use crate::mapping::Mapped;

/// The control page.
#[derive(Debug)]
pub struct Control {
    page: Mapped<ControlView>,
}

/// Jiffies and the time they go with.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    pub jiffies: u64,
    /// CLOCK_MONOTONIC.
    pub nanoseconds: u64,
}

impl Control {
    pub(super) fn new(page: Mapped<ControlView>) -> Self {
        Self { page }
    }

    fn view(&self) -> &ControlView {
        &self.page[0]
    }

    /// Asks to be woken. The kernel takes the request back when it wakes.
    pub(crate) fn wake(&self, on: wake, bytes: u32) {
        self.view().wake_bytes.store(bytes, Ordering::Relaxed);
        // Whoever sees the request must see the threshold; and events that came before it must be seen by the
        // drain that follows it.
        self.view().wake.store(on.0, Ordering::SeqCst);
    }

    /// Hits whose site was unknown: always 0 unless the exporter has a fault.
    pub fn stray(&self) -> u64 {
        self.view().stray.load(Ordering::Relaxed)
    }

    pub(super) fn clock(&self) -> Clock {
        Clock {
            jiffies: self.view().jiffies.load(Ordering::Relaxed),
            nanoseconds: self.view().now.load(Ordering::Relaxed),
        }
    }
}
