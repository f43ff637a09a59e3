//! The metrics of a probe.

use std::borrow::Cow;

use super::buckets;
use super::conditions;
use super::fields::{Fields, Node};
use super::labels;
use super::limits;
use super::model::{Label, Metric, MetricKind, Named};
use super::scalars::is_metric_name;
use super::section::{Key, Schema, Section, words};
use super::slow::{self, SLOW_KEY};
use super::words::quote;
use crate::kinds::{FORMS, KindSyntax, MODES, Options, ValueUse};

pub(super) const HELP_KEY: Key =
    Key::new("help", Schema::Text, "Help text, one line. Default: the metric's name in words.");
pub(super) const BUCKETS_KEY: Key = Key::new(
    "buckets",
    Schema::Either(&[Schema::List(&buckets::BOUND), Schema::Section(|| &buckets::BUCKETS_OF)]),
    "Upper bounds in increasing order. Default for a histogram of seconds: those of the Prometheus client \
     libraries.",
);
pub(super) const NATIVE_KEY: Key = Key::new(
    "native",
    Schema::Boolean,
    "Of a histogram: a native one, too, for a Prometheus that asks for protocol buffers. The buckets are exponential then, from the first of `buckets` \
     to the last, as fine as a histogram can have them.",
)
.or("false");
pub(super) const LABELS_KEY: Key = Key::new(
    "labels",
    Schema::Map(&Schema::Either(&[Schema::Name, Schema::Section(|| &labels::LABEL)])),
    "Labels of the metric.",
);
pub(super) const WHEN_KEY: Key = Key::new(
    "when",
    Schema::OneOrList(&Schema::Text),
    "Conditions joined by `and`, all of which must hold: `size > 0 and kind == \"tx\"`. Operators: ==, !=, <, \
     <=, >, >=, starts_with.",
);

/// An element of `metrics:`.
pub static METRIC: Section = Section {
    name: "metric",
    what: "a metric",
    about: "A metric that hits of the probe update. Several probes may update the same metric.",
    keys: Cow::Borrowed(&KEYS),
    one_of: &FORM_KEYS,
};

/// The keys of all forms, followed by the other keys of a metric.
const KEYS: [Key; FORMS.len() + OTHER_KEYS.len()] = {
    let mut keys = [HELP_KEY; FORMS.len() + OTHER_KEYS.len()];
    let mut n = 0;
    while n < keys.len() {
        keys[n] = if n < FORMS.len() {
            Key::new(FORMS[n].key, Schema::Text, FORMS[n].about)
        } else {
            OTHER_KEYS[n - FORMS.len()]
        };
        n += 1;
    }
    keys
};

const FORM_KEYS: [&str; FORMS.len()] = {
    let mut keys = [""; FORMS.len()];
    let mut n = 0;
    while n < keys.len() {
        keys[n] = FORMS[n].key;
        n += 1;
    }
    keys
};

const OTHER_KEYS: &[Key] = &[
    HELP_KEY,
    Key::new(
        "value",
        Schema::Name,
        "Value to add or set: an argument or a built-in value. Default: count hits.",
    ),
    Key::new("scale", Schema::Number, "Factor applied to the value, after unit conversion."),
    Key::new(
        "mode",
        Schema::Words(|| words(MODES)),
        "Of a gauge: `last` value, or `min` or `max` over the last one to two minutes.",
    )
    .or("last"),
    Key::new(
        "direction",
        Schema::Words(|| words(DIRECTIONS)),
        "Of `up_down`: whether this probe increments (`up`) or decrements (`down`) the gauge.",
    ),
    Key::new(
        "at",
        Schema::Words(|| words(MOMENTS)),
        "Of functions: update the metric at the call or at the return.",
    )
    .or("entry"),
    WHEN_KEY,
    LABELS_KEY,
    BUCKETS_KEY,
    NATIVE_KEY,
    SLOW_KEY,
];

