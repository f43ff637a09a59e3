//! The metrics that every Prometheus client has of its own process, from /proc; see proc(5).

use std::fs;

use crate::exposition::Families;

/// Adds those that /proc tells.
pub(super) fn collect(to: &mut Families) {
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let stat = fs::read_to_string("/proc/self/stat").ok().and_then(|text| Stat::parse(&text));
    if let Some(stat) = &stat {
        let help = "Total user and system CPU time spent in seconds.";
        to.counter("process_cpu_seconds_total", help).number(&[], stat.cpu_ticks as f64 / ticks);
    }
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    if let Some(most) = most_files(&limits) {
        to.gauge("process_max_fds", "Maximum number of open file descriptors.").number(&[], most);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One of them is the directory's own.
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

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name, in brackets, may hold anything; what follows it is field 3.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

/// The soft limit, unless there is none.
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
    fn fields_are_counted_from_the_end_of_the_name() {
        let text = "77 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 150 33 11 12 20 0 5 0 9000 4096000 250 1844 1 1 0 0";
        let stat = Stat {
            cpu_ticks: 183,
            threads: 5,
            start_ticks: 9000,
            virtual_bytes: 4_096_000,
            resident_pages: 250,
        };
        assert_eq!(Stat::parse(text), Some(stat));
        assert_eq!(Stat::parse("77 (a) S 1"), None);
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
    fn this_process_has_them_all_and_its_time_is_not_in_whole_seconds() {
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
        // Looking at it takes time, too.
        let began = std::time::Instant::now();
        while value("process_cpu_seconds_total").fract() == 0.0 {
            assert!(began.elapsed() < std::time::Duration::from_secs(60), "{}", shown());
        }
        assert!(value("process_threads") >= 1.0 && value("process_open_fds") >= 3.0);
        assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
        assert!(value("process_start_time_seconds") > 1.6e9);
    }
}
