//! What has to be done from time to time, whatever the targets do: starts of spans that are left, and the clock.

use std::time::{SystemTime, UNIX_EPOCH};

use super::status::Ticks;
use super::worker::Worker;
use crate::abi::accounting_slot;
use crate::plan::Pairing;

/// Ticks of the kernel in a second, by its configuration.
const HZ: [f64; 4] = [100.0, 250.0, 300.0, 1000.0];

impl Worker {
    /// Whether a start found no room since the last look.
    pub(super) fn found_no_room(&mut self) -> bool {
        let store = self.kernel.shared().store;
        let full = |probe| store.accounting(probe, accounting_slot::ACCT_LOST_STARTS_FULL);
        let starts = self.plan.probes.iter().enumerate().filter(|(_, probe)| probe.span.is_some());
        let now = starts.map(|(number, _)| full(number)).sum();
        std::mem::replace(&mut self.starts_refused, now) != now
    }

    pub(super) fn sweep_starts(&self) {
        if self.plan.spans == 0 {
            return;
        }
        let mut pairings = vec![Pairing::Thread; self.plan.spans as usize];
        for span in self.plan.probes.iter().filter_map(|probe| probe.span) {
            pairings[span.number as usize] = span.by;
        }
        self.status.add_sweep(&self.kernel.sweep_starts(&pairings));
    }

    /// The kernel notes a hit's time in jiffies, which costs it nothing; here is learnt what a jiffy is.
    pub(super) fn measure_ticks(&mut self) {
        let (Some(first), Some(now)) = (self.first_clock, self.kernel.clock()) else { return };
        let seconds = now.nanoseconds.saturating_sub(first.nanoseconds) as f64 / 1e9;
        let measured = now.jiffies.saturating_sub(first.jiffies) as f64 / seconds.max(1e-3);
        let hz = HZ.into_iter().min_by(|a, b| (a - measured).abs().total_cmp(&(b - measured).abs()));
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        if let Some(hz) = hz {
            self.status.set_ticks(Ticks { jiffies: now.jiffies, unix, hz });
        }
    }
}
