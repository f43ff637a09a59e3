//! Typed reading of a YAML tree: every getter gives the value, or reports what was expected and what was
//! found and gives nothing.

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

/// The values of a mapping whose keys are known.
pub struct Fields<'a> {
    pub at: Place,
    map: &'a [Field],
    diags: &'a Diagnostics,
    section: &'static Section,
    /// Known keys that an unknown one was probably meant to be.
    misspelt: Vec<&'static str>,
}

impl<'a> Node<'a> {
    /// A value at its place, whose errors go to `diags`.
    pub fn new(at: Place, value: &'a Tree, diags: &'a Diagnostics) -> Self {
        Self { at: at.at(value.position), value, diags }
    }

    /// Reports an error in this value.
    pub fn error(&self, message: impl Into<String>) -> Added<'a> {
        match self.value.value {
            TreeValue::Unread => self.diags.repeated(),
            _ => self.diags.error(&self.at, message),
        }
    }

    /// Reports that the value is not what it should be, quoting it.
    pub fn expected(&self, what: impl Display) -> Added<'a> {
        self.error(format!("expected {what}, found {}", self.found()))
    }

    /// What the value is, in words.
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
            // A password can slip into another key's value when a line is wrongly indented.
            Meaning::Text if scalar.text.to_ascii_lowercase().contains("password") => "other text".to_owned(),
            Meaning::Text => quote(&scalar.text),
        }
    }

    /// Nothing was written behind the key.
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

    /// Text that is not empty. `what` says what it should be: `a path`.
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

    /// [`Node::text_as`], when nothing more can be said about the text.
    pub fn text(&self) -> Option<&'a str> {
        self.text_as("text")
    }

    /// Text that must never appear in a message.
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

    /// Text for a label: numbers and booleans too, as written.
    pub fn label_text(&self) -> Option<String> {
        let scalar = self.scalar().filter(|scalar| scalar.meaning != Meaning::Null);
        if scalar.is_none() {
            self.expected("text");
        }
        scalar.map(|scalar| scalar.text.clone())
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

    /// A path. One from a file starts at the file's own directory.
    pub fn path(&self) -> Option<PathBuf> {
        let path = PathBuf::from(self.text_as("a path")?);
        Some(match self.at.source.dir() {
            Some(dir) => dir.join(path),
            None => path,
        })
    }

    /// A whole number within `range`; `what` says what it is: `a port`.
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

    /// One of a few words.
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

    /// The elements of a list. `what` says what it is: `a list of probes`.
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

    /// The elements of a list, or the value itself as the only element.
    pub fn one_or_list(&self) -> Vec<Node<'a>> {
        match self.value.value {
            TreeValue::List(_) => self.list("a list").unwrap_or_default(),
            _ => vec![self.clone()],
        }
    }

    /// The entries of a mapping whose keys are the user's own, with each key.
    pub fn entries(&self, what: &str) -> Option<Vec<(&'a Scalar, Node<'a>)>> {
        let TreeValue::Map(fields) = &self.value.value else {
            self.expected(what);
            return None;
        };
        let node = |field: &'a Field| Node::new(self.at.key(&field.key.text), &field.value, self.diags);
        Some(fields.iter().map(|field| (&field.key, node(field))).collect())
    }

    /// The value as the mapping `section`; every key that is not one of its own is reported.
    pub fn fields(&self, section: &'static Section) -> Option<Fields<'a>> {
        self.fields_and(section, |_| false)
    }

    /// [`Node::fields`], with further keys that are passed over.
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

/// A number as it is shown.
fn cut(number: &str) -> String {
    number.char_indices().nth(40).map_or(number.to_owned(), |(at, _)| format!("{}...", &number[..at]))
}

/// How to write text as the number that it looks like.
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
    /// The value of `key`, which is one of the known keys, if it is there.
    pub fn get(&self, key: &str) -> Option<Node<'a>> {
        debug_assert!(self.section.has(key), "{key} is not in the table of known keys");
        Some(Node::new(self.at.key(key), &find(self.map, key)?.value, self.diags))
    }

    /// The place of `key` itself.
    fn key_place(&self, key: &str) -> Place {
        self.at.key(key).at(find(self.map, key).and_then(|field| field.key_position))
    }

    /// Whether `key`, one of the known keys, is there.
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

    /// The one of `keys` that is there; none, or more than one, is an error.
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

    /// Reports each of `keys` that is there although it is not valid here, and `reason`.
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