/// Keys that only some forms have, and the error message for the other forms.
const OPTIONS: &[(&str, &str)] = &[
    ("mode", "only gauges have a mode"),
    ("direction", "only up_down metrics have a direction"),
    ("buckets", "only histograms have buckets"),
    ("native", "only histograms have buckets"),
    ("slow", "only events of histograms can be kept"),
];

/// Whether the metric is decremented.
const DIRECTIONS: &[(&str, bool)] = &[("up", false), ("down", true)];

/// Whether the metric is updated on return.
const MOMENTS: &[(&str, bool)] = &[("entry", false), ("return", true)];

/// Decodes `metrics:`.
pub(super) fn decode(node: &Node<'_>) -> Vec<Metric> {
    node.list("a list of metrics").unwrap_or_default().iter().filter_map(metric).collect()
}

fn metric(node: &Node<'_>) -> Option<Metric> {
    let errors = node.diags.len();
    let fields = node.fields(&METRIC)?;
    let written = fields.exactly_one(&FORM_KEYS, &help_on_forms());
    let name = written.as_ref().and_then(|(_, node)| self::name(node));
    let form = written.and_then(|(key, _)| FORMS.iter().copied().find(|form| form.key == key));
    let value = fields.get("value").and_then(|n| {
        let name = n.name()?.to_owned();
        Some(Named { at: n.at, name })
    });
    if form.is_some_and(|form| form.value == ValueUse::None) {
        fields.forbid(&["value", "scale"], "the metric has no value");
    } else if !fields.has("value") {
        match form.map(|form| (form.value, form.key)) {
            Some((ValueUse::Required, key)) => {
                fields
                    .error(format!("`value` is missing: a {key} needs one"))
                    .help("set value: NAME, where NAME is an argument or a built-in value such as duration");
            }
            Some((ValueUse::Optional | ValueUse::None, _)) | None => {
                fields.forbid(&["scale"], "it needs `value`; without it the metric counts hits");
            }
        }
    }
    for (option, reason) in OPTIONS {
        if form.is_some_and(|form| !form.has(option)) {
            fields.forbid(&[option], reason);
        }
    }
    if form.is_some_and(|form| form.has("direction")) && !fields.has("direction") {
        fields
            .error("`direction` is missing")
            .help("write direction: up to increment the gauge, or direction: down to decrement it");
    }
    let kind = form.and_then(|form| kind(form, &fields, name.as_deref(), value.as_ref()));
    let lowers = fields.get("direction").and_then(|n| n.one_of("direction", DIRECTIONS)).unwrap_or(false);
    let at_return = fields.get("at").and_then(|n| n.one_of("moment", MOMENTS)).unwrap_or(false);
    let (scale, when, labels) = (scale(&fields), when(&fields), labels(&fields));
    let (slow, native) = (slow::of_metric(&fields), native(&fields));
    let help = help(&fields, name.as_deref());
    let (at, name, kind) = (node.at.clone(), name.unwrap_or_default(), kind.unwrap_or(MetricKind::Counter));
    let unread = node.diags.len() > errors;
    Some(Metric { at, name, help, kind, value, scale, lowers, at_return, when, labels, slow, native, unread })
}

/// Returns the kind given by the form and its options; `None` if one of them is invalid, which has been reported.
fn kind(
    form: &KindSyntax,
    fields: &Fields<'_>,
    name: Option<&str>,
    value: Option<&Named>,
) -> Option<MetricKind> {
    let mut options = Options::default();
    if let Some(mode) = fields.get("mode").filter(|_| form.has("mode")) {
        options.mode = mode.one_of("mode", MODES)?;
    }
    if form.has("buckets") {
        options.bounds = bounds(fields, name, value.is_some_and(|value| value.name == "duration"))?;
    }
    Some((form.kind)(options))
}

/// Formats `write counter: NAME, gauge: NAME or ...`.
fn help_on_forms() -> String {
    let forms = FORM_KEYS.map(|key| format!("{key}: NAME"));
    let (last, others) = forms.split_last().expect("there are forms");
    format!("write {} or {last}", others.join(", "))
}

