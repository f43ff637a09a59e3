//! Where a piece of configuration was written: a source, and a path inside it.
//!
//! Lines and columns are not kept. They are looked up in the source's text (by `locate`) only when
//! an error is shown, so a configuration without errors pays nothing for them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A piece of configuration, for messages about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub source: Arc<Source>,
    /// The way from the top of the source's document; empty for the whole of it.
    pub path: Vec<Step>,
}

/// Who said it.
#[derive(Clone, PartialEq, Eq)]
pub enum Source {
    /// A configuration file: its name as given by the user, and its text.
    File { path: PathBuf, text: String },
    /// A profile, by name, and its text.
    Profile { name: String, text: String },
    /// An environment variable, by name.
    Env(String),
    /// A command-line flag, with its dashes.
    Flag(String),
    /// Nobody: a default value, or something that is missing altogether.
    Default,
}

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Into the value of this key of a mapping.
    Key(String),
    /// Into this element of a list, from zero.
    Index(usize),
    /// To the key itself rather than its value. Always the last step.
    KeyName(String),
    /// To the second occurrence of a key, itself. Always the last step.
    Repeated(String),
    /// To a line and column, from one, where the text could not be parsed. The only step.
    Position { line: usize, column: usize },
}

impl Place {
    /// The top of `source`.
    pub fn top(source: Source) -> Self {
        Self { source: Arc::new(source), path: Vec::new() }
    }

    /// No place: defaults, and values made in tests.
    pub fn none() -> Self {
        Self::top(Source::Default)
    }

    /// An environment variable.
    pub fn env(variable: &str) -> Self {
        Self::top(Source::Env(variable.to_owned()))
    }

    /// A flag, given with its dashes.
    pub fn flag(flag: &str) -> Self {
        Self::top(Source::Flag(flag.to_owned()))
    }

    /// The value of `key`, when this place is a mapping.
    pub fn key(&self, key: &str) -> Self {
        self.step(Step::Key(key.to_owned()))
    }

    /// The key `key` itself, when this place is a mapping.
    pub fn key_name(&self, key: &str) -> Self {
        self.step(Step::KeyName(key.to_owned()))
    }

    /// The element `index`, when this place is a list.
    pub fn index(&self, index: usize) -> Self {
        self.step(Step::Index(index))
    }

    pub(super) fn step(&self, step: Step) -> Self {
        let mut path = Vec::with_capacity(self.path.len() + 1);
        path.extend_from_slice(&self.path);
        path.push(step);
        Self { source: Arc::clone(&self.source), path }
    }

    /// Line and column from one, if the source has a text that still holds this path.
    pub fn position(&self) -> Option<(usize, usize)> {
        if let Some(Step::Position { line, column }) = self.path.first() {
            return Some((*line, *column));
        }
        super::locate::locate(self.source.text().filter(|text| !text.is_empty())?, &self.path)
    }
}

impl Source {
    /// The YAML text, of sources that have one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Source::File { text, .. } | Source::Profile { text, .. } => Some(text),
            Source::Env(_) | Source::Flag(_) | Source::Default => None,
        }
    }

    /// The folder that relative paths of this source start from; `None` for the working directory.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Source::File { path, .. } => path.parent(),
            _ => None,
        }
    }
}

/// The source's name as messages begin with it.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File { path, .. } => write!(f, "{}", path.display()),
            Source::Profile { name, .. } => write!(f, "profile {name}"),
            Source::Env(variable) => f.write_str(variable),
            Source::Flag(flag) => f.write_str(flag),
            Source::Default => f.write_str("configuration"),
        }
    }
}

/// Leaves out the text, which may hold a password.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File { path, .. } => f.debug_tuple("File").field(path).finish(),
            Source::Profile { name, .. } => f.debug_tuple("Profile").field(name).finish(),
            Source::Env(variable) => f.debug_tuple("Env").field(variable).finish(),
            Source::Flag(flag) => f.debug_tuple("Flag").field(flag).finish(),
            Source::Default => f.write_str("Default"),
        }
    }
}

/// The path alone: `targets[0].probes[2].metrics[0].buckets`; empty for the whole document.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, step) in self.path.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Position { .. } => {}
                Step::Key(key) | Step::KeyName(key) | Step::Repeated(key) => {
                    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                    if key.is_empty() || key.len() > 80 || !key.chars().all(plain) {
                        write!(f, "[{}]", super::diagnose::quote(key))?;
                    } else if n == 0 {
                        f.write_str(key)?;
                    } else {
                        write!(f, ".{key}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_read_like_the_file() {
        let at = Place::none().key("targets").index(0).key("probes").index(2).key("metrics").index(0);
        assert_eq!(at.key("buckets").to_string(), "targets[0].probes[2].metrics[0].buckets");
        assert_eq!(at.key_name("bukets").to_string(), "targets[0].probes[2].metrics[0].bukets");
        assert_eq!(Place::none().key("match").key("F*").to_string(), "match[\"F*\"]");
        assert_eq!(Place::none().key("").to_string(), "[\"\"]");
        assert_eq!(Place::none().to_string(), "");
    }

    #[test]
    fn the_text_of_a_source_is_not_printed() {
        let text = "metrics_auth_password: hunter2".to_owned();
        let at = Place::top(Source::File { path: "c.yaml".into(), text }).key("node_name");
        assert!(!format!("{at:?}").contains("hunter2"));
    }

    #[test]
    fn files_start_paths_in_their_own_folder() {
        let source = |path: &str| Source::File { path: path.into(), text: String::new() };
        assert_eq!(source("/etc/e/c.yaml").folder(), Some(Path::new("/etc/e")));
        assert_eq!(source("c.yaml").folder(), Some(Path::new("")));
        assert_eq!(Source::Env("FIBRE_TLS_KEY".into()).folder(), None);
    }
}
