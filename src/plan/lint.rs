//! Remarks on names of metrics, following Prometheus' own linter (`promtool check metrics`) and its documentation on
//! naming. None of them is an error.

use super::{Plan, ValueSource};
use crate::config::diagnose::Diagnostics;
use crate::config::model::{MetricKind, Unit};
use crate::config::place;
use crate::exposition;
use crate::kinds;

/// Words for a unit other than the base unit, and the base unit.
const UNITS: &[(&[&str], &str)] = &[
    (&["ns", "us", "ms", "sec", "secs", "nanoseconds", "microseconds", "milliseconds"], "seconds"),
    (&["minutes", "hours", "days", "weeks", "nanosecond", "microsecond", "millisecond", "second"], "seconds"),
    (&["kb", "mb", "gb", "kib", "mib", "gib", "kilobytes", "megabytes", "gigabytes", "kibibytes"], "bytes"),
    (&["mebibytes", "gibibytes", "byte"], "bytes"),
    (&["percent", "percents", "pct"], "ratio"),
];

/// Words for the kind of a metric, which its type already tells.
const KINDS: &[&str] = &["counter", "gauge", "histogram", "summary"];

/// Returns remarks on the names of the metrics that the configuration describes, except those of profiles. One line
/// each, with its place.
pub fn lint(plan: &Plan) -> Vec<String> {
    let remarks = Diagnostics::new();
    for (number, metric) in plan.metrics.iter().enumerate() {
        let feeds = |probe: &'_ super::ProbePlan| {
            let action = probe.actions.iter().find(|action| action.metric == number)?;
            let unit = action.value.map(|value| (probe.values[value].unit, probe.values[value].source));
            Some((action.at.clone(), unit))
        };
        let Some((at, unit)) = plan.probes.iter().find_map(feeds) else { continue };
        if matches!(*at.source, place::ConfigSource::Profile(_)) {
            continue;
        }
        for remark in remarks_on(&metric.name, &metric.kind, unit) {
            remarks.error(&at, format!("{}: {remark}", metric.name));
        }
        if let Some(remark) = namesake(&metric.name, &metric.kind, plan) {
            remarks.error(&at, format!("{}: {remark}", metric.name));
        }
        for label in metric.labels.iter().filter(|label| ["job", "instance"].contains(&&***label)) {
            let message = format!(
                "Prometheus sets the label \"{label}\" itself and renames this one to exported_{label}"
            );
            remarks.error(&at, message);
        }
    }
    remarks.into_vec().iter().map(|one| one.to_string().trim_end().to_owned()).collect()
}

/// Reports whether another metric has a name that OpenMetrics needs for this one.
fn namesake(name: &str, kind: &MetricKind, plan: &Plan) -> Option<String> {
    let is_taken = |name: &str| plan.metrics.iter().any(|other| other.name == name);
    let kind = kinds::of(kind).exposed_as();
    let family = exposition::family_name(name, &kind)?;
    if family != name && is_taken(family) {
        return Some(format!(
            "OpenMetrics has one name for it and the metric {family}, so it is of no known type there"
        ));
    }
    let created = exposition::created_name(name, &kind)?;
    let what = if family == name { "has no time of creation" } else { "is of no known type" };
    is_taken(&created).then(|| {
        format!(
            "its time of creation is {created} in OpenMetrics, which is another metric, so it {what} there"
        )
    })
}

