//! Reads the parts of Prometheus's text format (exposition_formats.md, version 0.0.4) that tests need.

use std::collections::BTreeMap;

/// Labels by name.
pub type Labels = BTreeMap<String, String>;

/// Every series of one scrape.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics(pub BTreeMap<(String, Labels), f64>);

/// Builds labels from pairs.
pub fn labels<S: ToString, T: ToString>(pairs: &[(S, T)]) -> Labels {
    pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

impl Metrics {
    /// Parses a scrape.
    ///
    /// # Errors
    /// If a line is malformed, or a series occurs twice.
    pub fn parse(text: &str) -> Result<Metrics, String> {
        let mut metrics = Metrics::default();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (series, value) = sample(line).ok_or_else(|| format!("not a sample: {line}"))?;
            if metrics.0.insert(series, value).is_some() {
                return Err(format!("a series twice: {line}"));
            }
        }
        Ok(metrics)
    }

    /// Returns the value of the only series with this name and these labels; it may have further labels.
    ///
    /// # Panics
    /// If there is no such series, or more than one.
    #[track_caller]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let found = self.select(name, labels);
        assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?}");
        found[0].1
    }

    /// Returns the sum of the series with this name and these labels; 0 if there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.select(name, labels).iter().map(|(_, value)| value).sum()
    }

    /// Returns the series with this name and these labels.
    pub fn select(&self, name: &str, labels: &[(&str, &str)]) -> Vec<(&Labels, f64)> {
        self.0
            .iter()
            .filter(|((found, has), _)| {
                found == name
                    && labels.iter().all(|(name, value)| has.get(*name).map(String::as_str) == Some(value))
            })
            .map(|((_, labels), value)| (labels, *value))
            .collect()
    }

    /// Returns the values of a label among the series of this name, each with the sum of its series.
    pub fn by(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for (labels, value) in self.select(name, &[]) {
            if let Some(shown) = labels.get(label) {
                *sums.entry(shown.clone()).or_default() += value;
            }
        }
        sums
    }

    /// Fails the test unless every hit was fully counted.
    #[track_caller]
    pub fn assert_nothing_lost(&self) {
        for name in ["fibre_exporter_probe_lost_total", "fibre_exporter_label_overflow_total"] {
            let lost: Vec<_> =
                self.select(name, &[]).into_iter().filter(|(_, value)| *value != 0.0).collect();
            assert!(lost.is_empty(), "{name}: {lost:?}");
        }
    }

    /// Adds the series of two scrapes; gauges take the value of `later`.
    #[must_use]
    pub fn and(&self, later: &Metrics, gauges: &[&str]) -> Metrics {
        let mut sum = self.clone();
        for ((name, labels), value) in &later.0 {
            let at = sum.0.entry((name.clone(), labels.clone())).or_default();
            *at = if gauges.contains(&name.as_str()) { *value } else { *at + value };
        }
        sum
    }

    /// Returns all series except those of this name.
    #[must_use]
    pub fn without(&self, name: &str) -> Metrics {
        Metrics(self.0.iter().filter(|((found, _), _)| found != name).map(|(k, v)| (k.clone(), *v)).collect())
    }

    /// Fails the test unless both have the same series with the same values, apart from rounding errors in sums of
    /// fractions.
    #[track_caller]
    pub fn assert_same(&self, expected: &Metrics) {
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-12 * a.abs().max(b.abs());
        let unlike = |one: &Metrics, other: &Metrics| -> Vec<_> {
            one.0
                .iter()
                .filter(|(series, value)| !other.0.get(*series).is_some_and(|found| close(**value, *found)))
                .map(|((name, labels), value)| format!("{name} {labels:?} {value}"))
                .collect()
        };
        let (more, missing) = (unlike(self, expected), unlike(expected, self));
        assert!(
            more.is_empty() && missing.is_empty(),
            "expected:\n{}\nfound:\n{}",
            missing.join("\n"),
            more.join("\n")
        );
    }

    /// Returns only what was measured: everything except the exporter's own and the process metrics.
    pub fn measured(&self) -> Metrics {
        let own = |name: &str| name.starts_with("fibre_exporter_") || name.starts_with("process_");
        Metrics(self.0.iter().filter(|((name, _), _)| !own(name)).map(|(k, v)| (k.clone(), *v)).collect())
    }
}

/// Parses `name{label="value",...} value`.
fn sample(line: &str) -> Option<((String, Labels), f64)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.trim_start_matches(',').to_string(), value);
            rest = after;
        }
        rest = &rest[1..];
    }
    Some(((name.to_string(), labels), rest.trim().parse().ok()?))
}

/// Unquotes the text up to the closing quote, and returns it with the rest of the input.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

/// Parses a bound in any format, including "+Inf".
pub fn bound(text: &str) -> f64 {
    text.parse().expect("a bound")
}

/// Formats the bound as in the text format.
pub fn with_plain_bound(mut labels: Labels) -> Labels {
    if let Some(bound) = labels.get_mut("le") {
        let number = self::bound(bound);
        *bound = if number.is_finite() { number.to_string() } else { "+Inf".to_owned() };
    }
    labels
}
