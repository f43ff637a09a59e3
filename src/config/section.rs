//! The mappings of the configuration language: tables of their keys, shared by the decoders, the JSON schema and the
//! reference.

use std::borrow::Cow;

/// A mapping with known keys.
#[derive(Debug)]
pub struct Section {
    /// The name in the schema and the reference: `target`.
    pub name: &'static str,
    /// The name in messages: `a target`.
    pub what: &'static str,
    /// The description in the reference.
    pub about: &'static str,
    pub keys: Cow<'static, [Key]>,
    /// Keys of which exactly one must be present; empty if there are none.
    pub one_of: &'static [&'static str],
}

/// A key of a mapping.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    pub name: &'static str,
    pub form: Schema,
    pub is_required: bool,
    /// As it would be written.
    pub default: Option<&'static str>,
    pub about: &'static str,
}

/// The form of a key's value.
#[derive(Debug, Clone, Copy)]
pub enum Schema {
    Text,
    /// Text; numbers and booleans are accepted too, as written.
    LabelText,
    /// The name of an argument or a built-in value.
    Name,
    Path,
    Boolean,
    Number,
    Duration,
    Size,
    /// An integer within these bounds, inclusive.
    Integer(i64, i64),
    /// One of several words, case-insensitive.
    Words(fn() -> Vec<&'static str>),
    Section(fn() -> &'static Section),
    /// A mapping that another part of the program decodes, by name.
    Other(&'static str),
    List(&'static Schema),
    /// A single value or a list.
    OneOrList(&'static Schema),
    /// A mapping with user-defined keys.
    Map(&'static Schema),
    Either(&'static [Schema]),
}

impl Section {
    /// Returns the names of its keys.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.keys.iter().map(|key| key.name)
    }

    /// Returns the default of a key, parsed by `read`.
    pub(crate) fn default<T>(&self, name: &str, read: impl FnOnce(&'static str) -> Option<T>) -> Option<T> {
        self.keys.iter().find(|key| key.name == name)?.default.and_then(read)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.names().any(|known| known == name)
    }
}

impl Key {
    pub const fn new(name: &'static str, form: Schema, about: &'static str) -> Self {
        Self { name, form, is_required: false, default: None, about }
    }

    /// Makes the key mandatory.
    pub const fn required(self) -> Self {
        Self { is_required: true, ..self }
    }

    /// Sets the default.
    pub const fn or(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }
}

/// Returns the words of a decoder's table.
pub fn words<T>(table: &'static [(&'static str, T)]) -> Vec<&'static str> {
    table.iter().map(|(word, _)| *word).collect()
}
