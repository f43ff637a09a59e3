//! Typed reading of a YAML tree: every getter gives the value, or reports what was expected and what was
//! found and gives nothing.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde_yaml::{Mapping, Value};

use super::diagnose::{Added, Diagnostics, did_you_mean, nearest, quote};
use super::place::{Place, Source};
use super::scalars;

/// A value with its place.
#[derive(Debug, Clone)]
pub struct Node<'a> {
    pub at: Place,
    pub value: &'a Value,
    pub diags: &'a Diagnostics,
}

/// The values of a mapping whose keys are known.
#[derive(Debug)]
pub struct Fields<'a> {
    pub at: Place,
    map: &'a Mapping,
    diags: &'a Diagnostics,
    known: &'static [&'static str],
    /// Known keys that an unknown one was probably meant to be.
    misspelt: Vec<&'static str>,
}

impl<'a> Node<'a> {
    /// A value at its place, whose errors go to `diags`.
    pub fn new(at: Place, value: &'a Value, diags: &'a Diagnostics) -> Self {
        Self { at, value, diags }
    }

    /// Reports an error in this value.
    pub fn error(&self, message: impl Into<String>) -> Added<'a> {
        self.diags.error(&self.at, message)
    }

    /// Reports that the value is not what it should be, quoting it.
    pub fn expected(&self, what: impl Display) -> Added<'a> {
        self.error(format!("expected {what}, found {}", self.found()))
    }

    /// What the value is, in words.
    fn found(&self) -> String {
        match self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Number(number) => format!("the number {number}"),
            // A password can slip into another key's value when a line is wrongly indented.
            Value::String(text) if text.to_ascii_lowercase().contains("password") => "other text".to_owned(),
            Value::String(text) => quote(text),
            Value::Sequence(_) => "a list".to_owned(),
            Value::Mapping(_) => "a mapping".to_owned(),
            Value::Tagged(_) => "a tagged value".to_owned(),
        }
    }

    /// Nothing was written behind the key.
    pub fn is_null(&self) -> bool {
        self.value.is_null()
    }

    /// Whether the value comes from a flag or the environment, where everything is text.
    fn is_plain_text(&self) -> bool {
        matches!(*self.at.source, Source::Env(_) | Source::Flag(_))
    }

    /// Text that is not empty. `what` says what it should be: `a path`.
    pub fn text_as(&self, what: &str) -> Option<&'a str> {
        match self.value {
            Value::String(text) if text.trim().is_empty() => {
                self.error(format!("expected {what}, found empty text"));
                None
            }
            Value::String(text) => Some(text),
            Value::Number(_) | Value::Bool(_) => {
                self.expected(what).help("put it in quotes if it is meant as text");
                None
            }
            _ => {
                self.expected(what);
                None
            }
        }
    }

    /// [`Node::text_as`], when nothing more can be said about the text.
    pub fn text(&self) -> Option<&'a str> {
        self.text_as("text")
    }

    /// Text that must never appear in a message.
    pub fn secret(&self) -> Option<&'a str> {
        match self.value {
            Value::String(text) if !text.is_empty() => return Some(text),
            Value::Number(_) | Value::Bool(_) => self
                .error("expected text, found a number or a boolean (the value is not shown)")
                .help("put it in quotes"),
            Value::String(_) | Value::Null => {
                self.error("expected text, found nothing");
            }
            _ => {
                self.error("expected text, found a list or a mapping (the value is not shown)");
            }
        }
        None
    }

    /// Text for a label: numbers without a fraction and booleans too, as written.
    pub fn label_text(&self) -> Option<String> {
        match self.value {
            Value::String(text) => Some(text.clone()),
            Value::Bool(value) => Some(value.to_string()),
            Value::Number(number) if !number.is_f64() => Some(number.to_string()),
            _ => {
                self.expected("text");
                None
            }
        }
    }

    /// The name of an argument or a built-in value.
    pub fn name(&self) -> Option<&'a str> {
        let what = "a name (letters, digits and underscores)";
        let name = self.text_as(what)?;
        if !scalars::is_name(name) {
            self.expected(what);
            return None;
        }
        Some(name)
    }

    /// A path. One from a file starts at the file's own folder.
    pub fn path(&self) -> Option<PathBuf> {
        let path = PathBuf::from(self.text_as("a path")?);
        Some(match self.at.source.folder() {
            Some(folder) => folder.join(path),
            None => path,
        })
    }

    /// A whole number within `range`; `what` says what it is: `a port`.
    pub fn integer<T>(&self, what: &str, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i128> + PartialOrd + Display,
    {
        let number = match self.value {
            Value::Number(n) => n.as_u64().map(i128::from).or(n.as_i64().map(i128::from)),
            Value::String(text) if self.is_plain_text() => text.trim().parse().ok(),
            _ => None,
        };
        let number = number.and_then(|n| T::try_from(n).ok()).filter(|n| range.contains(n));
        if number.is_none() {
            let added = self.expected(format!("{what} from {} to {}", range.start(), range.end()));
            let is_quoted = matches!(self.value, Value::String(text) if text.trim().parse::<i128>().is_ok());
            if is_quoted && !self.is_plain_text() {
                added.help("write the number without quotes");
            }
        }
        number
    }

    /// A finite number.
    pub fn number(&self) -> Option<f64> {
        let number = self.value.as_f64().filter(|n| n.is_finite());
        if number.is_none() {
            self.expected("a number");
        }
        number
    }

    /// `true` and `false`; also `yes`, `no`, `on`, `off`, which YAML 1.1 files use, and in the environment
    /// `1` and `0`.
    pub fn boolean(&self) -> Option<bool> {
        let boolean = match self.value {
            Value::Bool(value) => Some(*value),
            Value::String(text) => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" => Some(true),
                "false" | "no" | "off" => Some(false),
                "1" if self.is_plain_text() => Some(true),
                "0" if self.is_plain_text() => Some(false),
                _ => None,
            },
            _ => None,
        };
        if boolean.is_none() {
            self.expected("true or false");
        }
        boolean
    }

    /// One of a few words.
    pub fn one_of<T: Copy>(&self, what: &str, words: &[(&str, T)]) -> Option<T> {
        let text = self.text_as(what)?;
        let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
        if found.is_none() {
            let all: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            let near = did_you_mean(text, all.iter().copied());
            self.error(format!("unknown {what} {}; expected one of {}{near}", quote(text), all.join(", ")));
        }
        found.map(|(_, value)| *value)
    }

    /// The elements of a list. `what` says what it is: `a list of probes`.
    pub fn list(&self, what: &str) -> Option<Vec<Node<'a>>> {
        let Value::Sequence(values) = self.value else {
            let added = self.expected(what);
            if self.value.is_mapping() {
                added.help("begin each element with `- `");
            }
            return None;
        };
        Some(values.iter().enumerate().map(|(n, v)| Node::new(self.at.index(n), v, self.diags)).collect())
    }

    /// The elements of a list, or the value itself as the only element.
    pub fn one_or_list(&self) -> Vec<Node<'a>> {
        match self.value {
            Value::Sequence(_) => self.list("a list").unwrap_or_default(),
            _ => vec![self.clone()],
        }
    }

    /// The entries of a mapping whose keys are the user's own, with each key's text.
    pub fn entries(&self, what: &str) -> Option<Vec<(String, Node<'a>)>> {
        let Value::Mapping(map) = self.value else {
            self.expected(what);
            return None;
        };
        let entry = |(key, value): (&Value, &'a Value)| {
            let key = key_text(key);
            (key.clone(), Node::new(self.at.key(&key), value, self.diags))
        };
        Some(map.iter().map(entry).collect())
    }

    /// The value as a mapping of `known` keys; every other key is reported.
    pub fn fields(&self, what: &str, known: &'static [&'static str]) -> Option<Fields<'a>> {
        let Value::Mapping(map) = self.value else {
            self.expected(format!("{what} (a mapping)")).help(format!("the keys are {}", known.join(", ")));
            return None;
        };
        let mut misspelt = Vec::new();
        for key in map.keys().map(key_text).filter(|key| !known.contains(&key.as_str())) {
            let near = nearest(&key, known.to_vec());
            let meant = near.map(|near| format!(" (did you mean {near:?}?)")).unwrap_or_default();
            let added = self.diags.error(&self.at.key_name(&key), format!("unknown key{meant}"));
            if key == "<<" {
                added.help("merge keys are not supported: write the keys out");
            } else if near.is_none() {
                added.help(format!("{what} has the keys {}", known.join(", ")));
            }
            misspelt.extend(known.iter().filter(|known| Some(**known) == near));
        }
        Some(Fields { at: self.at.clone(), map, diags: self.diags, known, misspelt })
    }
}

