//! Which remote sources are configured, and how their responses change the list.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::super::cidr::Prefix;
use super::config::{BlockConfig, MAX_TTL};
use super::crowdsec::{CrowdsecConfig, NAME};
use super::decisions::{About, Answered, Ban, Saved};
use super::entry::{Asker, Source};
use super::feed::Feed;
use super::fetch::{UrlConfig, verified};
use super::file::WatchedFile;
use super::push::ORIGIN;
use super::replace::age;
use super::sources::Sources;
use super::state::{Decision, ListState, Origin};
use crate::clock::wall_seconds;

/// A decision whose expiry changes by less than this many nanoseconds is unchanged.
const SAME_EXPIRY: u64 = 2_000_000_000;

/// The running threads. Each ends when its sender is dropped.
#[derive(Debug, Default)]
pub(super) struct Followers(pub Vec<(Followed, Sender<()>)>);

/// A configured remote source.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Followed {
    Crowdsec(CrowdsecConfig),
    /// CrowdSec, for reports of bans.
    Told(CrowdsecConfig),
    /// A list and the path of its cached copy.
    Url(UrlConfig, PathBuf),
}

impl Followed {
    pub fn all(config: &BlockConfig) -> Vec<Self> {
        let urls = config
            .file
            .iter()
            .flat_map(|file| config.urls.iter().map(|list| Self::Url(list.clone(), list.kept_in(file))));
        let crowdsec = config.crowdsec.iter();
        let pushed = crowdsec.clone().filter(|crowdsec| crowdsec.push.is_some()).cloned().map(Self::Told);
        crowdsec.cloned().map(Self::Crowdsec).chain(pushed).chain(urls).collect()
    }

    pub fn name(&self) -> String {
        match self {
            Self::Crowdsec(_) | Self::Told(_) => NAME.to_string(),
            Self::Url(list, _) => list.url.to_string(),
        }
    }
}

/// Adds the cached copies of downloaded lists, except those that must not be used. Returns the age of each in seconds.
pub(super) fn fetched(config: &BlockConfig, files: &mut Vec<WatchedFile>) -> Vec<(String, i64)> {
    let mut ages = Vec::new();
    if config.file.is_none() && !config.urls.is_empty() {
        log::error!("blocklist: lists are not downloaded: they are cached beside `file`, which is not set");
    }
    for followed in Followed::all(config) {
        let Followed::Url(list, path) = &followed else { continue };
        files.push(WatchedFile::fetched(list, path.clone(), |path| {
            let (age, content) = verified(list, path)?;
            ages.push((followed.name(), age));
            Some(content)
        }));
    }
    ages
}

/// Where decisions are stored for the next start, beside the file of entries.
pub(super) fn kept_in(config: &BlockConfig) -> Option<PathBuf> {
    config.file.as_ref().map(|file| file.with_extension("crowdsec.json"))
}

/// The monotonic time this many seconds ago.
fn ago(now: u64, seconds: i64) -> i64 {
    i64::try_from(now).unwrap_or(i64::MAX).saturating_sub(seconds.saturating_mul(1_000_000_000))
}

/// The stored decisions of an earlier run, and their age in seconds.
fn left(config: &BlockConfig) -> Option<(BTreeMap<About, Ban>, i64)> {
    let url = config.crowdsec.as_ref()?.url.to_string();
    let path = kept_in(config)?;
    let text = fs::read(&path).ok()?;
    let saved: Saved = serde_json::from_slice(&text)
        .map_err(|err| log::warn!("blocklist: {} is not read: {err}", path.display()))
        .ok()?;
    let age = age(&path)?;
    (saved.url == url).then(|| (saved.bans(wall_seconds()), age))
}

fn decisions(bans: BTreeMap<About, Ban>, sources: &mut Sources, now: u64) -> BTreeMap<About, Decision> {
    let decision = |(about, ban): (About, Ban)| {
        let time = Duration::from_secs_f64(ban.seconds.clamp(0.0, MAX_TTL.as_secs_f64()));
        let source = sources.number(Source { name: NAME.to_string(), origin: Some(ban.origin.to_string()) });
        let deadline = now.saturating_add(time.as_nanos() as u64);
        (about, Decision { deadline, source, scenario: ban.scenario })
    };
    bans.into_iter().map(decision).collect()
}

