//! Text to a tree of YAML values, within bounds.
//!
//! The tree is built by a visitor of ours rather than the library's own, to bound what aliases may unfold to
//! (a file of 1 MiB can ask for gigabytes) and to go on after a repeated key.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::Arc;

use serde::de::{self, DeserializeSeed, Deserializer, EnumAccess, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_yaml::{Mapping, Value};

use super::diagnose::{Diagnostics, quote};
use super::locate::second_document;
use super::place::{Place, Source, Step};

/// Largest file that is read, in bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// Most nodes, and bytes of text in them, after aliases are unfolded.
const MAX_NODES: usize = 200_000;
const MAX_TEXT: usize = 4 << 20;
/// Lists and mappings inside each other. The language needs about ten.
const MAX_DEPTH: usize = 64;
/// Most brackets open at once, roughly counted.
const MAX_BRACKETS: usize = 200;

/// The tree of `source`'s text, or `None` after reporting what is wrong with it. A text without content is
/// an empty mapping. Repeated keys are reported; the first one counts.
pub fn parse(source: &Arc<Source>, diags: &Diagnostics) -> Option<Value> {
    let text = source.text().unwrap_or_default();
    let top = Place { source: Arc::clone(source), path: Vec::new() };
    if let Some(line) = too_many_brackets(text) {
        let at = top.step(Step::Position { line, column: 1 });
        diags.error(&at, format!("too many brackets are open, at most {MAX_BRACKETS} may be"));
        return None;
    }
    let state = State::default();
    let mut documents = serde_yaml::Deserializer::from_str(text);
    let first = documents.next()?;
    let read = Build { state: &state, path: Link::Top, depth: 0 }.deserialize(first);
    for path in state.repeated.take() {
        diags.error(&Place { source: Arc::clone(source), path }, "duplicate key").help("keep one of the two");
    }
    let value = match read {
        Ok(value) => value,
        Err(error) => {
            let at = error
                .location()
                .map_or(top.clone(), |l| top.step(Step::Position { line: l.line(), column: l.column() }));
            match state.refused.take() {
                Some(refused) => diags.error(&at, refused),
                None => diags.error(&at, format!("not valid YAML: {}", without_place(&error))),
            };
            return None;
        }
    };
    if let Some((line, column)) = second_document(text) {
        diags
            .error(&top.step(Step::Position { line, column }), "a second YAML document begins before this")
            .help("write one document: remove the line `---`");
        return None;
    }
    Some(if value.is_null() { Value::Mapping(Mapping::new()) } else { value })
}

/// The library's message without the place, which stands before it already.
fn without_place(error: &serde_yaml::Error) -> String {
    let message = error.to_string();
    match error.location() {
        Some(l) => message.replacen(&format!(" at line {} column {}", l.line(), l.column()), "", 1),
        None => message,
    }
}

/// The line on which more brackets are open than may be. The scanner's time grows with the square of that
/// number, before any depth of ours is looked at. Quotes and comments are not told apart here: nobody
/// leaves so many brackets open in them.
fn too_many_brackets(text: &str) -> Option<usize> {
    let (mut open, mut line) = (0_usize, 1);
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            b'\n' => line += 1,
            _ => {}
        }
        if open > MAX_BRACKETS {
            return Some(line);
        }
    }
    None
}

/// What has been read so far, against the bounds.
#[derive(Default)]
struct State {
    nodes: Cell<usize>,
    text: Cell<usize>,
    /// Why reading was given up, when the reason is ours and not the library's.
    refused: RefCell<Option<String>>,
    repeated: RefCell<Vec<Vec<Step>>>,
}

impl State {
    fn refuse<E: de::Error>(&self, why: impl Into<String>) -> E {
        self.refused.replace(Some(why.into()));
        E::custom("refused")
    }

