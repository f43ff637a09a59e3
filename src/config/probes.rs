//! Probes: `on:`, `function:` and `span:`.

use std::borrow::Cow;

use super::args::{self, INTEGERS};
use super::ban::{self, BAN_KEY};
use super::fields::{Fields, Node};
use super::metrics;
use super::model::{IntType, On, Point, Probe, ReturnsBy, SpanKey, Unread};
use super::points::{function, point};
use super::section::{Key, Schema, Section, words};
use super::slow::SLOW_KEY;
use super::words::quote;

/// The forms of an element of `probes:`.
pub(super) const FORMS: &[Schema] = &[Schema::Section(|| &PROBE), Schema::Section(|| &SPAN)];

const POINT: &str = "`usdt:PROVIDER:NAME` or `function:NAME`";
const LOG: &str =
    "Line to log per hit with `verbose`. `{NAME}` is replaced by the value of an argument or label.";
const EVENT_TYPE: &str =
    "Label `event_type` of `fibre_exporter_events_processed_total`. Default: the probe's name.";
const ARGS: Key = Key::new(
    "args",
    Schema::Map(&Schema::Either(&[Schema::Section(|| &args::ARGUMENT), args::POSITION])),
    "Arguments by name, with index and type.",
);

const KEEP: Key =
    Key::new("keep", Schema::Boolean, "Never detach it because of `limits.overhead`.").or("false");

/// An element of `probes:`.
pub static PROBE: Section = Section {
    name: "probe",
    what: "a probe",
    about: "A USDT probe or a function, and the metrics that its hits update.",
    keys: Cow::Borrowed(&[
        Key::new("on", Schema::Text, POINT),
        Key::new(
            "function",
            Schema::Either(&[Schema::Text, Schema::Integer(0, i64::MAX)]),
            "A function: its name, a glob (`SSL_*`), `NAME+0x10`, or a file offset (`0x1234`).",
        ),
        Key::new("returns", Schema::Words(|| words(INTEGERS)), "Type of the return value.")
            .or("as debug information says, else i64"),
        Key::new(
            "returns_by",
            Schema::Words(|| words(RETURNS_BY)),
            "How to trace the return. `trampoline` is faster, but crashes a program that unwinds through the \
             function.",
        )
        .or("exits"),
        ARGS,
        Key::new("metrics", Schema::List(&Schema::Section(|| &metrics::METRIC)), "Metrics to update."),
        BAN_KEY,
        KEEP,
        Key::new("log", Schema::Text, LOG),
        Key::new("event_type", Schema::Text, EVENT_TYPE),
    ]),
    one_of: &["on", "function"],
};

/// An element of `probes:` with `span:`.
pub static SPAN: Section = Section {
    name: "span",
    what: "a span",
    about: "The time between two probes, as a histogram.",
    keys: Cow::Borrowed(&[
        Key::new("span", Schema::Text, "Name of the histogram, in seconds.").required(),
        Key::new("from", Schema::Text, "Start probe: `usdt:PROVIDER:NAME` or `function:NAME`.").required(),
        Key::new("to", Schema::Text, "End probe: `usdt:PROVIDER:NAME` or `function:NAME`.").required(),
        Key::new(
            "by",
            Schema::Name,
            "How to match an end with its start: `thread`, or an argument that both \
             probes have.",
        )
        .or("thread"),
        metrics::HELP_KEY,
        metrics::BUCKETS_KEY,
        metrics::NATIVE_KEY,
        metrics::LABELS_KEY,
        metrics::WHEN_KEY,
        SLOW_KEY,
        BAN_KEY,
        ARGS,
        KEEP,
        Key::new("log", Schema::Text, LOG),
        Key::new("event_type", Schema::Text, EVENT_TYPE),
    ]),
    one_of: &[],
};

const RETURNS_BY: &[(&str, ReturnsBy)] =
    &[("exits", ReturnsBy::Exits), ("trampoline", ReturnsBy::Trampoline)];

const HELP: &str = "write on: usdt:PROVIDER:NAME, function: NAME, or span: METRIC with `from` and `to`";

/// Decodes `probes:`.
pub(super) fn decode(node: &Node<'_>, from_profile: bool) -> Vec<Probe> {
    node.list("a list of probes").unwrap_or_default().iter().filter_map(|n| probe(n, from_profile)).collect()
}

/// Decodes the width and sign of a function's return value.
fn returns(node: &Node<'_>) -> Option<IntType> {
    if node.value.as_str().is_some_and(args::is_behind_an_address) {
        node.error("`returns` takes the type of a number").help(
            "to read what the returned address points to, add an argument: \
             args: { NAME: { index: retval, type: string } }",
        );
        return None;
    }
    node.one_of("integer type", INTEGERS)
}

