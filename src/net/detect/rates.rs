//! Packet and byte rates of sources and prefixes. Pure.

use std::collections::HashMap;
use std::net::IpAddr;

use super::super::cidr::Prefix;
use super::super::tables::{Talker, TalkerKey};
use super::super::thresholds::Rates;
use super::hits::nanoseconds;
use super::window::Sums;

/// Sources and prefixes that are tracked.
const MAX_SOURCES: usize = 1 << 16;

/// A source above its limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Excess {
    pub source: Prefix,
    /// Packets or bytes per second.
    pub unit: &'static str,
    pub rate: u64,
    pub allowed: u64,
}

#[derive(Debug)]
pub(super) struct RateSums {
    config: Rates,
    packets: Sums<Prefix>,
    bytes: Sums<Prefix>,
    before: HashMap<TalkerKey, (u64, u64)>,
    has_begun: bool,
}

impl RateSums {
    pub fn new(config: Rates) -> Self {
        let within = nanoseconds(config.within);
        let (before, has_begun) = (HashMap::new(), false);
        Self {
            packets: Sums::new(MAX_SOURCES, within),
            bytes: Sums::new(MAX_SOURCES, within),
            config,
            before,
            has_begun,
        }
    }

    /// The sources above their limits.
    pub fn evaluate(&mut self, talkers: &HashMap<TalkerKey, Talker>, now: u64) -> Vec<Excess> {
        let mut new: HashMap<IpAddr, (u64, u64)> = HashMap::new();
        let mut seen = HashMap::new();
        for (key, Talker { received, .. }) in talkers {
            seen.insert(*key, (received.packets, received.bytes));
            // What the first snapshot contains was sent earlier.
            let before = self.before.get(key).copied();
            let before =
                before.unwrap_or(if self.has_begun { (0, 0) } else { (received.packets, received.bytes) });
            let packets = received.packets.saturating_sub(before.0);
            if packets > 0 {
                let sum = new.entry(key.address).or_default();
                *sum = (sum.0 + packets, sum.1 + received.bytes.saturating_sub(before.1));
            }
        }
        (self.before, self.has_begun) = (seen, true);
        let config = &self.config;
        let mut by_source: HashMap<Prefix, (u64, u64)> = HashMap::new();
        let mut by_prefix: HashMap<Prefix, (u64, u64)> = HashMap::new();
        for (address, (packets, bytes)) in new {
            let bits = if address.is_ipv4() { config.ipv4_prefix } else { config.ipv6_prefix };
            for (all, prefix) in
                [(&mut by_source, Prefix::new(address, 128)), (&mut by_prefix, Prefix::new(address, bits))]
            {
                let sum = all.entry(prefix).or_default();
                *sum = (sum.0 + packets, sum.1 + bytes);
            }
        }
        let seconds = config.within.as_secs().max(1);
        let mut found = Vec::new();
        let mut add = |all: HashMap<Prefix, (u64, u64)>, most_packets: u64, most_bytes: u64| {
            for (source, (packets, bytes)) in all {
                for (unit, sums, amount, allowed) in [
                    ("packets", &mut self.packets, packets, most_packets),
                    ("bytes", &mut self.bytes, bytes, most_bytes),
                ] {
                    if allowed == 0 {
                        continue;
                    }
                    let rate = sums.add(source, now, amount) / seconds;
                    if rate >= allowed {
                        found.push(Excess { source, unit, rate, allowed });
                    }
                }
            }
        };
        add(by_source, config.packets, config.bytes);
        add(by_prefix, config.prefix_packets, config.prefix_bytes);
        found
    }

    /// Evicted sources and prefixes.
    pub fn evicted(&self) -> u64 {
        self.packets.evicted() + self.bytes.evicted()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::flows::tests::SECOND;
    use super::*;
    use crate::net::BanTerms;
    use crate::net::counters::Sum;

    fn talkers(sums: &[(u8, u64)]) -> HashMap<TalkerKey, Talker> {
        let one = |(last, packets): &(u8, u64)| {
            let received = Sum { packets: *packets, bytes: 1000 * *packets };
            (
                TalkerKey { port: 1, address: [192, 0, 2, *last].into() },
                Talker { received, ..Talker::default() },
            )
        };
        sums.iter().map(one).collect()
    }

    #[test]
    fn limits_sources_and_prefixes() {
        let seconds = Duration::from_secs;
        let terms = BanTerms { enforce: false, ttl: seconds(600), max_ttl: seconds(3600) };
        let mut rates = RateSums::new(Rates {
            terms,
            packets: 100,
            bytes: 0,
            prefix_packets: 250,
            prefix_bytes: 0,
            ipv4_prefix: 24,
            ipv6_prefix: 64,
            within: seconds(2),
        });
        assert_eq!(rates.evaluate(&talkers(&[(1, 100_000)]), SECOND), [], "it came before");
        assert_eq!(rates.evaluate(&talkers(&[(1, 100_199)]), 2 * SECOND), []);
        assert_eq!(rates.evaluate(&talkers(&[(1, 100_200)]), 3 * SECOND).len(), 1);
        assert_eq!(rates.evaluate(&talkers(&[(1, 100_200)]), 9 * SECOND), []);
        // Each below its own limit, together above the prefix's.
        let all: Vec<_> = (2..=10).map(|last| (last, 60)).collect();
        let found = rates.evaluate(&talkers(&all), 10 * SECOND);
        let prefix = Prefix::parse("192.0.2.0/24").unwrap();
        assert_eq!(found, [Excess { source: prefix, unit: "packets", rate: 270, allowed: 250 }]);
    }
}
