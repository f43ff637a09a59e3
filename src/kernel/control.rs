//! The page shared with the probe programs: the drain thread's wake-up request, and the clock.

use std::sync::atomic::Ordering;

use crate::abi::{ControlView, wake};
use crate::mapping::Mapped;

/// The control page.
#[derive(Debug)]
pub struct Control {
    page: Mapped<ControlView>,
}

/// Jiffies, and the time at that moment.
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

    /// Requests a wake-up. The kernel withdraws the request when it wakes.
    pub(crate) fn wake(&self, on: wake, bytes: u32) {
        self.view().wake_bytes.store(bytes, Ordering::Relaxed);
        // A program that sees the request must see the threshold, and the drain that follows must see events written
        // before the request.
        self.view().wake.store(on.0, Ordering::SeqCst);
    }

    /// Hits of an unknown site: always 0 unless the exporter has a bug.
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
