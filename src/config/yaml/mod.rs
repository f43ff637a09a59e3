//! Parses text to a [`Tree`], in one pass over the parser's events, within limits.
//!
//! An error in one node is reported, and reading continues after it. A syntax error keeps what precedes it: the
//! complete top-level keys, and the complete elements of a top-level list.

mod reader;

use std::sync::Arc;

use saphyr_parser::{Event, Marker, Parser, ScanError};

use crate::config::diagnose::Diagnostics;
#[cfg(test)]
use crate::config::fields::Node;
use crate::config::place::ConfigSource;
#[cfg(test)]
use crate::config::place::Place;
use crate::config::tree::{Position, Tree, TreeValue};
use reader::Reader;

/// The maximum number of nodes, and bytes of text in them, after aliases are expanded.
const MAX_NODES: usize = 200_000;
const MAX_TEXT: usize = 4 << 20;
/// The maximum nesting of lists and mappings. The language needs about ten levels.
const MAX_DEPTH: usize = 64;

/// The part of a text that could be read.
#[derive(Debug)]
pub struct Document {
    /// An empty mapping if there is no content.
    pub tree: Tree,
    /// Whether it is the whole text; otherwise absent keys are not to be reported as missing.
    pub is_complete: bool,
}

/// Parses the text of `source` and reports errors. The first of duplicate keys wins.
pub fn parse(source: &Arc<ConfigSource>, text: &str, diags: &Diagnostics) -> Document {
    let mut reader = Reader::new(source, diags);
    let mut first: Option<Tree> = None;
    for event in Parser::new_from_str(text) {
        let is_end = matches!(event, Ok((Event::DocumentEnd, _)));
        if let Err(wrong) = event.map_err(Fatal::from).and_then(|(event, span)| reader.event(event, span)) {
            let error = diags.error(&reader.place(Some(wrong.position)), wrong.message);
            if let Some(help) = wrong.help {
                error.help(help);
            }
            let tree = first.unwrap_or_else(|| reader.recover());
            return Document { tree, is_complete: false };
        }
        let document = if is_end { reader.root.take().filter(|tree| !tree.is_null()) } else { None };
        match (document, &first) {
            (Some(more), Some(_)) => {
                diags
                    .error(&reader.place(more.position), "more than one YAML document")
                    .help("remove the line `---`");
                break;
            }
            (Some(document), None) => first = Some(document),
            (None, _) => {}
        }
    }
    let empty = || Tree::new(Some(Position { line: 1, column: 1 }), TreeValue::Map(Vec::new()));
    Document { tree: first.unwrap_or_else(empty), is_complete: true }
}

/// An error after which nothing more can be read.
struct Fatal {
    position: Position,
    message: String,
    help: Option<&'static str>,
}

impl From<ScanError> for Fatal {
    fn from(error: ScanError) -> Self {
        let info = error.info();
        let position = position(error.marker());
        if info.contains("recursion limit") {
            return Self::too_deep(position);
        }
        let help = [
            ("unprintable", "save the file as UTF-8"),
            ("tab", "indent with spaces"),
            ("must be followed by a valid YAML whitespace", "write one space after the colon"),
            ("invalid indentation", "indent continuation lines further than the key that they belong to"),
            (
                "mapping values are not allowed",
                "check the indentation of this line, and quote text that contains `: `",
            ),
            ("unexpected character", "quote text that begins with this character"),
            ("unexpected end of stream", "close the quote"),
            ("unknown anchor", "define the anchor `&name` before the alias `*name`"),
            ("unknown escape", "in double quotes, write \\\\ for a backslash, or use single quotes"),
            ("did not find expected key", "give all keys of a mapping the same indentation"),
        ];
        let help = help.iter().find(|(text, _)| info.contains(text)).map(|(_, help)| *help);
        Self { position, message: format!("not valid YAML: {info}"), help }
    }
}

impl Fatal {
    fn too_deep(position: Position) -> Self {
        Self { position, message: format!("nested too deeply: at most {MAX_DEPTH} levels"), help: None }
    }
}

fn position(marker: &Marker) -> Position {
    Position { line: marker.line(), column: marker.col() + 1 }
}

/// Parses a text without errors.
#[cfg(test)]
pub(crate) fn tree(text: &str) -> Tree {
    let diags = Diagnostics::new();
    let document = parse(&Arc::new(ConfigSource::Default), text, &diags);
    assert!(diags.is_empty(), "{diags}");
    document.tree
}

/// Reads a text as a part of a configuration, or returns the errors as they are shown.
#[cfg(test)]
pub(crate) fn decode_text<T>(text: &str, decode: impl Fn(&Node<'_>) -> Option<T>) -> Result<T, String> {
    let (value, diags) = (tree(text), Diagnostics::new());
    let config = decode(&Node::new(Place::none(), &value, &diags));
    if diags.is_empty() { Ok(config.unwrap()) } else { Err(diags.render()) }
}

#[cfg(test)]
mod tests;
