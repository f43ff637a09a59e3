//! Errors: collecting all of them, and showing each with its place and the next step.

use std::cell::RefCell;
use std::fmt::{self, Write};
use std::sync::Arc;

use super::place::{Place, Source};

/// At most this many errors are shown.
const SHOWN: usize = 100;
/// Finding a line costs a pass over the file: lines are told until this many bytes have been passed, which
/// leaves none out in a file of 160 KiB.
const SEARCHED: usize = 16 << 20;

/// One error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    pub at: Place,
    /// What is wrong, on what, and what was expected. One line, no full stop, never a secret.
    pub message: String,
    /// What to do about it, where the message does not say so already.
    pub help: Option<String>,
}

/// Every error found so far. It is shared while a stage runs, so adding to it needs no `&mut`.
#[derive(Debug, Clone, Default)]
pub struct Diagnostics {
    list: RefCell<Vec<Diagnostic>>,
}

/// The error just added, to which a help may be added.
pub struct Added<'d> {
    diags: &'d Diagnostics,
    index: usize,
}

impl Added<'_> {
    /// Says what to do about it.
    pub fn help(self, help: impl Into<String>) {
        self.diags.list.borrow_mut()[self.index].help = Some(help.into());
    }
}

impl Diagnostics {
    /// No errors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an error. `diags.error(&probe.at, format!(...)).help("...")`.
    pub fn error(&self, at: &Place, message: impl Into<String>) -> Added<'_> {
        let mut list = self.list.borrow_mut();
        list.push(Diagnostic { at: at.clone(), message: message.into(), help: None });
        Added { diags: self, index: list.len() - 1 }
    }

    /// Whether nothing is wrong so far.
    pub fn is_empty(&self) -> bool {
        self.list.borrow().is_empty()
    }

    /// How many errors were found, those told twice included.
    pub fn len(&self) -> usize {
        self.list.borrow().len()
    }

    /// The errors in the order in which they were found.
    pub fn into_vec(self) -> Vec<Diagnostic> {
        self.list.into_inner()
    }

    /// Takes over the errors of another stage.
    pub fn append(&self, other: Diagnostics) {
        self.list.borrow_mut().extend(other.into_vec());
    }

    /// `value` if there is no error, else the errors.
    pub fn into_result<T>(self, value: T) -> Result<T, Diagnostics> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }

    /// All errors as text, one block each, sorted by source, line and column:
    /// `FILE:LINE:COLUMN: PATH: MESSAGE`, and the help on a line of its own. Ends with a newline.
    pub fn render(&self) -> String {
        let list = self.list.borrow();
        let mut text = String::new();
        for block in blocks(&list) {
            block.write(&mut text);
        }
        if list.len() > SHOWN {
            let more = list.len() - SHOWN;
            let _ = writeln!(text, "and {more} more error{}", if more == 1 { "" } else { "s" });
        }
        text
    }

    /// How many there are, and where: `3 errors in config.yaml`.
    pub fn summary(&self) -> String {
        let list = self.list.borrow();
        let count = blocks(&list).len() + list.len().saturating_sub(SHOWN);
        let first = list.first().map(|diagnostic| &diagnostic.at.source);
        let in_one_file = first.filter(|first| {
            matches!(***first, Source::File { .. }) && list.iter().all(|one| one.at.source == **first)
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

/// Sources from the highest priority to the lowest, as the user is likely to look for them.
fn rank(source: &Arc<Source>) -> u8 {
    match **source {
        Source::Flag(_) => 0,
        Source::Env(_) => 1,
        Source::File { .. } => 2,
        Source::Profile { .. } => 3,
        Source::Default => 4,
    }
}

/// The errors as they are shown: in order, and each once.
fn blocks(list: &[Diagnostic]) -> Vec<Block<'_>> {
    let mut left = SEARCHED;
    let mut blocks: Vec<_> = list.iter().take(SHOWN).map(|one| Block::of(one, &mut left)).collect();
    blocks.sort_by_key(|block| (rank(&block.diagnostic.at.source), block.position));
    // What an anchor holds is read again at each of its aliases: one text, one error.
    blocks.dedup_by(|a, b| {
        (a.position == b.position && a.position.is_some() || a.diagnostic.at == b.diagnostic.at)
            && a.diagnostic.at.source == b.diagnostic.at.source
            && a.diagnostic.message == b.diagnostic.message
    });
    blocks
}

struct Block<'d> {
    diagnostic: &'d Diagnostic,
    position: Option<(usize, usize)>,
}

impl<'d> Block<'d> {
    fn of(diagnostic: &'d Diagnostic, left: &mut usize) -> Self {
        let cost = diagnostic.at.source.text().map_or(0, str::len);
        let position = left.checked_sub(cost).and_then(|rest| {
            *left = rest;
            diagnostic.at.position()
        });
        Self { diagnostic, position }
    }

    fn write(&self, text: &mut String) {
        let Diagnostic { at, message, help } = self.diagnostic;
        let _ = write!(text, "{}", at.source);
        if let Some((line, column)) = self.position {
            let _ = write!(text, ":{line}:{column}");
        }
        let path = at.to_string();
        if !path.is_empty() {
            let _ = write!(text, ": {path}");
        }
        let _ = writeln!(text, ": {message}");
        if let Some(help) = help {
            let _ = writeln!(text, "    help: {help}");
        }
    }
}

/// `text` in double quotes with control characters escaped, cut to what fits on a line.
pub fn quote(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((cut, _)) => format!("{:?}...", &text[..cut]),
        None => format!("{text:?}"),
    }
}

