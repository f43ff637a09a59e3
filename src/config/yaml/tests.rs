use super::*;
use crate::config::limits::FILE_BYTES;
use crate::config::tree::{Field, Meaning, Scalar};

fn read(text: &str) -> Result<Tree, String> {
    let diags = Diagnostics::new();
    let document = parse(&Arc::new(ConfigSource::File("c.yaml".into())), text, &diags);
    assert!(document.is_complete || !diags.is_empty(), "{text:?}");
    if diags.is_empty() { Ok(document.tree) } else { Err(diags.render()) }
}

/// Returns the position of the node at a path of keys and indices.
fn at(text: &str, path: &str) -> (usize, usize) {
    let tree = read(text).unwrap();
    let node = path.split('.').fold(&tree, |node, step| match &node.value {
        TreeValue::List(items) => &items[step.parse::<usize>().unwrap()],
        _ => node.get(step).unwrap_or_else(|| panic!("no {step} in {path}")),
    });
    let position = node.position.unwrap();
    (position.line, position.column)
}

const TEXT: &str = "\
# a comment
node_name: mynode
targets:
  - name: one
    args: { height: { index: 1 }, winner: {index: 2, type: string} }
    labels: {a: [1, 2,
             33], b: &anchor {deep: yes}}
    help: |
      two
      lines
  -
    name: two
    again: *anchor
    empty:
    \"quoted key\": 'x'
    5: five
    é: x
";

#[test]
fn every_node_has_a_position() {
    let text = TEXT;
    for (path, expected) in [
        ("node_name", (2, 12)),
        ("targets", (4, 3)),
        ("targets.0", (4, 5)),
        ("targets.0.args.winner.type", (5, 60)),
        ("targets.0.labels.a.1", (6, 21)),
        ("targets.0.labels.a.2", (7, 14)),
        ("targets.1.name", (12, 11)),
        // An alias has the position of its anchor: that is the text to fix.
        ("targets.1.again", (7, 22)),
        ("targets.1.again.deep", (7, 37)),
        ("targets.1.quoted key", (15, 19)),
        ("targets.1.5", (16, 8)),
        ("targets.1.é", (17, 8)),
    ] {
        assert_eq!(at(text, path), expected, "{path}");
    }
    assert_eq!(at(text, "targets.1.empty").0, 14);
    assert_eq!(at(&text.replace('\n', "\r\n"), "targets.1.é"), (17, 8));
    assert_eq!(at(&format!("\u{feff}{text}"), "node_name"), (2, 12));
    assert_eq!(at("\u{feff}a: 1", "a"), (1, 4));
    assert_eq!(at("{é: x, b: y}", "b"), (1, 11));
}

#[test]
fn empty_document_is_an_empty_mapping() {
    for text in ["", "# only a comment\n", "---\n", "\n\n", "~", "---\n...\n", "\u{feff}"] {
        assert!(read(text).unwrap().value == TreeValue::Map(Vec::new()), "{text:?}");
    }
    for text in ["---\na: 1\n", "a: 1\n...\n", "a: 1\n---\n", "%YAML 1.1\n---\na: 1\n", "---\n---\na: 1"] {
        assert!(read(text).unwrap().get("a").is_some(), "{text:?}");
    }
}

