//! The run command: everything put together, until a signal ends it.

mod error;
mod listeners;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::budget::{Activity, Budget};
use crate::config::endpoint::Listen;
use crate::config::model::{KeepPrivileges, Settings};
use crate::config::{Overrides, default_state_directory};
use crate::http::{
    self, Endpoint, EndpointKind, HttpStats, Level, Listener, Notice, Security, ServerOptions,
};
use crate::kernel::Attach;
use crate::loading::{CheckedConfig, LoadedTls, secured};
use crate::logging::Logging;
use crate::net::{self, Event, Network, NetworkConfig};
use crate::pins::{self, PinDir, PinError, StateDirectory};
use crate::plan::Plan;
use crate::privileges::{self, Needs, PrivilegeError};
use crate::routes::{control_router, health_router, metrics_router};
use crate::running::{ActiveConfig, Running};
use crate::service;
use crate::slow::SlowRecorder;
use crate::targets::Attaching;

pub use self::error::RunError;
pub(crate) use self::error::failed_to;
pub use self::listeners::Listeners;

/// How long the drain thread may take to answer the service manager's watchdog.
const WATCHDOG_TIMEOUT: Duration = Duration::from_secs(5);

/// How long threads that are still rendering have to finish after a signal.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(300);

/// With fewer, parts of the exporter would fail one after the other, and the runtime's signal handling with a panic.
const MIN_DESCRIPTORS: u64 = 128;

/// Traces and serves until SIGTERM or SIGINT.
///
/// # Errors
/// If the certificate is unusable, or the kernel refuses the probe programs.
pub(crate) fn run(
    overrides: &Overrides,
    checked: CheckedConfig,
    attaching: Attaching,
    logging: Logging,
    listeners: Listeners,
    recorder: Arc<SlowRecorder>,
    hangup: Signal,
) -> Result<(), RunError> {
    let CheckedConfig { loaded, plan, tls } = checked;
    let settings = loaded.config.settings;
    let keep_privileges = settings.keep_privileges;
    announce(&settings, &plan, &listeners);
    let mut options = options(&settings, tls, &listeners)?;
    let mut network = plan.network.clone();
    if let Some(block) = network.as_mut().and_then(|network| network.block.as_mut()) {
        block.own_ports = listeners.ports();
        block.file.get_or_insert_with(|| {
            format!("/var/lib/fibre-exporter/blocklist-{}.db", settings.metrics_port).into()
        });
    }
    recorder.start()?;
    let directory = settings.pinned.as_deref().map(StateDirectory::open).transpose()?;
    if settings.pinned.is_none() {
        warn_of_leftover(&settings);
    }
    let pins = directory.as_ref().map(|all| network_pins(all, network.is_some())).transpose()?;
    let state = std::thread::scope(|scope| {
        // Before the first scrape, so that the reported costs do not change.
        scope.spawn(|| attaching.prices.measure(attaching.kind));
        ActiveConfig::begin(plan, &settings, &attaching, directory, &recorder)
    })?;
    let network =
        network.map(|config| start_network(config, pins.unwrap_or_default())).transpose()?.map(Arc::new);
    recorder.detect(network.as_deref());
    let stats = [Arc::new(HttpStats::default()), Arc::new(HttpStats::default())];
    let address = metrics_urls(&settings, &listeners);
    let addresses = listeners.metrics.iter().filter_map(Listener::address).collect();
    let running = Arc::new(Running::new(
        overrides.clone(),
        settings,
        attaching,
        options.security.clone(),
        state,
        network,
        logging.clone(),
        stats.clone(),
        addresses,
        recorder,
    ));
    if keep_privileges == KeepPrivileges::None {
        let attached = running.clone();
        std::thread::Builder::new()
            .name("privileges".to_string())
            .spawn(move || drop_all_when_attached(&attached))
            .map_err(failed_to("start the thread that drops privileges"))?;
    }
    let refreshed = running.clone();
    options.refresh = Some(Arc::new(move || refreshed.refresh_web()));
    let [metrics_stats, health_stats] = stats;
    let mut endpoints: Vec<_> = listeners
        .metrics
        .into_iter()
        .map(|listener| Endpoint {
            listener,
            router: metrics_router(&running),
            stats: metrics_stats.clone(),
            kind: EndpointKind::Public,
        })
        .collect();
    endpoints.push(Endpoint {
        listener: listeners.health,
        router: health_router(running.clone()),
        stats: health_stats,
        kind: EndpointKind::Public,
    });
    let control = listeners.control.zip(running.network.as_ref());
    if let Some(((_, listener), network)) = control {
        match listener {
            Ok(listener) => endpoints.push(Endpoint {
                listener,
                router: control_router(network),
                stats: metrics_stats,
                kind: EndpointKind::Control,
            }),
            Err(err) => log::warn!(
                "{err}; `exporter block` and `unblock` do not work; set network.block.socket to a path in a directory \
                 that the exporter may write to"
            ),
        }
    }
    let looked_at = Arc::downgrade(&running);
    let budget = Budget::start(move |controllers| {
        looked_at.upgrade().map_or(Activity::AtRest, |running| running.check_costs(controllers))
    })
    .map_err(failed_to("start the thread that monitors costs"))?;
    let served = serve(endpoints, options, &address, &running, hangup);
    drop(budget);
    served?;
    // Before the last line: what is still in the ring may be logged.
    drop(running);
    log::info!("Stopped");
    logging.wait();
    Ok(())
}

