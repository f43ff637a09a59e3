//! Reloading the configuration and its files.

use std::sync::Arc;
use std::time::Duration;

use super::{DRAIN_TIMEOUT, Running, WebSource};
use crate::config::endpoint::Web;
use crate::config::model::Settings;
use crate::config::{self, Diagnostics, default_events_file, default_state_directory};
use crate::http::{Fingerprint, exposure_warnings};
use crate::loading::{CheckedConfig, load_keeping, refuse_unusable, secured};
use crate::logging::set_level;
use crate::mutex::lock_within;
use crate::net::NetworkConfig;
use crate::service;

/// How long a reload waits for another one. Meanwhile it is one of few requests that are handled at a time: if a file could not
/// be read, as on a file system that does not answer, such requests would keep the others from being handled.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

impl Running {
    /// Reloads the configuration, with all files that it names, and applies it. Unchanged probes are not touched. If
    /// there is an error nothing changes, and all errors are reported. The outcome is also logged.
    ///
    /// # Errors
    /// All errors, one per line.
    pub fn reload(&self) -> Result<String, String> {
        let Some(_one_at_a_time) = lock_within(&self.reloading, LONGEST_WAIT) else {
            let text = "Another reload has not ended: it attaches probes, or waits for a file that it reads. Try again later";
            log::warn!("{text}");
            return Err(format!("{text}\n"));
        };
        service::reloading();
        let done = self.exchange();
        self.reloads.record(done.is_ok());
        match &done {
            Ok(text) => text.lines().for_each(|line| log::info!("{line}")),
            Err(text) => {
                log::error!("The configuration was not reloaded; the previous one stays in use:");
                text.lines().for_each(|line| log::error!("{line}"));
            }
        }
        service::reloaded();
        done
    }

    /// The network configuration if its interfaces have changed.
    ///
    /// # Errors
    /// If something else in `network:` is different: its programs and tables, and the remaining privileges, depend on
    /// it.
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
        let mut notices = Vec::new();
        let CheckedConfig { loaded, plan, tls } =
            load_keeping(&self.overrides, |settings| notices = keep(&self.started, settings))
                .map_err(|wrong| wrong.render())?;
        let settings = &loaded.config.settings;
        // Before the files are read: a change in between is noticed by the next check.
        let source = WebSource::new(settings.web.clone());
        let previous = self.security.now();
        let (secured, advice) =
            secured(&settings.web, tls, Some(&previous)).map_err(|err| format!("{err}\n"))?;
        let interfaces = self.other_interfaces(plan.network.as_ref())?;
        let old = self.engines();
        self.recorder.keep_for(&plan).map_err(|err| format!("{err}\n"))?;
        let new = old.changed_to(plan, &self.attaching, &self.recorder).map_err(|err| format!("{err}\n"))?;
        let new = Arc::new(new);
        for warning in loaded.warnings.iter().chain(&new.plan.warnings).chain(&advice) {
            log::warn!("{warning}");
        }
        let mut exposed: Vec<_> = (self.addresses.iter())
            .flat_map(|address| exposure_warnings(*address, secured.auth.is_some(), secured.tls.is_some()))
            .collect();
        exposed.dedup();
        exposed.iter().for_each(|warning| log::warn!("{warning}"));
        if let (Some(network), Some(interfaces)) = (&self.network, interfaces) {
            network.change(&interfaces).map_err(|err| format!("the blocklist is unchanged: {err:#}\n"))?;
        }
        *self.web() = source;
        self.security.set(secured);
        set_level(settings.log_level);
        new.catch_up(DRAIN_TIMEOUT);
        {
            let mut state = self.state();
            *state = state.changed_to(new.clone());
        }
        // Detached probes are not shown anymore.
        let settled = new.settled();
        self.state().settle(settled);
        let (kept, all, before) = (new.kept_of(&old), new.plan.probes.len(), old.plan.probes.len());
        notices.push(format!(
            "Configuration reloaded: {kept} probes unchanged, {} new or changed, {} removed or replaced",
            all - kept,
            before - kept
        ));
        Ok(notices.iter().map(|line| format!("{line}\n")).collect())
    }

    /// Reads the files with users, passwords and the like again if they have changed. The outcome is logged; if there
    /// is an error nothing changes. Returns false if there are no such files.
    pub fn refresh_web(&self) -> bool {
        // A reload reads them itself.
        let Some(_one_at_a_time) = lock_within(&self.reloading, Duration::ZERO) else { return true };
        let mut source = self.web();
        if source.web.origin.files().next().is_none() {
            return false;
        }
        let fingerprint = Fingerprint::of(source.web.origin.files().cloned());
        if fingerprint == source.fingerprint {
            return true;
        }
        source.fingerprint = fingerprint;
        let done = self.reload_web(&source.web);
        self.reloads.record(done.is_ok());
        match done {
            Ok(web) => {
                source.web = web;
                log::info!("The passwords and the web configuration were reloaded");
            }
            Err(text) => {
                log::error!("The web configuration was not reloaded; the previous one stays in use:");
                text.lines().for_each(|line| log::error!("{line}"));
            }
        }
        true
    }

    fn reload_web(&self, web: &Web) -> Result<Web, String> {
        let web = config::read_again(web).map_err(|wrong| wrong.render())?;
        let unusable = Diagnostics::new();
        let tls = refuse_unusable(&web, |at, text| {
            unusable.error(at, text);
        });
        unusable.into_result(()).map_err(|wrong| wrong.render())?;
        let previous = self.security.now();
        let (secured, advice) = secured(&web, tls, Some(&previous)).map_err(|err| err.to_string())?;
        advice.iter().for_each(|warning| log::warn!("{warning}"));
        self.security.set(secured);
        Ok(web)
    }
}

