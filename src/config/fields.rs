//! Typed access to a YAML tree: each getter returns the value, or reports what was expected and found and returns
//! `None`.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::diagnose::{Added, Diagnostics};
use super::place::{ConfigSource, Place};
use super::scalars;
use super::section::Section;
use super::tree::{Field, Meaning, Scalar, Tree, TreeValue, find};
use super::words::{did_you_mean, nearest_key, quote};

/// A value with its place.
#[derive(Debug, Clone)]
pub struct Node<'a> {
    pub at: Place,
    pub value: &'a Tree,
    pub diags: &'a Diagnostics,
}

/// The values of a mapping with known keys.
pub struct Fields<'a> {
    pub at: Place,
    map: &'a [Field],
    diags: &'a Diagnostics,
    section: &'static Section,
    /// Known keys that an unknown key was probably meant to be.
    misspelt: Vec<&'static str>,
}

impl<'a> Node<'a> {
    /// Creates a node whose errors go to `diags`.
    pub fn new(at: Place, value: &'a Tree, diags: &'a Diagnostics) -> Self {
        Self { at: at.at(value.position), value, diags }
    }

    /// Reports an error at this value.
    pub fn error(&self, message: impl Into<String>) -> Added<'a> {
        match self.value.value {
            TreeValue::Unread => self.diags.repeated(),
            _ => self.diags.error(&self.at, message),
        }
    }

    /// Reports that the value is not as expected, and quotes it.
    pub fn expected(&self, what: impl Display) -> Added<'a> {
        self.error(format!("expected {what}, found {}", self.found()))
    }

    /// Describes the value.
    fn found(&self) -> String {
        let scalar = match &self.value.value {
            TreeValue::Scalar(scalar) => scalar,
            TreeValue::List(values) if values.is_empty() => return "an empty list".to_owned(),
            TreeValue::List(_) => return "a list".to_owned(),
            TreeValue::Map(_) => return "a mapping".to_owned(),
            TreeValue::Unread => return String::new(),
        };
        match scalar.meaning {
            Meaning::Null => "nothing".to_owned(),
            Meaning::Bool(_) => scalar.text.clone(),
            Meaning::Integer(_) | Meaning::Float(_) => format!("the number {}", cut(&scalar.text)),
            // Wrong indentation can turn a password into a part of another key's value.
            Meaning::Text if scalar.text.to_ascii_lowercase().contains("password") => "other text".to_owned(),
            Meaning::Text => quote(&scalar.text),
        }
    }

    /// Whether the key has no value.
    pub fn is_null(&self) -> bool {
        self.value.is_null()
    }

    /// Whether the value comes from a flag, the environment or a default, where everything is text.
    fn is_from_text(&self) -> bool {
        matches!(*self.at.source, ConfigSource::Env(_) | ConfigSource::Flag(_) | ConfigSource::Default)
    }

    fn scalar(&self) -> Option<&'a Scalar> {
        match &self.value.value {
            TreeValue::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    /// Decodes non-empty text. `what` describes it: `a path`.
    pub fn text_as(&self, what: &str) -> Option<&'a str> {
        match self.value.as_str() {
            Some(text) if text.trim().is_empty() => {
                self.error(format!("expected {what}, found empty text"));
                None
            }
            Some(text) => Some(text),
            None => {
                let added = self.expected(what);
                if self.scalar().is_some_and(|scalar| scalar.meaning != Meaning::Null) {
                    added.help("quote it if you mean text");
                }
                None
            }
        }
    }

    /// Like [`Node::text_as`], without a more specific description.
    pub fn text(&self) -> Option<&'a str> {
        self.text_as("text")
    }

    /// Decodes text that must never appear in a message.
    pub fn secret(&self) -> Option<&'a str> {
        match self.scalar().map(|scalar| (scalar.meaning, scalar.text.as_str())) {
            Some((Meaning::Text, text)) if !text.is_empty() => return Some(text),
            Some((Meaning::Text | Meaning::Null, _)) => {
                self.error("expected text, found nothing");
            }
            Some(_) => self
                .error("expected text, found a number or a boolean (the value is not shown)")
                .help("quote it"),
            None => {
                self.error("expected text, found a list or a mapping (the value is not shown)");
            }
        }
        None
    }

    /// Decodes the text of a label; numbers and booleans are taken as written.
    pub fn label_text(&self) -> Option<String> {
        let scalar = self.scalar().filter(|scalar| scalar.meaning != Meaning::Null);
        if scalar.is_none() {
            self.expected("text");
        }
        scalar.map(|scalar| scalar.text.clone())
    }

    /// Decodes the name of an argument or a built-in value.
    pub fn name(&self) -> Option<&'a str> {
        let what = "a name (letters, digits and underscores)";
        let name = self.text_as(what)?;
        if !scalars::is_name(name) {
            self.expected(what);
            return None;
        }
        Some(name)
    }

    /// Decodes a path. A relative path in a file is resolved against the file's directory.
    pub fn path(&self) -> Option<PathBuf> {
        let path = self.text_as("a path")?;
        if path.starts_with(['~', '$']) {
            self.expected("a path").help(
                "write the path in full: `~` and variables are not expanded; put ./ before a name that begins with one",
            );
            return None;
        }
        let path = PathBuf::from(path);
        Some(match self.at.source.dir() {
            Some(dir) => dir.join(path),
            None => path,
        })
    }

    /// Decodes an integer within `range`; `what` describes it: `a port`.
    pub fn integer<T>(&self, what: &str, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i128> + PartialOrd + Display,
    {
        let text = self.value.as_str().map(str::trim);
        let number = match text {
            Some(text) if self.is_from_text() => text.parse().ok(),
            _ => self.value.as_integer(),
        };
        let number = number.and_then(|n| T::try_from(n).ok()).filter(|n| range.contains(n));
        if number.is_none() {
            let added = self.expected(format!("{what} from {} to {}", range.start(), range.end()));
            if let Some(text) = text.filter(|_| !self.is_from_text()) {
                let is_plain = self.scalar().is_some_and(|scalar| scalar.is_plain);
                if let Some(help) = how_to_write(text, is_plain) {
                    added.help(help);
                }
            }
        }
        number
    }

    /// Decodes a finite number.
    pub fn number(&self) -> Option<f64> {
        let number = self.value.as_f64().filter(|n| n.is_finite());
        if number.is_none() {
            self.expected("a number");
        }
        number
    }

    /// Decodes `true` or `false`; also `yes`, `no`, `on` and `off`, which YAML 1.1 files use, and in the environment
    /// `1` and `0`.
    pub fn boolean(&self) -> Option<bool> {
        let boolean = match self.scalar().map(|scalar| (scalar.meaning, &scalar.text)) {
            Some((Meaning::Bool(value), _)) => Some(value),
            Some((Meaning::Text, text)) => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" => Some(true),
                "false" | "no" | "off" => Some(false),
                "1" if self.is_from_text() => Some(true),
                "0" if self.is_from_text() => Some(false),
                _ => None,
            },
            _ => None,
        };
        if boolean.is_none() {
            self.expected("true or false");
        }
        boolean
    }

    /// Decodes one of several words.
    pub fn one_of<T: Copy>(&self, what: &str, words: &[(&str, T)]) -> Option<T> {
        let all: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let expected = format!("one of {}", all.join(", "));
        let text = self.text_as(&expected)?;
        let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
        if found.is_none() {
            let near = did_you_mean(text, all);
            self.error(format!("unknown {what} {}{near}; expected {expected}", self.found()));
        }
        found.map(|(_, value)| *value)
    }

    /// Returns the elements of a list. `what` describes it: `a list of probes`.
    pub fn list(&self, what: &str) -> Option<Vec<Node<'a>>> {
        let Some(values) = self.value.as_sequence() else {
            let added = self.expected(what);
            if self.value.is_mapping() {
                added.help("start each list element with `- `");
            }
            return None;
        };
        Some(values.iter().enumerate().map(|(n, v)| Node::new(self.at.index(n), v, self.diags)).collect())
    }

    /// Returns the elements of a list, or the value itself as the only element.
    pub fn one_or_list(&self) -> Vec<Node<'a>> {
        match self.value.value {
            TreeValue::List(_) => self.list("a list").unwrap_or_default(),
            _ => vec![self.clone()],
        }
    }

    /// Returns the entries of a mapping with user-defined keys.
    pub fn entries(&self, what: &str) -> Option<Vec<(&'a Scalar, Node<'a>)>> {
        let TreeValue::Map(fields) = &self.value.value else {
            self.expected(what);
            return None;
        };
        let node = |field: &'a Field| Node::new(self.at.key(&field.key.text), &field.value, self.diags);
        Some(fields.iter().map(|field| (&field.key, node(field))).collect())
    }

    /// Returns the value as a mapping of this section; reports every unknown key.
    pub fn fields(&self, section: &'static Section) -> Option<Fields<'a>> {
        self.fields_and(section, |_| false)
    }

    /// Like [`Node::fields`], but ignores additional keys.
    pub(super) fn fields_and(
        &self,
        section: &'static Section,
        is_passed_over: impl Fn(&str) -> bool,
    ) -> Option<Fields<'a>> {
        let what = section.what;
        let names: Vec<_> = section.names().collect();
        let TreeValue::Map(map) = &self.value.value else {
            self.expected(format!("{what} (a mapping)")).help(format!("valid keys: {}", names.join(", ")));
            return None;
        };
        let mut misspelt = Vec::new();
        let is_known = |key: &str| section.has(key) || is_passed_over(key);
        let unknown = map.iter().filter(|field| !is_known(&field.key.text));
        for Field { key, key_position, .. } in unknown {
            let near = nearest_key(&key.text, &names);
            let meant = near.map(|near| format!(" (did you mean {near:?}?)")).unwrap_or_default();
            let place = self.at.key(&key.text).at(*key_position);
            let added = self.diags.error(&place, format!("unknown key{meant}"));
            if near.is_none() {
                added.help(format!("valid keys of {what}: {}", names.join(", ")));
            }
            misspelt.extend(section.names().filter(|known| Some(*known) == near));
        }
        Some(Fields { at: self.at.clone(), map, diags: self.diags, section, misspelt })
    }
}

