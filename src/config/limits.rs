//! All limits and defaults of the configuration in one place, used by the decoders, their messages, the schema and the
//! reference. Limits of the kernel part come from its ABI. Defaults of settings with a flag are in [`super::keys`].

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::abi;

/// The maximum size of a configuration file, in bytes.
pub const FILE_BYTES: usize = 1 << 20;
/// The maximum size of a password file, in bytes.
pub const PASSWORD_FILE_BYTES: u64 = 4096;

/// The maximum length of text or bytes read from a program, in bytes.
pub const TEXT_BYTES: u32 = abi::MAX_BYTES as u32;
/// The default of `max`.
pub const DEFAULT_TEXT_BYTES: u32 = 64;
/// The highest argument index. Systemtap's probes have twelve arguments; functions may have more.
pub const ARGUMENT_INDEX: usize = 31;
/// The maximum offset of a value within a structure, in bytes.
pub const FIELD_OFFSET: i32 = 65_535;
/// The maximum number of bounds per histogram, not counting +Inf.
pub const BUCKETS: usize = abi::MAX_BOUNDS;
/// The default bounds of Prometheus client libraries for seconds.
pub const DEFAULT_SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The maximum number of targets with `children: true`.
pub const FAMILIES: usize = abi::MAX_FAMILIES;

pub const PORT: RangeInclusive<u16> = 1..=u16::MAX;
/// The valid process ids of Linux (PID_MAX_LIMIT).
pub const PID: RangeInclusive<u32> = 1..=1 << 22;

/// The allowed sizes of the ring buffer in bytes: a power of two, at least one page.
pub const RING_BYTES: RangeInclusive<u64> = 4096..=1 << 30;
pub const DEFAULT_RING_BYTES: u32 = 4 << 20;
/// In milliseconds.
pub const RING_POLL: RangeInclusive<u32> = 1..=10_000;
pub const DEFAULT_RING_POLL: u32 = 10;

pub const LABEL_VALUES: RangeInclusive<u32> = 1..=100_000;
pub const DEFAULT_LABEL_VALUES: u32 = 200;
pub const SITES: RangeInclusive<u32> = 1..=65_536;
pub const DEFAULT_SITES: u32 = 8192;
pub const STARTS: RangeInclusive<u32> = 1..=4_194_304;
pub const DEFAULT_STARTS: u32 = 32_768;
/// A fraction of 1.
pub const DEFAULT_OVERHEAD: f64 = 0.02;

/// The allowed maximum numbers of stored slow events.
pub const SLOW_ROWS: RangeInclusive<u32> = 1..=10_000_000;
pub const DEFAULT_SLOW_ROWS: u32 = 10_000;
/// The allowed maximum sizes of their file in bytes.
pub const SLOW_BYTES: RangeInclusive<u64> = 1 << 20..=16 << 30;
pub const DEFAULT_SLOW_BYTES: u64 = 64 << 20;
/// The allowed numbers of worst events per hour.
pub const SLOW_WORST: RangeInclusive<u32> = 1..=1000;

pub const SLOW_AGE: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(87_600 * 3600);
pub const DEFAULT_SLOW_AGE: Duration = Duration::from_secs(720 * 3600);

/// Name prefixes of the exporter's own metrics.
const OWN: &[&str] = &["fibre_exporter_", "process_", "xdp_", "tc_egress_", "network_"];
/// Names and name prefixes of series that Prometheus itself records for each target or alert.
const PROMETHEUS: &[&str] = &["up", "ALERTS", "ALERTS_FOR_STATE"];
const PROMETHEUS_PREFIXES: &[&str] = &["scrape_"];

/// Returns why a configured metric cannot have this name, if it cannot.
pub fn reserved(name: &str) -> Option<String> {
    if let Some(prefix) = OWN.iter().find(|prefix| name.starts_with(**prefix)) {
        return Some(format!("the prefix `{prefix}` is reserved for the exporter's own metrics"));
    }
    if let Some(prefix) = PROMETHEUS_PREFIXES.iter().find(|prefix| name.starts_with(**prefix)) {
        return Some(format!("the prefix `{prefix}` is reserved for series that Prometheus records itself"));
    }
    PROMETHEUS
        .contains(&name)
        .then(|| "the name is reserved for a series that Prometheus records itself".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_metric_names_are_detected() {
        for name in
            ["up", "scrape_duration_seconds", "scrape_x", "ALERTS", "process_x", "fibre_exporter_info"]
        {
            assert!(reserved(name).is_some(), "{name}");
        }
        for name in ["up_total", "uptime_seconds", "scraped_total", "fibre_blocks_total", "my_process_total"]
        {
            assert_eq!(reserved(name), None, "{name}");
        }
    }
}
