//! Hits of probes by the address that they report. Pure.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::super::thresholds::BanRule;
use super::bounded::Bounded;

/// Times in the table of one rule, of all addresses together: 32 MiB.
const MAX_TIMES: usize = 1 << 22;

/// Addresses in the table of one rule.
const MAX_ADDRESSES: usize = 1 << 16;

/// The latest hits of each address, by rule.
#[derive(Debug, Default)]
pub(super) struct Hits {
    by_rule: HashMap<Arc<BanRule>, Bounded<IpAddr, VecDeque<u64>>>,
}

impl Hits {
    /// Records a hit at this time in nanoseconds; returns whether the rule's threshold is reached, in which case the
    /// address starts again from zero.
    pub fn record(&mut self, rule: &Arc<BanRule>, address: IpAddr, time: u64) -> bool {
        let after = rule.after.max(1) as usize;
        let most = (MAX_TIMES / after).min(MAX_ADDRESSES);
        let table = self.by_rule.entry(rule.clone()).or_insert_with(|| Bounded::new(most));
        let within = nanoseconds(rule.within);
        let is_live =
            |times: &VecDeque<u64>| times.back().is_some_and(|last| time.saturating_sub(*last) < within);
        let times = table.entry(address, is_live);
        // Several drain threads deliver hits nearly in order.
        times.push_back(time);
        while times.front().is_some_and(|first| time.saturating_sub(*first) > within) {
            times.pop_front();
        }
        let is_over = times.len() >= after;
        if is_over {
            table.remove(&address);
        }
        is_over
    }

    /// Addresses that were evicted.
    pub fn evicted(&self) -> u64 {
        self.by_rule.values().map(|table| table.evicted).sum()
    }
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::BanTerms;

    const SECOND: u64 = 1_000_000_000;

    fn rule(after: u32, within: u64) -> Arc<BanRule> {
        let terms =
            BanTerms { enforce: false, ttl: Duration::from_secs(600), max_ttl: Duration::from_secs(3600) };
        Arc::new(BanRule { kind: "k".into(), after, within: Duration::from_secs(within), terms })
    }

    #[test]
    fn counts_restart_after_reaching_the_threshold() {
        let (mut hits, rule) = (Hits::default(), rule(3, 60));
        let (one, other) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        let mut over = |address, second: u64| hits.record(&rule, address, 1000 * SECOND + second * SECOND);
        assert_eq!([0, 30, 60].map(|at| over(one, at)), [false, false, true]);
        assert_eq!([61, 62].map(|at| over(one, at)), [false, false], "they count anew");
        assert!(!over(other, 62), "each address for itself");
        assert!(!over(one, 122), "the first was 61 s ago");
        assert!(over(one, 122));
        // A late hit from another CPU.
        assert_eq!([200, 199, 201].map(|at| over(one, at)), [false, false, true]);
    }

    #[test]
    fn threshold_of_one_triggers_on_every_hit() {
        let mut hits = Hits::default();
        assert!((0..3).all(|n| hits.record(&rule(1, 60), "192.0.2.1".parse().unwrap(), n)));
    }

    #[test]
    fn memory_is_bounded() {
        let (mut hits, rule) = (Hits::default(), rule(1000, 60));
        for number in 0..100_000u32 {
            hits.record(&rule, std::net::Ipv4Addr::from_bits(number).into(), SECOND);
        }
        assert!(hits.evicted() > 90_000, "{}", hits.evicted());
    }
}