/// A key as places name it.
fn key_text(key: &Value) -> String {
    match key {
        Value::String(text) => text.clone(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => float.to_string(),
            _ => number.to_string(),
        },
        // The reader lets no other key through.
        _ => String::new(),
    }
}

impl<'a> Fields<'a> {
    /// The value of `key`, which is one of the known keys, if it stands there.
    pub fn get(&self, key: &str) -> Option<Node<'a>> {
        debug_assert!(self.known.contains(&key), "{key} is not in the table of known keys");
        let value = self.map.get(key)?;
        Some(Node::new(self.at.key(key), value, self.diags))
    }

    /// Whether `key`, one of the known keys, stands there.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Whether `key` is missing, and not only misspelt, which has been reported.
    pub fn lacks(&self, key: &str) -> bool {
        !self.has(key) && !self.misspelt.contains(&key)
    }

    /// The value of a key that must be there; `help` says what to write.
    pub fn require(&self, key: &str, help: &str) -> Option<Node<'a>> {
        let node = self.get(key);
        if self.lacks(key) {
            self.diags.error(&self.at, format!("`{key}` is missing")).help(help);
        }
        node
    }

    /// The one of `keys` that stands there; none, or more than one, is an error.
    pub fn exactly_one(&self, keys: &[&'static str], help: &str) -> Option<(&'static str, Node<'a>)> {
        let mut present = keys.iter().filter_map(|key| Some((*key, self.get(key)?)));
        let listed = || keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
        let Some((key, node)) = present.next() else {
            if keys.iter().all(|key| self.lacks(key)) {
                self.diags.error(&self.at, format!("one of {} is missing", listed())).help(help);
            }
            return None;
        };
        for (other, _) in present {
            self.diags
                .error(&self.at.key_name(other), format!("`{key}` and `{other}` are mutually exclusive"))
                .help(format!("write exactly one of {}", listed()));
        }
        Some((key, node))
    }

    /// Reports each of `keys` that stands there although it is not valid here, and `why`.
    pub fn forbid(&self, keys: &[&str], why: &str) {
        for key in keys.iter().filter(|key| self.has(key)) {
            self.diags.error(&self.at.key_name(key), format!("`{key}` is not valid here: {why}"));
        }
    }

    /// Reports an error in the mapping as a whole.
    pub fn error(&self, message: impl Into<String>) -> Added<'a> {
        self.diags.error(&self.at, message)
    }
}
