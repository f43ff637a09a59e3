//! What a dashboard shows of a metric: queries in PromQL, and their unit.

/// A panel's queries, all in one unit.
#[derive(Debug)]
pub(crate) struct Panel {
    /// Grafana's name of the unit.
    pub unit: &'static str,
    pub queries: Vec<Query>,
}

/// One query of a panel.
#[derive(Debug)]
pub(crate) struct Query {
    pub expr: String,
    /// With `{{label}}` where a label's value goes.
    pub legend: String,
}

/// A metric, and which of its series are shown.
#[derive(Debug)]
pub(crate) struct Selection<'a> {
    pub name: &'a str,
    /// What narrows every query: matchers of labels.
    pub matchers: &'a str,
    /// Labels that series are told apart by.
    pub by: &'a str,
    pub legend: &'a str,
}

impl Selection<'_> {
    /// The series of a metric, or of a part of this one.
    pub fn series(&self, name: &str) -> String {
        format!("{name}{{{}}}", self.matchers)
    }

    pub fn rate(&self, name: &str) -> String {
        format!("rate({}[$__rate_interval])", self.series(name))
    }

    pub fn sum(&self, expr: &str) -> String {
        format!("sum by ({}) ({expr})", self.by)
    }

    pub fn sum_with(&self, label: &str, expr: &str) -> String {
        format!("sum by ({}, {label}) ({expr})", self.by)
    }

    /// The unit that the name ends with, by Prometheus' conventions.
    pub fn base_unit(&self) -> Option<&str> {
        let base = self.name.strip_suffix("_total").unwrap_or(self.name);
        base.rsplit_once('_').map(|(_, unit)| unit)
    }

    /// Grafana's unit of what the metric measures.
    pub fn unit(&self) -> &'static str {
        match self.base_unit() {
            Some("bytes") => "bytes",
            Some("seconds") => "s",
            _ => "short",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::MetricKind;
    use crate::kinds::of;

    #[test]
    fn units_follow_names() {
        let unit = |name, kind: &MetricKind| {
            of(kind).panel(&Selection { name, matchers: "", by: "instance", legend: "" }).unit
        };
        let histogram = MetricKind::Histogram(Vec::new());
        assert_eq!(unit("a_bytes_total", &MetricKind::Counter), "Bps");
        assert_eq!(unit("a_total", &MetricKind::Counter), "cps");
        assert_eq!(unit("a_seconds_total", &MetricKind::Counter), "percentunit");
        assert_eq!(unit("a_duration_seconds", &histogram), "s");
        assert_eq!(unit("a_tx_count", &histogram), "short");
    }
}
