//! The time of day, and that of the kernel's clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970; 0 before.
pub fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub fn monotonic_now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
