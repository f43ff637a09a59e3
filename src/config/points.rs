//! Probe points as written: `usdt:PROVIDER:NAME` or `function:NAME`.

use super::fields::Node;
use super::model::Point;
use super::words::{nearest, quote};

const EXPECTED: &str = "expected usdt:PROVIDER:NAME or function:NAME";

/// Decodes `usdt:PROVIDER:NAME` or `function:NAME`.
pub(super) fn point(node: &Node<'_>) -> Option<Point> {
    let text = node.text_as("a probe")?;
    let wrong = |meant: Option<String>| {
        let kind = text.split(':').next().unwrap_or_default();
        let what = if ["usdt", "function"].contains(&kind) { "incomplete" } else { "unknown" };
        let meant = meant.map(|meant| format!(" (did you mean {}?)", quote(&meant))).unwrap_or_default();
        node.error(format!("{what} probe source {}; {EXPECTED}{meant}", quote(text)));
        None
    };
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        ["usdt", provider, name] if is_probe_word(provider) && is_probe_word(name) => {
            Some(Point::Usdt { provider: (*provider).to_owned(), name: (*name).to_owned() })
        }
        ["usdt", provider, name] if !provider.is_empty() && !name.is_empty() => {
            node.error(format!(
                "{} contains a character that is not valid in a probe name; {EXPECTED}",
                quote(text)
            ));
            None
        }
        ["usdt", path, provider, name] if path.is_empty() || path.starts_with(['/', '.', '*']) => {
            wrong(Some(format!("usdt:{provider}:{name}")))
        }
        ["usdt", ..] => wrong(None),
        ["function", ..] => match text["function:".len().min(text.len())..].trim() {
            "" => wrong(None),
            name => function(node, name).map(Point::Function),
        },
        ["uprobe" | "uretprobe" | "u", .., name] => wrong(Some(format!("function:{name}"))),
        [kind, rest @ ..] if !rest.is_empty() && nearest(kind, ["usdt", "function"]).is_some() => {
            let kind = nearest(kind, ["usdt", "function"]).unwrap_or_default();
            wrong(Some(format!("{kind}:{}", rest.join(":"))))
        }
        [provider, name] if is_probe_word(provider) && is_probe_word(name) => {
            wrong(Some(format!("usdt:{text}")))
        }
        _ => wrong(None),
    }
}

/// Whether it is a valid name of a provider or probe. Source: names found in the notes of real programs, which contain
/// hyphens as well as the characters of C identifiers.
pub(crate) fn is_probe_word(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "_-.$".contains(c))
}

/// Decodes the name of a function: almost any text, as in C++ and Rust.
pub(super) fn function(node: &Node<'_>, name: &str) -> Option<String> {
    let name = name.trim();
    if name.chars().any(char::is_control) {
        node.error(format!("{} is not a valid function name", quote(name)));
        return None;
    }
    if ["usdt:", "function:"].iter().any(|kind| name.starts_with(kind)) {
        node.error(format!("expected the name of a function, found {}", quote(name)))
            .help(format!("write on: {name}"));
        return None;
    }
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::diagnose::Diagnostics;
    use crate::config::place::Place;
    use crate::config::tree::Tree;

    fn read(text: &str) -> Result<Point, String> {
        let value = Tree::text(text);
        let diags = Diagnostics::new();
        let point = point(&Node::new(Place::none(), &value, &diags));
        point.ok_or_else(|| diags.render())
    }

    #[test]
    fn parses_probe_points() {
        let usdt = |provider: &str, name: &str| {
            Ok(Point::Usdt { provider: provider.to_owned(), name: name.to_owned() })
        };
        let function = |name: &str| Ok(Point::Function(name.to_owned()));
        assert_eq!(read("usdt:postgresql:query__start"), usdt("postgresql", "query__start"));
        assert_eq!(read("usdt:nextest:test-attempt__start"), usdt("nextest", "test-attempt__start"));
        assert_eq!(read("function:SSL_*"), function("SSL_*"));
        assert_eq!(read("function: std::vec<int>::push"), function("std::vec<int>::push"));
        assert_eq!(read("function:name+0x10"), function("name+0x10"));
    }

    #[test]
    fn invalid_points_suggest_a_fix() {
        let cases = [
            ("ustd:a:b", "unknown probe source \"ustd:a:b\"", "did you mean \"usdt:a:b\"?"),
            ("USDT:a:b", "unknown probe source", "did you mean \"usdt:a:b\"?"),
            ("fuction:main", "unknown probe source", "did you mean \"function:main\"?"),
            ("a:b", "unknown probe source", "did you mean \"usdt:a:b\"?"),
            ("uprobe:/bin/x:main", "unknown probe source", "did you mean \"function:main\"?"),
            ("usdt:/bin/x:a:b", "incomplete probe source", "did you mean \"usdt:a:b\"?"),
            ("usdt:a", "incomplete probe source", "expected usdt:PROVIDER:NAME"),
            ("usdt::b", "incomplete probe source", "expected usdt:PROVIDER:NAME"),
            ("usdt:a:b c", "contains a character", "expected usdt:PROVIDER:NAME"),
            ("usdt", "incomplete probe source", "expected"),
            ("function", "incomplete probe source", "expected"),
            ("function: ", "incomplete probe source", "expected"),
            ("main", "unknown probe source", "expected"),
            (":", "unknown probe source", "expected"),
        ];
        for (text, what, help) in cases {
            let found = read(text).unwrap_err();
            assert!(found.contains(what) && found.contains(help), "{text}: {found}");
        }
    }
}
