//! Builds a tree from the parser's events.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use saphyr_parser::{Event, ScalarStyle, Span, Tag};

use super::{Fatal, MAX_DEPTH, MAX_NODES, MAX_TEXT, position};
use crate::config::diagnose::Diagnostics;
use crate::config::place::{ConfigSource, Place, Step};
use crate::config::tree::{Field, Meaning, Position, Scalar, Tree, TreeValue};
use crate::config::words::quote;

/// A list or mapping being read.
struct Open {
    position: Position,
    anchor: usize,
    /// It has an unsupported tag.
    is_unread: bool,
    content: Content,
}

enum Content {
    List(Vec<Arc<Tree>>),
    Map {
        /// `None` marks the position of a merge key, where the entries of its mapping are inserted.
        entries: Vec<Option<Field>>,
        merged: Vec<Vec<Field>>,
        /// The position of each key, by its identity.
        seen: HashMap<String, Position>,
        key: Key,
    },
}

/// The role of the next node in a mapping.
enum Key {
    None,
    Of(Scalar, Position),
    /// The value of a merge key (`<<`).
    Merge,
    /// The value of an invalid or duplicate key.
    Ignored(Option<Scalar>),
}

pub(super) struct Reader<'r> {
    source: &'r Arc<ConfigSource>,
    diags: &'r Diagnostics,
    anchors: HashMap<usize, Arc<Tree>>,
    open: Vec<Open>,
    /// The last completed document.
    pub root: Option<Tree>,
    nodes: usize,
    text: usize,
}

impl<'r> Reader<'r> {
    pub fn new(source: &'r Arc<ConfigSource>, diags: &'r Diagnostics) -> Self {
        Self { source, diags, anchors: HashMap::new(), open: Vec::new(), root: None, nodes: 0, text: 0 }
    }

