//! What a scrape shows of the blocklist.

use super::super::abi::Verdict;
use super::super::counters::Sum;
use super::alerts::AlertNumbers;
use super::config::BlockMode;
use super::entry::Source;
use super::feed::{Feed, FeedSummary};
use super::state::ListState;

/// Numbers for a scrape.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Summary {
    pub enforce: bool,
    /// The number of entries by source.
    pub entries: Vec<(Source, u64)>,
    /// Packets by source and verdict; read during the scrape.
    pub packets: Vec<(Source, [Sum; Verdict::ALL.len()])>,
    pub allowed: u64,
    pub spared: u64,
    /// Path, invalid lines, and whether the file is readable.
    pub files: Vec<(String, u64, bool)>,
    pub feeds: Vec<FeedSummary>,
    /// Changes that the kernel refused.
    pub errors: u64,
    /// Whether entries added at run time are stored; `None` if no file is configured.
    pub is_kept: Option<bool>,
    /// Replaced tables whose hits could not be read.
    pub unread: u64,
    /// Whether bans are reported to CrowdSec; the counts are read during the scrape.
    pub is_told: bool,
    pub alerts: Option<AlertNumbers>,
    /// All sources since the start.
    pub numbers: Vec<(u16, Source)>,
}

impl Summary {
    /// Summarizes the active entries. Whether entries are stored is passed in.
    pub(super) fn of(state: &ListState, is_kept: Option<bool>) -> Self {
        let count = |number: u16| state.by_source.get(usize::from(number)).copied().unwrap_or_default();
        // Files that are no longer configured are omitted once none of their entries is active.
        let is_shown = |number: u16, source: &Source| {
            source.origin.is_some()
                || count(number) > 0
                || usize::from(number) < super::sources::FIXED
                || state.file_sources.contains(&number)
        };
        let entries = state.sources.all().filter(|(number, source)| is_shown(*number, source));
        let file =
            |file: &super::file::WatchedFile| (file.name.clone(), file.invalid as u64, file.error.is_none());
        let feed =
            |(source, feed): (&String, &Feed)| FeedSummary { source: source.clone(), feed: feed.clone() };
        Self {
            enforce: state.config.mode == BlockMode::Enforce,
            entries: entries.map(|(number, source)| (source.clone(), count(number))).collect(),
            packets: Vec::new(),
            allowed: state.allowed.len() as u64,
            spared: state.sessions.len() as u64,
            files: state.files.iter().map(file).collect(),
            feeds: state.feeds.iter().map(feed).collect(),
            errors: state.errors,
            is_kept,
            unread: state.unread,
            is_told: state.config.crowdsec.as_ref().is_some_and(|crowdsec| crowdsec.push.is_some()),
            alerts: None,
            numbers: state.sources.all().map(|(number, source)| (number, source.clone())).collect(),
        }
    }
}
