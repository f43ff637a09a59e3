//! The time of day, and the time of the kernel's clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The Unix time in seconds; 0 before 1970.
pub fn unix_now() -> f64 {
    since_1970().as_secs_f64()
}

/// The Unix time in whole seconds; 0 before 1970.
pub(crate) fn wall_seconds() -> i64 {
    i64::try_from(since_1970().as_secs()).unwrap_or(i64::MAX)
}

/// The Unix time in nanoseconds; 0 before 1970.
pub(crate) fn wall() -> i64 {
    i64::try_from(since_1970().as_nanos()).unwrap_or(i64::MAX)
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Converts a time of the kernel's clock (`CLOCK_MONOTONIC`) into a Unix time in nanoseconds, as the clock is set now.
pub(crate) fn wall_at(monotonic: u64) -> i64 {
    wall_offset().saturating_add_unsigned(monotonic)
}

/// The difference between the time of day and the kernel's clock, in nanoseconds. It changes only when the clock is
/// set, since both are slewed alike. The two are read one after the other: of a few attempts, the fastest counts.
fn wall_offset() -> i64 {
    let attempt = || {
        let (before, now, after) = (monotonic_now(), wall(), monotonic_now());
        (after - before, now.saturating_sub_unsigned(before))
    };
    let attempts = [attempt(), attempt(), attempt()];
    attempts.into_iter().min().map_or(0, |(_, offset)| offset)
}

/// The time of `CLOCK_MONOTONIC` in nanoseconds.
pub fn monotonic_now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
