//! `/api/v1/stats`: passed and dropped packets, as JSON. Pure.

use serde::Serialize;

use super::abi::Verdict;
use super::block::{Source, Summary};
use super::collect::Reading;
use super::counters::{Counters, combinations};
use super::query::InterfaceName;
use super::stats::Reason;

/// Packets of one direction; received packets unless noted otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
struct Totals {
    packets_processed: u64,
    packets_passed: u64,
    packets_dropped: u64,
    /// Passed packets that would be dropped if the blocklist were enforced.
    packets_would_drop: u64,
    bytes_processed: u64,
    bytes_dropped: u64,
}

#[derive(Serialize)]
struct Interface {
    #[serde(flatten)]
    place: InterfaceName,
    mode: &'static str,
    #[serde(flatten)]
    totals: Totals,
    /// Sent packets.
    egress: Totals,
}

#[derive(Serialize)]
struct Blocked {
    enforced: bool,
    entries: u64,
    allowed: u64,
    sources: Vec<BySource>,
}

/// Packets that matched entries of a source.
#[derive(Serialize)]
struct BySource {
    source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
    entries: u64,
    packets_dropped: u64,
    packets_would_drop: u64,
}

impl BySource {
    fn all(summary: &Summary) -> Vec<Self> {
        let of = |(source, entries): &(Source, u64)| {
            let sums = summary.packets.iter().find(|(of, _)| of == source);
            let packets = |verdict| sums.map_or(0, |(_, sums)| sums[verdict as usize].packets);
            Self {
                source: source.name.clone(),
                origin: source.origin.clone(),
                entries: *entries,
                packets_dropped: packets(Verdict::Drop),
                packets_would_drop: packets(Verdict::Pass),
            }
        };
        summary.entries.iter().map(of).collect()
    }
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    totals: Totals,
    /// Sent packets.
    egress: Totals,
    interfaces: Vec<Interface>,
    /// Absent without a blocklist.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocklist: Option<Blocked>,
}

impl Totals {
    fn of(counters: &Counters) -> Self {
        let of = |wanted: Verdict, number: &dyn Fn(&Counters, _, _, _) -> u64| -> u64 {
            let counted = combinations().filter(|(verdict, ..)| *verdict == wanted);
            counted.map(|(verdict, family, protocol)| number(counters, verdict, family, protocol)).sum()
        };
        let [passed, dropped] = [Verdict::Pass, Verdict::Drop]
            .map(|verdict| (of(verdict, &Counters::packets), of(verdict, &Counters::bytes)));
        Self {
            packets_processed: passed.0 + dropped.0,
            packets_passed: passed.0,
            packets_dropped: dropped.0,
            packets_would_drop: Reason::ALL.iter().map(|reason| counters.would_drop(*reason)).sum(),
            bytes_processed: passed.1 + dropped.1,
            bytes_dropped: dropped.1,
        }
    }

    fn add(&mut self, other: Self) {
        self.packets_processed += other.packets_processed;
        self.packets_passed += other.packets_passed;
        self.packets_dropped += other.packets_dropped;
        self.packets_would_drop += other.packets_would_drop;
        self.bytes_processed += other.bytes_processed;
        self.bytes_dropped += other.bytes_dropped;
    }
}

/// The response.
pub(crate) fn shown(readings: &[Reading], blocked: Option<&Summary>) -> String {
    let interfaces: Vec<Interface> = readings
        .iter()
        .filter_map(|reading| {
            let (counters, hook) = reading.ingress.as_ref()?;
            let place = InterfaceName::from(&reading.labels);
            let egress = reading.egress.as_ref().map(Totals::of).unwrap_or_default();
            Some(Interface { place, mode: hook.label(), totals: Totals::of(counters), egress })
        })
        .collect();
    let (mut totals, mut egress) = (Totals::default(), Totals::default());
    interfaces.iter().for_each(|interface| totals.add(interface.totals));
    // Includes interfaces on which only sent packets are counted.
    readings
        .iter()
        .filter_map(|reading| reading.egress.as_ref())
        .for_each(|sent| egress.add(Totals::of(sent)));
    let blocklist = blocked.map(|summary| Blocked {
        enforced: summary.enforce,
        entries: summary.entries.iter().map(|(_, count)| count).sum(),
        allowed: summary.allowed,
        sources: BySource::all(summary),
    });
    // Plain data with text keys always serializes.
    serde_json::to_string(&Shown { totals, egress, interfaces, blocklist })
        .unwrap_or_else(|_| "{}".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::hook::Hook;

    #[test]
    fn sums_interfaces() {
        // One IPv4 TCP frame of the fast path's smallest size for each word.
        let counters = |frames: u64| Counters::default().with_fast([frames]);
        let reading = |name: &str, frames| Reading {
            labels: vec![("interface", name.to_string())],
            ingress: Some((counters(frames), Hook::Native)),
            egress: Some(counters(1)),
            ..Reading::default()
        };
        let summary =
            Summary { enforce: true, entries: vec![(Source::named("config"), 2)], ..Summary::default() };
        let text = shown(&[reading("a", 3), reading("b", 4), Reading::default()], Some(&summary));
        let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&shown["packets_processed"], &shown["packets_dropped"]),
            (&7.into(), &0.into()),
            "{text}"
        );
        assert_eq!(
            (&shown["egress"]["packets_passed"], &shown["interfaces"][0]["egress"]["packets_passed"]),
            (&2.into(), &1.into())
        );
        assert_eq!(shown["interfaces"].as_array().unwrap().len(), 2, "{text}");
        assert_eq!(shown["interfaces"][1]["packets_passed"], 4, "{text}");
        assert_eq!(shown["blocklist"]["entries"], 2, "{text}");
        assert_eq!(shown["blocklist"]["sources"][0]["source"], "config", "{text}");
    }
}
