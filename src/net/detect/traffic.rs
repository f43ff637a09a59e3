//! The traffic modules, evaluated once a second. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::super::cidr::Prefix;
use super::super::thresholds::{BanTerms, DetectConfig, SynFlood, TcpAnomalies};
use super::flows::{Attempt, Attempts, Step, connected};
use super::hits::nanoseconds;
use super::rates::RateSums;
use super::scan::Scans;
use super::snapshot::Snapshot;
use super::window::Sums;

/// Sources that are tracked by each module.
const MAX_SOURCES: usize = 1 << 16;

/// A crossed threshold.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Finding {
    pub kind: &'static str,
    /// `None` if there is not a single source.
    pub source: Option<Prefix>,
    pub count: f64,
    pub allowed: f64,
    pub details: Vec<(&'static str, String)>,
    pub terms: BanTerms,
    /// The source has working connections, so its address may be spoofed.
    pub is_connected: bool,
}

/// All active modules.
#[derive(Debug)]
pub(super) struct Traffic {
    attempts: Attempts,
    flood: Option<Flood>,
    scans: Option<(BanTerms, Scans)>,
    anomalies: Option<Anomalies>,
    rates: Option<(BanTerms, RateSums)>,
    /// Segments by anomaly.
    pub anomalous: BTreeMap<&'static str, u64>,
}

#[derive(Debug)]
struct Flood {
    config: SynFlood,
    by_source: Sums<IpAddr>,
    in_all: Sums<()>,
    cookies: Sums<()>,
    /// At the previous evaluation: SYN segments, and SYN cookies that the kernel sent.
    before: Option<(u64, u64)>,
    /// Until when the current flood counts as reported.
    known_until: u64,
}

#[derive(Debug)]
struct Anomalies {
    config: TcpAnomalies,
    by_source: Sums<IpAddr>,
}

impl Traffic {
    pub fn new(config: &DetectConfig) -> Self {
        Self {
            attempts: Attempts::default(),
            flood: config.syn_flood.clone().map(Flood::new),
            scans: config.port_scan.clone().map(|scan| (scan.terms, Scans::new(scan))),
            anomalies: config.tcp_anomalies.clone().map(|config| {
                let by_source = Sums::new(MAX_SOURCES, nanoseconds(config.within));
                Anomalies { config, by_source }
            }),
            rates: config.rates.clone().map(|rates| (rates.terms, RateSums::new(rates))),
            anomalous: BTreeMap::new(),
        }
    }

    /// Thresholds crossed since the previous evaluation.
    pub fn evaluate(&mut self, at: &Snapshot) -> Vec<Finding> {
        let steps = self.attempts.evaluate(at);
        for Step { attempt, packets, .. } in &steps {
            if let Attempt::Anomaly(kind) = attempt {
                *self.anomalous.entry(kind).or_default() += packets;
            }
        }
        let mut found = Vec::new();
        if let Some(flood) = &mut self.flood {
            flood.evaluate(at, &steps, &mut found);
        }
        if let Some((terms, scans)) = &mut self.scans {
            found.extend(scans.evaluate(&steps, at.now).into_iter().map(|scan| Finding {
                kind: "port_scan",
                source: Some(Prefix::new(scan.source, 128)),
                count: f64::from(scan.ports),
                allowed: f64::from(scan.allowed),
                details: vec![("scan", if scan.is_slow { "slow" } else { "fast" }.to_string())],
                terms: *terms,
                is_connected: false,
            }));
        }
        if let Some(anomalies) = &mut self.anomalies {
            anomalies.evaluate(at, &steps, &mut found);
        }
        if let Some((terms, rates)) = &mut self.rates {
            found.extend(rates.evaluate(&at.talkers, at.now).into_iter().map(|excess| Finding {
                kind: "rate",
                source: Some(excess.source),
                count: excess.rate as f64,
                allowed: excess.allowed as f64,
                details: vec![("unit", format!("{}/s", excess.unit))],
                terms: *terms,
                is_connected: false,
            }));
        }
        found
    }

