//! Where a part of the configuration was written: a source, a path inside it, and a line and column.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::tree::Position;
use super::words::quote;

/// The place of a part of the configuration, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub source: Arc<ConfigSource>,
    /// The path from the root of the source's document; empty for the root.
    path: Vec<Step>,
    position: Option<Position>,
}

/// The source of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigSource {
    /// A configuration file, named as given by the user.
    File(PathBuf),
    /// A profile, by name.
    Profile(String),
    /// An environment variable, by name.
    Env(String),
    /// A command-line flag, with its dashes.
    Flag(String),
    /// No source: a default value, or a missing one.
    Default,
}

/// A step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// To a key of a mapping.
    Key(String),
    /// To an element of a list, from zero.
    Index(usize),
}

impl Place {
    pub(super) fn new(source: Arc<ConfigSource>, path: Vec<Step>, position: Option<Position>) -> Self {
        Self { source, path, position }
    }

    /// Returns the root of `source`.
    pub fn top(source: ConfigSource) -> Self {
        Self::new(Arc::new(source), Vec::new(), None)
    }

    /// Returns no particular place: for defaults, and for values made by tests.
    pub fn none() -> Self {
        Self::top(ConfigSource::Default)
    }

    /// Returns the place of an environment variable.
    pub fn env(variable: &str) -> Self {
        Self::top(ConfigSource::Env(variable.to_owned()))
    }

    /// Returns the place of a flag, given with its dashes.
    pub fn flag(flag: &str) -> Self {
        Self::top(ConfigSource::Flag(flag.to_owned()))
    }

    /// Returns the place of `key` in this mapping, without a position.
    pub fn key(&self, key: &str) -> Self {
        self.step(Step::Key(key.to_owned()))
    }

    /// Returns the place of element `index` in this list, without a position.
    pub fn index(&self, index: usize) -> Self {
        self.step(Step::Index(index))
    }

    fn step(&self, step: Step) -> Self {
        let mut path = Vec::with_capacity(self.path.len() + 1);
        path.extend_from_slice(&self.path);
        path.push(step);
        Self::new(Arc::clone(&self.source), path, None)
    }

    /// Replaces the position.
    pub fn at(self, position: Option<Position>) -> Self {
        Self { position, ..self }
    }

    /// Returns the line and column, if it was written in a text.
    pub fn position(&self) -> Option<Position> {
        self.position
    }
}

impl ConfigSource {
    /// Returns the directory that relative paths of this source are resolved against; `None` for the working directory.
    pub fn dir(&self) -> Option<&Path> {
        match self {
            ConfigSource::File(path) => path.parent(),
            _ => None,
        }
    }
}

/// The name of the source, as at the start of messages.
impl fmt::Display for ConfigSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigSource::File(path) => write!(f, "{}", path.display()),
            ConfigSource::Profile(name) => write!(f, "profile {name}"),
            ConfigSource::Env(variable) => f.write_str(variable),
            ConfigSource::Flag(flag) => f.write_str(flag),
            ConfigSource::Default => f.write_str("configuration"),
        }
    }
}

/// The path only: `targets[0].probes[2].metrics[0].buckets`; empty for the whole document.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, step) in self.path.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => {
                    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                    if key.is_empty() || key.len() > 80 || !key.chars().all(plain) {
                        write!(f, "[{}]", quote(key))?;
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
    fn paths_follow_the_file_structure() {
        let at = Place::none().key("targets").index(0).key("probes").index(2).key("metrics").index(0);
        assert_eq!(at.key("buckets").to_string(), "targets[0].probes[2].metrics[0].buckets");
        assert_eq!(Place::none().key("match").key("F*").to_string(), "match[\"F*\"]");
        assert_eq!(Place::none().key("").to_string(), "[\"\"]");
        assert_eq!(Place::none().to_string(), "");
    }

    #[test]
    fn relative_paths_start_at_the_file_directory() {
        let source = |path: &str| ConfigSource::File(path.into());
        assert_eq!(source("/etc/e/c.yaml").dir(), Some(Path::new("/etc/e")));
        assert_eq!(source("c.yaml").dir(), Some(Path::new("")));
        assert_eq!(ConfigSource::Env("FIBRE_TLS_KEY".into()).dir(), None);
    }
}