    fn count<E: de::Error>(&self, text: usize) -> Result<(), E> {
        self.nodes.set(self.nodes.get() + 1);
        self.text.set(self.text.get() + text);
        if self.nodes.get() > MAX_NODES || self.text.get() > MAX_TEXT {
            return Err(self.refuse("too much content; are aliases (`*name`) nested in aliases?"));
        }
        Ok(())
    }
}

/// The path to the node being read, kept on the stack: it is needed only for a repeated key.
#[derive(Clone, Copy)]
enum Link<'l> {
    Top,
    Key(&'l Link<'l>, &'l str),
    Index(&'l Link<'l>, usize),
}

impl Link<'_> {
    fn steps(&self) -> Vec<Step> {
        let (parent, step) = match self {
            Link::Top => return Vec::new(),
            Link::Key(parent, key) => (parent, Step::Key((*key).to_owned())),
            Link::Index(parent, index) => (parent, Step::Index(*index)),
        };
        let mut steps = parent.steps();
        steps.push(step);
        steps
    }
}

/// Reads one node and all below it.
struct Build<'s> {
    state: &'s State,
    path: Link<'s>,
    depth: usize,
}

impl<'s> Build<'s> {
    fn below<'l>(&'l self, path: Link<'l>) -> Build<'l>
    where
        's: 'l,
    {
        Build { state: self.state, path, depth: self.depth + 1 }
    }

    fn check_depth<E: de::Error>(&self) -> Result<(), E> {
        if self.depth >= MAX_DEPTH {
            return Err(self.state.refuse(format!("nested too deeply, at most {MAX_DEPTH} levels are read")));
        }
        Ok(())
    }

    fn scalar<E: de::Error>(&self, value: impl Into<Value>, text: usize) -> Result<Value, E> {
        self.state.count(text)?;
        Ok(value.into())
    }
}

