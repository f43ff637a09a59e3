//! The state of remote sources of the blocklist. Pure.

use std::collections::BTreeMap;

/// Distinct reasons for ignoring decisions that are reported.
const MAX_REASONS: usize = 16;

/// A remote source, as a scrape shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct FeedSummary {
    pub source: String,
    pub feed: Feed,
}

/// The state of a remote source.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Feed {
    /// Whether the last request succeeded.
    pub is_up: bool,
    /// The time of the last success in nanoseconds of the monotonic clock; negative if before boot.
    pub answered: Option<i64>,
    /// Decisions that were received and not applied, by reason.
    pub ignored: BTreeMap<String, u64>,
}

impl FeedSummary {
    /// One with every optional part, for the reference of metrics.
    pub fn with_everything() -> Self {
        let ignored = BTreeMap::from([(String::new(), 0)]);
        Self { source: String::new(), feed: Feed { is_up: true, answered: Some(0), ignored } }
    }
}

impl Feed {
    /// Seconds since the last success.
    pub fn age(&self, now: u64) -> Option<f64> {
        self.answered.map(|then| (i128::from(now) - i128::from(then)).max(0) as f64 / 1e9)
    }

    /// Counts what is not applied; returns whether the reason is new and should be logged.
    pub fn ignore(&mut self, reason: &str, count: u64) -> bool {
        let is_told = self.ignored.contains_key(reason) || self.ignored.len() < MAX_REASONS;
        let reason = if is_told { reason } else { "other" };
        let is_new = !self.ignored.contains_key(reason);
        *self.ignored.entry(reason.to_string()).or_default() += count;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tracks_age_and_ignored_reasons() {
        let mut feed = Feed { answered: Some(-1_000_000_000), ..Feed::default() };
        assert_eq!((feed.age(500_000_000), Feed::default().age(1)), (Some(1.5), None));
        for reason in 0..100 {
            assert_eq!(feed.ignore(&reason.to_string(), 2), reason <= MAX_REASONS);
        }
        assert!(!feed.ignore("0", 1));
        assert_eq!((feed.ignored.len(), feed.ignored["0"], feed.ignored["other"]), (17, 3, 168));
    }
}
