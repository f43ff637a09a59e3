//! Error reporting: collects all errors and renders each with its place and the next step.

use std::cell::{Cell, RefCell};
use std::fmt::{self, Write};
use std::sync::Arc;

use super::place::{ConfigSource, Place};
use super::tree::Position;

/// Errors that are shown at most.
const MAX_SHOWN: usize = 100;

/// An error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    pub at: Place,
    /// What is wrong with what, and what was expected. One line without a full stop; never contains a secret.
    pub message: String,
    /// What to do about it, unless the message says so.
    pub help: Option<String>,
}

/// All errors found so far. Shared while a stage runs, so adding an error needs no `&mut`.
#[derive(Debug, Clone, Default)]
pub struct Diagnostics {
    list: RefCell<Vec<Diagnostic>>,
    /// How often a value was used whose error is already in the list.
    repeated: Cell<usize>,
}

/// A newly added error, to which help can be attached.
pub struct Added<'d> {
    diags: &'d Diagnostics,
    /// `None` if the error was not added because its cause has already been reported.
    index: Option<usize>,
}

impl Added<'_> {
    /// Attaches help.
    pub fn help(self, help: impl Into<String>) {
        if let Some(index) = self.index {
            self.diags.list.borrow_mut()[index].help = Some(help.into());
        }
    }
}

impl Diagnostics {
    /// Creates an empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an error: `diags.error(&probe.at, format!(...)).help("...")`.
    pub fn error(&self, at: &Place, message: impl Into<String>) -> Added<'_> {
        let mut list = self.list.borrow_mut();
        list.push(Diagnostic { at: at.clone(), message: message.into(), help: None });
        Added { diags: self, index: Some(list.len() - 1) }
    }

    /// Replaces [`Diagnostics::error`] for a value that could not be read, whose error is already in the list.
    pub(super) fn repeated(&self) -> Added<'_> {
        self.repeated.set(self.repeated.get() + 1);
        Added { diags: self, index: None }
    }

    /// Whether no errors were found so far.
    pub fn is_empty(&self) -> bool {
        self.list.borrow().is_empty()
    }

    /// Increases with every problem, whether or not it was reported before.
    pub fn len(&self) -> usize {
        self.list.borrow().len() + self.repeated.get()
    }

    /// Returns the errors in the order in which they were found.
    pub fn into_vec(self) -> Vec<Diagnostic> {
        self.list.into_inner()
    }

    /// Appends the errors of another stage.
    pub fn append(&self, other: Diagnostics) {
        self.list.borrow_mut().extend(other.into_vec());
    }

    /// Returns `value` if there are no errors, otherwise the errors.
    pub fn into_result<T>(self, value: T) -> Result<T, Diagnostics> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }

    /// Renders all errors as text, one block each, sorted by source, line and column: `FILE:LINE:COLUMN: PATH:
    /// MESSAGE`, and the help on a line of its own, which consecutive errors with the same help share. Ends with a
    /// newline.
    pub fn render(&self) -> String {
        let list = self.list.borrow();
        let sorted = sorted(&list);
        let mut text = String::new();
        for (index, one) in sorted.iter().take(MAX_SHOWN).enumerate() {
            let next = sorted.get(index + 1).filter(|_| index + 1 < MAX_SHOWN);
            let is_said_below = next.is_some_and(|next| next.help == one.help);
            let help = one.help.clone().filter(|_| !is_said_below);
            let _ = write!(text, "{}", Diagnostic { help, at: one.at.clone(), message: one.message.clone() });
        }
        if sorted.len() > MAX_SHOWN {
            let more = sorted.len() - MAX_SHOWN;
            let _ = writeln!(text, "and {more} more");
        }
        text
    }

    /// Summarizes the number of errors and their location: `3 errors in config.yaml`.
    pub fn summary(&self) -> String {
        let list = self.list.borrow();
        let count = sorted(&list).len();
        let first = list.first().map(|diagnostic| &diagnostic.at.source);
        let in_one_file = first.filter(|first| {
            matches!(***first, ConfigSource::File(_)) && list.iter().all(|one| one.at.source == **first)
        });
        let place = in_one_file.map_or_else(|| "the configuration".to_owned(), |file| file.to_string());
        format!("{count} error{} in {place}", if count == 1 { "" } else { "s" })
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render())
    }
}

