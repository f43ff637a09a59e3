//! Globs: `*`, `?` and `[a-z]` or `[!a-z]`.

/// Whether the whole text fits the glob. Time is bounded by the product of the lengths.
pub fn matches(glob: &str, text: &str) -> bool {
    let glob: Vec<char> = glob.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut g, mut t) = (0, 0);
    // Where to go on if what follows the latest star does not fit: one more character for the star.
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

/// The place in the glob behind what fits one character, if it does.
fn one(glob: &[char], g: usize, character: char) -> Option<usize> {
    match glob.get(g)? {
        '?' => Some(g + 1),
        '[' => {
            // A bracket that comes first is one of the characters.
            let from = if matches!(glob.get(g + 1), Some('!' | '^')) { g + 3 } else { g + 2 };
            let Some(close) = glob.iter().skip(from).position(|c| *c == ']').map(|at| at + from) else {
                return (character == '[').then_some(g + 1);
            };
            let (not, set) = match glob[g + 1] {
                '!' | '^' => (true, &glob[g + 2..close]),
                _ => (false, &glob[g + 1..close]),
            };
            let mut found = false;
            let mut n = 0;
            while n < set.len() {
                if n + 2 < set.len() && set[n + 1] == '-' {
                    found |= (set[n]..=set[n + 2]).contains(&character);
                    n += 3;
                } else {
                    found |= set[n] == character;
                    n += 1;
                }
            }
            (found != not).then_some(close + 1)
        }
        plain => (*plain == character).then_some(g + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn stars_questions_and_sets() {
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
    fn many_stars_do_not_take_for_ever() {
        let glob = "*a".repeat(60);
        assert!(!matches(&glob, &"a".repeat(59)));
    }
}