/// Why a reload is refused.
fn needs_restart(what: &str) -> String {
    format!("{what} cannot change without a restart: `systemctl restart`, or change it back\n")
}

/// Reverts settings that cannot change at run time; returns a notice for each one that differs.
fn keep(started: &Settings, now: &mut Settings) -> Vec<String> {
    let mut notices = Vec::new();
    // What is named after the port by default is not what has been changed.
    if now.slow_events.file == default_events_file(now.metrics_port) {
        now.slow_events.file = default_events_file(started.metrics_port);
    }
    if now.pinned == Some(default_state_directory(now.metrics_port)) {
        now.pinned = Some(default_state_directory(started.metrics_port));
    }
    set_back("bind", &mut now.bind, &started.bind, &mut notices);
    set_back("web_listen_address", &mut now.listen, &started.listen, &mut notices);
    set_back("metrics_port", &mut now.metrics_port, &started.metrics_port, &mut notices);
    set_back("health_port", &mut now.health_port, &started.health_port, &mut notices);
    set_back("log_file", &mut now.log_file, &started.log_file, &mut notices);
    set_back("verbose", &mut now.verbose, &started.verbose, &mut notices);
    set_back("state", &mut now.pinned, &started.pinned, &mut notices);
    set_back("attach", &mut now.attach, &started.attach, &mut notices);
    set_back("slow_events.file", &mut now.slow_events.file, &started.slow_events.file, &mut notices);
    set_back("keep_privileges", &mut now.keep_privileges, &started.keep_privileges, &mut notices);
    let (limits, before) = (&mut now.limits, &started.limits);
    set_back("ring.size", &mut limits.ring_bytes, &before.ring_bytes, &mut notices);
    set_back("ring.poll", &mut limits.ring_poll_ms, &before.ring_poll_ms, &mut notices);
    set_back("limits.sites", &mut limits.sites, &before.sites, &mut notices);
    set_back("limits.starts", &mut limits.starts, &before.starts, &mut notices);
    notices
}

fn set_back<T: PartialEq + Clone>(name: &str, now: &mut T, started: &T, notices: &mut Vec<String>) {
    if now != started {
        notices
            .push(format!("`{name}` takes effect at a restart; until then the previous value stays in use"));
        now.clone_from(started);
    }
}
