//! Exemplars: one sample event per histogram bucket.

use std::collections::HashMap;

use super::labels::{labels, push_label};

/// Characters that the names and values of an exemplar's labels may have together. From:
/// <https://prometheus.io/docs/specs/om/open_metrics_spec/#exemplars>.
const MAX_CHARACTERS: usize = 128;

/// The maximum number of series with exemplars; beyond it, the series whose latest exemplar is the oldest is evicted.
const SERIES: usize = 1000;

/// An event that represents its bucket.
#[derive(Debug, Clone, PartialEq)]
pub struct Exemplar {
    /// Formatted by [`push_label`].
    pub(super) labels: String,
    pub(super) value: f64,
    /// In seconds since 1970.
    pub(super) time: f64,
}

impl Exemplar {
    /// Keeps the labels that fit, in order. `time` is in seconds since 1970.
    pub fn new<'a>(all: impl Iterator<Item = (&'a str, &'a str)>, value: f64, time: f64) -> Self {
        let (mut shown, mut room) = (String::new(), MAX_CHARACTERS);
        for (name, text) in all {
            let wanted = name.chars().count() + text.chars().count();
            if wanted <= room && labels(&shown).iter().all(|(known, _)| *known != name) {
                room -= wanted;
                push_label(name, text, &mut shown);
            }
        }
        Self { labels: shown, value, time }
    }
}

/// The latest exemplar of each bucket, for a bounded number of histogram series.
#[derive(Debug, Clone, Default)]
pub struct Exemplars {
    /// Keyed by the metric's name and the series key, see [`super::Head::key`].
    series: HashMap<(String, String), Vec<Option<Exemplar>>>,
}

impl Exemplars {
    /// Records the exemplar in bucket `bucket` of `buckets`.
    pub fn record(
        &mut self,
        metric: &str,
        key: String,
        (bucket, buckets): (usize, usize),
        exemplar: Exemplar,
    ) {
        let latest = |all: &[Option<Exemplar>]| {
            all.iter().flatten().map(|one| one.time).max_by(f64::total_cmp).unwrap_or_default()
        };
        let series = (metric.to_owned(), key);
        if self.series.len() >= SERIES && !self.series.contains_key(&series) {
            let oldest = self.series.iter().min_by(|(_, a), (_, b)| latest(a).total_cmp(&latest(b)));
            if let Some(oldest) = oldest.map(|(series, _)| series.clone()) {
                self.series.remove(&oldest);
            }
        }
        let all = self.series.entry(series).or_default();
        // A reload may change the buckets.
        if all.len() != buckets {
            *all = vec![None; buckets];
        }
        if let Some(at) = all.get_mut(bucket) {
            *at = Some(exemplar);
        }
    }

    /// Returns the exemplars of a series, one entry per bucket, or an empty slice.
    pub fn of(&self, metric: &str, key: &str, buckets: usize) -> &[Option<Exemplar>] {
        if self.series.is_empty() {
            return &[];
        }
        let found = self.series.get(&(metric.to_owned(), key.to_owned()));
        found.filter(|all| all.len() == buckets).map_or(&[], |all| all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_limited_to_the_available_space() {
        let long = "ü".repeat(120);
        let all =
            [("height", "871204"), ("hash", &long), ("peer", "[::1]:8333"), ("height", "5"), ("z", "\"")];
        let exemplar = Exemplar::new(all.into_iter(), 1.0, 2.0);
        assert_eq!(exemplar.labels, "height=\"871204\",peer=\"[::1]:8333\",z=\"\\\"\"");
        let exact = "x".repeat(127);
        assert_eq!(Exemplar::new([("n", exact.as_str())].into_iter(), 1.0, 2.0).labels.len(), 131);
        let longer = "x".repeat(128);
        assert_eq!(Exemplar::new([("n", longer.as_str())].into_iter(), 1.0, 2.0).labels, "");
    }

    #[test]
    fn keeps_the_latest_per_bucket_in_bounded_memory() {
        let mut all = Exemplars::default();
        let exemplar = |time: f64| Exemplar::new([("n", "1")].into_iter(), 0.5, time);
        all.record("m", "a=\"1\"".into(), (1, 3), exemplar(1.0));
        all.record("m", "a=\"1\"".into(), (1, 3), exemplar(2.0));
        all.record("m", "a=\"1\"".into(), (2, 3), exemplar(3.0));
        all.record("m", "a=\"1\"".into(), (3, 3), exemplar(4.0));
        assert_eq!(all.of("m", "a=\"1\"", 3), [None, Some(exemplar(2.0)), Some(exemplar(3.0))]);
        assert_eq!(all.of("m", "a=\"1\"", 4), []);
        assert_eq!(all.of("m", "a=\"2\"", 3), []);
        all.record("m", "a=\"1\"".into(), (0, 2), exemplar(5.0));
        assert_eq!(all.of("m", "a=\"1\"", 2), [Some(exemplar(5.0)), None]);
        for n in 0..SERIES + 5 {
            all.record("m", format!("b=\"{n}\""), (0, 1), exemplar(10.0 + n as f64));
        }
        assert_eq!(
            (all.series.len(), all.of("m", "a=\"1\"", 2).len(), all.of("m", "b=\"0\"", 1).len()),
            (SERIES, 0, 0)
        );
    }
}
