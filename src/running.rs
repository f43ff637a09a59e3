//! What is at work while the exporter runs: what a scrape reads, and what a reload exchanges.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::budget::Controllers;
use crate::config::endpoint::Web;
use crate::config::model::Settings;
use crate::config::{self, Diagnostics, Overrides};
use crate::engine::Engines;
use crate::exposition::{Earlier, Family, Format, Names};
use crate::http::{Fingerprint, HttpStats, Security, exposure_warnings};
use crate::kernel::{Attach, KernelError};
use crate::loading::{load_keeping, refuse_unusable, secured};
use crate::logging::{Logging, set_level};
use crate::metrics::Registry;
use crate::net::{Network, NetworkConfig};
use crate::pins::Folder;
use crate::plan::Plan;
use crate::service;
use crate::telemetry::{Reloads, Telemetry, unix_now};

/// How long a scrape waits for events that are still in the ring.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(250);

/// All that the requests are answered from.
pub(crate) struct Running {
    overrides: Overrides,
    /// As the exporter was started with them: some hold until it ends.
    started: Settings,
    attach: Attach,
    pub security: Arc<Security>,
    /// What the security was made from.
    web: Mutex<Source>,
    /// Addresses that the metrics are served on.
    addresses: Vec<IpAddr>,
    state: Mutex<State>,
    pub network: Option<Arc<Network>>,
    /// Held while the configuration is read anew.
    reloading: Mutex<()>,
    reloads: Arc<Reloads>,
    logging: Logging,
    http: [Arc<HttpStats>; 2],
    /// In seconds since 1970.
    start_time: f64,
    series: Arc<AtomicU64>,
    packets: Option<Packets>,
}

/// Counters of packets that go on from those of an earlier exporter.
struct Packets {
    folder: Arc<Folder>,
    earlier: Mutex<Earlier>,
}

impl Packets {
    fn of(folder: Arc<Folder>) -> Self {
        let earlier = folder.load_packets().unwrap_or_else(|err| {
            log::warn!("Counters of packets begin anew: {err}");
            None
        });
        Self { folder, earlier: Mutex::new(earlier.unwrap_or_default()) }
    }

    fn go_on(&self, families: &mut [Family]) {
        let mut earlier = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
        // Before anybody sees it: the next exporter must not show less.
        if let Err(err) = self.folder.save_packets(&earlier.go_on(families)) {
            log::debug!("{err}");
        }
    }
}

/// Security settings, and the files among them as they were when they were last read.
struct Source {
    web: Web,
    seen: Fingerprint,
}

impl Source {
    fn new(web: Web) -> Self {
        let seen = Fingerprint::of(web.origin.files().cloned());
        Self { web, seen }
    }
}

/// What belongs to one configuration.
pub(crate) struct State {
    engines: Arc<Engines>,
    registry: Registry,
    overflows: Arc<Mutex<Vec<u64>>>,
}

impl State {
    fn new(engines: Arc<Engines>) -> Self {
        let (banks, seats) = engines.banks();
        let registry = Registry::of(engines.plan.clone(), banks, seats);
        Self { engines, registry, overflows: Arc::default() }
    }

    /// Loads and attaches the probes, or goes on with what an earlier exporter has left in the folder.
    ///
    /// # Errors
    /// If the kernel refuses the programs.
    pub fn begin(
        plan: Plan,
        settings: &Settings,
        attach: Attach,
        folder: Option<Folder>,
    ) -> Result<Self, KernelError> {
        let Some(folder) = folder.map(Arc::new) else {
            return Ok(Self::new(Arc::new(Engines::start(plan, attach, None)?)));
        };
        let why = match Engines::take_over(&folder, settings, attach) {
            Ok(Some((engines, carried))) => {
                let mut before = Self::new(Arc::new(engines));
                before.registry.carry_on(carried);
                let after = before.engines.changed_to(plan, attach)?;
                let (kept, all) = (after.kept_of(&before.engines), after.plan.probes.len());
                if kept < all {
                    log::info!("{kept} probes are as they were; {} are new or changed", all - kept);
                }
                let mut state = before.changed_to(Arc::new(after));
                let settled = state.engines.settled();
                state.settle(settled);
                return Ok(state);
            }
            Ok(None) => None,
            Err(why) => Some(why),
        };
        if let Some(why) = why {
            log::warn!(
                "The pinned state in {} is not taken over, and counts begin anew: {why}",
                folder.path().display()
            );
        }
        if let Err(err) = folder.remove_but(&[]) {
            log::warn!("{err}");
        }
        let state = Self::new(Arc::new(Engines::start(plan, attach, Some(folder))?));
        state.save();
        Ok(state)
    }

    /// What counts from now on, with the series of before.
    fn changed_to(&mut self, engines: Arc<Engines>) -> Self {
        let (before, now) = (self.engines.status().seen(), engines.status().seen());
        let mut next = Self::new(engines);
        next.registry.take_over(&mut self.registry, &before, &now);
        next.save();
        next
    }

    /// Notes that what is not of the configuration any more is taken out.
    fn settle(&mut self, settled: Engines) {
        self.registry.forget_banks(settled.banks().0.len());
        self.engines = Arc::new(settled);
        self.save();
    }

