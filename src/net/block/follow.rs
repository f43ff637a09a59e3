//! The threads that request entries from remote sources.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::super::sys::monotonic;
use super::blocklist::Blocklist;
use super::crowdsec::{Crowdsec, CrowdsecConfig, NAME};
use super::decisions::{Answered, Saved};
use super::fetch::{Fetched, Fetcher, UrlConfig};
use super::followed::{Followed, kept_in};
use super::push::{Alert, PushError, Pusher};
use super::replace::{replace, touch};
use crate::clock::wall_seconds;

/// How soon a failed download is retried.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

impl Blocklist {
    /// Starts and stops threads so that exactly the configured sources are requested. The threads end with the list.
    pub fn follow(self: &Arc<Self>) {
        let wanted = Followed::all(&self.lock().config);
        let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        followers.0.retain(|(running, _)| wanted.contains(running));
        for followed in wanted {
            if followers.0.iter().any(|(running, _)| *running == followed) {
                continue;
            }
            let (sender, stopped) = channel();
            let (list, asked) = (Arc::downgrade(self), followed.clone());
            let thread = std::thread::Builder::new().name("blocklist-feed".to_string());
            let started = thread.spawn(move || match asked {
                Followed::Crowdsec(config) => poll_crowdsec(&list, &config, &stopped),
                Followed::Told(config) => report_bans(&list, &config, &stopped),
                Followed::Url(config, path) => fetch_list(&list, &config, &path, &stopped),
            });
            match started {
                Ok(_) => followers.0.push((followed, sender)),
                Err(err) => {
                    log::error!(
                        "blocklist: failed to start a thread that requests {}: {err}",
                        followed.name()
                    )
                }
            }
        }
    }

    /// Applies CrowdSec's decisions; returns their number, or `None` if it is no longer configured.
    fn decided(
        &self,
        of: &CrowdsecConfig,
        answered: Answered,
        is_whole: bool,
    ) -> Result<Option<usize>, String> {
        let now = monotonic();
        let (mut store, mut state) = self.lock_protected(now);
        if state.config.crowdsec.as_ref() != Some(of) {
            return Ok(None);
        }
        let feed = state.feeds.entry(NAME.to_string()).or_default();
        (feed.is_up, feed.answered) = (true, i64::try_from(now).ok());
        for (reason, (count, example)) in &answered.ignored {
            if feed.ignore(reason, *count) {
                log::warn!(
                    "blocklist: decisions of CrowdSec are not applied, {reason}: {count}, such as {example:?}"
                );
            }
        }
        let (touched, released) = state.decide(answered, is_whole, now);
        let done = if touched.is_empty() {
            Ok(())
        } else {
            state.sparing_sessions(&self.maps, |state| state.refresh(&self.maps, &touched, now))
        };
        if done.is_err() {
            state.errors += 1;
        }
        self.publish(&state);
        let saved = kept_in(&state.config).map(|path| {
            let bytes = (!touched.is_empty() || !path.exists()).then(|| {
                let bans = state.decided.iter().map(|(about, by)| {
                    let origin = state.sources.of(by.source).and_then(|source| source.origin.as_deref());
                    let seconds = by.deadline.saturating_sub(now) as f64 / 1e9;
                    (*about, origin.unwrap_or_default(), &*by.scenario, seconds)
                });
                serde_json::to_vec(&Saved::new(of.url.to_string(), wall_seconds(), bans)).unwrap_or_default()
            });
            (path, bytes)
        });
        let count = state.decided.len();
        drop(state);
        if let (Some(store), false) = (&mut *store, released.is_empty()) {
            self.record_stored(store.change(|| self.stored_entries(), |store| store.remove(&released)));
        }
        drop(store);
        done.map_err(|err| format!("the kernel refused the change: {err:#}"))?;
        if let Some((path, bytes)) = saved {
            let kept = match bytes {
                Some(bytes) => replace(&path, &bytes),
                None => touch(&path),
            };
            self.record_decisions_stored(&path, kept);
        }
        Ok(Some(count))
    }

    fn record_decisions_stored(&self, path: &Path, kept: std::io::Result<()>) {
        let mut failed = self.has_unsaved_decisions.lock().unwrap_or_else(PoisonError::into_inner);
        match kept {
            Ok(()) => *failed = false,
            Err(err) => {
                if !std::mem::replace(&mut *failed, true) {
                    log::error!(
                        "blocklist: CrowdSec's decisions are in effect, but not stored for a restart: failed to write {}: {err}",
                        path.display()
                    );
                }
            }
        }
    }

    /// Queues a report of a ban to CrowdSec, if that is configured and packets are dropped. Never blocks.
    pub(in super::super) fn report(&self, alert: Alert) {
        if !self.is_enforced() {
            return;
        }
        let followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        let pusher = followers.0.iter().find(|(running, _)| matches!(running, Followed::Told(_)));
        if let Some((_, wake)) = pusher {
            self.alerts().add(alert);
            // The receiver is gone only when the whole list is.
            let _ = wake.send(());
        }
    }