    pub fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Fatal> {
        let at = position(&span.start);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_plain = style == ScalarStyle::Plain;
                let scalar = self.scalar(text.into_owned(), is_plain, tag.as_deref(), at);
                let value = scalar.map_or(TreeValue::Unread, TreeValue::Scalar);
                self.completed(Tree::new(Some(at), value), anchor)
            }
            Event::SequenceStart(anchor, tag) => self.begin(at, anchor, tag.as_deref(), "seq"),
            Event::MappingStart(anchor, tag) => self.begin(at, anchor, tag.as_deref(), "map"),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(open) => {
                    let anchor = open.anchor;
                    let tree = open.close();
                    self.completed(tree, anchor)
                }
                None => Ok(()),
            },
            Event::Alias(anchor) => {
                let Some(tree) = self.anchors.get(&anchor).cloned() else {
                    self.diags.error(&self.place(Some(at)), "recursive alias");
                    return self.completed(Tree::new(Some(at), TreeValue::Unread), 0);
                };
                self.child(tree, at)
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    fn scalar(&self, text: String, is_plain: bool, tag: Option<&Tag>, at: Position) -> Option<Scalar> {
        match tag {
            None if is_plain => Some(Scalar::plain(text)),
            None => Some(Scalar::text(text)),
            Some(tag) if is_core(tag, &["str"]) || (tag.handle.is_empty() && tag.suffix == "!") => {
                Some(Scalar::text(text))
            }
            Some(tag) if is_core(tag, &["int", "float", "bool", "null"]) => Some(Scalar::plain(text)),
            Some(tag) => {
                self.refuse_tag(tag, at);
                None
            }
        }
    }

    fn refuse_tag(&self, tag: &Tag, at: Position) {
        let display = if tag.is_yaml_core_schema() { format!("!!{}", tag.suffix) } else { tag.to_string() };
        self.diags
            .error(&self.place(Some(at)), format!("the YAML tag {} is not supported", quote(&display)))
            .help("write the value without a tag");
    }

    fn begin(&mut self, at: Position, anchor: usize, tag: Option<&Tag>, core: &str) -> Result<(), Fatal> {
        if self.open.len() >= MAX_DEPTH {
            return Err(Fatal::too_deep(at));
        }
        let wrong = tag.filter(|tag| !is_core(tag, &[core]));
        wrong.iter().for_each(|tag| self.refuse_tag(tag, at));
        let content = if core == "seq" {
            Content::List(Vec::new())
        } else {
            let (entries, merged, seen) = Default::default();
            Content::Map { entries, merged, seen, key: Key::None }
        };
        self.open.push(Open { position: at, anchor, is_unread: wrong.is_some(), content });
        Ok(())
    }

    /// Handles a node that has been read completely.
    fn completed(&mut self, tree: Tree, anchor: usize) -> Result<(), Fatal> {
        let at = tree.position.unwrap_or(Position { line: 1, column: 1 });
        let tree = Arc::new(tree);
        if anchor > 0 {
            self.anchors.insert(anchor, tree.clone());
        }
        self.child(tree, at)
    }

    /// Adds a node to its parent; `at` is where it is written.
    fn child(&mut self, tree: Arc<Tree>, at: Position) -> Result<(), Fatal> {
        // The content of a list or mapping was counted as it was read.
        let is_alias = tree.position != Some(at);
        let own = if is_alias { tree.weight.nodes } else { 1 };
        self.nodes += own;
        self.text += match &tree.value {
            TreeValue::Scalar(scalar) => scalar.text.len(),
            _ if is_alias => tree.weight.text,
            _ => 0,
        };
        if self.nodes > MAX_NODES || self.text > MAX_TEXT {
            let message = "too much content after expanding aliases (`*name`)".to_owned();
            return Err(Fatal { position: at, message, help: None });
        }
        if self.open.len() + tree.weight.depth > MAX_DEPTH {
            return Err(Fatal::too_deep(at));
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(Tree::clone(&tree));
            return Ok(());
        };
        let problem = match &mut open.content {
            Content::List(items) => {
                items.push(tree);
                None
            }
            Content::Map { entries, merged, seen, key } => match std::mem::replace(key, Key::None) {
                Key::None => {
                    let (read, problem) = read_key(&tree, at, seen);
                    *key = read;
                    problem
                }
                Key::Of(key, position) => {
                    entries.push(Some(Field { key, key_position: Some(position), value: tree }));
                    None
                }
                Key::Merge => {
                    let found = mappings(&tree);
                    let problem = found.is_none().then_some(NOTHING_TO_MERGE);
                    entries.push(None);
                    merged.push(found.unwrap_or_default());
                    problem.map(|(message, help)| (message.to_owned(), help))
                }
                Key::Ignored(_) => None,
            },
        };
        if let Some((message, help)) = problem {
            self.diags.error(&self.place(Some(at)), message).help(help);
        }
        Ok(())
    }

    /// Returns the place of the next node, with this position.
    pub fn place(&self, position: Option<Position>) -> Place {
        let step = |open: &Open| match &open.content {
            Content::List(items) => Some(Step::Index(items.len())),
            Content::Map { key: Key::Of(key, _) | Key::Ignored(Some(key)), .. } => {
                Some(Step::Key(key.text.clone()))
            }
            Content::Map { .. } => None,
        };
        Place::new(Arc::clone(self.source), self.open.iter().filter_map(step).collect(), position)
    }

    /// Returns what precedes the point where reading ended. A wrong indentation cuts off the node that it was meant to
    /// continue, so the last completed node is not trusted.
    pub fn recover(&mut self) -> Tree {
        let is_between_items = self.open.len() == 2;
        let mut open = std::mem::take(&mut self.open).into_iter();
        let (Some(mut top), second) = (open.next(), open.next()) else {
            return Tree::new(None, TreeValue::Unread);
        };
        let Content::Map { entries, key, .. } = &mut top.content else {
            return Tree::new(None, TreeValue::Unread);
        };
        let unread = |at| Arc::new(Tree::new(at, TreeValue::Unread));
        match (std::mem::replace(key, Key::None), second) {
            (Key::Of(key, at), Some(Open { position, content: Content::List(mut items), .. })) => {
                items.truncate(items.len() - usize::from(is_between_items && !items.is_empty()));
                let value = Arc::new(Tree::new(Some(position), TreeValue::List(items)));
                entries.push(Some(Field { key, key_position: Some(at), value }));
            }
            (Key::Of(key, at), _) => {
                entries.push(Some(Field { key, key_position: Some(at), value: unread(Some(at)) }));
            }
            _ => {
                if let Some(Some(last)) = entries.last_mut() {
                    last.value = unread(last.key_position);
                }
            }
        }
        top.close()
    }
}

