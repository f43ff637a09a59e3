//! Port scans: the number of ports that a source has tried without success. Pure.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use super::super::thresholds::PortScan;
use super::bounded::Bounded;
use super::flows::Step;
use super::hits::nanoseconds;

/// Sources that are tracked.
const MAX_SOURCES: usize = 1 << 16;

/// When each port was last tried, by protocol and number.
type Ports = HashMap<(u8, u16), u64>;

/// Sources with their ports within the long window.
#[derive(Debug)]
pub(super) struct Scans {
    config: PortScan,
    of: Bounded<IpAddr, Ports>,
}

/// A detected scan.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scan {
    pub source: IpAddr,
    pub ports: u32,
    pub allowed: u32,
    pub is_slow: bool,
}

impl Scans {
    pub fn new(config: PortScan) -> Self {
        Self { config, of: Bounded::new(MAX_SOURCES) }
    }

    /// Records new attempts; returns sources above a threshold, which start again from zero.
    pub fn evaluate(&mut self, steps: &[Step], now: u64) -> Vec<Scan> {
        let PortScan { ports: fast, within, slow_ports: slow, slow_within, .. } = self.config;
        let (within, longest) = (nanoseconds(within), nanoseconds(slow_within.max(within)));
        let is_within = |time: u64, last: u64| now.saturating_sub(last) <= time;
        let is_live = |ports: &Ports| ports.values().any(|last| is_within(longest, *last));
        let mut touched = BTreeSet::new();
        for Step { key, .. } in steps {
            let ports = self.of.entry(key.source, is_live);
            // More ports are not needed for the decision.
            if ports.len() < 2 * fast.max(slow) as usize
                || ports.contains_key(&(key.protocol, key.destination_port))
            {
                ports.insert((key.protocol, key.destination_port), now);
            }
            touched.insert(key.source);
        }
        let mut found = Vec::new();
        for source in touched {
            let ports = self.of.entry(source, is_live);
            ports.retain(|_, last| is_within(longest, *last));
            let count = |time| ports.values().filter(|last| is_within(time, **last)).count() as u32;
            let (recent, all) = (count(within), count(nanoseconds(slow_within)));
            let scan = match (recent >= fast, all >= slow) {
                (true, _) => Scan { source, ports: recent, allowed: fast, is_slow: false },
                (false, true) => Scan { source, ports: all, allowed: slow, is_slow: true },
                (false, false) => continue,
            };
            self.of.remove(&source);
            found.push(scan);
        }
        found
    }

    /// Evicted sources.
    pub fn evicted(&self) -> u64 {
        self.of.evicted
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::flows::Attempt;
    use super::super::flows::tests::{SECOND, key};
    use super::*;
    use crate::net::BanTerms;

    fn scans() -> Scans {
        let seconds = Duration::from_secs;
        let terms = BanTerms { enforce: false, ttl: seconds(600), max_ttl: seconds(3600) };
        Scans::new(PortScan {
            terms,
            ports: 20,
            within: seconds(60),
            slow_ports: 60,
            slow_within: seconds(3600),
        })
    }

    fn step(source: u8, port: u16) -> Step {
        let key = key(libc::IPPROTO_TCP, [192, 0, 2, source], 4000 + port % 100, port);
        Step { key, attempt: Attempt::HalfOpen, packets: 1 }
    }

    #[test]
    fn detects_fast_and_slow_scans() {
        let mut all = scans();
        let steps: Vec<_> = (1..=19).map(|port| step(1, port)).collect();
        assert_eq!(all.evaluate(&steps, 100 * SECOND), []);
        assert_eq!(all.evaluate(&steps, 101 * SECOND), [], "the same ports again");
        assert_eq!(all.evaluate(&[step(2, 20)], 101 * SECOND), [], "somebody else");
        let found = all.evaluate(&[step(1, 20)], 161 * SECOND);
        let source = "192.0.2.1".parse().unwrap();
        assert_eq!(found, [Scan { source, ports: 20, allowed: 20, is_slow: false }]);
        assert_eq!(all.evaluate(&[step(1, 21)], 162 * SECOND), [], "it counts anew");

        // One port a minute.
        let mut all = scans();
        let found: Vec<_> =
            (1..=60).map(|n| all.evaluate(&[step(1, n)], (1000 + 59 * u64::from(n)) * SECOND)).collect();
        assert!(found[..59].iter().all(Vec::is_empty), "{found:?}");
        assert_eq!(found[59], [Scan { source, ports: 60, allowed: 60, is_slow: true }]);
        // Anything slower is not detected.
        let mut all = scans();
        assert!((1..=500).all(|n| all.evaluate(&[step(1, n)], 62 * u64::from(n) * SECOND).is_empty()));
    }

    #[test]
    fn many_sources_with_few_ports_are_not_a_scan() {
        let mut all = scans();
        for second in 0..60 {
            let steps: Vec<_> = (0..=255).flat_map(|source| [step(source, 80), step(source, 443)]).collect();
            assert_eq!(all.evaluate(&steps, second * SECOND), []);
        }
    }

    #[test]
    fn full_port_scan_uses_little_memory() {
        let mut all = scans();
        let steps: Vec<_> = (1..=u16::MAX).map(|port| step(1, port)).collect();
        let found = all.evaluate(&steps, SECOND);
        assert!(found.len() == 1 && found[0].ports >= 60, "{found:?}");
    }
}