/// Checks the limit of open files, and keeps SIGHUP from ending the exporter while it starts: the returned signal has noted
/// it when the exporter has started. (One that is created only then misses what the runtime has passed on before.)
///
/// # Errors
/// If the limit is too low.
pub fn prepare() -> Result<Signal, RunError> {
    demand_descriptors()?;
    let failed = failed_to("wait for SIGHUP");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(&failed)?;
    let _context = runtime.enter();
    // The handler outlives this runtime; any later one passes on what it notes.
    signal(SignalKind::hangup()).map_err(failed)
}

fn demand_descriptors() -> Result<(), RunError> {
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < MIN_DESCRIPTORS => {
            let why = format!(
                "it may open {limit} files and needs at least {MIN_DESCRIPTORS}; raise the limit (LimitNOFILE= of the \
                 service, or ulimit -n)"
            );
            Err(RunError::Io("start", io::Error::other(why)))
        }
        _ => Ok(()),
    }
}

/// Warns about attached probes of an earlier run, which slow the traced programs although their counts are not read.
fn warn_of_leftover(settings: &Settings) {
    let directory = default_state_directory(settings.metrics_port);
    for left in pins::leftovers(&directory) {
        log::warn!(
            "{} has pinned state of an exporter that does not run: its probes stay attached; `exporter unpin {}` \
             detaches them",
            left.display(),
            left.display()
        );
    }
}

fn announce(settings: &Settings, plan: &Plan, listeners: &Listeners) {
    log::info!("exporter v{}", env!("CARGO_PKG_VERSION"));
    let targets: Vec<_> = plan.targets.iter().map(|target| target.name.as_str()).collect();
    let targets = if targets.is_empty() { "none".to_owned() } else { targets.join(",") };
    let port = match settings.listen {
        Listen::Port => settings.metrics_port.to_string(),
        Listen::Addresses(_) | Listen::Inherited => {
            listeners.metrics.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
        }
    };
    log::info!("Configuration: targets={targets} node={} port={port}", settings.node_name);
    let mut addresses: Vec<_> = listeners.metrics.iter().filter_map(Listener::address).collect();
    addresses.dedup();
    for address in addresses {
        if !http::has_address(address) {
            log::warn!("no interface has the address {address} yet; nothing is served on it until one has");
        }
        let web = &settings.web;
        for warning in http::exposure_warnings(address, !web.users.is_empty(), web.tls.is_some()) {
            log::warn!("{warning}");
        }
    }
}

fn options(
    settings: &Settings,
    tls: Option<LoadedTls>,
    listeners: &Listeners,
) -> Result<ServerOptions, RunError> {
    let (secured, warnings) = secured(&settings.web, tls, None)?;
    warnings.iter().for_each(|warning| log::warn!("{warning}"));
    if let Some(tls) = &settings.web.tls {
        log::info!("TLS enabled: cert={:?}", tls.cert);
    }
    let security = Arc::new(Security::new(secured));
    let options = ServerOptions { security, ..ServerOptions::default() };
    log::info!("Prometheus metrics: {}", metrics_urls(settings, listeners));
    log::info!("Health check: {}", url(settings, &listeners.health, "/health"));
    Ok(options)
}

