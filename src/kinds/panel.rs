//! A metric's dashboard panel: queries in PromQL, and their unit.

/// A panel's queries, all in one unit.
#[derive(Debug)]
pub(crate) struct Panel {
    /// Grafana's name for the unit.
    pub unit: &'static str,
    /// What it shows, in a sentence.
    pub about: &'static str,
    pub queries: Vec<Query>,
}

/// One query of a panel.
#[derive(Debug)]
pub(crate) struct Query {
    pub expr: String,
    /// With `{{label}}` as the placeholder for a label's value.
    pub legend: String,
}

/// A metric, and which of its series are shown.
#[derive(Debug)]
pub(crate) struct Selection<'a> {
    pub name: &'a str,
    /// Label matchers of every query.
    pub matchers: &'a str,
    /// Labels that tell the series apart.
    pub by: &'a str,
    pub legend: &'a str,
    /// There may be many series: only the largest are shown.
    pub top: bool,
}

impl Selection<'_> {
    /// The series of a metric, or of a part of it.
    pub fn series(&self, name: &str) -> String {
        format!("{name}{{{}}}", self.matchers)
    }

    /// The increase over the selected window, which also suits rare events.
    pub fn increase(&self, name: &str) -> String {
        format!("increase({}[$window])", self.series(name))
    }

    /// The largest series, where there may be many.
    pub fn most(&self, expr: String) -> String {
        if self.top { format!("topk($top, {expr})") } else { expr }
    }

    pub fn sum(&self, expr: &str) -> String {
        format!("sum by ({}) ({expr})", self.by)
    }

    pub fn sum_with(&self, label: &str, expr: &str) -> String {
        format!("sum by ({}, {label}) ({expr})", self.by)
    }

    /// See [`base_unit`].
    pub fn base_unit(&self) -> Option<&str> {
        base_unit(self.name)
    }

    /// See [`is_timestamp`].
    pub fn is_timestamp(&self) -> bool {
        is_timestamp(self.name)
    }

    /// Grafana's unit for the metric's values.
    pub fn unit(&self) -> &'static str {
        if self.is_timestamp() {
            return "dateTimeAsIso";
        }
        match self.base_unit() {
            Some("bytes") => "bytes",
            Some("seconds") => "s",
            Some(_) if names_a_thing(self.name) => "none",
            _ => "short",
        }
    }
}

/// The unit at the end of a metric's name, by Prometheus conventions.
pub(crate) fn base_unit(name: &str) -> Option<&str> {
    let base = name.strip_suffix("_total").unwrap_or(name);
    base.rsplit_once('_').map(|(_, unit)| unit)
}

/// Whether a metric with this name identifies a thing rather than counts things: for block 900135, "900 K" says
/// nothing.
pub(crate) fn names_a_thing(name: &str) -> bool {
    const WORDS: [&str; 6] = ["height", "epoch", "slot", "version", "id", "number"];
    !name.ends_with("_total") && name.split('_').any(|word| WORDS.contains(&word))
}

/// Whether a metric with this name is a Unix timestamp.
pub(crate) fn is_timestamp(name: &str) -> bool {
    name.ends_with("_timestamp_seconds")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::{GaugeKind, MetricKind, of};

    #[test]
    fn units_are_derived_from_names() {
        let unit = |name, kind: &MetricKind| {
            of(kind).panel(&Selection { name, matchers: "", by: "instance", legend: "", top: false }).unit
        };
        let histogram = MetricKind::Histogram(Vec::new());
        let gauge = MetricKind::Gauge(GaugeKind::Last);
        assert_eq!(unit("a_bytes_total", &MetricKind::Counter), "bytes");
        assert_eq!(unit("a_total", &MetricKind::Counter), "short");
        assert_eq!(unit("a_seconds_total", &MetricKind::Counter), "s");
        assert_eq!(unit("a_timestamp_seconds", &gauge), "dateTimeAsIso");
        assert_eq!(unit("a_duration_seconds", &histogram), "s");
        assert_eq!(unit("a_tx_count", &histogram), "short");
        assert_eq!(unit("a_last_block_height", &gauge), "none");
        assert_eq!(unit("a_ids_total", &MetricKind::Counter), "short");
    }
}
