//! OpenMetrics 1.0: the text format with units, creation times and an end marker.
//!
//! Series have the same names as in the text format. In this format a counter must end in `_total`, so other counters
//! have type unknown here, as have counters whose family name (the name without `_total`) is another metric's name.
//!
//! Format: <https://prometheus.io/docs/specs/om/open_metrics_spec/>.

use std::fmt::Write;

use super::sample::{Kind, Sample, SampleValue};
use super::text;

/// Units that a name may end in.
const UNITS: &[&str] = &["seconds", "bytes", "ratio"];

/// The end of the exposition.
pub const END: &[u8] = b"# EOF\n";

/// Returns the family name of a metric. For a counter it is the name without `_total`, or `None` if the name does not
/// end in that.
pub(crate) fn family_name<'a>(name: &'a str, kind: &Kind) -> Option<&'a str> {
    match kind {
        Kind::Counter => name.strip_suffix("_total"),
        Kind::Gauge | Kind::Histogram(_) => Some(name),
    }
}

/// Returns the name of the creation time series, for metrics that have one.
pub(crate) fn created_name(name: &str, kind: &Kind) -> Option<String> {
    match kind {
        Kind::Counter | Kind::Histogram(_) => Some(format!("{}_created", family_name(name, kind)?)),
        Kind::Gauge => None,
    }
}

/// The invariant text of a family.
#[derive(Debug)]
pub struct Parts {
    intro: String,
    samples: text::Parts,
    /// The name of the creation time series; `None` for kinds without one.
    created: Option<String>,
    /// The name that a key starts with.
    name: String,
}

impl Parts {
    /// Adds a creation time if `is_counted_here`, for kinds that have one. A counter without a family of its own uses
    /// its series' name as the family name.
    pub fn new(name: &str, help: &str, kind: &Kind, is_counted_here: bool, has_own_family: bool) -> Self {
        let own = family_name(name, kind).filter(|family| has_own_family || *family == name);
        let (family, word) = own.map_or((name, "unknown"), |family| (family, kind.word()));
        let mut intro = format!("# TYPE {family} {word}\n");
        let of_unit = |unit: &&&str| family.strip_suffix(**unit).is_some_and(|rest| rest.ends_with('_'));
        if let Some(unit) = UNITS.iter().find(of_unit) {
            let _ = writeln!(intro, "# UNIT {family} {unit}");
        }
        let help = help.trim().replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"");
        if !help.is_empty() {
            let _ = writeln!(intro, "# HELP {family} {help}");
        }
        let created = own.filter(|_| is_counted_here).and_then(|_| created_name(name, kind));
        let samples = text::Parts::with_bounds(name, "", kind, go_float);
        Self { intro, samples, created, name: name.to_owned() }
    }
}

/// Appends a family; a family without samples is omitted. `created` is in seconds since 1970.
pub fn write<'a>(parts: &Parts, samples: impl Iterator<Item = Sample<'a>>, created: f64, to: &mut Vec<u8>) {
    let mut first = true;
    for sample in samples {
        if std::mem::take(&mut first) {
            to.extend_from_slice(parts.intro.as_bytes());
        }
        match sample.value {
            SampleValue::Histogram { counts, sum, exemplars } => {
                parts.samples.histogram(sample.key, counts, sum, exemplars, to);
            }
            SampleValue::Number(_) => text::write_sample(&parts.samples, &sample, to),
        }
        let Some(name) = &parts.created else { continue };
        to.extend_from_slice(name.as_bytes());
        match sample.value {
            // The key is the name, the braces and a space.
            SampleValue::Number(_) => {
                to.extend_from_slice(sample.key.get(parts.name.len()..).unwrap_or(" ").as_bytes())
            }
            SampleValue::Histogram { .. } if sample.key.is_empty() => to.push(b' '),
            SampleValue::Histogram { .. } => {
                to.push(b'{');
                to.extend_from_slice(sample.key.as_bytes());
                to.extend_from_slice(b"} ");
            }
        }
        // Writing to memory cannot fail.
        let _ = std::io::Write::write_fmt(to, format_args!("{created:.3}\n"));
    }
}

