//! Labels as text, as cached between scrapes and as written by both text formats.

/// Appends `name="value"`, preceded by a comma unless it is the first label.
pub fn push_label(name: &str, value: &str, to: &mut String) {
    if !to.is_empty() {
        to.push(',');
    }
    to.push_str(name);
    to.push_str("=\"");
    for character in value.chars() {
        match character {
            '\\' => to.push_str("\\\\"),
            '"' => to.push_str("\\\""),
            '\n' => to.push_str("\\n"),
            other => to.push(other),
        }
    }
    to.push('"');
}

/// Parses labels formatted as `a="x",b="y"` by [`push_label`].
pub fn labels(mut text: &str) -> Vec<(&str, String)> {
    let mut labels = Vec::new();
    while let Some((name, rest)) = text.split_once("=\"") {
        let mut value = String::new();
        let mut characters = rest.char_indices();
        let mut end = rest.len();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    end = at;
                    break;
                }
                '\\' => match characters.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, escaped)) => value.push(escaped),
                    None => {}
                },
                other => value.push(other),
            }
        }
        labels.push((name, value));
        text = rest.get(end + 1..).unwrap_or_default().trim_start_matches(',');
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut labels = String::new();
        push_label("a", "x\"y\\z\n", &mut labels);
        push_label("b", "", &mut labels);
        assert_eq!(labels, "a=\"x\\\"y\\\\z\\n\",b=\"\"");
    }

    #[test]
    fn labels_round_trip() {
        let mut text = String::new();
        let all = [("a", "x\"y\\z\n"), ("b", ""), ("c", ",d=\"}größe"), ("e", "\\")];
        all.iter().for_each(|(name, value)| push_label(name, value, &mut text));
        let read = labels(&text);
        let read: Vec<_> = read.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(read, all);
        assert!(labels("").is_empty());
    }
}
