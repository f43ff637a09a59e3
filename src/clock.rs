//! The time of day, and that of the kernel's clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since 1970; 0 before.
pub fn unix_now() -> f64 {
    since_1970().as_secs_f64()
}

/// Whole seconds since 1970; 0 before.
pub(crate) fn wall_seconds() -> i64 {
    i64::try_from(since_1970().as_secs()).unwrap_or(i64::MAX)
}

/// Nanoseconds since 1970; 0 before.
pub(crate) fn wall() -> i64 {
    i64::try_from(since_1970().as_nanos()).unwrap_or(i64::MAX)
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub fn monotonic_now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
