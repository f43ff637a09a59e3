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

/// A time of the kernel's clock (`CLOCK_MONOTONIC`), in nanoseconds since 1970 as the clock is set now.
pub(crate) fn wall_at(monotonic: u64) -> i64 {
    wall_offset().saturating_add_unsigned(monotonic)
}

/// How far the time of day is ahead of the kernel's clock, in nanoseconds. It only changes when the clock is set, since both are slewed
/// alike. The two are read one after the other: of a few attempts that counts in which least time passed.
fn wall_offset() -> i64 {
    let attempt = || {
        let (before, now, after) = (monotonic_now(), wall(), monotonic_now());
        (after - before, now.saturating_sub_unsigned(before))
    };
    let attempts = [attempt(), attempt(), attempt()];
    attempts.into_iter().min().map_or(0, |(_, offset)| offset)
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub fn monotonic_now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
