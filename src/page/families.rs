//! Families by name, and their series with accessible labels.

use std::collections::HashMap;

use crate::exposition::{Family, SampleValue, labels};

/// The families of one status.
pub(super) struct ByName<'a>(HashMap<&'a str, &'a Family>);

/// One series.
#[derive(Debug)]
pub(super) struct Row {
    pub labels: Vec<(String, String)>,
    pub value: f64,
}

impl<'a> ByName<'a> {
    pub fn of(families: impl IntoIterator<Item = &'a Family>) -> Self {
        Self(families.into_iter().map(|family| (family.name(), family)).collect())
    }

    /// All series of a counter or gauge; none if there is no such family.
    pub fn rows(&self, name: &str) -> Vec<Row> {
        let Some(family) = self.0.get(name) else { return Vec::new() };
        family
            .samples()
            .filter_map(|sample| {
                let SampleValue::Number(number) = sample.value else { return None };
                let labels = labels(family.head().labels(sample.key));
                let labels = labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
                Some(Row { labels, value: number.as_real() })
            })
            .collect()
    }

    /// The value of the only series.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.rows(name).first().map(|row| row.value)
    }

    /// The sum of all selected series.
    pub fn sum(&self, name: &str, is_meant: impl Fn(&Row) -> bool) -> f64 {
        self.rows(name).iter().filter(|row| is_meant(row)).map(|row| row.value).fold(0.0, std::ops::Add::add)
    }

    /// Values by target and probe.
    pub fn by_probe(&self, name: &str) -> HashMap<(String, String), f64> {
        let rows = self.rows(name).into_iter();
        rows.map(|row| ((row.label("target"), row.label("probe")), row.value)).collect()
    }

    /// Values by target.
    pub fn by_target(&self, name: &str) -> HashMap<String, f64> {
        self.rows(name).into_iter().map(|row| (row.label("target"), row.value)).collect()
    }
}

impl Row {
    /// A label's value, empty if there is no such label.
    pub fn label(&self, name: &str) -> String {
        let found = self.labels.iter().find(|(label, _)| label == name);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    }
}

/// Text from traced programs, truncated if it is too long to be shown.
pub(super) fn cut(text: &str) -> String {
    cut_to(text, 200)
}

/// Truncates text to this many characters, with an ellipsis.
pub(super) fn cut_to(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}\u{2026}", &text[..at]),
        None => text.to_owned(),
    }
}