/// Formats a number like Go's shortest representation, always with a decimal point or an exponent: the canonical form
/// of a bound.
fn go_float(number: f64) -> String {
    let scientific = format!("{number:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..6).contains(&exponent) {
        let plain = format!("{number}");
        return if plain.contains('.') { plain } else { format!("{plain}.0") };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::super::Head;
    use super::super::{Family, Format};
    use super::*;

    fn written(head: &Head, labels: &str, value: SampleValue<'_>) -> String {
        let key = head.key(labels);
        let mut to = Vec::new();
        let format = Format::OpenMetrics { created: 1700000000.5 };
        format.write(head, std::iter::once(Sample { key: &key, value }), &mut to);
        String::from_utf8(to).unwrap()
    }

    #[test]
    fn counters_have_created_and_total_suffix() {
        let head = Head::new("cpu_seconds_total", "Of \"it\".", Kind::Counter);
        assert_eq!(
            written(&head, "a=\"x}\"", SampleValue::Number(7u64.into())),
            "# TYPE cpu_seconds counter\n# UNIT cpu_seconds seconds\n# HELP cpu_seconds Of \\\"it\\\".\n\
             cpu_seconds_total{a=\"x}\"} 7\ncpu_seconds_created{a=\"x}\"} 1700000000.500\n"
        );
        let bare = Head::new("hits", "", Kind::Counter);
        assert_eq!(written(&bare, "", SampleValue::Number(7u64.into())), "# TYPE hits unknown\nhits 7\n");
        let mut others = Family::new("drops_total", Kind::Counter, "").counted_elsewhere();
        others.number(&[], 1u64);
        let mut to = Vec::new();
        others.write(Format::OpenMetrics { created: 1.0 }, &mut to);
        assert_eq!(to, b"# TYPE drops counter\ndrops_total 1\n");
        let gauge = Head::new("gigabytes", "", Kind::Gauge);
        assert_eq!(
            written(&gauge, "", SampleValue::Number(7u64.into())),
            "# TYPE gigabytes gauge\ngigabytes 7\n"
        );
    }

    #[test]
    fn colliding_names_stay_distinct() {
        let taken = |name: &str| ["hits", "calls_created", "h_created"].contains(&name);
        let number = SampleValue::Number(7u64.into());
        let counter = |name: &'static str| Head::new(name, "", Kind::Counter).beside(taken);
        // The gauge `hits` already has that family name.
        assert_eq!(written(&counter("hits_total"), "", number), "# TYPE hits_total unknown\nhits_total 7\n");
        assert_eq!(
            written(&counter("calls_total"), "", number),
            "# TYPE calls_total unknown\ncalls_total 7\n"
        );
        assert!(written(&counter("others_total"), "", number).ends_with("\nothers_created 1700000000.500\n"));
        let histogram = Head::new("h", "", Kind::Histogram(vec![1.0])).beside(taken);
        let value = SampleValue::Histogram { counts: &[1, 2], sum: 3u64.into(), exemplars: &[] };
        assert!(written(&histogram, "", value).ends_with("h_count 3\n"));
    }

    #[test]
    fn histograms_have_canonical_bounds() {
        let head = Head::new("h", "", Kind::Histogram(vec![0.25, 1.0]));
        for (labels, braces, before) in [("", "", ""), ("a=\"x\"", "{a=\"x\"}", "a=\"x\",")] {
            let text = written(
                &head,
                labels,
                SampleValue::Histogram { counts: &[1, 2, 4], sum: 3u64.into(), exemplars: &[] },
            );
            let expected = format!(
                "# TYPE h histogram\nh_bucket{{{before}le=\"0.25\"}} 1\nh_bucket{{{before}le=\"1.0\"}} 3\n\
                 h_bucket{{{before}le=\"+Inf\"}} 7\nh_sum{braces} 3\nh_count{braces} 7\n\
                 h_created{braces} 1700000000.500\n"
            );
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn numbers_match_go_formatting() {
        for (number, text) in [
            (0.0, "0.0"),
            (1.0, "1.0"),
            (0.5, "0.5"),
            (100_000.0, "100000.0"),
            (1e6, "1e+06"),
            (1_234_567.5, "1.2345675e+06"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1e100, "1e+100"),
            (-2.0, "-2.0"),
        ] {
            assert_eq!(go_float(number), text);
        }
    }
}
