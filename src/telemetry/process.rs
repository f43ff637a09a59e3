//! The standard process metrics of Prometheus clients, from /proc; see proc(5).

use std::fs;

use crate::exposition::Families;
use crate::procfs::Stat;

/// Adds the metrics available in /proc.
pub(super) fn collect(to: &mut Families) {
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let stat = Stat::of(std::process::id()).ok();
    if let Some(stat) = &stat {
        let help = "Total user and system CPU time spent in seconds.";
        to.counter("process_cpu_seconds_total", help).number(&[], stat.cpu_ticks as f64 / ticks);
    }
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    if let Some(most) = most_files(&limits) {
        to.gauge("process_max_fds", "Maximum number of open file descriptors.").number(&[], most);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One of them is the directory's own descriptor.
        let open = open.count().saturating_sub(1) as u64;
        to.gauge("process_open_fds", "Number of open file descriptors.").number(&[], open);
    }
    let Some(stat) = stat else { return };
    let resident = stat.resident_pages * rustix::param::page_size() as u64;
    to.gauge("process_resident_memory_bytes", "Resident memory size in bytes.").number(&[], resident);
    if let Some(boot) = fs::read_to_string("/proc/stat").ok().and_then(|text| boot_time(&text)) {
        let started = boot as f64 + stat.start_ticks as f64 / ticks;
        to.gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.")
            .number(&[], started);
    }
    to.gauge("process_threads", "Number of OS threads in the process.").number(&[], stat.threads);
    to.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.").number(&[], stat.virtual_bytes);
}

/// The soft limit, unless it is unlimited.
fn most_files(limits: &str) -> Option<u64> {
    limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

fn boot_time(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::Format;

    #[test]
    fn parses_limits_and_boot_time() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max open files            1024                 524288               files\n";
        assert_eq!(most_files(limits), Some(1024));
        assert_eq!(
            most_files("Max open files            unlimited            unlimited            files\n"),
            None
        );
        assert_eq!(boot_time("cpu 1 2\nbtime 1700000000\nprocesses 3\n"), Some(1_700_000_000));
    }

    #[test]
    fn exports_all_process_metrics_with_fractional_cpu_time() {
        let shown = || {
            let mut families = Families::default();
            collect(&mut families);
            let mut text = Vec::new();
            families.write(Format::Text, &mut text);
            String::from_utf8(text).unwrap()
        };
        let value = |name: &str| -> f64 {
            let text = shown();
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{name} is missing: {text}")).parse().unwrap()
        };
        // Reading them takes CPU time, too.
        let began = std::time::Instant::now();
        while value("process_cpu_seconds_total").fract() == 0.0 {
            assert!(began.elapsed() < std::time::Duration::from_secs(60), "{}", shown());
        }
        assert!(value("process_threads") >= 1.0 && value("process_open_fds") >= 3.0);
        assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
        assert!(value("process_start_time_seconds") > 1.6e9);
    }
}