    /// Records the outcome of a request, if the source is still configured. After a failure, what was blocked stays
    /// blocked.
    fn answered(&self, name: &str, is_up: bool) {
        let mut state = self.lock();
        let Some(feed) = state.feeds.get_mut(name) else { return };
        feed.is_up = is_up;
        if is_up {
            feed.answered = i64::try_from(monotonic()).ok();
        }
        self.publish(&state);
    }
}

/// The thread that downloads a list. The file is then read like any other.
fn fetch_list(list: &Weak<Blocklist>, config: &UrlConfig, path: &Path, stopped: &Receiver<()>) {
    let (fetcher, name) = (Fetcher::new(config, path), config.url.to_string());
    let mut failing: Option<String> = None;
    loop {
        let fetched = fetcher.fetch();
        let Some(list) = list.upgrade() else { return };
        list.answered(&name, fetched.is_ok());
        let wait = match fetched {
            Ok(fetched) => {
                if let Fetched::New(count) = fetched {
                    log::info!("blocklist: {name}: {count} entries fetched");
                } else if failing.is_some() {
                    log::info!("blocklist: {name} answers again");
                }
                failing = None;
                config.interval
            }
            Err(error) => {
                if failing.as_ref() != Some(&error) {
                    log::warn!("blocklist: failed to fetch {name}: {error}; the previous list stays in use");
                }
                failing = Some(error);
                config.interval.min(RETRY_INTERVAL)
            }
        };
        drop(list);
        if stopped.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

/// The thread that requests CrowdSec's decisions.
fn poll_crowdsec(list: &Weak<Blocklist>, config: &CrowdsecConfig, stopped: &Receiver<()>) {
    let mut crowdsec = Crowdsec::new(config);
    let mut failing: Option<String> = None;
    let mut is_first = true;
    loop {
        let asked = crowdsec.poll();
        let Some(list) = list.upgrade() else { return };
        let done = asked.and_then(|(answered, is_whole)| list.decided(config, answered, is_whole));
        match done {
            Ok(None) => return,
            Ok(Some(count)) => {
                if is_first || failing.is_some() {
                    log::info!("blocklist: CrowdSec at {} responds: {count} decisions", config.url);
                }
                crowdsec.applied(count);
                (failing, is_first) = (None, false);
            }
            Err(error) => {
                crowdsec.ask_all();
                list.answered(NAME, false);
                if failing.as_ref() != Some(&error) {
                    log::warn!(
                        "blocklist: failed to request decisions from CrowdSec at {}: {error}; earlier ones stay in effect until they expire",
                        config.url
                    );
                }
                failing = Some(error);
            }
        }
        // The thread must not keep the list alive while it waits.
        drop(list);
        if stopped.recv_timeout(config.interval) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

/// The thread that reports bans to CrowdSec: when it is woken, and again after a pause what was not accepted.
fn report_bans(list: &Weak<Blocklist>, config: &CrowdsecConfig, woken: &Receiver<()>) {
    let Some(mut pusher) = Pusher::new(config) else { return };
    let mut failing: Option<String> = None;
    let mut pause = Duration::ZERO;
    loop {
        let Some(next) = list.upgrade().map(|list| list.alerts().next()) else { return };
        if next.is_empty() {
            if woken.recv().is_err() {
                return;
            }
            continue;
        }
        let sent = pusher.send(&next, monotonic());
        let Some(list) = list.upgrade() else { return };
        let failed = match sent {
            Ok(sent) => {
                list.alerts().sent(next.len(), sent);
                None
            }
            Err(PushError::Refused(error)) => {
                list.alerts().refused(next.len());
                log::error!("blocklist: CrowdSec at {} rejected {} alerts: {error}", config.url, next.len());
                None
            }
            Err(PushError::Later(error)) => {
                list.alerts().again(next);
                Some(error)
            }
        };
        drop(list);
        match &failed {
            None => {
                if failing.is_some() {
                    log::info!("blocklist: CrowdSec at {} accepts alerts again", config.url);
                }
                pause = Duration::ZERO;
            }
            Some(error) => {
                if failing.as_ref() != Some(error) {
                    log::warn!(
                        "blocklist: failed to report bans to CrowdSec at {}: {error}; they are in effect here and will be reported later",
                        config.url
                    );
                }
                pause = (pause * 2).clamp(Duration::from_secs(1), RETRY_INTERVAL);
            }
        }
        failing = failed;
        // Being woken does not shorten the pause.
        let again = Instant::now() + pause;
        loop {
            match woken.recv_timeout(again.saturating_duration_since(Instant::now())) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}