/// Decodes the histogram of a span, whose keys are those of the probe itself; `span` is its name.
pub(super) fn of_span(fields: &Fields<'_>, span: &Node<'_>) -> Metric {
    let errors = span.diags.len();
    let name = self::name(span);
    let kind = bounds(fields, name.as_deref(), true).map(MetricKind::Histogram);
    let value = Some(Named { at: span.at.clone(), name: "duration".to_owned() });
    let (when, labels, slow) = (when(fields), labels(fields), slow::of_metric(fields));
    let help = help(fields, name.as_deref());
    let (at, name, kind) = (fields.at.clone(), name.unwrap_or_default(), kind.unwrap_or(MetricKind::Counter));
    let unread = span.diags.len() > errors;
    let (scale, lowers, at_return, native) = (None, false, false, native(fields));
    Metric { at, name, help, kind, value, scale, lowers, at_return, when, labels, slow, native, unread }
}

fn name(node: &Node<'_>) -> Option<String> {
    let name = node.text_as("the name of a metric")?;
    if !is_metric_name(name) {
        node.error(format!("{} is not a valid metric name", quote(name))).help(
            "use letters, digits, underscores and colons; the first character must not be a digit. Example: \
             http_requests_total",
        );
        return None;
    }
    if let Some(reason) = limits::reserved(name) {
        node.error(format!("{} cannot be used as a metric name: {reason}", quote(name)));
        return None;
    }
    Some(name.to_owned())
}

/// Returns the help text, or the metric's name in words if there is none, because Prometheus expects a text.
fn help(fields: &Fields<'_>, name: Option<&str>) -> String {
    let written = fields.get("help").and_then(|n| n.text());
    match written {
        Some(text) => text.split_whitespace().collect::<Vec<_>>().join(" "),
        None => {
            let words = name.unwrap_or_default().replace(['_', ':'], " ");
            let words = words.trim();
            let mut letters = words.chars();
            letters
                .next()
                .map(|first| format!("{}{}.", first.to_uppercase(), letters.as_str()))
                .unwrap_or_default()
        }
    }
}

fn native(fields: &Fields<'_>) -> bool {
    fields.get("native").and_then(|n| n.boolean()).unwrap_or(false)
}

fn bounds(fields: &Fields<'_>, name: Option<&str>, shows_duration: bool) -> Option<Vec<f64>> {
    let bounds = written_bounds(fields, name, shows_duration)?;
    if !native(fields) {
        return Some(bounds);
    }
    let (first, last) = (*bounds.first()?, *bounds.last()?);
    let native = buckets::native(first, last);
    if native.is_none() {
        let node = fields.get("buckets").or_else(|| fields.get("native"))?;
        node.error(format!("buckets from {first} to {last} cannot be those of a native histogram")).help(
            "write two bounds that are greater than 0 and up to 2^61 apart, such as buckets: [1us, 100s]",
        );
    }
    native
}

fn written_bounds(fields: &Fields<'_>, name: Option<&str>, shows_duration: bool) -> Option<Vec<f64>> {
    match fields.get("buckets") {
        Some(node) => buckets::decode(&node),
        None if shows_duration || name.is_some_and(|name| name.ends_with("_seconds")) => {
            Some(limits::DEFAULT_SECONDS.to_vec())
        }
        None => {
            // Without a name the histogram's unit is unknown.
            if name.is_some() {
                fields
                    .error("`buckets` is missing; only histograms of seconds have default buckets")
                    .help("write buckets: [1, 10, 100], { linear: ... } or { exponential: ... }");
            }
            None
        }
    }
}

fn scale(fields: &Fields<'_>) -> Option<f64> {
    let node = fields.get("scale")?;
    let scale = node.number()?;
    if scale <= 0.0 {
        node.error(format!("the scale must be greater than 0, found {scale}"));
        return None;
    }
    Some(scale)
}

fn when(fields: &Fields<'_>) -> Vec<super::model::Condition> {
    fields.get("when").map(|n| conditions::decode(&n)).unwrap_or_default()
}

fn labels(fields: &Fields<'_>) -> Vec<Label> {
    fields.get("labels").map(|n| labels::decode(&n)).unwrap_or_default()
}
