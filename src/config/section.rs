//! The mappings of the language: their keys in tables that the decoders, the JSON schema and the reference share.

use std::borrow::Cow;

/// A mapping with known keys.
#[derive(Debug)]
pub struct Section {
    /// What the schema and the reference call it: `target`.
    pub name: &'static str,
    /// What messages call it: `a target`.
    pub what: &'static str,
    /// For the reference.
    pub about: &'static str,
    pub keys: Cow<'static, [Key]>,
    /// Keys of which exactly one is written, if there are such.
    pub one_of: &'static [&'static str],
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    pub name: &'static str,
    pub form: Schema,
    pub is_required: bool,
    /// As it would be written.
    pub default: Option<&'static str>,
    pub about: &'static str,
}

/// What may be written behind a key.
#[derive(Debug, Clone, Copy)]
pub enum Schema {
    Text,
    /// Text that numbers and booleans are taken for too, as written.
    LabelText,
    /// The name of an argument or a built-in value.
    Name,
    Path,
    Boolean,
    Number,
    Duration,
    Size,
    /// A whole number from the one to the other.
    Integer(i64, i64),
    /// One of a few words, in upper or lower case.
    Words(fn() -> Vec<&'static str>),
    Section(fn() -> &'static Section),
    /// A mapping that another part of the program decodes, by its name.
    Other(&'static str),
    List(&'static Schema),
    /// One, or a list of them.
    OneOrList(&'static Schema),
    /// A mapping whose keys are the user's own.
    Map(&'static Schema),
    Either(&'static [Schema]),
}

impl Section {
    /// The names of its keys.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.keys.iter().map(|key| key.name)
    }

    /// What holds where a key is not written, as its reader reads it.
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

    /// It must be there.
    pub const fn required(self) -> Self {
        Self { is_required: true, ..self }
    }

    /// What holds where it is not written.
    pub const fn or(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }
}

/// The words of a decoder's table.
pub fn words<T>(table: &'static [(&'static str, T)]) -> Vec<&'static str> {
    table.iter().map(|(word, _)| *word).collect()
}