fn remarks_on(name: &str, kind: &MetricKind, value: Option<(Unit, ValueSource)>) -> Vec<String> {
    let mut remarks = Vec::new();
    let words: Vec<&str> = name.split(['_', ':']).collect();
    let form = kinds::of(kind).form();
    if let Some(suffix) = form.suffix.filter(|suffix| !name.ends_with(suffix)) {
        remarks.push(format!("{} names should end in {suffix}", form.key));
    }
    if name.ends_with("_total") && form.suffix != Some("_total") {
        remarks.push("only counter names should end in _total".to_owned());
    }
    for suffix in ["_bucket", "_count", "_sum", "_created", "_info"] {
        if name.ends_with(suffix) {
            remarks.push(format!("the suffix {suffix} is reserved for series of histograms and summaries"));
        }
    }
    if name.contains(':') {
        remarks.push("colons are reserved for recording rules".to_owned());
    }
    if name.contains(|c: char| c.is_ascii_uppercase()) {
        remarks.push("metric names should be snake_case".to_owned());
    }
    if let Some(word) = KINDS.iter().find(|word| words.contains(word)) {
        remarks.push(format!("the name should not contain the metric type ({word})"));
    }
    let other =
        UNITS.iter().find_map(|(other, base)| Some((words.iter().find(|word| other.contains(word))?, base)));
    if let Some((word, base)) = other {
        remarks.push(format!(
            "the name should use the base unit {base} instead of {word}; the value is exported in {base}"
        ));
    }
    let unit = match value {
        Some((_, ValueSource::Duration)) => Some("seconds"),
        Some((Unit::Nanoseconds | Unit::Microseconds | Unit::Milliseconds | Unit::Seconds, _)) => {
            Some("seconds")
        }
        Some((Unit::Bytes | Unit::Kibibytes | Unit::Mebibytes | Unit::Pages, _)) => Some("bytes"),
        Some((Unit::None, _)) | None => None,
    };
    if let Some(unit) = unit.filter(|unit| !words.contains(unit) && other.is_none()) {
        remarks.push(format!("the value is in {unit}, so the name should end in _{unit} (before _total)"));
    }
    remarks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Overrides, read_bytes};
    use crate::plan::plan_draft;

    #[test]
    fn naming_rules() {
        let counter = MetricKind::Counter;
        let histogram = MetricKind::Histogram(vec![1.0]);
        let microseconds = Some((Unit::Microseconds, ValueSource::Arg(0)));
        let plain = Some((Unit::None, ValueSource::Arg(0)));
        for (name, kind, value) in [
            ("relay_messages_total", &counter, None),
            ("relay_seconds_total", &counter, microseconds),
            ("relay_bytes", &histogram, Some((Unit::Kibibytes, ValueSource::Arg(0)))),
            ("call_duration_seconds", &histogram, Some((Unit::Nanoseconds, ValueSource::Duration))),
            ("block_height", &histogram, plain),
        ] {
            assert_eq!(remarks_on(name, kind, value), Vec::<String>::new(), "{name}");
        }
        for (name, kind, value, expected) in [
            ("relay_messages", &counter, None, "should end in _total"),
            ("relay_total", &histogram, plain, "only counter names"),
            ("relay_count", &histogram, plain, "suffix _count is reserved"),
            ("relay:x_total", &counter, None, "recording rules"),
            ("relayMessages_total", &counter, None, "snake_case"),
            ("relay_counter_total", &counter, None, "metric type (counter)"),
            ("relay_duration_ms", &histogram, microseconds, "base unit seconds instead of ms"),
            ("relay_duration", &histogram, microseconds, "the value is in seconds"),
            ("relay_total", &counter, Some((Unit::Bytes, ValueSource::Arg(0))), "the value is in bytes"),
        ] {
            let found = remarks_on(name, kind, value);
            assert!(found.len() == 1 && found[0].contains(expected), "{name}: {found:?}");
        }
    }

    #[test]
    fn warnings_are_located_and_skip_profiles() {
        let text = "bitcoind_path: x\ntargets:\n  - name: a\n    binary: x\n    profile: postgresql\n    probes:\n      - on: usdt:a:b\n        \
                    metrics:\n          - counter: hits\n            labels: { job: comm }\n";
        let draft = read_bytes("c.yaml", text.into(), &Overrides::default(), &Environment::new());
        let (_, plan) = plan_draft(draft).unwrap_or_else(|errors| panic!("{errors}"));
        let found = lint(&plan);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].starts_with("c.yaml:9:13: ")
                && found[0].ends_with("hits: counter names should end in _total")
        );
        assert!(found[1].ends_with("renames this one to exported_job"), "{found:?}");
    }

    #[test]
    fn openmetrics_name_conflicts_are_reported() {
        let text = "targets:\n  - name: a\n    binary: x\n    probes:\n      - on: usdt:a:b\n        metrics:\n          \
                    - counter: calls_total\n          - { gauge: calls, value: pid }\n          - counter: others_total\n          \
                    - { gauge: others_created, value: pid }\n          - counter: plain\n          - { gauge: plain_created, value: pid }\n";
        let draft = read_bytes("c.yaml", text.into(), &Overrides::default(), &Environment::new());
        let (_, plan) = plan_draft(draft).unwrap_or_else(|errors| panic!("{errors}"));
        let found: Vec<_> = lint(&plan).into_iter().filter(|one| one.contains("OpenMetrics")).collect();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].contains("c.yaml:7:13: ") && found[0].contains("one name for it and the metric calls,"),
            "{found:?}"
        );
        assert!(found[1].contains("others_total: its time of creation is others_created"), "{found:?}");
    }
}
