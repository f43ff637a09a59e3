//! A metric's series as shown: the largest ones, however many there are.

use super::families::cut;
use super::model::{Distribution, MetricSummary, Quantile, SeriesSummary};
use crate::exposition::{Head, Kind, Sample, SampleValue, labels};
use crate::kinds::panel::{base_unit, is_timestamp};

/// Series of one metric that are shown.
const MAX_SERIES: usize = 8;

/// The quantiles of each histogram.
const QUANTILES: [f64; 3] = [0.5, 0.9, 0.99];

/// Summarizes a family. `node` is a label of every series, and left out.
pub(crate) fn metric<'a>(
    head: &Head,
    samples: &mut dyn Iterator<Item = Sample<'a>>,
    node: &str,
) -> MetricSummary {
    let (mut total, mut number) = (0.0, 0);
    let mut largest: Vec<(f64, Sample<'a>)> = Vec::new();
    for sample in samples {
        number += 1;
        let weight = match sample.value {
            SampleValue::Number(value) => value.as_real(),
            SampleValue::Histogram { counts, .. } => counts.iter().map(|count| *count as f64).sum(),
        };
        total += weight;
        // Of equal series, the first.
        let at = largest.partition_point(|(other, _)| *other >= weight);
        if at < MAX_SERIES {
            largest.insert(at, (weight, sample));
            largest.truncate(MAX_SERIES);
        }
    }
    let bounds = match head.kind() {
        Kind::Histogram(bounds) => &bounds[..],
        Kind::Counter | Kind::Gauge => &[],
    };
    let series = largest.iter().map(|(_, sample)| series(head, sample, bounds, node)).collect();
    MetricSummary {
        name: head.name().to_owned(),
        help: head.help().trim().to_owned(),
        kind: head.kind().word(),
        unit: unit_of(head.name()),
        total: (*head.kind() != Kind::Gauge && number > 0).then_some(total),
        per_second: None,
        bounds: bounds.to_vec(),
        series_total: number,
        series,
    }
}

/// The unit of a metric's values, from its name.
pub(super) fn unit_of(name: &str) -> &'static str {
    match base_unit(name) {
        _ if is_timestamp(name) => "timestamp",
        Some("seconds") => "seconds",
        Some("bytes") => "bytes",
        _ => "",
    }
}

fn series(head: &Head, sample: &Sample<'_>, bounds: &[f64], node: &str) -> SeriesSummary {
    let labels = labels(head.labels(sample.key))
        .into_iter()
        .filter(|(name, value)| !(*name == "node" && value == node))
        .map(|(name, value)| (name.to_owned(), cut(&value)))
        .collect();
    match sample.value {
        SampleValue::Number(value) => {
            SeriesSummary { labels, value: Some(value.as_real()), distribution: None }
        }
        SampleValue::Histogram { counts, sum, .. } => SeriesSummary {
            labels,
            value: None,
            distribution: Some(distribution(counts, sum.as_real(), bounds)),
        },
    }
}

fn distribution(counts: &[u64], sum: f64, bounds: &[f64]) -> Distribution {
    let count: f64 = counts.iter().map(|count| *count as f64).sum();
    let quantiles =
        QUANTILES.iter().filter_map(|quantile| self::quantile(*quantile, counts, bounds)).collect();
    Distribution { count, mean: (count > 0.0).then(|| sum / count), counts: counts.to_vec(), quantiles }
}

/// As Prometheus' `histogram_quantile`: assumes that values are evenly distributed in their bucket.
fn quantile(quantile: f64, counts: &[u64], bounds: &[f64]) -> Option<Quantile> {
    let all: f64 = counts.iter().map(|count| *count as f64).sum();
    let last = *bounds.last()?;
    if all == 0.0 {
        return None;
    }
    let rank = quantile * all;
    let mut below = 0.0;
    for (at, (count, bound)) in counts.iter().zip(bounds).enumerate() {
        let count = *count as f64;
        if count > 0.0 && below + count >= rank {
            let lower = match at {
                // The lower bound is unknown.
                0 if *bound <= 0.0 => *bound,
                0 => 0.0,
                _ => bounds[at - 1],
            };
            let value = lower + (bound - lower) * (rank - below) / count;
            return Some(Quantile { quantile, value, is_beyond: false });
        }
        below += count;
    }
    Some(Quantile { quantile, value: last, is_beyond: true })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::Family;

    fn shown(family: &Family) -> MetricSummary {
        metric(family.head(), &mut family.samples(), "here")
    }

    #[test]
    fn shows_only_the_largest_series() {
        let mut family = Family::new("a_total", Kind::Counter, "What it is.");
        for number in 0..1000u64 {
            family.number(&[("peer", &format!("p{number}")), ("node", "here")], number * 7919 % 1000);
        }
        let metric = shown(&family);
        let values: Vec<_> = metric.series.iter().map(|series| series.value.unwrap()).collect();
        assert_eq!(values, [999.0, 998.0, 997.0, 996.0, 995.0, 994.0, 993.0, 992.0]);
        assert_eq!((metric.series_total, metric.total), (1000, Some(499_500.0)));
        assert_eq!(metric.series[0].labels.len(), 1, "without the node: {:?}", metric.series[0].labels);
    }

    #[test]
    fn labels_are_unchanged_but_truncated() {
        let mut family = Family::new("a", Kind::Gauge, "");
        let hostile = "</script>\"\\\n<img src=x onerror=alert(1)>";
        family.number(&[("text", hostile), ("long", &"\u{e9}".repeat(5000))], 1u64);
        let metric = shown(&family);
        assert_eq!(metric.series[0].labels[0].1, hostile);
        assert_eq!(metric.series[0].labels[1].1.chars().count(), 201);
        assert_eq!(metric.total, None, "the sum of gauges is nothing");
    }

    #[test]
    fn units_are_derived_from_names() {
        let unit = |name| shown(&Family::new(name, Kind::Gauge, "")).unit;
        let names = ["a_seconds_total", "a_bytes", "a_timestamp_seconds", "a_count"];
        assert_eq!(names.map(unit), ["seconds", "bytes", "timestamp", ""]);
    }

    #[test]
    fn quantiles_match_prometheus() {
        let of = |counts: &[u64], bounds: &[f64]| {
            let made = distribution(counts, 10.0, bounds);
            made.quantiles.iter().map(|q| (q.value, q.is_beyond)).collect::<Vec<_>>()
        };
        assert!(of(&[0, 0], &[1.0]).is_empty(), "of nothing there are none");
        assert_eq!(of(&[10, 0], &[1.0]), [(0.5, false), (0.9, false), (0.99, false)]);
        assert_eq!(of(&[50, 40, 10], &[1.0, 2.0]), [(1.0, false), (2.0, false), (2.0, true)]);
        assert_eq!(of(&[0, 4, 0], &[-1.0, 1.0])[0], (0.0, false));
        assert_eq!(of(&[4, 0, 0], &[-1.0, 1.0])[0], (-1.0, false));
        let beyond = of(&[0, 0, 3], &[1.0, 2.0]);
        assert_eq!(beyond, [(2.0, true); 3]);
    }
}
