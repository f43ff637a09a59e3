//! Suggestions of similar names for one that does not exist.

/// Names that are suggested at most.
const MAX_SUGGESTIONS: usize = 3;
/// Longer names are not compared: the work is the product of both lengths.
const MAX_LENGTH: usize = 80;
/// Comparisons at most, for files with a hostile number of names.
const MAX_COMPARED: usize = 100_000;

/// Returns up to three of `names`: those that differ least from `wanted`, followed by names that contain it; closest
/// first.
pub(super) fn nearest(wanted: &str, names: impl IntoIterator<Item = String>) -> Vec<String> {
    let wanted = wanted.to_ascii_lowercase();
    if wanted.is_empty() || wanted.len() > MAX_LENGTH {
        return Vec::new();
    }
    let limit = (wanted.len() / 3).max(2);
    let mut left = MAX_COMPARED;
    let mut best: Vec<(usize, String)> = Vec::new();
    for name in names {
        let lower = name.to_ascii_lowercase();
        let rank = if lower.len().abs_diff(wanted.len()) <= limit && left > 0 {
            left -= 1;
            Some(distance(wanted.as_bytes(), lower.as_bytes())).filter(|&d| d <= limit)
        } else {
            None
        };
        let rank =
            rank.or_else(|| (name.len() <= MAX_LENGTH && lower.contains(&wanted)).then_some(limit + 1));
        let Some(rank) = rank else { continue };
        let entry = (rank, name);
        if let Err(at) = best.binary_search(&entry)
            && at < MAX_SUGGESTIONS
        {
            best.insert(at, entry);
            best.truncate(MAX_SUGGESTIONS);
        }
    }
    best.into_iter().map(|(_, name)| name).collect()
}

/// Returns the Levenshtein distance in bytes.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, &x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distances() {
        for (a, b, d) in [("", "abc", 3), ("kitten", "sitting", 3), ("same", "same", 0), ("ab", "ba", 2)] {
            assert_eq!(distance(a.as_bytes(), b.as_bytes()), d, "{a} {b}");
            assert_eq!(distance(b.as_bytes(), a.as_bytes()), d, "{b} {a}");
        }
    }

    #[test]
    fn nearest_names_come_first_and_unrelated_are_omitted() {
        let names = || {
            ["query__start", "query__done", "query__parse", "lock__wait", "QUERY__STARTS"].map(String::from)
        };
        assert_eq!(nearest("query__stat", names()), ["query__start", "QUERY__STARTS"]);
        assert_eq!(nearest("lock", names()), ["lock__wait"]);
        assert!(nearest("zzzzzz", names()).is_empty());
        assert!(nearest("", names()).is_empty());
        assert!(nearest(&"x".repeat(1000), [format!("{}y", "x".repeat(999))]).is_empty());
    }

    #[test]
    fn returns_at_most_three_without_duplicates() {
        let names = (0..9).map(|i| format!("probe{i}")).chain((0..9).map(|i| format!("probe{i}")));
        assert_eq!(nearest("probe", names), ["probe0", "probe1", "probe2"]);
    }
}