fn probe(node: &Node<'_>, from_profile: bool) -> Option<Probe> {
    let errors = || node.diags.len();
    // The valid keys depend on the form, so it is determined first.
    let is_span = node.value.get("span").is_some();
    let fields = node.fields(if is_span { &SPAN } else { &PROBE })?;
    let on = if is_span { span(&fields) } else { single(&fields) };
    let mut unread = Unread { on: on.is_none(), ..Unread::default() };
    // An invalid `on` may be meant as a function.
    let is_function = !is_span && !matches!(on, Some(On::Usdt(_)));
    let args = fields.get("args").map(|n| args::decode(&n, is_span, is_function, &mut unread));
    let args = args.unwrap_or_default();
    unread.all_args |= !fields.has("args") && !fields.lacks("args");
    let before = errors();
    let metrics = if is_span {
        fields.get("span").map(|n| metrics::of_span(&fields, &n)).into_iter().collect()
    } else {
        fields.get("metrics").map(|n| metrics::decode(&n)).unwrap_or_default()
    };
    unread.metrics = errors() > before || (!is_span && !fields.has("metrics") && !fields.lacks("metrics"));
    let bans = ban::of_probe(&fields);
    let log = fields.get("log").and_then(|n| template(&n));
    let keep = fields.get("keep").and_then(|n| n.boolean()).unwrap_or(false);
    let event_type = fields.get("event_type").and_then(|n| n.text()).map(str::to_owned);
    let returns = (!is_span).then(|| fields.get("returns")).flatten().and_then(|n| returns(&n));
    if let (Some(On::Usdt(_)), Some(_)) = (&on, returns) {
        fields.forbid(&["returns"], "USDT probes have no return value");
    }
    let returns_by = (!is_span)
        .then(|| fields.get("returns_by"))
        .flatten()
        .and_then(|n| n.one_of("return tracing method", RETURNS_BY))
        .unwrap_or_default();
    if let Some(On::Usdt(_)) = &on {
        fields.forbid(&["returns_by"], "USDT probes do not return");
    }
    let (at, on) = (node.at.clone(), on.unwrap_or(On::Function(String::new())));
    Some(Probe {
        at,
        on,
        args,
        returns,
        returns_by,
        keep,
        metrics,
        bans,
        log,
        event_type,
        from_profile,
        unread,
    })
}

fn single(fields: &Fields<'_>) -> Option<On> {
    let (form, node) = fields.exactly_one(&["on", "function"], HELP)?;
    if form == "function" {
        // In YAML a file offset such as 0x1234 is a number.
        if let Some(offset) = node.value.as_u64() {
            return Some(On::Function(format!("{offset:#x}")));
        }
        return function(&node, node.text_as("the name of a function")?).map(On::Function);
    }
    Some(match point(&node)? {
        Point::Usdt { provider, name } => On::Usdt(Point::Usdt { provider, name }),
        Point::Function(name) => On::Function(name),
    })
}

fn span(fields: &Fields<'_>) -> Option<On> {
    let end =
        |key: &str| fields.require(key, &format!("write {key}: usdt:PROVIDER:NAME")).and_then(|n| point(&n));
    let (from, to) = (end("from"), end("to"));
    let by = match fields.get("by") {
        Some(node) => node.name().map(|name| match name {
            "thread" => SpanKey::Thread,
            name => SpanKey::Arg(name.to_owned()),
        }),
        None => Some(SpanKey::Thread),
    };
    Some(On::Span { from: from?, to: to?, by: by? })
}

/// Decodes a log template: text with `{argument}`; `{{` and `}}` are literal braces.
fn template(node: &Node<'_>) -> Option<String> {
    let text = node.text_as("a line of text")?;
    match check_template(text) {
        Ok(()) => Some(text.to_owned()),
        Err(err) => {
            node.error(format!("{err} in {}", quote(text)))
                .help("write {NAME} for the value of an argument, and {{ or }} for a literal brace");
            None
        }
    }
}

fn check_template(text: &str) -> Result<(), String> {
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let (brace, after) = (rest.as_bytes()[at], &rest[at + 1..]);
        if after.as_bytes().first() == Some(&brace) {
            rest = &after[1..];
        } else if brace == b'}' {
            return Err("unmatched `}`".into());
        } else {
            let Some(end) = after.find('}') else { return Err("unmatched `{`".into()) };
            if !super::scalars::is_name(&after[..end]) {
                return Err(format!("{} is not a name", quote(&after[..end])));
            }
            rest = &after[end + 1..];
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn templates_are_validated() {
        for good in ["", "plain", "h={height} {{x}} {a}{b}", "é {a} é"] {
            assert_eq!(check_template(good), Ok(()), "{good}");
        }
        for bad in ["{", "}", "{a", "a}", "{}", "{a b}", "{{a}", "{a{b}}", "{é}"] {
            assert!(check_template(bad).is_err(), "{bad}");
        }
    }
}