impl std::error::Error for Diagnostics {}

/// Orders sources by priority, highest first, as the user is likely to check them.
fn rank(source: &Arc<ConfigSource>) -> u8 {
    match **source {
        ConfigSource::Flag(_) => 0,
        ConfigSource::Env(_) => 1,
        ConfigSource::File(_) => 2,
        ConfigSource::Profile(_) => 3,
        ConfigSource::Default => 4,
    }
}

/// Returns the errors in order, without duplicates.
fn sorted(list: &[Diagnostic]) -> Vec<&Diagnostic> {
    let mut sorted: Vec<_> = list.iter().collect();
    sorted.sort_by_key(|one| (rank(&one.at.source), one.at.position()));
    // The content of an anchor is decoded again for each alias: the same text gives one error.
    sorted.dedup_by(|a, b| {
        let is_one_text = a.at.source == b.at.source && a.at.position().is_some();
        (a.at == b.at || is_one_text && a.at.position() == b.at.position()) && a.message == b.message
    });
    sorted
}

/// `FILE:LINE:COLUMN: PATH: MESSAGE`, with the help on a line of its own.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Diagnostic { at, message, help } = self;
        write!(f, "{}", at.source)?;
        if let Some(Position { line, column }) = at.position() {
            write!(f, ":{line}:{column}")?;
        }
        let path = at.to_string();
        if !path.is_empty() {
            write!(f, ": {path}")?;
        }
        writeln!(f, ": {message}")?;
        help.iter().try_for_each(|help| writeln!(f, "    help: {help}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diagnostics_are_sorted_by_source_and_line() {
        let file = Place::top(ConfigSource::File("c.yaml".into()));
        let at = |place: Place, line, column| place.at(Some(Position { line, column }));
        let diags = Diagnostics::new();
        assert!(diags.is_empty());
        diags.error(&Place::none(), "nothing");
        diags.error(&at(file.key("b").index(1), 4, 5), "second").help("do this");
        diags.error(&at(file.key("a"), 1, 4), "first");
        diags.error(&at(file.key("alias"), 1, 4), "first");
        diags.error(&Place::env("FIBRE_PID"), "variable");
        diags.error(&Place::flag("--pid"), "flag");
        assert_eq!(
            diags.render(),
            "--pid: flag\n\
             FIBRE_PID: variable\n\
             c.yaml:1:4: a: first\n\
             c.yaml:4:5: b[1]: second\n    help: do this\n\
             configuration: nothing\n"
        );
        assert_eq!((diags.len(), diags.summary().as_str()), (6, "5 errors in the configuration"));
    }

    #[test]
    fn repeated_help_is_shown_once() {
        let file = Place::top(ConfigSource::File("c.yaml".into()));
        let diags = Diagnostics::new();
        for (line, help) in [(1, "one"), (2, "two"), (3, "two"), (4, "one")] {
            diags.error(&file.clone().at(Some(Position { line, column: 1 })), "wrong").help(help);
        }
        assert_eq!(
            diags.render(),
            "c.yaml:1:1: wrong\n    help: one\nc.yaml:2:1: wrong\nc.yaml:3:1: wrong\n    help: two\n\
             c.yaml:4:1: wrong\n    help: one\n"
        );
        let flood = Diagnostics::new();
        for line in 0..MAX_SHOWN + 1 {
            flood.error(&file.clone().at(Some(Position { line, column: 1 })), "wrong").help("do this");
        }
        assert!(flood.render().ends_with("wrong\n    help: do this\nand 1 more\n"));
    }

    #[test]
    fn long_diagnostics_are_truncated() {
        let file = Place::top(ConfigSource::File("c.yaml".into()));
        let diags = Diagnostics::new();
        for line in (0..MAX_SHOWN + 1).rev() {
            diags.error(&file.clone().at(Some(Position { line, column: 1 })), "wrong");
        }
        assert_eq!(diags.render().lines().count(), MAX_SHOWN + 1);
        assert!(diags.render().starts_with("c.yaml:0:1: ") && diags.render().ends_with("and 1 more\n"));
        assert_eq!(diags.summary(), "101 errors in c.yaml");
    }
}
