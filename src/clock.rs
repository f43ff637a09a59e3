//! The time of day, and the time of the kernel's clock.

use std::sync::LazyLock;
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

/// The time of the kernel's own `CLOCK_MONOTONIC` in nanoseconds, which is that of BPF programs.
pub fn monotonic_now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    kernel_time(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

/// The CPU time of the calling thread.
pub(crate) fn thread_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Converts a time of `CLOCK_MONOTONIC` here, which has an offset in a time namespace, into the kernel's own.
pub(crate) fn kernel_time(monotonic: u64) -> u64 {
    static OFFSET: LazyLock<i64> = LazyLock::new(|| {
        let offsets = std::fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
        monotonic_offset(&offsets).unwrap_or(0)
    });
    monotonic.saturating_add_signed(-*OFFSET)
}

/// The offset of `CLOCK_MONOTONIC` in `/proc/PID/timens_offsets`, in nanoseconds.
fn monotonic_offset(offsets: &str) -> Option<i64> {
    let mut fields = offsets.lines().find_map(|line| line.strip_prefix("monotonic"))?.split_whitespace();
    let mut number = || fields.next()?.parse::<i64>().ok();
    number()?.checked_mul(1_000_000_000)?.checked_add(number()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offset_of_a_time_namespace() {
        let offsets = "monotonic      100000         0\nboottime       200000         0\n";
        assert_eq!(monotonic_offset(offsets), Some(100_000_000_000_000));
        let negative = "monotonic           -2 500000000\nboottime            0         0\n";
        assert_eq!(monotonic_offset(negative), Some(-1_500_000_000));
        assert_eq!((monotonic_offset(""), monotonic_offset("monotonic x 0")), (None, None));
    }
}
