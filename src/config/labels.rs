//! Metric labels.

use std::borrow::Cow;

use super::diagnose::Diagnostics;
use super::fields::Node;
use super::limits;
use super::model::{Label, LabelPattern, LabelValue};
use super::place::Place;
use super::scalars::is_name;
use super::section::{Key, Schema, Section};
use super::tree::{Meaning, Scalar};
use super::words::quote;
use crate::glob;

const HELP: &str = "a label is the name of an argument, { const: TEXT }, or { value: NAME, match: ..., \
     default: ..., limit: ... }";

/// An entry of a metric's `labels:`, in its long form.
pub static LABEL: Section = Section {
    name: "label",
    what: "a label",
    about: "A label of a metric. A name alone refers to an argument or a built-in value.",
    keys: Cow::Borrowed(&[
        Key::new("const", Schema::LabelText, "A constant value."),
        Key::new("value", Schema::Name, "An argument or a built-in value."),
        Key::new(
            "match",
            Schema::Map(&Schema::LabelText),
            "Maps patterns (text, a number, `PREFIX*` or a glob) to label values. The first match wins.",
        ),
        Key::new(
            "default",
            Schema::LabelText,
            "Label value if no pattern matches. Default: the value itself.",
        ),
        Key::new(
            "limit",
            Schema::Integer(*limits::LABEL_VALUES.start() as i64, *limits::LABEL_VALUES.end() as i64),
            "Maximum number of label values; further values are counted as `other`. Default: \
             `limits.label_values`.",
        ),
    ]),
    one_of: &["const", "value"],
};

/// Decodes `labels:`, in the order written.
pub(super) fn decode(node: &Node<'_>) -> Vec<Label> {
    let entries = node.entries("a mapping of labels, such as `{ peer: peer }`").unwrap_or_default();
    entries.iter().filter_map(|(name, node)| label(&name.text, node)).collect()
}

/// Decodes a target's constant labels.
pub(super) fn constants(node: &Node<'_>) -> Vec<(String, String)> {
    let entries = node.entries("a mapping of labels, such as `{ site: berlin }`").unwrap_or_default();
    let constant = |(name, node): (&Scalar, Node<'_>)| {
        check_name(&name.text, &node.at, node.diags);
        Some((name.text.clone(), node.label_text()?))
    };
    entries.into_iter().filter_map(constant).collect()
}

/// Reports an invalid label name.
fn check_name(name: &str, at: &Place, diags: &Diagnostics) {
    let wrong = if !is_name(name) {
        "use letters, digits and underscores; the first character must not be a digit"
    } else if name.starts_with("__") {
        "label names that begin with `__` are reserved for Prometheus"
    } else if name == "le" {
        "`le` is reserved for histogram buckets"
    } else if name == "node" {
        "every series already has the label `node`, with the value of node_name"
    } else {
        return;
    };
    diags.error(at, format!("{} is not a valid label name: {wrong}", quote(name)));
}

fn label(name: &str, node: &Node<'_>) -> Option<Label> {
    check_name(name, &node.at, node.diags);
    let plain = |value| Label {
        at: node.at.clone(),
        name: name.to_owned(),
        value,
        mapping: Vec::new(),
        default: None,
        limit: None,
    };
    if node.value.as_str().is_some() {
        return Some(plain(LabelValue::From(node.name()?.to_owned())));
    }
    if !node.value.is_mapping() {
        node.expected("a label").help(HELP);
        return None;
    }
    let fields = node.fields(&LABEL)?;
    let (form, value) = fields.exactly_one(&["const", "value"], HELP)?;
    if form == "const" {
        fields.forbid(&["match", "default", "limit"], "the label is constant");
        return Some(plain(LabelValue::Const(value.label_text()?)));
    }
    let value = value.name().map(|value| LabelValue::From(value.to_owned()));
    if !fields.has("match") {
        fields.forbid(&["default"], "it needs `match`");
    }
    let mapping = fields.get("match").map(|n| mapping(&n)).unwrap_or_default();
    let default = fields.get("default").and_then(|n| n.label_text());
    let limit = fields.get("limit").and_then(|n| n.integer("a number of label values", limits::LABEL_VALUES));
    Some(Label { mapping, default, limit, ..plain(value?) })
}

