//! The page that is shared with the probe programs: what the drain thread waits for, and which time it is.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::abi::{control, wake};
use crate::mapping::Mapping;

/// The control page.
#[derive(Debug)]
pub struct Control {
    page: Mapping,
}

/// Jiffies and the time they go with.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    pub jiffies: u64,
    /// CLOCK_MONOTONIC.
    pub nanoseconds: u64,
}

impl Control {
    pub(super) fn new(page: Mapping) -> Self {
        Self { page }
    }

    fn half(&self, offset: usize) -> &AtomicU32 {
        &self.page.halves()[offset / 4]
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        &self.page.words()[offset / 8]
    }

    /// Asks to be woken. The kernel takes the request back when it wakes.
    pub(crate) fn wake(&self, on: wake, bytes: u32) {
        self.half(std::mem::offset_of!(control, wake_bytes)).store(bytes, Ordering::Relaxed);
        // Whoever sees the request must see the threshold; and events that came before it must be seen by the
        // drain that follows it.
        self.half(std::mem::offset_of!(control, wake)).store(on.0, Ordering::SeqCst);
    }

    /// Hits whose site was unknown: always 0 unless the exporter has a fault.
    pub fn stray(&self) -> u64 {
        self.word(std::mem::offset_of!(control, stray)).load(Ordering::Relaxed)
    }

    pub(super) fn clock(&self) -> Clock {
        Clock {
            jiffies: self.word(std::mem::offset_of!(control, jiffies)).load(Ordering::Relaxed),
            nanoseconds: self.word(std::mem::offset_of!(control, now)).load(Ordering::Relaxed),
        }
    }
}