impl Open {
    fn close(self) -> Tree {
        let value = match self.content {
            _ if self.is_unread => TreeValue::Unread,
            Content::List(items) => TreeValue::List(items),
            Content::Map { entries, merged, mut seen, .. } => {
                // The mapping's own keys take precedence over merged ones, and among those the first.
                let mut merged = merged.into_iter();
                let mut all = Vec::with_capacity(entries.len());
                for entry in entries {
                    match entry {
                        Some(entry) => all.push(entry),
                        None => {
                            for entry in merged.next().into_iter().flatten() {
                                let at = entry.key_position.unwrap_or(self.position);
                                if seen.insert(entry.key.identity(), at).is_none() {
                                    all.push(entry);
                                }
                            }
                        }
                    }
                }
                TreeValue::Map(all)
            }
        };
        Tree::new(Some(self.position), value)
    }
}

fn is_core(tag: &Tag, suffixes: &[&str]) -> bool {
    tag.is_yaml_core_schema() && suffixes.contains(&tag.suffix.as_str())
}

/// Interprets a node as a key; also returns what is wrong with it and how to fix it, if anything.
fn read_key(
    tree: &Tree,
    at: Position,
    seen: &mut HashMap<String, Position>,
) -> (Key, Option<(String, &'static str)>) {
    let what = match &tree.value {
        TreeValue::Scalar(scalar) if scalar.meaning == Meaning::Null => "nothing",
        TreeValue::Scalar(scalar) if scalar.is_plain && scalar.text == "<<" => return (Key::Merge, None),
        TreeValue::Scalar(scalar) => {
            return match seen.entry(scalar.identity()) {
                Entry::Vacant(vacant) => {
                    vacant.insert(at);
                    (Key::Of(scalar.clone(), at), None)
                }
                Entry::Occupied(first) => {
                    let message = format!("duplicate key, first used on line {}", first.get().line);
                    (Key::Ignored(Some(scalar.clone())), Some((message, "remove one of them")))
                }
            };
        }
        TreeValue::List(_) => "a list",
        TreeValue::Map(_) => "a mapping",
        TreeValue::Unread => return (Key::Ignored(None), None),
    };
    let message = format!("expected a key, found {what}");
    (Key::Ignored(None), Some((message, "put quotes around the key")))
}

const NOTHING_TO_MERGE: (&str, &str) =
    ("expected a mapping to merge, or a list of them", "write <<: *NAME, where &NAME marks a mapping");

/// Returns the entries to merge, from a mapping or a list of mappings. The first of equal keys wins.
fn mappings(tree: &Tree) -> Option<Vec<Field>> {
    let trees: Vec<&Tree> = match &tree.value {
        TreeValue::List(items) => items.iter().map(|item| &**item).collect(),
        _ => vec![tree],
    };
    let mut all = Vec::new();
    for tree in trees {
        match &tree.value {
            TreeValue::Map(fields) => all.extend(fields.iter().cloned()),
            TreeValue::Unread => {}
            _ => return None,
        }
    }
    Some(all)
}
