//! Counters that go on from what an earlier exporter has shown of them, so that none goes down.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::family::Family;
use super::sample::{Kind, Number};

/// What an earlier exporter has shown last of counters and histograms, by family and key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Earlier {
    series: BTreeMap<String, BTreeMap<String, Amount>>,
    /// Those that this exporter has shown, too: once one of them is gone, a later one of its name begins anew.
    #[serde(skip)]
    present: BTreeSet<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Amount {
    number: Number,
    counts: Vec<u64>,
}

impl Earlier {
    /// Adds what there was to what there is, for somebody who only looks.
    pub fn add_to(&self, families: &mut [Family]) {
        for family in families.iter_mut().filter(|family| family.head().kind() != &Kind::Gauge) {
            let Some(before) = self.series.get(family.name()) else { continue };
            for (key, number, counts) in family.series_mut() {
                if let Some(before) = before.get(key)
                    && before.counts.len() == counts.len()
                {
                    *number = number.plus(before.number);
                    counts.iter_mut().zip(&before.counts).for_each(|(count, more)| *count += more);
                }
            }
        }
    }

    /// Adds what there was to what there is. Returns what is shown then, for the next exporter.
    pub fn go_on(&mut self, families: &mut [Family]) -> Self {
        self.add_to(families);
        let mut now = Self::default();
        let mut present = BTreeSet::new();
        for family in families.iter_mut().filter(|family| family.head().kind() != &Kind::Gauge) {
            let name = family.name().to_string();
            let mut all = BTreeMap::new();
            for (key, number, counts) in family.series_mut() {
                all.insert(key.to_string(), Amount { number: *number, counts: counts.to_vec() });
                present.insert((name.clone(), key.to_string()));
            }
            now.series.insert(name, all);
        }
        for (name, key) in self.present.difference(&present) {
            if let Some(series) = self.series.get_mut(name) {
                series.remove(key);
            }
        }
        // Of an interface, say, that is not counted on yet.
        for (name, series) in &self.series {
            for (key, amount) in series {
                let all = now.series.entry(name.clone()).or_default();
                all.entry(key.clone()).or_insert_with(|| amount.clone());
            }
        }
        self.present = present;
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn families(packets: &[(&str, u64)], sizes: [u64; 2]) -> Vec<Family> {
        let mut counter = Family::new("packets_total", Kind::Counter, "");
        packets.iter().for_each(|(interface, count)| counter.number(&[("interface", interface)], *count));
        let mut gauge = Family::new("speed", Kind::Gauge, "");
        gauge.number(&[], 7u64);
        let mut histogram = Family::new("sizes", Kind::Histogram(vec![1.0]), "");
        histogram.histogram_of(&[], &[], &sizes, 5u64);
        vec![counter, gauge, histogram]
    }

    fn text(families: &[Family]) -> String {
        let mut text = Vec::new();
        families.iter().for_each(|family| family.write(super::super::Format::Text, &mut text));
        String::from_utf8(text)
            .unwrap()
            .lines()
            .filter(|line| !line.starts_with('#'))
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn counters_go_on_and_gauges_do_not() {
        let mut first = Earlier::default();
        let present = first.go_on(&mut families(&[("a", 10), ("b", 1)], [1, 2]));
        let saved = serde_json::to_string(&present).unwrap();
        let mut second: Earlier = serde_json::from_str(&saved).unwrap();
        let mut here = families(&[("a", 3)], [0, 1]);
        let later = second.go_on(&mut here);
        let text = text(&here);
        for line in [
            "packets_total{interface=\"a\"} 13",
            "speed 7",
            "sizes_bucket{le=\"1\"} 1",
            "sizes_count 4",
            "sizes_sum 10",
        ] {
            assert!(text.lines().any(|present| present == line), "{line} in\n{text}");
        }
        // What is not there yet is kept; what was there and is gone begins anew.
        let mut third = later.clone();
        let mut here = families(&[("a", 1), ("b", 1)], [0, 0]);
        third.go_on(&mut here);
        assert!(super::tests::text(&here).contains("packets_total{interface=\"b\"} 2"));
        third.go_on(&mut families(&[("b", 1)], [0, 0]));
        let mut here = families(&[("a", 1), ("b", 1)], [0, 0]);
        third.go_on(&mut here);
        let text = super::tests::text(&here);
        assert!(text.contains("packets_total{interface=\"a\"} 1\n"), "{text}");
        assert!(text.contains("packets_total{interface=\"b\"} 2\n"), "{text}");
    }
}
