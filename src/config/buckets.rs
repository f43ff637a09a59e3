//! Histogram bucket bounds.

use std::borrow::Cow;

use super::fields::{Fields, Node};
use super::limits::BUCKETS;
use super::scalars;
use super::section::{Key, Schema, Section};
use super::words::quote;

/// A bucket bound.
pub(super) const BOUND: Schema = Schema::Either(&[Schema::Number, Schema::Duration, Schema::Size]);
const COUNT: Key = Key::new("count", Schema::Integer(1, BUCKETS as i64), "Number of buckets.").required();

/// Generated buckets.
pub static BUCKETS_OF: Section = Section {
    name: "buckets",
    what: "a set of buckets",
    about: "Generated bucket bounds.",
    keys: Cow::Borrowed(&[
        Key::new("linear", Schema::Section(|| &LINEAR), "Buckets of equal width."),
        Key::new("exponential", Schema::Section(|| &EXPONENTIAL), "Buckets that grow by a constant factor."),
    ]),
    one_of: &["linear", "exponential"],
};

pub static LINEAR: Section = Section {
    name: "linear",
    what: "`linear`",
    about: "Buckets of equal width.",
    keys: Cow::Borrowed(&[
        Key::new("start", BOUND, "The first bound.").required(),
        Key::new("width", BOUND, "Width of each bucket.").required(),
        COUNT,
    ]),
    one_of: &[],
};

pub static EXPONENTIAL: Section = Section {
    name: "exponential",
    what: "`exponential`",
    about: "Buckets that grow by a constant factor.",
    keys: Cow::Borrowed(&[
        Key::new("start", BOUND, "The first bound, greater than 0.").required(),
        Key::new("factor", Schema::Number, "Growth factor, greater than 1.").required(),
        COUNT,
    ]),
    one_of: &[],
};

const HELP: &str = "write [1ms, 10ms, 1s] or [1, 10, 100], { linear: { start: 0, width: 10, count: 12 } }, \
                    or { exponential: { start: 100us, factor: 2, count: 18 } }";

/// Decodes the upper bounds, in ascending order and in the metric's unit (durations in seconds, sizes in bytes).
pub(super) fn decode(node: &Node<'_>) -> Option<Vec<f64>> {
    let bounds = if node.value.is_mapping() {
        generated(node)?
    } else if node.value.is_sequence() {
        listed(node)?
    } else {
        node.expected("buckets").help(HELP);
        return None;
    };
    if bounds.is_empty() {
        node.error("expected at least one bucket");
        return None;
    }
    if let Some(pair) = bounds.windows(2).find(|pair| pair[0] >= pair[1]) {
        node.error(format!(
            "bucket bounds must be in increasing order, but {} is followed by {}",
            pair[0], pair[1]
        ));
        return None;
    }
    if bounds.iter().any(|bound| !bound.is_finite()) {
        node.error("bucket bounds must be finite").help("the bucket +Inf is added automatically");
        return None;
    }
    Some(bounds)
}

fn listed(node: &Node<'_>) -> Option<Vec<f64>> {
    let elements = node.list("a list of bounds")?;
    if elements.len() > BUCKETS {
        node.error(format!("{} buckets, but a histogram has at most {BUCKETS}", elements.len()));
        return None;
    }
    // All invalid bounds are reported, not just the first.
    let bounds: Vec<_> = elements.iter().map(bound).collect();
    bounds.into_iter().collect()
}

/// Decodes a number, a duration (in seconds) or a size (in bytes).
pub(super) fn bound(node: &Node<'_>) -> Option<f64> {
    let Some(text) = node.value.as_str() else {
        if node.value.as_f64().is_some_and(|n| !n.is_finite()) {
            node.error("bucket bounds must be finite").help("the bucket +Inf is added automatically");
            return None;
        }
        return node.number();
    };
    let found = scalars::duration(text).or_else(|| scalars::size(text).map(|bytes| bytes as f64));
    if found.is_none() {
        node.error(format!("expected a number, a duration or a size, found {}", quote(text))).help(format!(
            "duration units: {}; size units: {}",
            scalars::DURATION_UNITS,
            scalars::SIZE_UNITS
        ));
    }
    found
}

fn generated(node: &Node<'_>) -> Option<Vec<f64>> {
    let fields = node.fields(&BUCKETS_OF)?;
    let (form, node) = fields.exactly_one(&["linear", "exponential"], HELP)?;
    let step = if form == "linear" { "width" } else { "factor" };
    let fields = node.fields(if form == "linear" { &LINEAR } else { &EXPONENTIAL })?;
    let example = if form == "linear" {
        "write { linear: { start: 0, width: 10, count: 12 } }"
    } else {
        "write { exponential: { start: 100us, factor: 2, count: 18 } }"
    };
    let start = fields.require("start", example).and_then(|n| bound(&n));
    let step = fields.require(step, example).and_then(|n| {
        let value = if form == "linear" { bound(&n) } else { n.number() }?;
        Some((n, value))
    });
    let count = count(&fields, example);
    let (start, (step_node, step), count) = (start?, step?, count?);
    if form == "linear" {
        if step <= 0.0 {
            step_node.error("the width must be greater than 0");
            return None;
        }
        return Some((0..count).map(|n| tidy(start + step * f64::from(n))).collect());
    }
    if start <= 0.0 {
        fields.error("exponential buckets must start above 0");
        return None;
    }
    if step <= 1.0 {
        step_node.error("the factor must be greater than 1");
        return None;
    }
    Some((0..count).map(|n| tidy(start * step.powi(n as i32))).collect())
}

