//! Properties of the terminal that a command writes to.

use std::io::IsTerminal;

use rustix::termios::tcgetwinsize;

/// Width of the screen in columns; `None` if standard output is not a terminal.
pub(crate) fn width() -> Option<usize> {
    let size = tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// The text with colors, if standard output supports them and the user has not disabled them (<https://no-color.org>).
pub(crate) fn painted(text: &str) -> String {
    let is_unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    if is_unwanted || is_dumb || !std::io::stdout().is_terminal() {
        return text.to_owned();
    }
    text.split_inclusive('\n').map(paint).collect()
}

const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";

/// Words for a state, and the start of a line that reports a problem.
const WORDS: [(&str, &str); 7] = [
    ("attached", GREEN),
    ("partly", YELLOW),
    ("absent", YELLOW),
    ("waiting", YELLOW),
    ("shed", YELLOW),
    ("refused", RED),
    ("warning:", YELLOW),
];

fn paint(line: &str) -> String {
    let is_end = |next: Option<char>| next.is_none_or(|next| next.is_whitespace() || next == ',');
    for (word, colour) in WORDS {
        for (at, _) in line.match_indices(word) {
            let (before, after) = (&line[..at], &line[at + word.len()..]);
            // In a column of its own or after its title, not within a sentence.
            let begins = before.ends_with("  ") || before.ends_with(" state ") || before.trim().is_empty();
            if begins && is_end(after.chars().next()) {
                return format!("{before}\x1b[{colour}m{word}\x1b[0m{after}");
            }
        }
    }
    line.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_states_are_colored() {
        assert_eq!(paint("  t  usdt:a:b  attached  1\n"), "  t  usdt:a:b  \x1b[32mattached\x1b[0m  1\n");
        assert_eq!(paint("    state refused, sites 0\n"), "    state \x1b[31mrefused\x1b[0m, sites 0\n");
        assert_eq!(paint("      warning: x"), "      \x1b[33mwarning:\x1b[0m x");
        for plain in ["  t  usdt:a:attached  1", "  it is attached now", "attachedly"] {
            assert_eq!(paint(plain), plain);
        }
    }
}