impl ListState {
    /// Applies the stored decisions of an earlier run.
    pub fn restore_decisions(&mut self, config: &BlockConfig, now: u64) {
        let Some((bans, age)) = left(config) else { return };
        if !bans.is_empty() {
            log::info!(
                "blocklist: {} decisions of CrowdSec, received {age} s ago, stay in effect",
                bans.len()
            );
        }
        self.decided = decisions(bans, &mut self.sources, now);
        self.feeds.insert(NAME.to_string(), Feed { answered: Some(ago(now, age)), ..Feed::default() });
    }

    /// Keeps state for the sources of this configuration, and no others. `ages` are those of cached lists.
    pub fn retain_feeds(&mut self, config: &BlockConfig, ages: Vec<(String, i64)>, now: u64) {
        let names: BTreeSet<String> = Followed::all(config).iter().map(Followed::name).collect();
        self.feeds.retain(|name, _| names.contains(name));
        for name in names {
            let age = ages.iter().find(|(of, _)| *of == name).map(|(_, age)| *age);
            let feed = || Feed { answered: age.map(|age| ago(now, age)), ..Feed::default() };
            self.feeds.entry(name).or_insert_with(feed);
        }
    }

    /// Applies a response; returns the prefixes that change, and those among them that this exporter's detection had
    /// banned and somebody has released for the whole fleet.
    pub fn decide(
        &mut self,
        answered: Answered,
        is_whole: bool,
        now: u64,
    ) -> (BTreeSet<Prefix>, Vec<Prefix>) {
        let (mut touched, mut gone) = (BTreeSet::new(), BTreeSet::new());
        let mut new = decisions(answered.bans, &mut self.sources, now);
        if is_whole {
            let is_gone = |(about, _): &(&About, &Decision)| !new.contains_key(about);
            for ((prefix, ..), by) in self.decided.iter().filter(is_gone) {
                touched.insert(*prefix);
                gone.extend(self.is_released(by, now).then_some(*prefix));
            }
            self.decided.retain(|about, _| new.contains_key(about));
            // Includes what the kernel refused before.
            let is_unheld = |prefix: &&Prefix| !self.held.contains_key(prefix);
            touched.extend(new.keys().map(|(prefix, ..)| prefix).filter(is_unheld));
            let held = self.held.iter().filter(|(_, origin)| matches!(origin, Origin::Decision(_)));
            touched.extend(
                held.map(|(prefix, _)| *prefix).filter(|prefix| self.decision(*prefix, now).is_none()),
            );
        }
        for about in answered.ended {
            if let Some(by) = self.decided.remove(&about) {
                touched.insert(about.0);
                gone.extend(self.is_released(&by, now).then_some(about.0));
            }
        }
        new.retain(|about, by| {
            let is_same = |known: &Decision| {
                known.source == by.source && known.deadline.abs_diff(by.deadline) < SAME_EXPIRY
            };
            !self.decided.get(about).is_some_and(is_same)
        });
        touched.extend(new.keys().map(|(prefix, ..)| *prefix));
        self.decided.extend(new);
        let is_ours = |prefix: &Prefix| {
            self.decision(*prefix, now).is_none()
                && self.asked.get(prefix).is_some_and(|asked| asked.by == Asker::Detection)
        };
        let released: Vec<Prefix> = gone.into_iter().filter(is_ours).collect();
        self.asked.retain(|prefix, _| !released.contains(prefix));
        (touched, released)
    }

    /// Whether a decision made by an exporter was deleted before its expiry.
    fn is_released(&self, by: &Decision, now: u64) -> bool {
        let origin = self.sources.of(by.source).and_then(|source| source.origin.as_deref());
        by.deadline > now.saturating_add(SAME_EXPIRY) && origin == Some(ORIGIN)
    }
}
