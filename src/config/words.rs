//! Wording of messages: quoted text, and suggestions for misspelled names.

/// Formats `text` in double quotes with control characters escaped, truncated to fit on a line.
pub fn quote(text: &str) -> String {
    const MAX_CANDIDATES: usize = 60;
    match text.char_indices().nth(MAX_CANDIDATES) {
        Some((cut, _)) => format!("{:?}...", &text[..cut]),
        None => format!("{text:?}"),
    }
}

/// Returns ` (did you mean "X"?)` if a candidate is near, otherwise nothing: to be appended to a message.
pub fn did_you_mean<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> String {
    nearest(name, candidates).map(|near| format!(" (did you mean {}?)", quote(near))).unwrap_or_default()
}

/// Returns the candidate nearest to `name`, if it is near enough to have been meant; the first one if there are
/// several.
///
/// Near means one change (a letter inserted, deleted, replaced, or swapped with its neighbor) per three letters,
/// ignoring case.
pub fn nearest<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    // No mistyped name is longer than this; the comparison is quadratic.
    /// Longer names are not compared: the comparison is quadratic, and nobody mistypes a name of that length.
    const MAX_LENGTH: usize = 128;
    let letters = |text: &str| text.chars().flat_map(char::to_lowercase).take(MAX_LENGTH).collect::<Vec<_>>();
    let name = letters(name);
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let other = letters(candidate);
        let allowed = (name.len().max(other.len()) / 3).max(1);
        let found = distance(&name, &other);
        // A name of one letter is one change away from any other such name.
        if found <= allowed && found < other.len() && best.is_none_or(|(least, _)| found < least) {
            best = Some((found, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Returns the key most likely intended: the nearest one, or one with the same words and additional or missing ones
/// (`bind_address`, `password`), preferring the most words in common and the fewest others.
pub fn nearest_key<'c>(name: &str, keys: &[&'c str]) -> Option<&'c str> {
    let words = |text: &str| -> Vec<String> {
        let parts = text.split('_').filter(|word| !word.is_empty());
        parts.map(str::to_lowercase).take(16).collect()
    };
    nearest(name, keys.iter().copied()).or_else(|| {
        let given = words(name);
        let contains = |all: &[String], some: &[String]| some.iter().all(|word| all.contains(word));
        let alike = keys.iter().filter_map(|key| {
            let own = words(key);
            let is_alike = !given.is_empty() && (contains(&given, &own) || contains(&own, &given));
            is_alike.then(|| ((own.len().min(given.len()), std::cmp::Reverse(own.len())), *key))
        });
        // The first of equals.
        alike.reduce(|best, other| if other.0 > best.0 { other } else { best }).map(|(_, key)| key)
    })
}

/// Returns the edit distance with swaps of neighbors (optimal string alignment).
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
    fn edit_distances() {
        let of = |a: &str, b: &str| distance(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>());
        assert_eq!(of("", ""), 0);
        assert_eq!(of("", "abc"), 3);
        assert_eq!(of("ustd", "usdt"), 1);
        assert_eq!(of("kitten", "sitting"), 3);
        assert_eq!(of("probe", "probes"), 1);
    }

    #[test]
    fn suggests_the_nearest_name() {
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
    fn suggests_keys_with_extra_or_missing_words() {
        let keys = [
            "X-Content-Type-Options",
            "bind",
            "metrics_port",
            "health_port",
            "log_level",
            "log_file",
            "metrics_auth_password",
            "web_listen_address",
        ];
        let near = |name| nearest_key(name, &keys);
        assert_eq!(near("bind_address"), Some("bind"));
        assert_eq!(near("port"), Some("metrics_port"));
        assert_eq!(near("health_port_number"), Some("health_port"));
        assert_eq!(near("password"), Some("metrics_auth_password"));
        assert_eq!(near("listen_address"), Some("web_listen_address"));
        assert_eq!(near("metrcs_port"), Some("metrics_port"), "the nearest by its letters comes first");
        for none in ["colour", "", "_", "portal", "Content-Type"] {
            assert_eq!(near(none), None, "{none}");
        }
    }

    #[test]
    fn quoting_truncates_and_escapes() {
        assert_eq!(quote("a\nb"), "\"a\\nb\"");
        assert_eq!(quote(&"é".repeat(61)), format!("\"{}\"...", "é".repeat(60)));
    }
}