    /// Evicted sources, by module.
    pub fn evicted(&self) -> Vec<(&'static str, u64)> {
        let flood = self.flood.as_ref().map(|flood| ("syn_flood", flood.by_source.evicted()));
        let scans = self.scans.as_ref().map(|(_, scans)| ("port_scan", scans.evicted()));
        let anomalies = self.anomalies.as_ref().map(|all| ("tcp_anomalies", all.by_source.evicted()));
        let rates = self.rates.as_ref().map(|(_, rates)| ("rates", rates.evicted()));
        [flood, scans, anomalies, rates].into_iter().flatten().collect()
    }
}

impl Flood {
    fn new(config: SynFlood) -> Self {
        let within = nanoseconds(config.within);
        let (in_all, cookies) = (Sums::new(2, within), Sums::new(2, within));
        Self {
            by_source: Sums::new(MAX_SOURCES, within),
            in_all,
            cookies,
            before: None,
            known_until: 0,
            config,
        }
    }

    fn evaluate(&mut self, at: &Snapshot, steps: &[Step], found: &mut Vec<Finding>) {
        let SynFlood { terms, per_source, in_all, within } = self.config;
        let seconds = within.as_secs().max(1);
        let kernel = at.cookies.unwrap_or_default();
        let before = self.before.replace((at.syns, kernel.sent)).unwrap_or((at.syns, kernel.sent));
        let syns = self.in_all.add((), at.now, at.syns.saturating_sub(before.0));
        let cookies = self.cookies.add((), at.now, kernel.sent.saturating_sub(before.1));
        let details =
            || vec![("syncookies", kernel.mode_word().to_string()), ("syncookies_sent", cookies.to_string())];
        if syns >= u64::from(in_all) * seconds && at.now >= self.known_until {
            self.known_until = at.now.saturating_add(nanoseconds(terms.ttl));
            found.push(Finding {
                kind: "syn_flood_in_all",
                source: None,
                count: syns as f64 / seconds as f64,
                allowed: f64::from(in_all),
                details: details(),
                terms,
                is_connected: false,
            });
        }
        let mut over = BTreeMap::new();
        for Step { key, packets, attempt } in steps {
            if *attempt != Attempt::HalfOpen {
                continue;
            }
            let sum = self.by_source.add(key.source, at.now, *packets);
            if sum >= u64::from(per_source) * seconds {
                over.insert(key.source, sum);
            }
        }
        if over.is_empty() {
            return;
        }
        let connected = connected(&at.flows);
        for (source, sum) in over {
            self.by_source.forget(&source);
            found.push(Finding {
                kind: "syn_flood",
                source: Some(Prefix::new(source, 128)),
                count: sum as f64 / seconds as f64,
                allowed: f64::from(per_source),
                details: details(),
                terms,
                is_connected: connected.contains(&source),
            });
        }
    }
}

impl Anomalies {
    fn evaluate(&mut self, at: &Snapshot, steps: &[Step], found: &mut Vec<Finding>) {
        let TcpAnomalies { terms, packets: allowed, .. } = self.config;
        let mut over = BTreeMap::new();
        for Step { key, packets, attempt } in steps {
            let Attempt::Anomaly(kind) = attempt else { continue };
            let sum = self.by_source.add(key.source, at.now, *packets);
            if sum >= u64::from(allowed) {
                over.insert(key.source, (sum, *kind));
            }
        }
        for (source, (sum, flags)) in over {
            self.by_source.forget(&source);
            found.push(Finding {
                kind: "tcp_anomaly",
                source: Some(Prefix::new(source, 128)),
                count: sum as f64,
                allowed: f64::from(allowed),
                details: vec![("flags", flags.to_string())],
                terms,
                is_connected: false,
            });
        }
    }
}
