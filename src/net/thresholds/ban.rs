//! The terms of bans.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long a source that crossed a threshold is banned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BanTerms {
    /// Whether it is put on the blocklist; otherwise it is only reported.
    pub enforce: bool,
    /// The duration of the first ban.
    pub ttl: Duration,
    /// Each further ban is twice as long, up to this.
    pub max_ttl: Duration,
}

/// `ban:` of a probe.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BanRule {
    /// Shown with the entry and in metrics. Hits of identical rules are counted together.
    pub kind: String,
    /// The number of hits of one address within this time.
    pub after: u32,
    pub within: Duration,
    pub terms: BanTerms,
}

impl BanTerms {
    /// The duration of a ban after this many earlier ones.
    pub(crate) fn time(&self, before: u32) -> Duration {
        let times = 1u32.checked_shl(before).unwrap_or(u32::MAX);
        self.ttl.checked_mul(times).unwrap_or(self.max_ttl).min(self.max_ttl).max(self.ttl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ban_times_double_up_to_the_maximum() {
        let seconds = Duration::from_secs;
        let terms = BanTerms { enforce: true, ttl: seconds(600), max_ttl: seconds(3000) };
        let times: Vec<u64> = [0, 1, 2, 3, 31, 32, u32::MAX].map(|n| terms.time(n).as_secs()).to_vec();
        assert_eq!(times, [600, 1200, 2400, 3000, 3000, 3000, 3000]);
    }
}
