//! What a scrape is shown of the blocklist.

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
    /// By source.
    pub entries: Vec<(Source, u64)>,
    /// Packets of entries by source, by what became of them; read when asked for.
    pub packets: Vec<(Source, [Sum; Verdict::ALL.len()])>,
    pub allowed: u64,
    pub spared: u64,
    /// Path, lines that were not understood, and whether the file could be read.
    pub files: Vec<(String, u64, bool)>,
    pub feeds: Vec<FeedSummary>,
    /// Changes that the kernel refused.
    pub errors: u64,
    /// Whether entries that are asked for are kept in a file; `None` if none is wanted.
    pub is_kept: Option<bool>,
    /// Exchanged tables whose hits could not be read any more.
    pub unread: u64,
    /// Whether CrowdSec is told of bans, and what became of that; read when asked for.
    pub is_told: bool,
    pub alerts: Option<AlertNumbers>,
    /// Of all sources that there ever were.
    pub numbers: Vec<(u16, Source)>,
}

impl Summary {
    /// Of what is held now. Whether entries are kept is told elsewhere.
    pub(super) fn of(state: &ListState, is_kept: Option<bool>) -> Self {
        let count = |number: u16| state.by_source.get(usize::from(number)).copied().unwrap_or_default();
        // Files that are not configured any more are left out, if nothing of them is held.
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
            spared: state.protected.connections.len() as u64,
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