fn count(fields: &Fields<'_>, example: &str) -> Option<u32> {
    fields.require("count", example)?.integer("a number of buckets", 1..=BUCKETS as u32)
}

/// Rounds to twelve digits, so that 1e-6 * 10 is displayed as 0.00001 and not 0.000009999999999999999.
fn tidy(bound: f64) -> f64 {
    format!("{bound:.11e}").parse().unwrap_or(bound)
}

/// Returns the bounds of a native histogram from `first` to `last`: powers of 2^(1 / 2^schema), with the largest schema
/// that does not exceed the maximum number of buckets. The format's schemas with less than one bucket per power of two
/// are not needed.
///
/// From: <https://prometheus.io/docs/specs/native_histograms/>.
pub(super) fn native(first: f64, last: f64) -> Option<Vec<f64>> {
    if !(first > 0.0 && last > first && last.is_finite()) {
        return None;
    }
    (0..=8).rev().find_map(|schema| {
        let parts = f64::from(1 << schema);
        let (from, to) = ((first.log2() * parts).floor(), (last.log2() * parts).ceil());
        (to - from < BUCKETS as f64).then(|| {
            let many = (to - from) as usize + 1;
            (0..many).map(|n| ((from + n as f64) / parts).exp2()).collect()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::diagnose::Diagnostics;
    use crate::config::place::Place;

    fn read(yaml: &str) -> Result<Vec<f64>, String> {
        let value = crate::config::yaml::tree(yaml);
        let diags = Diagnostics::new();
        let bounds = decode(&Node::new(Place::none(), &value, &diags));
        assert_eq!(bounds.is_some(), diags.is_empty(), "{yaml}");
        bounds.ok_or_else(|| diags.render())
    }

    #[test]
    fn accepts_list_linear_and_exponential() {
        assert_eq!(read("[1ms, 5ms, 0.01, 1, 2.5]"), Ok(vec![0.001, 0.005, 0.01, 1.0, 2.5]));
        assert_eq!(read("[-1, 0, 1KiB]"), Ok(vec![-1.0, 0.0, 1024.0]));
        assert_eq!(read("linear: {start: 0, width: 2.5, count: 3}"), Ok(vec![0.0, 2.5, 5.0]));
        assert_eq!(
            read("exponential: {start: 1us, factor: 10, count: 7}"),
            Ok(vec![1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0])
        );
        assert_eq!(read("exponential: {start: 100us, factor: 2, count: 63}").unwrap().len(), BUCKETS);
    }

    #[test]
    fn native_bounds_use_the_finest_schema_that_fits() {
        for (first, last, factor) in [
            (1e-6, 100.0, 2f64.sqrt()),
            (1e-3, 10.0, 2f64.powf(0.25)),
            (1.0, 2.0, 2f64.powf(1.0 / 32.0)),
            (1e-9, 3e9, 2.0),
            (1.0, 1.0001, 2f64.powf(1.0 / 256.0)),
        ] {
            let bounds = native(first, last).unwrap();
            assert!(bounds.len() >= 2 && bounds.len() <= BUCKETS, "{first} to {last}: {}", bounds.len());
            assert!(
                bounds[0] <= first && bounds[1] > first && bounds[bounds.len() - 1] >= last,
                "{bounds:?}"
            );
            assert!(
                bounds.windows(2).all(|pair| (pair[1] / pair[0] - factor).abs() < 1e-9),
                "{factor}: {bounds:?}"
            );
        }
        assert_eq!(native(1.0, 4.0).map(|bounds| (bounds[0], bounds[bounds.len() - 1])), Some((1.0, 4.0)));
        for (first, last) in [(0.0, 1.0), (-1.0, 1.0), (1.0, 1.0), (2.0, 1.0), (1.0, 1e300)] {
            assert_eq!(native(first, last), None, "{first} to {last}");
        }
    }

    #[test]
    fn rejects_invalid_buckets() {
        let many = format!("[{}]", (0..64).map(|n| n.to_string()).collect::<Vec<_>>().join(","));
        let cases = [
            ("5", "expected buckets, found"),
            ("[]", "at least one"),
            ("[1, 1]", "must be in increasing order, but 1 is followed by 1"),
            ("[2, 1]", "must be in increasing order"),
            ("[1, .inf]", "must be finite"),
            ("[1, 5 apples]", "expected a number, a duration or a size, found \"5 apples\""),
            ("[1, [2]]", "expected a number, found a list"),
            (many.as_str(), "64 buckets, but a histogram has at most 63"),
            ("{}", "one of `linear`, `exponential` is missing"),
            ("linear: {start: 0, width: 0, count: 3}", "must be greater than 0"),
            ("linear: {start: 0, count: 3}", "`width` is missing"),
            ("linear: {start: 0, width: 1, count: 64}", "from 1 to 63"),
            ("linear: {start: 1e300, width: 1, count: 2}", "must be in increasing order"),
            ("exponential: {start: 0, factor: 2, count: 3}", "start above 0"),
            ("exponential: {start: 1, factor: 1, count: 3}", "greater than 1"),
            ("exponential: {start: 1, factor: 1e200, count: 3}", "must be finite"),
            ("exponential: {start: 1, width: 1, count: 3}", "unknown key"),
        ];
        for (yaml, expected) in cases {
            let found = read(yaml).unwrap_err();
            assert!(found.contains(expected), "{yaml}: {found}");
        }
    }
}