fn url(settings: &Settings, listener: &Listener, path: &str) -> String {
    let scheme = if settings.web.tls.is_some() { "https" } else { "http" };
    match listener {
        Listener::Tcp(_) => format!("{scheme}://{listener}{path}"),
        Listener::Unix(_) => listener.to_string(),
    }
}

fn metrics_urls(settings: &Settings, listeners: &Listeners) -> String {
    let urls: Vec<_> = listeners.metrics.iter().map(|listener| url(settings, listener, "/metrics")).collect();
    urls.join(", ")
}

/// Where packet counters are pinned. Those of an earlier exporter are removed if none are configured.
fn network_pins(directory: &StateDirectory, is_wanted: bool) -> Result<PinDir, PinError> {
    let pins = directory.network()?;
    if !is_wanted {
        net::remove_pinned(&pins)?;
    }
    Ok(pins)
}

/// An interface that cannot be attached does not prevent the exporter from starting; it is reported, and retried.
fn start_network(config: NetworkConfig, pins: PinDir) -> Result<Network, RunError> {
    let tell = |event: Event| {
        if event.is_problem() { log::warn!("{event}") } else { log::info!("{event}") }
    };
    Network::start_in(config, pins, tell).map_err(RunError::Network)
}

fn serve(
    endpoints: Vec<Endpoint>,
    options: ServerOptions,
    address: &str,
    running: &Arc<Running>,
    mut hangup: Signal,
) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_name("http")
        .enable_all()
        .build()
        .map_err(failed_to("start the HTTP threads"))?;
    let served = runtime.block_on(async {
        let mut term = signal(SignalKind::terminate()).map_err(failed_to("wait for SIGTERM"))?;
        let mut int = signal(SignalKind::interrupt()).map_err(failed_to("wait for SIGINT"))?;
        let reloaded = running.clone();
        let reloads = tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                let reloaded = reloaded.clone();
                // It has logged the outcome.
                let _ = tokio::task::spawn_blocking(move || reloaded.reload()).await;
            }
        });
        let watched = running.clone();
        let alive = move || watched.is_alive(WATCHDOG_TIMEOUT);
        let report = Arc::new(|notice: Notice| match notice.level {
            Level::Debug => log::debug!("{}", notice.text),
            Level::Info => log::info!("{}", notice.text),
            Level::Warning => log::warn!("{}", notice.text),
            Level::Error => log::error!("{}", notice.text),
        });
        log::info!("Waiting for events...");
        service::ready(address);
        let ended = async {
            tokio::select! {
                _ = term.recv() => log::info!("SIGTERM: stopping"),
                _ = int.recv() => log::info!("SIGINT: stopping"),
                () = service::watchdog(alive) => {}
            }
            reloads.abort();
            service::stopping();
        };
        http::serve(endpoints, options, report, ended).await.map_err(RunError::from)
    });
    runtime.shutdown_timeout(SHUTDOWN_GRACE);
    served
}

/// Drops unneeded privileges, before the first thread is created. The error is to be logged, which needs a thread.
///
/// # Errors
/// If the kernel refuses to drop them.
pub fn drop_privileges(
    attach: Attach,
    network: Option<&NetworkConfig>,
) -> (Attaching, Result<(), PrivilegeError>) {
    let needs = Needs {
        perf_events: attach == Attach::Perf,
        network: network.is_some(),
        namespaces: network.is_some_and(|network| !network.elsewhere.is_empty()),
        sockets: network.is_some_and(|network| network.count.processes),
    };
    Attaching::prepare(attach, || privileges::keep_only(needs))
}

/// `keep_privileges: none`: capabilities are dropped when everything is attached, or this long after what is there is.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);

/// Drops every capability when everything is attached; logs what is not, and no longer can be.
fn drop_all_when_attached(running: &Running) {
    running.wait_until_attached();
    let began = Instant::now();
    let mut missing = running.ready().err();
    while missing.is_some() && began.elapsed() < ATTACH_TIMEOUT {
        std::thread::sleep(Duration::from_millis(50));
        missing = running.ready().err();
    }
    match privileges::drop_all_capabilities() {
        Ok(()) => log::info!(
            "All privileges dropped (`keep_privileges: none`): attached probes keep counting; nothing further is \
             attached until a restart"
        ),
        Err(err) => log::error!("failed to drop all privileges (`keep_privileges: none`): {err}"),
    }
    for line in missing.unwrap_or_default() {
        log::warn!("not attached when all privileges were dropped (`keep_privileges: none`): {line}");
    }
}