#[test]
fn structural_errors_are_located_and_the_rest_is_parsed() {
    let cases = [
        ("a: 1\nb: 2\na: 3\n", "c.yaml:3:1: a: duplicate key, first used on line 1"),
        ("x:\n  - {b: 1, c: 2, b: 3}\n", "c.yaml:2:18: x[0].b: duplicate key, first used on line 2"),
        ("a: 1\n'a': {b: 1}\n", "c.yaml:2:1: a: duplicate key"),
        ("16: 1\n0x10: 1\n", "c.yaml:2:1: 0x10: duplicate key"),
        ("a: 1\n---\nb: 1\n", "c.yaml:3:1: more than one YAML document"),
        ("a: !secret x\n", "c.yaml:1:4: a: the YAML tag \"!secret\" is not supported"),
        ("a: !!set {b}\n", "c.yaml:1:4: a: the YAML tag \"!!set\" is not supported"),
        ("a: *b\n", "c.yaml:1:4: a: not valid YAML: while parsing node, found unknown anchor"),
        ("a: [1\nb: 2\n", "c.yaml:2:2: a[0]: not valid YAML: illegal placement of ':'"),
        ("? [a, b]\n: c\n", "c.yaml:1:3: expected a key, found a list"),
        ("{a: 1}: c\n", "c.yaml:1:1: expected a key, found a mapping"),
        ("{~: c}\n", "c.yaml:1:2: expected a key, found nothing"),
        ("a:\n\t- b\n", "c.yaml:2:2: a: not valid YAML: tabs disallowed"),
        ("a: &a [*a]\n", "c.yaml:1:8: a[0]: recursive alias"),
        ("a: 'x\n", "c.yaml:1:4: a: not valid YAML: while scanning a quoted scalar"),
        ("a: b: c\n", "c.yaml:1:5: not valid YAML: mapping values are not allowed"),
        ("<<: 5\n", "c.yaml:1:5: expected a mapping to merge"),
    ];
    for (text, expected) in cases {
        let found = read(text).unwrap_err();
        assert!(
            found.starts_with(expected) && found.matches("c.yaml").count() == 1,
            "{text:?} gives {found}"
        );
    }
    let all = "a: !x 1\na: 2\nb: &b [*b]\nc: 'open";
    let found = read(all).unwrap_err();
    let lines: Vec<_> = found.lines().filter(|line| line.starts_with("c.yaml")).collect();
    assert_eq!(lines.len(), 4, "{found}");
}

#[test]
fn content_before_a_syntax_error_is_salvaged() {
    let salvaged = |text: &str| {
        let document = parse(&Arc::new(ConfigSource::Default), text, &Diagnostics::new());
        assert!(!document.is_complete);
        document.tree
    };
    let tree = salvaged("a: 1\nlist:\n  - x: 1\n  - y: 2\n  - z: 'open\n");
    assert_eq!(tree.get("a").and_then(Tree::as_integer), Some(1));
    assert_eq!(tree.get("list").and_then(Tree::as_sequence).map(<[_]>::len), Some(2));
    assert!(matches!(salvaged("a: 1\nb: {c: 'open").get("b").unwrap().value, TreeValue::Unread));
    assert!(matches!(salvaged("[a, 'open").value, TreeValue::Unread));
    // The node that a wrong indentation cuts off is not complete.
    let tree = salvaged("list:\n  - x: 1\n  - x: 2\n   y: 2\n");
    assert_eq!(tree.get("list").and_then(Tree::as_sequence).map(<[_]>::len), Some(1));
    assert!(matches!(salvaged("a:\n  b: 1\n c: 2\n").get("a").unwrap().value, TreeValue::Unread));
}

#[test]
fn merge_keys_are_expanded_into_the_mapping() {
    let text = "x: &x {a: 1, b: 1}\ny: &y {b: 2, c: 2}\nz: {<<: [*x, *y], b: 3}\nw: {'<<': 1}\nv:\n  <<: *y\n  <<: *x\n";
    let tree = read(text).unwrap();
    let of = |map: &str| {
        let TreeValue::Map(fields) = &tree.get(map).unwrap().value else { panic!("{map}") };
        fields
            .iter()
            .map(|field| (field.key.text.clone(), field.value.as_integer().unwrap()))
            .collect::<Vec<_>>()
    };
    let pairs = |all: &[(&str, i128)]| all.iter().map(|(key, n)| (key.to_string(), *n)).collect::<Vec<_>>();
    assert_eq!(of("z"), pairs(&[("a", 1), ("c", 2), ("b", 3)]));
    assert_eq!(of("v"), pairs(&[("b", 2), ("c", 2), ("a", 1)]));
    assert_eq!(of("w"), pairs(&[("<<", 1)]));
    assert_eq!(at(text, "z.a"), (1, 11), "where it was written");
}

