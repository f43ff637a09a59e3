//! Globs: `*`, `?` and `[a-z]` or `[!a-z]`.

use std::ops::RangeInclusive;

/// Whether the whole text matches the glob. Time is bounded by the product of the lengths.
pub fn matches(glob: &str, text: &str) -> bool {
    let glob: Vec<char> = glob.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut g, mut t) = (0, 0);
    // Where to continue if the part after the latest star does not match: with one more character for the star.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if glob.get(g) == Some(&'*') {
            retry = Some((g + 1, t));
            g += 1;
            continue;
        }
        if t == text.len() {
            if g == glob.len() {
                return true;
            }
        } else if let Some(next) = one(&glob, g, text[t]) {
            (g, t) = (next, t + 1);
            continue;
        }
        match &mut retry {
            Some((after, from)) if *from < text.len() => {
                *from += 1;
                (g, t) = (*after, *from);
            }
            _ => return false,
        }
    }
}

/// The position in the glob after the part that matches one character, if it does.
fn one(glob: &[char], g: usize, character: char) -> Option<usize> {
    match glob.get(g)? {
        '?' => Some(g + 1),
        '[' => match set(&glob[g + 1..]) {
            Some(set) => {
                let is_found = set.ranges().any(|range| range.contains(&character));
                (is_found != set.is_negated).then_some(g + 1 + set.length)
            }
            None => (character == '[').then_some(g + 1),
        },
        plain => (*plain == character).then_some(g + 1),
    }
}

/// The content between a `[` and its `]`.
pub struct Set<'a> {
    pub is_negated: bool,
    pub characters: &'a [char],
    /// Length of the whole, including the `]`.
    pub length: usize,
}

/// Parses the set after a `[`; `None` if there is no `]`.
pub fn set(behind: &[char]) -> Option<Set<'_>> {
    let is_negated = matches!(behind.first(), Some('!' | '^'));
    let from = usize::from(is_negated);
    // A leading bracket is one of the characters.
    let close = behind.iter().skip(from + 1).position(|c| *c == ']')? + from + 1;
    Some(Set { is_negated, characters: &behind[from..close], length: close + 1 })
}

impl Set<'_> {
    /// Its ranges; a single character is a range of one.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<char>> {
        let mut rest = self.characters;
        std::iter::from_fn(move || {
            let (range, length) = match rest {
                [from, '-', to, ..] => (*from..=*to, 3),
                [one, ..] => (*one..=*one, 1),
                [] => return None,
            };
            rest = &rest[length..];
            Some(range)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn matches_stars_question_marks_and_sets() {
        for (glob, yes, no) in [
            ("F*", "FIBRE/UDP", "BIP152"),
            ("*/UDP", "FIBRE/UDP", "FIBRE/TCP"),
            ("a*b*c", "a-b-b-c", "a-c-b"),
            ("?x", "éx", "x"),
            ("[a-c]1", "b1", "d1"),
            ("[!a-c]1", "d1", "b1"),
            ("[!]x]1", "a1", "]1"),
            ("[]x]1", "]1", "a1"),
            ("*", "", "\u{0}never"),
            ("[", "[", "]"),
        ] {
            assert!(matches(glob, yes), "{glob} {yes}");
            if glob != "*" {
                assert!(!matches(glob, no), "{glob} {no}");
            }
        }
    }

    #[test]
    fn many_stars_match_quickly() {
        let glob = "*a".repeat(60);
        assert!(!matches(&glob, &"a".repeat(59)));
    }
}
