//! The precedence of sources: flags over environment over file.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::diagnose::Diagnostics;
use super::fields::{Fields, Node};
use super::keys::{KEYS, SettingKey};
use super::place::Place;
use super::tree::Tree;

/// The relevant environment variables by name: those with the prefix `FIBRE_`.
pub type Environment = BTreeMap<String, String>;

/// The settings from the command line, as unchecked text.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The configuration file.
    pub config: Option<PathBuf>,
    values: BTreeMap<&'static str, String>,
}

impl Overrides {
    /// Creates overrides with only a configuration file.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { config: Some(path.into()), values: BTreeMap::new() }
    }

    /// Sets the value of a flag; for a switch it is `true`.
    pub fn set(&mut self, key: &SettingKey, text: impl Into<String>) {
        self.values.insert(key.name, text.into());
    }

    /// Returns the value of the flag for the setting `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }
}

/// Shows which flags were given, but not their values: one of them is a password.
impl fmt::Debug for Overrides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags: Vec<_> = self.values.keys().collect();
        f.debug_struct("Overrides").field("config", &self.config).field("flags", &flags).finish()
    }
}

/// A setting's value and its source.
#[derive(Debug, Clone)]
pub(super) struct Sourced<T> {
    pub at: Place,
    pub value: T,
    /// The precedence of the source; the highest wins.
    pub rank: u8,
}

/// The sources of settings.
pub(super) struct Layers<'a> {
    pub overrides: &'a Overrides,
    pub env: &'a Environment,
    /// `None` without a file, or if it could not be read.
    pub file: Option<Fields<'a>>,
    pub diags: &'a Diagnostics,
}

impl Layers<'_> {
    /// Reads the setting `name` from every source that has it, so that all errors are found, and returns the value with
    /// the highest precedence. A key or variable without a value counts as not set.
    pub fn read<T>(&self, name: &str, decode: impl Fn(&Node<'_>) -> Option<T>) -> Option<Sourced<T>> {
        let from_text =
            |at: Place, text: &str, rank| given(&Node::new(at, &Tree::text(text), self.diags), rank, &decode);
        let key = SettingKey::named(name);
        let flag = self.overrides.get(name).map(|text| {
            let at = Place::flag(&format!("--{}", key.flag));
            from_text(at, text, 3)
        });
        let env = self.variable(key).map(|text| from_text(Place::env(key.env), text, 2));
        let file = self.in_file(name).map(|node| given(&node, 1, &decode));
        flag.or(env).or(file).flatten()
    }

    /// Returns the value with the highest precedence, or the default.
    pub fn read_or_default<T>(&self, name: &str, decode: impl Fn(&Node<'_>) -> Option<T>) -> T {
        self.read(name, &decode).map_or_else(|| self.default(name, &decode), |given| given.value)
    }

    /// Returns the default of a setting that has one. It is written like a flag's value.
    pub fn default<T>(&self, name: &str, decode: impl Fn(&Node<'_>) -> Option<T>) -> T {
        let text = SettingKey::named(name).default.unwrap_or_default();
        let value = decode(&Node::new(Place::none(), &Tree::text(text), self.diags));
        value.unwrap_or_else(|| unreachable!("the default of {name} is valid"))
    }

    /// Whether a source has the setting `name`, whether valid, invalid or misspelled.
    pub fn has(&self, name: &str) -> bool {
        let key = SettingKey::named(name);
        self.overrides.get(name).is_some() || self.variable(key).is_some() || self.file_has(name)
    }

    fn variable(&self, key: &SettingKey) -> Option<&str> {
        self.env.get(key.env).map(String::as_str).filter(|text| !text.is_empty())
    }

    fn file_has(&self, name: &str) -> bool {
        self.in_file(name).is_some() || self.file.as_ref().is_some_and(|f| !f.has(name) && !f.lacks(name))
    }

    fn in_file(&self, name: &str) -> Option<Node<'_>> {
        self.file.as_ref()?.get(name).filter(|node| !is_empty(node.value))
    }
}

fn given<T>(node: &Node<'_>, rank: u8, decode: impl Fn(&Node<'_>) -> Option<T>) -> Option<Sourced<T>> {
    decode(node).map(|value| Sourced { at: node.at.clone(), value, rank })
}

fn is_empty(value: &Tree) -> bool {
    value.is_null() || value.as_str().is_some_and(str::is_empty)
}

/// Returns a warning for each variable that looks like a setting but is not one.
pub(super) fn unknown_variables(env: &Environment) -> Vec<String> {
    let known: Vec<_> = KEYS.iter().map(|key| key.env).chain([super::keys::CONFIG_ENV]).collect();
    let unknown = env.keys().filter(|name| name.starts_with("FIBRE_") && !known.contains(&name.as_str()));
    unknown
        .map(|name| {
            let near = super::words::did_you_mean(name, known.iter().copied());
            format!("unknown environment variable {name}, ignored{near}")
        })
        .collect()
}
