//! Metrics of detections and bans.

use std::collections::BTreeMap;

use super::cookies::SynCookies;
use super::flows::ANOMALIES;
use crate::exposition::{Family, Kind};

/// Numbers for a scrape.
#[derive(Debug, Clone, Default)]
pub(super) struct Numbers {
    /// Active modules, and whether they ban.
    pub modules: BTreeMap<&'static str, Option<bool>>,
    pub kinds: BTreeMap<String, KindNumbers>,
    /// Evicted table entries, by module.
    pub evicted: BTreeMap<&'static str, u64>,
    /// Anomalous TCP segments, by kind.
    pub anomalous: BTreeMap<&'static str, u64>,
    /// If the SYN flood module is active.
    pub cookies: Option<SynCookies>,
}

/// Counts of one kind of events.
#[derive(Debug, Clone, Default)]
pub(super) struct KindNumbers {
    pub events: u64,
    pub bans: u64,
    /// Hits without a usable address.
    pub unusable: u64,
    /// Hits that were dropped because the queue was full.
    pub lost: u64,
    /// Bans that were not made, by reason.
    pub refused: BTreeMap<&'static str, u64>,
}

impl Numbers {
    pub fn of(&mut self, kind: &str) -> &mut KindNumbers {
        if !self.kinds.contains_key(kind) {
            self.kinds.insert(kind.to_string(), KindNumbers::default());
        }
        self.kinds.entry(kind.to_string()).or_default()
    }
}

/// All families.
pub(super) fn families(numbers: &Numbers) -> Vec<Family> {
    let counter = |name, help| Family::new(name, Kind::Counter, help);
    let gauge = |name, help| Family::new(name, Kind::Gauge, help);
    let mut enabled = gauge("xdp_module_enabled", "1 if the detection module is on.");
    let mut enforced = gauge(
        "xdp_module_enforced",
        "1 if the detection module bans, 0 if it only reports (`mode: observe`).",
    );
    for (module, mode) in &numbers.modules {
        enabled.number(&[("module", module)], u64::from(mode.is_some()));
        enforced.number(&[("module", module)], u64::from(*mode == Some(true)));
    }
    let mut events = counter(
        "security_events_total",
        "Addresses that crossed a threshold, and floods, by kind; once per ban, also where nothing is banned.",
    );
    let mut bans =
        counter("xdp_autobans_total", "Addresses that detection has put on the blocklist, by reason.");
    let mut refused = counter(
        "security_bans_refused_total",
        "Bans that were not made, by cause: protected, listed already, connected, too many, or a full or failing blocklist.",
    );
    let mut unusable = counter(
        "security_unusable_addresses_total",
        "Hits of a probe with `ban` whose address could not be read or is none.",
    );
    let mut lost = counter(
        "security_lost_hits_total",
        "Hits of a probe with `ban` that were not evaluated: too many at once.",
    );
    for (kind, of) in &numbers.kinds {
        let labels = [("kind", kind.as_str())];
        events.number(&labels, of.events);
        bans.number(&[("reason", kind)], of.bans);
        unusable.number(&labels, of.unusable);
        lost.number(&labels, of.lost);
        for (cause, count) in &of.refused {
            refused.number(&[("kind", kind), ("cause", cause)], *count);
        }
    }
    let mut evicted = counter(
        "security_evicted_total",
        "Addresses that detection forgot too early because a table was full; they may go undetected.",
    );
    for (table, count) in &numbers.evicted {
        evicted.number(&[("table", table)], *count);
    }
    let mut anomalous = counter(
        "security_tcp_anomalies_total",
        "TCP segments of tracked flows with flags that no connection has, by kind.",
    );
    if numbers.modules.get("tcp_anomalies").is_some_and(Option::is_some) {
        for kind in ANOMALIES {
            let count = numbers.anomalous.get(kind).copied().unwrap_or(0);
            anomalous.number(&[("kind", kind)], count);
        }
    }
    let mut mode = gauge(
        "network_tcp_syncookies_mode",
        "net.ipv4.tcp_syncookies of the exporter's network namespace: 0 never, 1 when a listener's queue is full, 2 always.",
    );
    let mut cookies = Family::new(
        "network_tcp_syncookies_total",
        Kind::Counter,
        "SYN cookies that the kernel sent, and that came back valid or not.",
    )
    .counted_elsewhere();
    if let Some(kernel) = numbers.cookies {
        kernel.mode.into_iter().for_each(|value| mode.number(&[], u64::from(value)));
        for (result, count) in
            [("sent", kernel.sent), ("received", kernel.received), ("failed", kernel.failed)]
        {
            cookies.number(&[("result", result)], count);
        }
    }
    let mut all =
        vec![anomalous, mode, cookies, enabled, enforced, events, bans, refused, unusable, lost, evicted];
    all.retain(|family| !family.is_empty());
    all
}

/// All families, each with a series that has all its labels, for the reference.
pub(crate) fn every_family() -> Vec<Family> {
    let of_kind = KindNumbers { refused: BTreeMap::from([("", 0)]), ..KindNumbers::default() };
    families(&Numbers {
        modules: BTreeMap::from([("tcp_anomalies", Some(false))]),
        anomalous: BTreeMap::new(),
        cookies: Some(SynCookies { mode: Some(0), ..SynCookies::default() }),
        kinds: BTreeMap::from([(String::new(), of_kind)]),
        evicted: BTreeMap::from([("", 0)]),
    })
}