#[test]
fn alias_expansion_is_bounded() {
    let mut wide = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..12 {
        let list = vec![format!("*a{}", n - 1); 10].join(", ");
        wide += &format!("a{n}: &a{n} [{list}]\n");
    }
    assert!(read(&wide).unwrap_err().contains("too much content"));
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(500_000), vec!["*a"; 50_000].join(","));
    assert!(read(&long).unwrap_err().contains("too much content"));
    let merged = format!("a: &a {{b: &b {{c: 1}}}}\n{}", "- ".repeat(3));
    assert!(read(&merged).is_err());
    let mut deep = "a0: &a0 [x]\n".to_owned();
    (1..200).for_each(|n| deep += &format!("a{n}: &a{n} [*a{}]\n", n - 1));
    assert!(read(&deep).unwrap_err().contains("nested too deeply"));
}

#[test]
fn depth_size_and_time_are_bounded() {
    let fill = |text: &str| text.repeat(FILE_BYTES / text.len());
    for text in ["[", "{a: ", "- ", "? ", "[{", "[? ", "&a ", "!a ", "a: ", "%", "x,", "---\n", "\t", "'\n"] {
        let text = fill(text);
        let _ = read(&text);
        let _ = read(&format!("a: [{text}"));
    }
    let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    assert!(read(&nested(65)).unwrap_err().contains("nested too deeply"));
    assert!(read(&nested(300)).unwrap_err().contains("nested too deeply"));
    assert!(read(&nested(64)).is_ok());
    assert!(read(&format!("a: {}", "x".repeat(FILE_BYTES - 3))).is_ok());
}

/// Converts a tree to the value of the deserialization library.
fn as_library(tree: &Tree) -> serde_yaml::Value {
    let scalar = |scalar: &Scalar| match scalar.meaning {
        Meaning::Null => serde_yaml::Value::Null,
        Meaning::Bool(value) => value.into(),
        Meaning::Integer(n) => {
            u64::try_from(n).map(Into::into).or(i64::try_from(n).map(Into::into)).unwrap_or((n as f64).into())
        }
        Meaning::Float(n) => n.into(),
        // The parsers differ at the end of a file without a final newline.
        Meaning::Text => scalar.text.trim_end_matches('\n').into(),
    };
    match &tree.value {
        TreeValue::Scalar(value) => scalar(value),
        TreeValue::List(items) => {
            serde_yaml::Value::Sequence(items.iter().map(|item| as_library(item)).collect())
        }
        TreeValue::Map(fields) => {
            let pair = |field: &Field| (scalar(&field.key), as_library(&field.value));
            serde_yaml::Value::Mapping(fields.iter().map(pair).collect())
        }
        TreeValue::Unread => panic!("nothing was reported"),
    }
}

fn trimmed(value: serde_yaml::Value) -> serde_yaml::Value {
    use serde_yaml::Value;
    match value {
        Value::String(text) => text.trim_end_matches('\n').into(),
        Value::Sequence(items) => items.into_iter().map(trimmed).collect(),
        Value::Mapping(pairs) => {
            Value::Mapping(pairs.into_iter().map(|(key, value)| (trimmed(key), trimmed(value))).collect())
        }
        other => other,
    }
}

/// Two independently written parsers agree on every text that both accept, including files with mistakes.
#[test]
fn agrees_with_other_parsers() {
    let mut same = 0;
    let mut compare = |text: &str| {
        let theirs = serde_yaml::from_str::<serde_yaml::Value>(text).map(trimmed);
        // The other parser has no merge keys, and here a text without content is a mapping.
        let is_plain = |value: &serde_yaml::Value| !value.is_null() && !text.contains("<<");
        match (read(text), theirs) {
            (Ok(ours), Ok(theirs)) if is_plain(&theirs) => {
                let ours = as_library(&ours);
                assert!(ours == theirs, "{text}");
                same += 1;
            }
            _ => {}
        }
    };
    for dir in ["tests/config/good", "tests/config/bad", "profiles", "docker/prometheus", "fuzz/seeds/config"]
    {
        let Ok(entries) = std::fs::read_dir(dir) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            compare(&text);
            if dir.ends_with("bad") {
                continue;
            }
            let cuts = (0..text.len()).step_by(1501).filter(|at| text.is_char_boundary(*at));
            for at in cuts.collect::<Vec<_>>() {
                compare(&text[..at]);
                for slip in [" ", "\n", "\t", ":", "- ", "'", "#", "|", "&x ", "? ", ","] {
                    compare(&format!("{}{slip}{}", &text[..at], &text[at..]));
                }
            }
        }
    }
    assert!(same > 300, "{same}");
}