/// Shortens a number for a message.
fn cut(number: &str) -> String {
    number.char_indices().nth(40).map_or(number.to_owned(), |(at, _)| format!("{}...", &number[..at]))
}

/// Suggests how to write text that looks like a number.
fn how_to_write(text: &str, is_plain: bool) -> Option<String> {
    let digits = text.replace('_', "");
    let number = Some(digits.trim_start_matches('0')).filter(|rest| !rest.is_empty()).unwrap_or("0");
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    match (is_number, is_plain) {
        (true, true) if text.contains('_') => Some(format!("write {digits}")),
        (true, true) => {
            let octal = if number.contains(['8', '9']) { String::new() } else { format!(" or 0o{number}") };
            Some(format!(
                "some YAML parsers read a number with a leading zero as octal, others as decimal: write \
                 {number}{octal}"
            ))
        }
        (true, false) => Some("write the number without quotes".to_owned()),
        (false, _) => None,
    }
}

impl<'a> Fields<'a> {
    /// Returns the value of `key`, which must be a known key, if present.
    pub fn get(&self, key: &str) -> Option<Node<'a>> {
        debug_assert!(self.section.has(key), "{key} is not in the table of known keys");
        Some(Node::new(self.at.key(key), &find(self.map, key)?.value, self.diags))
    }

    /// Returns the place of `key` itself.
    fn key_place(&self, key: &str) -> Place {
        self.at.key(key).at(find(self.map, key).and_then(|field| field.key_position))
    }

    /// Whether `key`, a known key, is present.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Whether `key` is missing, rather than misspelled, which has already been reported.
    pub fn lacks(&self, key: &str) -> bool {
        !self.has(key) && !self.misspelt.contains(&key)
    }

    /// Returns the value of a mandatory key; `help` says what to write.
    pub fn require(&self, key: &str, help: &str) -> Option<Node<'a>> {
        let node = self.get(key);
        if self.lacks(key) {
            self.diags.error(&self.at, format!("`{key}` is missing")).help(help);
        }
        node
    }

    /// Returns the one of `keys` that is present; it is an error if there is none or more than one.
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
                .error(&self.key_place(other), format!("`{key}` and `{other}` are mutually exclusive"))
                .help(format!("write exactly one of {}", listed()));
        }
        Some((key, node))
    }

    /// Reports each of `keys` that is present as invalid here, for this `reason`.
    pub fn forbid(&self, keys: &[&str], reason: &str) {
        for key in keys.iter().filter(|key| self.has(key)) {
            self.diags.error(&self.key_place(key), format!("`{key}` is not valid here: {reason}"));
        }
    }

    /// Reports an error in the mapping as a whole.
    pub fn error(&self, message: impl Into<String>) -> Added<'a> {
        self.diags.error(&self.at, message)
    }
}