/// ` (did you mean "X"?)` when a candidate is near, else nothing: to be put behind a message.
pub fn did_you_mean<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> String {
    nearest(name, candidates).map(|near| format!(" (did you mean {}?)", quote(near))).unwrap_or_default()
}

/// The candidate nearest to `name` that is near enough to be what was meant; the first of equals.
///
/// Near is one change (a letter added, left out, replaced, or swapped with its neighbour) in three letters,
/// whatever their case.
pub fn nearest<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    // Nobody mistypes a longer name than this; comparing is quadratic.
    const LONGEST: usize = 128;
    let letters = |text: &str| text.chars().flat_map(char::to_lowercase).take(LONGEST).collect::<Vec<_>>();
    let name = letters(name);
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let other = letters(candidate);
        let allowed = (name.len().max(other.len()) / 3).max(1);
        let found = distance(&name, &other);
        // A name of one letter is one change away from every other such name.
        if found <= allowed && found < other.len() && best.is_none_or(|(least, _)| found < least) {
            best = Some((found, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Edit distance with swaps of neighbours (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        let of = |a: &str, b: &str| distance(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>());
        assert_eq!(of("", ""), 0);
        assert_eq!(of("", "abc"), 3);
        assert_eq!(of("ustd", "usdt"), 1);
        assert_eq!(of("kitten", "sitting"), 3);
        assert_eq!(of("probe", "probes"), 1);
    }

    #[test]
    fn near_names() {
        let keys = ["probes", "profile", "binary", "name"];
        assert_eq!(nearest("probs", keys), Some("probes"));
        assert_eq!(nearest("Binray", keys), Some("binary"));
        assert_eq!(nearest("colour", keys), None);
        assert_eq!(nearest("", keys), None);
        assert_eq!(nearest("x", ["y"]), None);
        assert_eq!(nearest(&"p".repeat(100_000), keys), None);
        assert_eq!(did_you_mean("nam", keys), " (did you mean \"name\"?)");
        assert_eq!(did_you_mean("colour", keys), "");
    }

    #[test]
    fn shown_in_the_order_of_the_sources_and_lines() {
        let text = "a: 1\nb:\n  - x\n  - y\n".to_owned();
        let file = Place::top(Source::File { path: "c.yaml".into(), text });
        let diags = Diagnostics::new();
        assert!(diags.is_empty());
        diags.error(&Place::none(), "nothing");
        diags.error(&file.key("b").index(1), "second").help("do this");
        diags.error(&file.key("a"), "first");
        diags.error(&file.key("a"), "first");
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
        assert_eq!(diags.len(), 6);
    }

    #[test]
    fn a_flood_is_cut() {
        let diags = Diagnostics::new();
        for n in 0..SHOWN + 1 {
            diags.error(&Place::none(), n.to_string());
        }
        assert_eq!(diags.render().lines().count(), SHOWN + 1);
        assert!(diags.render().ends_with("and 1 more error\n"));
    }

    #[test]
    fn in_a_large_file_the_first_errors_have_their_lines() {
        let text = format!("a: 1\n{}", "# filling\n".repeat(100_000));
        let bytes = text.len();
        let file = Place::top(Source::File { path: "c.yaml".into(), text });
        let diags = Diagnostics::new();
        for n in 0..40 {
            diags.error(&file.key("a"), n.to_string());
        }
        let text = diags.render();
        assert_eq!(text.lines().count(), 40);
        assert_eq!(text.matches("c.yaml:1:4: a: ").count(), SEARCHED / bytes);
    }

    #[test]
    fn quoting_cuts_and_escapes() {
        assert_eq!(quote("a\nb"), "\"a\\nb\"");
        assert_eq!(quote(&"é".repeat(61)), format!("\"{}\"...", "é".repeat(60)));
    }
}