    fn save(&self) {
        self.engines.save(self.registry.carried());
    }
}

impl Running {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        overrides: Overrides,
        started: Settings,
        attach: Attach,
        security: Arc<Security>,
        state: State,
        network: Option<Arc<Network>>,
        logging: Logging,
        http: [Arc<HttpStats>; 2],
        addresses: Vec<IpAddr>,
    ) -> Self {
        let packets = network.as_ref().and_then(|_| state.engines.folder()).map(Packets::of);
        Self {
            overrides,
            web: Mutex::new(Source::new(started.web.clone())),
            addresses,
            started,
            attach,
            security,
            state: Mutex::new(state),
            network,
            reloading: Mutex::new(()),
            reloads: Arc::new(Reloads::started()),
            logging,
            http,
            start_time: unix_now(),
            series: Arc::default(),
            packets,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When counting began, in seconds since 1970: before this exporter, if it goes on with another's counts.
    pub fn since(&self) -> f64 {
        self.engines().since()
    }

    fn engines(&self) -> Arc<Engines> {
        self.state().engines.clone()
    }

    /// One scrape of these metrics.
    pub fn render(&self, format: Format, names: &Names) -> Vec<u8> {
        self.engines().catch_up(DRAIN_TIMEOUT);
        let mut text = Vec::new();
        let telemetry = {
            let mut state = self.state();
            let State { engines, registry, overflows } = &mut *state;
            let status = engines.status();
            registry.render_some(&status.seen(), Instant::now(), format, |head| names.want(head), &mut text);
            self.series.store(registry.live_series() as u64, Ordering::Relaxed);
            let telemetry = Telemetry {
                plan: engines.plan.clone(),
                counts: engines.clone(),
                drain: Arc::new(engines.drain_stats()),
                status: Arc::new(status),
                http: self.http.clone(),
                attach: engines.attach_kind().unwrap_or(self.attach),
                logging: Some(self.logging.clone()),
                started: self.start_time,
                reloads: self.reloads.clone(),
                series: self.series.clone(),
                overflows: overflows.clone(),
            };
            telemetry.note_overflows(registry.overflows());
            telemetry
        };
        if let Some(network) = &self.network {
            let mut families = network.collect();
            self.packets.iter().for_each(|packets| packets.go_on(&mut families));
            let meant = families.iter().filter(|family| names.want(family.head()));
            meant.for_each(|family| family.write(format, &mut text));
        }
        let families = telemetry.collect();
        let meant = families.iter().filter(|family| names.want(family.head()));
        meant.for_each(|family| family.write(format, &mut text));
        format.finish(&mut text);
        text
    }

    /// Why not all probes are attached and interfaces counted on, or else what is attached in part.
    pub fn ready(&self) -> Result<Vec<String>, Vec<String>> {
        let engines = self.engines();
        let status = engines.status();
        let mut why = status.not_ready(&engines.plan);
        why.extend(self.network.iter().flat_map(|network| network.not_ready()));
        if why.is_empty() { Ok(status.partly(&engines.plan)) } else { Err(why) }
    }

    /// Holds what tracing costs against `limits.overhead`; not while the configuration is read anew.
    pub fn look_at_costs(&self, controllers: &mut Controllers) {
        if let Ok(_no_reload) = self.reloading.try_lock() {
            controllers.look(&self.engines());
        }
    }

    pub fn is_alive(&self, patience: Duration) -> bool {
        self.engines().is_alive(patience)
    }

    /// Reads the configuration, with all files that it names, anew, and does what it says. Probes that are the same are not
    /// touched. With a mistake in it nothing changes, and all mistakes are told. What was done is also logged.
    ///
    /// # Errors
    /// What is wrong, a line each.
    pub fn reload(&self) -> Result<String, String> {
        let _one_at_a_time = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        service::reloading();
        let done = self.exchange();
        self.reloads.note(done.is_ok());
        match &done {
            Ok(text) => text.lines().for_each(|line| log::info!("{line}")),
            Err(text) => {
                log::error!("The configuration is not reloaded, and the one in use stays:");
                text.lines().for_each(|line| log::error!("{line}"));
            }
        }
        service::reloaded();
        done
    }

    /// The interfaces to count on if they are others than now.
    ///
    /// # Errors
    /// If something else of `network:` is different: its programs and tables were made for it, and privileges kept.
    fn other_interfaces(&self, new: Option<&NetworkConfig>) -> Result<Option<NetworkConfig>, String> {
        let engines = self.engines();
        match (engines.plan.network.as_ref(), new) {
            (None, None) => Ok(None),
            (Some(old), Some(new)) if old == new => Ok(None),
            (Some(old), Some(new)) => match old.differs_in(new) {
                None => Ok(Some(new.clone())),
                Some(what) => Err(needs_restart(&format!("`network:` ({what})"))),
            },
            (None, Some(_)) | (Some(_), None) => Err(needs_restart("`network:`")),
        }
    }

    fn exchange(&self) -> Result<String, String> {
        let mut told = Vec::new();
        let (loaded, plan) = load_keeping(&self.overrides, |settings| told = keep(&self.started, settings))
            .map_err(|wrong| wrong.render())?;
        let settings = &loaded.config.settings;
        // Before the files are read: a change in between shows at the next look.
        let source = Source::new(settings.web.clone());
        let previous = self.security.now();
        let (secured, unwise) = secured(&settings.web, Some(&previous)).map_err(|err| format!("{err}\n"))?;
        let interfaces = self.other_interfaces(plan.network.as_ref())?;
        let old = self.engines();
        let new = old.changed_to(plan, self.attach).map_err(|err| format!("{err}\n"))?;
        let new = Arc::new(new);
        for warning in loaded.warnings.iter().chain(&new.plan.warnings).chain(&unwise) {
            log::warn!("{warning}");
        }
        let mut exposed: Vec<_> = (self.addresses.iter())
            .flat_map(|address| exposure_warnings(*address, secured.auth.is_some(), secured.tls.is_some()))
            .collect();
        exposed.dedup();
        exposed.iter().for_each(|warning| log::warn!("{warning}"));
        if let (Some(network), Some(interfaces)) = (&self.network, interfaces) {
            network.change(&interfaces);
        }
        *self.web.lock().unwrap_or_else(PoisonError::into_inner) = source;
        self.security.set(secured);
        set_level(settings.log_level);
        new.catch_up(DRAIN_TIMEOUT);
        {
            let mut state = self.state();
            *state = state.changed_to(new.clone());
        }
        // What is taken out is not shown any more.
        let settled = new.settled();
        self.state().settle(settled);
        let (kept, all, before) = (new.kept_of(&old), new.plan.probes.len(), old.plan.probes.len());
        told.push(format!(
            "Configuration reloaded: {kept} probes unchanged, {} new or changed, {} removed or replaced",
            all - kept,
            before - kept
        ));
        Ok(told.iter().map(|line| format!("{line}\n")).collect())
    }
}

impl Running {
    /// Reads the files with users, passwords and the like anew if they have changed. What comes of it is logged; with a
    /// mistake in them nothing changes.
    pub fn refresh_web(&self) {
        let _one_at_a_time = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let mut source = self.web.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = Fingerprint::of(source.web.origin.files().cloned());
        if seen == source.seen {
            return;
        }
        source.seen = seen;
        let done = self.read_web_again(&source.web);
        self.reloads.note(done.is_ok());
        match done {
            Ok(web) => {
                source.web = web;
                log::info!("The passwords and the web configuration were reloaded");
            }
            Err(text) => {
                log::error!("The web configuration is not reloaded, and the one in use stays:");
                text.lines().for_each(|line| log::error!("{line}"));
            }
        }
    }

    fn read_web_again(&self, web: &Web) -> Result<Web, String> {
        let web = config::read_again(web).map_err(|wrong| wrong.render())?;
        let unusable = Diagnostics::new();
        refuse_unusable(&web, |at, text| {
            unusable.error(at, text);
        });
        unusable.into_result(()).map_err(|wrong| wrong.render())?;
        let previous = self.security.now();
        let (secured, unwise) = secured(&web, Some(&previous)).map_err(|err| err.to_string())?;
        unwise.iter().for_each(|warning| log::warn!("{warning}"));
        self.security.set(secured);
        Ok(web)
    }
}

/// Why a reload is refused.
fn needs_restart(what: &str) -> String {
    format!("{what} cannot change without a restart: `systemctl restart`, or change it back\n")
}

/// Sets back what cannot change while the exporter runs; tells of each that would have.
fn keep(started: &Settings, now: &mut Settings) -> Vec<String> {
    let mut told = Vec::new();
    set_back("bind", &mut now.bind, &started.bind, &mut told);
    set_back("web_listen_address", &mut now.listen, &started.listen, &mut told);
    set_back("metrics_port", &mut now.metrics_port, &started.metrics_port, &mut told);
    set_back("health_port", &mut now.health_port, &started.health_port, &mut told);
    set_back("log_file", &mut now.log_file, &started.log_file, &mut told);
    set_back("verbose", &mut now.verbose, &started.verbose, &mut told);
    set_back("state", &mut now.pinned, &started.pinned, &mut told);
    set_back("attach", &mut now.attach, &started.attach, &mut told);
    set_back("keep_privileges", &mut now.keep_privileges, &started.keep_privileges, &mut told);
    let (limits, before) = (&mut now.limits, &started.limits);
    set_back("ring.size", &mut limits.ring_bytes, &before.ring_bytes, &mut told);
    set_back("ring.poll", &mut limits.ring_poll_ms, &before.ring_poll_ms, &mut told);
    set_back("limits.sites", &mut limits.sites, &before.sites, &mut told);
    set_back("limits.starts", &mut limits.starts, &before.starts, &mut told);
    told
}

fn set_back<T: PartialEq + Clone>(name: &str, now: &mut T, started: &T, told: &mut Vec<String>) {
    if now != started {
        told.push(format!("`{name}` takes effect with a restart; until then it stays as it was"));
        now.clone_from(started);
    }
}