fn mapping(node: &Node<'_>) -> Vec<(LabelPattern, String)> {
    if !node.value.is_mapping() {
        node.expected("a mapping from patterns to label values").help("write match: { \"F*\": fibre }");
        return Vec::new();
    }
    // The types of the keys matter: 5 is a number, "5" is text.
    let entries = node.entries("a mapping").unwrap_or_default();
    let pair = |(key, node): (&Scalar, Node<'_>)| {
        let pattern = match key.meaning {
            Meaning::Integer(number) => Ok(LabelPattern::Int(number)),
            Meaning::Float(_) => Err("is neither text nor an integer"),
            _ => text_pattern(&key.text),
        };
        match pattern {
            Ok(pattern) => Some((pattern, node.label_text()?)),
            Err(err) => {
                node.error(format!("the pattern {} {err}", quote(&key.text)));
                None
            }
        }
    };
    entries.into_iter().filter_map(pair).collect()
}

/// Parses exact text, `PREFIX*`, or a glob of `*`, `?` and `[...]`.
fn text_pattern(text: &str) -> Result<LabelPattern, &'static str> {
    let special = |c| matches!(c, '*' | '?' | '[');
    if !text.contains(special) {
        return Ok(LabelPattern::Exact(text.to_owned()));
    }
    if let Some(prefix) = text.strip_suffix('*').filter(|prefix| !prefix.contains(special)) {
        return Ok(LabelPattern::Prefix(prefix.to_owned()));
    }
    let characters: Vec<char> = text.chars().collect();
    let mut rest = characters.as_slice();
    while let Some(open) = rest.iter().position(|c| *c == '[') {
        let behind = &rest[open + 1..];
        let set = glob::set(behind).ok_or("has an unterminated `[`")?;
        rest = &behind[set.length..];
    }
    Ok(LabelPattern::Glob(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_kind_follows_from_the_text() {
        assert_eq!(text_pattern("abc"), Ok(LabelPattern::Exact("abc".into())));
        assert_eq!(text_pattern(""), Ok(LabelPattern::Exact("".into())));
        assert_eq!(text_pattern("F*"), Ok(LabelPattern::Prefix("F".into())));
        assert_eq!(text_pattern("*"), Ok(LabelPattern::Prefix("".into())));
        for glob in ["*F", "a?c", "[ab]*", "a**", "[]]", "[!]x]é", "a[b]c[d]"] {
            assert_eq!(text_pattern(glob), Ok(LabelPattern::Glob(glob.into())), "{glob}");
        }
        for bad in ["[", "[]", "[!]", "[^]", "a[bc", "[a][é"] {
            assert!(text_pattern(bad).is_err(), "{bad}");
        }
    }

    fn read(yaml: &str) -> Result<Vec<Label>, String> {
        let value = crate::config::yaml::tree(yaml);
        let diags = Diagnostics::new();
        let labels = decode(&Node::new(Place::none(), &value, &diags));
        diags.into_result(labels).map_err(|diags| diags.render())
    }

    #[test]
    fn match_preserves_order_and_integer_keys() {
        let labels = read("a: {value: x, match: {z*: 1, -5: b, '7': true, a: d}, default: e, limit: 9}");
        let label = labels.unwrap().remove(0);
        let text = |t: &str| t.to_owned();
        let expected = vec![
            (LabelPattern::Prefix(text("z")), text("1")),
            (LabelPattern::Int(-5), text("b")),
            (LabelPattern::Exact(text("7")), text("true")),
            (LabelPattern::Exact(text("a")), text("d")),
        ];
        assert_eq!(label.mapping, expected);
        assert_eq!((label.default, label.limit), (Some(text("e")), Some(9)));
    }

    #[test]
    fn rejects_invalid_label_names() {
        for name in ["le", "node", "__x", "a-b", "9"] {
            assert!(read(&format!("{name}: x")).unwrap_err().contains("is not a valid label name"), "{name}");
        }
        assert!(read("peer: peer").is_ok());
    }
}
