//! What is active while the exporter runs: what a scrape reads, and what a reload replaces.

mod active;
mod reload;
mod snapshot;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::budget::{Activity, Controllers};
use crate::clock::unix_now;
use crate::config::Overrides;
use crate::config::endpoint::Web;
use crate::config::model::Settings;
use crate::engine::Engines;
use crate::exposition::{Exemplars, Family, Format, Head, Names};
use crate::http::{Fingerprint, HttpStats, Security, Visitors};
use crate::logging::Logging;
use crate::net::Network;
use crate::page::StatusCache;
use crate::slow::SlowRecorder;
use crate::targets::{Attaching, TargetsStatus};
use crate::telemetry::{Reloads, Telemetry};

pub(crate) use self::active::ActiveConfig;

/// How long a scrape waits for events that are still in the ring.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(250);

/// The state from which requests are answered.
pub(crate) struct Running {
    overrides: Overrides,
    /// The settings at the start: some apply until the exporter ends.
    started: Settings,
    attaching: Attaching,
    pub security: Arc<Security>,
    /// The source of the security settings.
    web: Mutex<WebSource>,
    /// Addresses on which metrics are served.
    addresses: Vec<IpAddr>,
    /// Dropped before the state, which holds the lock of the pinned state.
    pub network: Option<Arc<Network>>,
    state: Mutex<ActiveConfig>,
    /// Held during a reload.
    reloading: Mutex<()>,
    reloads: Arc<Reloads>,
    logging: Logging,
    http: [Arc<HttpStats>; 2],
    /// As a Unix time in seconds.
    start_time: f64,
    series: Arc<AtomicU64>,
    recorder: Arc<SlowRecorder>,
    /// The clients that scrape.
    pub visitors: Arc<Visitors>,
    pub status: StatusCache,
}

/// Security settings, and the fingerprint of their files when they were last read.
struct WebSource {
    web: Web,
    fingerprint: Fingerprint,
}

impl WebSource {
    fn new(web: Web) -> Self {
        let fingerprint = Fingerprint::of(web.origin.files().cloned());
        Self { web, fingerprint }
    }
}

impl Running {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        overrides: Overrides,
        started: Settings,
        attaching: Attaching,
        security: Arc<Security>,
        state: ActiveConfig,
        network: Option<Arc<Network>>,
        logging: Logging,
        http: [Arc<HttpStats>; 2],
        addresses: Vec<IpAddr>,
        recorder: Arc<SlowRecorder>,
    ) -> Self {
        Self {
            overrides,
            web: Mutex::new(WebSource::new(started.web.clone())),
            addresses,
            started,
            attaching,
            security,
            state: Mutex::new(state),
            network,
            reloading: Mutex::new(()),
            reloads: Arc::new(Reloads::started()),
            logging,
            http,
            start_time: unix_now(),
            series: Arc::default(),
            recorder,
            visitors: Arc::default(),
            status: StatusCache::default(),
        }
    }

    fn web(&self) -> MutexGuard<'_, WebSource> {
        self.web.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, ActiveConfig> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When counting began, as a Unix time in seconds: before this exporter started, if it continues another one's
    /// counts.
    pub fn since(&self) -> f64 {
        self.engines().since()
    }

    fn engines(&self) -> Arc<Engines> {
        self.state().engines.clone()
    }

    /// Renders a scrape of these metrics.
    pub fn render(&self, format: Format, names: &Names) -> Vec<u8> {
        self.engines().catch_up(DRAIN_TIMEOUT);
        let mut text = Vec::new();
        let exemplars = if format.has_exemplars() { self.recorder.exemplars() } else { Exemplars::default() };
        let telemetry = {
            let mut state = self.state();
            let ActiveConfig { engines, registry, .. } = &mut *state;
            let status = engines.status();
            let is_meant = |head: &Head| names.matches(head);
            registry.render_some(&status.facts(), Instant::now(), format, is_meant, &exemplars, &mut text);
            self.series.store(registry.live_series() as u64, Ordering::Relaxed);
            self.telemetry(&state, Arc::new(status))
        };
        let mut write = |family: &Family| {
            if names.matches(family.head()) {
                family.write(format, &mut text);
            }
        };
        let network = self.network.iter().flat_map(|network| network.collect());
        network.for_each(|family| write(&family));
        self.recorder.detections.families().iter().for_each(&mut write);
        telemetry.collect().iter().for_each(&mut write);
        format.finish(&mut text);
        text
    }

    /// The source of the exporter's own metrics.
    fn telemetry(&self, state: &ActiveConfig, status: Arc<TargetsStatus>) -> Telemetry {
        let engines = &state.engines;
        let telemetry = Telemetry {
            plan: engines.plan.clone(),
            counts: engines.clone(),
            drain: Arc::new(engines.drain_stats()),
            status,
            http: self.http.clone(),
            attach: engines.attach_kind().unwrap_or(self.attaching.kind),
            prices: self.attaching.prices.get(),
            logging: Some(self.logging.clone()),
            started: self.start_time,
            reloads: self.reloads.clone(),
            series: self.series.clone(),
            overflows: state.overflows.clone(),
            slow: self.recorder.numbers(),
        };
        telemetry.update_overflows(state.registry.overflows());
        telemetry
    }

    /// Why not all probes are attached or interfaces counted; otherwise what is only partly attached.
    pub fn ready(&self) -> Result<Vec<String>, Vec<String>> {
        let engines = self.engines();
        let status = engines.status();
        let mut reasons = status.not_ready(&engines.plan);
        reasons.extend(self.network.iter().flat_map(|network| network.not_ready()));
        if reasons.is_empty() { Ok(status.partly(&engines.plan)) } else { Err(reasons) }
    }

    /// Compares the cost of tracing with `limits.overhead`, except during a reload.
    pub fn check_costs(&self, controllers: &mut Controllers) -> Activity {
        match self.reloading.try_lock() {
            Ok(_no_reload) => controllers.look(&self.engines()),
            Err(_) => Activity::Measured,
        }
    }

    /// Waits until everything is attached that can be attached now.
    pub fn wait_until_attached(&self) {
        self.engines().wait_until_attached();
    }

    pub fn is_alive(&self, timeout: Duration) -> bool {
        self.engines().is_alive(timeout)
    }
}
