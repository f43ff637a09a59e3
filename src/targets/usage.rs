//! Measures the CPU time of a target's processes while they are traced, and the share of it that tracing takes.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::procfs::{Stat, uptime_ticks};

/// Of one target.
#[derive(Debug, Default)]
pub(super) struct Meter {
    pub last: Option<Instant>,
    /// When that was, in ticks since boot.
    last_ticks: u64,
    /// The cost of tracing until then.
    pub cost: f64,
    /// CPU ticks of each process, by its number and start time.
    pub ticks: HashMap<(u32, u64), u64>,
    /// Recent measurements.
    pub lately: VecDeque<Measured>,
    /// Processes that map a library, and when that was determined.
    pub mapping: Option<(Instant, Vec<u32>)>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    pub at: Instant,
    pub cpu: f64,
    pub tracing: f64,
    /// Processes ended meanwhile whose last moments were not measured; others may have started and ended.
    pub has_missed: bool,
}

/// CPU time of processes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct CpuTime {
    pub seconds: f64,
    /// See [`Measured::has_missed`].
    pub has_missed: bool,
}

/// The window of recent usage: a tick of processor time is 10 ms.
const WINDOW: Duration = Duration::from_secs(10);

impl Meter {
    /// The recent share of CPU time that tracing took.
    pub fn share(&mut self) -> Option<f64> {
        self.lately.retain(|of| of.at.elapsed() < WINDOW);
        share(self.lately.iter().map(|of| (of.cpu, of.tracing)))
    }

    /// Whether the share may be too high.
    pub fn has_missed(&self) -> bool {
        self.lately.iter().any(|of| of.has_missed)
    }

    /// CPU time since the previous call; None at the first call.
    pub fn read(&mut self, processes: &[u32]) -> Option<CpuTime> {
        let is_first = self.last.is_none();
        let began_since = |start: u64| start >= self.last_ticks;
        let mut used = 0;
        let mut now = HashMap::new();
        for stat in processes.iter().filter_map(|pid| Some((*pid, Stat::of(*pid).ok()?))) {
            let (key, ticks) = ((stat.0, stat.1.start_ticks), stat.1.cpu_ticks);
            let before = match self.ticks.get(&key) {
                Some(before) => *before,
                None if began_since(key.1) => 0,
                None => ticks,
            };
            used += ticks.saturating_sub(before);
            now.insert(key, ticks);
        }
        let has_missed =
            now.len() < processes.len() || self.ticks.keys().any(|process| !now.contains_key(process));
        self.ticks = now;
        (self.last, self.last_ticks) = (Some(Instant::now()), uptime_ticks());
        let seconds = used as f64 / rustix::param::clock_ticks_per_second() as f64;
        (!is_first).then_some(CpuTime { seconds, has_missed })
    }
}

/// Tracing is part of the measured CPU time: if it seems to be more, processes were missed, and the share is unknown.
fn share(measured: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let (cpu, tracing) = measured.fold((0.0, 0.0), |(cpu, tracing), of| (cpu + of.0, tracing + of.1));
    (cpu > 0.0 && tracing <= cpu * MAX_SHARE).then(|| (tracing / cpu).min(1.0))
}

/// Prices are those of an idle machine, and CPU time is counted in ticks.
const MAX_SHARE: f64 = 2.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_share_is_unknown() {
        let of = |measured: &[(f64, f64)]| share(measured.iter().copied());
        assert_eq!(of(&[(1.0, 0.25), (3.0, 0.75)]), Some(0.25));
        assert_eq!(of(&[(1.0, 1.1)]), Some(1.0));
        assert_eq!(of(&[(1.0, 2.5)]), None, "processes were not seen");
        assert_eq!(of(&[(0.0, 0.1)]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn cpu_time_counts_from_first_sight_or_start() {
        let mut meter = Meter::default();
        let own = [std::process::id()];
        assert_eq!(meter.read(&own), None);
        let ticks = || Stat::of(own[0]).unwrap().cpu_ticks;
        let before = ticks();
        while ticks() < before + 2 {}
        assert!(meter.read(&own).is_some_and(|used| used.seconds > 0.0 && !used.has_missed));
        // A process that was not among them before, and is older than the previous call.
        assert_eq!(meter.read(&[1]), Some(CpuTime { seconds: 0.0, has_missed: true }));
        meter.last_ticks = 0;
        meter.ticks.clear();
        assert!(meter.read(&own).is_some_and(|used| used.seconds >= 0.02));
        // A process that no longer exists.
        assert!(meter.read(&[own[0], u32::MAX]).is_some_and(|used| used.has_missed));
    }
}
