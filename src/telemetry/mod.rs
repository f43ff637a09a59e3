//! The exporter's metrics about itself, read from their sources at every scrape.

mod endpoint;
mod probes;
mod process;
mod slow;
mod targets;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::clock::unix_now;
use crate::drain::DrainStats;
use crate::exposition::Families;
use crate::http::HttpStats;
use crate::kernel::{Attach, Counts, LOST, Prices};
use crate::logging::Logging;
use crate::plan::Plan;
use crate::slow::SlowNumbers;
use crate::targets::{ProbeState, TargetsStatus};

/// The sources of all counts.
#[derive(Debug, Clone)]
pub struct Telemetry {
    pub plan: Arc<Plan>,
    pub counts: Arc<dyn Counts>,
    pub status: Arc<TargetsStatus>,
    pub drain: Arc<DrainStats>,
    /// Statistics of the metrics endpoint and of the health endpoint.
    pub http: [Arc<HttpStats>; 2],
    pub attach: Attach,
    pub prices: Prices,
    pub logging: Option<Logging>,
    pub started: f64,
    pub reloads: Arc<Reloads>,
    /// Number of series in the latest scrape.
    pub series: Arc<AtomicU64>,
    /// For each metric, label values beyond a limit at the probes that feed it.
    pub overflows: Arc<Mutex<Vec<u64>>>,
    /// Slow events, if any are recorded.
    pub slow: Option<SlowNumbers>,
}

/// The outcome of reading the configuration.
#[derive(Debug)]
pub struct Reloads {
    successful: AtomicBool,
    /// When it was last read without an error, as a Unix time in seconds, in the bits of an `f64`.
    success: AtomicU64,
}

impl Reloads {
    /// The state when the configuration was just read.
    pub fn started() -> Self {
        Self { successful: AtomicBool::new(true), success: AtomicU64::new(unix_now().to_bits()) }
    }

    /// Records the outcome.
    pub fn record(&self, is_successful: bool) {
        self.successful.store(is_successful, Ordering::Relaxed);
        if is_successful {
            self.success.store(unix_now().to_bits(), Ordering::Relaxed);
        }
    }
}

impl Telemetry {
    /// Returns the current values of all metrics.
    pub fn collect(&self) -> Families {
        let mut to = Families::default();
        self.exporter(&mut to);
        self.probes(&mut to);
        self.targets(&mut to);
        self.errors(&mut to);
        self.slow(&mut to);
        self.http(&mut to);
        process::collect(&mut to);
        to
    }

    fn exporter(&self, to: &mut Families) {
        to.gauge("fibre_exporter_up", "Always 1 while the exporter runs.").number(&[], 1u64);
        to.gauge(
            "fibre_exporter_start_time_seconds",
            "Start time of the exporter, in seconds since the Unix \
             epoch.",
        )
        .number(&[], self.started);
        let attach = match self.attach {
            Attach::Multi => "uprobe_multi",
            Attach::Perf => "perf_event",
        };
        to.gauge("fibre_exporter_info", "Version and environment of the exporter; the value is always 1.")
            .number(
                &[
                    ("version", env!("CARGO_PKG_VERSION")),
                    ("attach", attach),
                    ("kernel", &crate::kernel::kernel_release()),
                    ("node", &self.plan.settings.node_name),
                ],
                1u64,
            );
        to.gauge(
            "fibre_exporter_config_last_reload_successful",
            "Whether the last attempt to read the configuration succeeded.",
        )
        .number(&[], u64::from(self.reloads.successful.load(Ordering::Relaxed)));
        to.gauge(
            "fibre_exporter_config_last_reload_success_timestamp_seconds",
            "Time of the last successful read of the configuration, in seconds since 1970.",
        )
        .number(&[], f64::from_bits(self.reloads.success.load(Ordering::Relaxed)));
        to.gauge("fibre_exporter_series", "Series of configured metrics in the latest scrape.")
            .number(&[], self.series.load(Ordering::Relaxed));
    }

    fn errors(&self, to: &mut Families) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let states = self.status.probes();
        let refused = states.iter().filter(|probe| matches!(probe.state, ProbeState::Refused(_))).count();
        let accounting =
            |which| (0..states.len()).map(|probe| self.counts.accounting(probe, which)).sum::<u64>();
        let rows = to.counter("fibre_exporter_errors_total", "Errors, by type.");
        for ((reason, which), past) in LOST.iter().zip(self.counts.past_losses()) {
            rows.number(&[("error_type", reason)], accounting(*which) + past);
        }
        rows.number(&[("error_type", "event_unreadable")], load(&self.drain.unreadable));
        rows.number(&[("error_type", "event_negative")], load(&self.drain.negative));
        rows.number(&[("error_type", "event_undecodable")], load(&self.drain.undecodable));
        rows.number(&[("error_type", "stray_hit")], self.counts.stray());
        let targets = self.status.targets();
        rows.number(&[("error_type", "child_lost")], targets.lost_children);
        rows.number(&[("error_type", "process_event_lost")], targets.lost_events);
        let of_log = |count: fn(&Logging) -> u64| self.logging.as_ref().map_or(0, count);
        rows.number(&[("error_type", "log_line_dropped")], of_log(Logging::dropped));
        rows.number(&[("error_type", "log_write_failed")], of_log(Logging::failed));
        to.gauge("fibre_exporter_probes_failed", "Probes that exist in the file but failed to attach.")
            .number(&[], refused as u64);
    }
}
