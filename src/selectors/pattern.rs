//! Text, or a glob, that names and command lines are matched against: here, and by the kernel.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{abi, glob};

/// A plain text, or a glob with `*`, `?` and `[...]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pattern {
    text: String,
    is_glob: bool,
}

/// Why a text is not a valid pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatternError {
    Empty,
    TooLong,
    TooManyParts,
    OpenSet,
    ForeignSet,
}

/// Bytes of a pattern: the longest file name.
const MAX_BYTES: usize = abi::MAX_NAME;

/// States of the automaton, including the first.
const STATES: usize = 128;

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PatternError::Empty => "is empty",
            PatternError::TooLong => "has more than 255 bytes",
            PatternError::TooManyParts => {
                "has more than 127 characters besides its `*`: put a `*` for some of them"
            }
            PatternError::OpenSet => "has a `[` without its `]`",
            PatternError::ForeignSet => "contains non-ASCII characters in `[...]`",
        })
    }
}

impl Pattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// If the text is not a valid one.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let is_glob = text.contains(['*', '?', '[']);
        let pattern = Self { text: text.to_owned(), is_glob };
        match text.len() {
            0 => Err(PatternError::Empty),
            _ if text.len() > MAX_BYTES => Err(PatternError::TooLong),
            _ if is_glob => pattern.parts().map(|_| pattern),
            _ => Ok(pattern),
        }
    }

    /// Matches exactly this text.
    pub fn literal(text: &str) -> Self {
        Self { text: text.to_owned(), is_glob: false }
    }

    pub fn matches(&self, text: &str) -> bool {
        if self.is_glob { glob::matches(&self.text, text) } else { self.text == text }
    }

    /// The text, if the pattern matches nothing else.
    pub fn as_literal(&self) -> Option<&str> {
        (!self.is_glob).then_some(&self.text)
    }

    /// The pattern as written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Checks that the kernel can match it.
    ///
    /// # Errors
    /// If the kernel's automaton has too few states for it.
    pub(super) fn check_parts(&self) -> Result<(), PatternError> {
        self.parts().map(drop)
    }

    fn parts(&self) -> Result<Vec<Part>, PatternError> {
        let mut parts = Vec::new();
        let characters: Vec<char> = self.text.chars().collect();
        let mut rest = characters.as_slice();
        while let Some((character, behind)) = rest.split_first() {
            rest = behind;
            match character {
                '*' if self.is_glob => parts.push(Part::Star),
                '?' if self.is_glob => parts.push(Part::Set { bytes: [true; 128], any_other: true }),
                '[' if self.is_glob => {
                    let set = glob::set(behind).ok_or(PatternError::OpenSet)?;
                    rest = &behind[set.length..];
                    parts.push(part(&set)?);
                }
                plain => {
                    let mut bytes = [0; 4];
                    parts.extend(plain.encode_utf8(&mut bytes).bytes().map(Part::Byte));
                }
            }
        }
        let states = 1 + parts.iter().filter(|part| !matches!(part, Part::Star)).count();
        if states > STATES { Err(PatternError::TooManyParts) } else { Ok(parts) }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

enum Part {
    Star,
    Byte(u8),
    /// One character of a set: ASCII characters, or any other.
    Set {
        bytes: [bool; 128],
        any_other: bool,
    },
}

fn part(set: &glob::Set<'_>) -> Result<Part, PatternError> {
    if !set.characters.iter().all(char::is_ascii) {
        return Err(PatternError::ForeignSet);
    }
    let mut bytes = [set.is_negated; 128];
    set.ranges().flatten().for_each(|character| bytes[character as usize] = !set.is_negated);
    Ok(Part::Set { bytes, any_other: set.is_negated })
}

/// The pattern as executed by the kernel: a set of states as a bit mask, and, for each byte, the states that it leads
/// to.
///
/// A byte leads from state n to n + 1 if bit n + 1 of its row is set. It stays in the states of `any`, which a `*`
/// follows, and, if it continues a character, in those of `within`, which accepted any character.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Automaton {
    pub any: u128,
    pub within: u128,
    /// The last state.
    pub end: u32,
    pub to: [u128; 256],
}

impl Automaton {
    /// `None` if the pattern is invalid.
    pub fn of(pattern: &Pattern) -> Option<Self> {
        let mut table = Self { any: 0, within: 0, end: 0, to: [0; 256] };
        for part in pattern.parts().ok()? {
            match part {
                Part::Star => table.any |= 1 << table.end,
                Part::Byte(byte) => {
                    table.end += 1;
                    table.to[usize::from(byte)] |= 1 << table.end;
                }
                Part::Set { bytes, any_other } => {
                    table.end += 1;
                    for (to, fits) in table.to.iter_mut().zip(bytes) {
                        *to |= u128::from(fits) << table.end;
                    }
                    if any_other {
                        table.within |= 1 << table.end;
                        // All first bytes of multi-byte characters.
                        table.to[0xc0..].iter_mut().for_each(|to| *to |= 1 << table.end);
                    }
                }
            }
        }
        Some(table)
    }

    /// Matches as the kernel does, for tests.
    #[cfg(test)]
    fn matches(&self, text: &[u8]) -> bool {
        let mut states = 1u128;
        for byte in text {
            let stays = if byte & 0xc0 == 0x80 { self.any | self.within } else { self.any };
            states = states << 1 & self.to[usize::from(*byte)] | states & stays;
        }
        states >> self.end & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn automaton_agrees_with_the_glob() {
        let globs = [
            "*",
            "a*",
            "*a",
            "a*b*c",
            "?",
            "??",
            "a?c",
            "[a-c]x",
            "[!a-c]*",
            "[]a]*",
            "*.py*",
            "**a",
            "*?*",
            "é?*",
            "[^x]",
            "web-[0-9]*",
            "?é",
            "abc",
        ];
        let texts = [
            "",
            "a",
            "ab",
            "abc",
            "ax",
            "bx",
            "dx",
            "aXbYc",
            "é",
            "éa",
            "aéc",
            "]",
            "x",
            "run.py -v",
            "web-1",
            "web-x",
            "xé",
            "日本",
            "aaa",
            "abcabc",
        ];
        for written in globs {
            let pattern = Pattern::new(written).unwrap();
            let automaton = Automaton::of(&pattern).unwrap();
            for text in texts {
                assert_eq!(automaton.matches(text.as_bytes()), pattern.matches(text), "{written} {text}");
            }
        }
    }

    #[test]
    fn rejects_invalid_patterns() {
        assert_eq!(Pattern::new(""), Err(PatternError::Empty));
        assert_eq!(Pattern::new(&"x".repeat(256)), Err(PatternError::TooLong));
        assert_eq!(Pattern::new(&format!("*{}", "x".repeat(128))), Err(PatternError::TooManyParts));
        assert!(Pattern::new(&format!("*{}", "x".repeat(127))).is_ok());
        assert_eq!(Pattern::new("a[b"), Err(PatternError::OpenSet));
        assert_eq!(Pattern::new("[]"), Err(PatternError::OpenSet));
        assert_eq!(Pattern::new("[é]"), Err(PatternError::ForeignSet));
    }
}