impl<'de> DeserializeSeed<'de> for Build<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Build<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        self.scalar(value, 0)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        self.scalar(value, 0)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        self.scalar(value, 0)
    }

    // No setting is that large; what matters is that the number is refused as a number, in its range check.
    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Value, E> {
        self.scalar(value as f64, 0)
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Value, E> {
        self.scalar(value as f64, 0)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        self.scalar(value, 0)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        self.state.count(value.len())?;
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        self.scalar(Value::Null, 0)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        self.scalar(Value::Null, 0)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        self.check_depth()?;
        self.state.count(0)?;
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self.below(Link::Index(&self.path, values.len())))? {
            values.push(value);
        }
        Ok(Value::Sequence(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        self.check_depth()?;
        self.state.count(0)?;
        let mut values = Mapping::new();
        // By text, since that is how places name keys: `5` and `"5"` in one mapping would be one place.
        let mut seen = std::collections::BTreeSet::new();
        while let Some((key, name)) = map.next_key_seed(Key { state: self.state })? {
            if seen.insert(name.clone()) {
                let value = map.next_value_seed(self.below(Link::Key(&self.path, &name)))?;
                values.insert(key, value);
            } else {
                let mut path = self.path.steps();
                path.push(Step::Repeated(name));
                self.state.repeated.borrow_mut().push(path);
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Value::Mapping(values))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Value, A::Error> {
        let (tag, _) = tagged.variant::<String>()?;
        Err(self.state.refuse(format!("the YAML tag {} is not used here", quote(&format!("!{tag}")))))
    }
}

/// Reads a key: its value, and its text.
struct Key<'s> {
    state: &'s State,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = (Value, String);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Key<'_> {
    fn plain<E: de::Error>(&self, value: impl Into<Value>, text: String) -> Result<(Value, String), E> {
        self.state.count(2 * text.len())?;
        Ok((value.into(), text))
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = (Value, String);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<Self::Value, E> {
        self.plain(key, key.to_owned())
    }

    fn visit_bool<E: de::Error>(self, key: bool) -> Result<Self::Value, E> {
        self.plain(key, key.to_string())
    }

    fn visit_i64<E: de::Error>(self, key: i64) -> Result<Self::Value, E> {
        self.plain(key, key.to_string())
    }

    fn visit_u64<E: de::Error>(self, key: u64) -> Result<Self::Value, E> {
        self.plain(key, key.to_string())
    }

    fn visit_f64<E: de::Error>(self, key: f64) -> Result<Self::Value, E> {
        self.plain(key, key.to_string())
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Err(self.state.refuse("a key is missing before the colon"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
        Err(self.state.refuse("expected a key, found a list"))
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
        Err(self.state.refuse("expected a key, found a mapping"))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
        Err(self.state.refuse("a key cannot have a YAML tag"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Value, String> {
        let diags = Diagnostics::new();
        let source = Arc::new(Source::File { path: "c.yaml".into(), text: text.to_owned() });
        let value = parse(&source, &diags);
        match value {
            Some(value) if diags.is_empty() => Ok(value),
            _ => Err(diags.render()),
        }
    }

    #[test]
    fn reads_what_the_library_reads() {
        let text = "a: [1, -2, 3.5, x, 'y', ~, true, 0x10]\nb: {c: |\n  two\n  lines\n}\n5: five\nd: &d [1]\ne: *d\n";
        let text = text.replace("{c: |\n  two\n  lines\n}", "\n  c: |\n    two\n    lines");
        assert_eq!(read(&text).unwrap(), serde_yaml::from_str::<Value>(&text).unwrap());
    }

    #[test]
    fn no_content_is_an_empty_mapping() {
        for text in ["", "# only a comment\n", "---\n", "\n\n", "~"] {
            assert_eq!(read(text), Ok(Value::Mapping(Mapping::new())), "{text:?}");
        }
    }

    #[test]
    fn mistakes_of_form_have_a_place() {
        let cases = [
            ("a: 1\nb: 2\na: 3\n", "c.yaml:3:1: a: duplicate key"),
            ("x:\n  - {b: 1, c: 2, b: 3}\n", "c.yaml:2:18: x[0].b: duplicate key"),
            ("a: 1\n---\nb: 1\n", "c.yaml:3:1: a second YAML document begins before this"),
            ("a: !secret x\n", "c.yaml:1:4: the YAML tag \"!secret\" is not used here"),
            ("a: *b\n", "c.yaml:1:4: not valid YAML: unknown anchor"),
            ("a: [1\nb: 2\n", "c.yaml:2:2: not valid YAML: did not find expected ',' or ']'"),
            ("? [a, b]\n: c\n", "c.yaml:1:3: expected a key, found a list"),
            ("{a: 1}: c\n", "c.yaml:1:1: expected a key, found a mapping"),
            ("{~: c}\n", "c.yaml:1:2: a key is missing before the colon"),
            ("a:\n\t- b\n", "c.yaml:2:1: not valid YAML: found character that cannot start any token"),
        ];
        for (text, expected) in cases {
            let found = read(text).unwrap_err();
            assert!(found.starts_with(expected), "{text:?} gives {found}");
        }
    }

    #[test]
    fn aliases_unfold_within_bounds() {
        let mut wide = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..12 {
            let list = vec![format!("*a{}", n - 1); 10].join(", ");
            wide += &format!("a{n}: &a{n} [{list}]\n");
        }
        assert!(read(&wide).unwrap_err().contains("repetition limit"));

        let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(500_000), vec!["*a"; 50_000].join(","));
        assert!(read(&long).unwrap_err().contains("too much content"));

        let endless = "a: &a [*a]\n";
        assert!(read(endless).is_err());
    }

    #[test]
    fn depth_and_size_are_bounded() {
        for text in ["[".repeat(MAX_BYTES), "{a: ".repeat(MAX_BYTES / 4), "- ".repeat(MAX_BYTES / 2)] {
            assert!(read(&text).is_err());
        }
        let nested = format!("{}{}", "[".repeat(65), "]".repeat(65));
        assert!(read(&nested).unwrap_err().contains("nested too deeply"));
        let nested = format!("{}{}", "[".repeat(64), "]".repeat(64));
        assert!(read(&nested).is_ok());
    }
}
