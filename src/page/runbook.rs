//! What each alert means and what to do: docs/alerts.md as a page, so that the link in an alert works wherever the
//! exporter runs.

use std::fmt::Write;

use hyper::body::Bytes;

use super::html::{escape, head};

const TEXT: &str = include_str!("../../docs/alerts.md");

/// The page. It changes only with the program's version.
pub(crate) fn runbook() -> Bytes {
    let mut sections = String::new();
    // Blocks are separated by an empty line; the file consists of headings, paragraphs and code.
    TEXT.split("\n\n").for_each(|block| show(block.trim_end(), &mut sections));
    let head = head("Alerts", "");
    format!(
        "{head}<body>
<main class=\"runbook\">
{sections}</main>
</body>
</html>
"
    )
    .into()
}

fn show(block: &str, to: &mut String) {
    let level = block.chars().take_while(|letter| *letter == '#').count();
    if let Some(title) = block[level..].strip_prefix(' ').filter(|_| level > 0) {
        let _ = writeln!(to, "<h{level} id=\"{}\">{}</h{level}>", anchor(title), escape(title));
    } else if block.starts_with("    ") {
        let lines: Vec<_> = block.lines().map(|line| line.strip_prefix("    ").unwrap_or(line)).collect();
        let _ = writeln!(to, "<pre tabindex=\"0\">{}</pre>", escape(&lines.join("\n")));
    } else if !block.is_empty() {
        let _ = writeln!(to, "<p>{}</p>", inline(block));
    }
}

/// The anchor that code hosting sites generate for a heading.
fn anchor(title: &str) -> String {
    let kept = title.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// A paragraph, with code in backticks, emphasis in asterisks, and links.
fn inline(text: &str) -> String {
    let mut shown = String::new();
    for (at, part) in text.split('`').enumerate() {
        if at % 2 == 1 {
            let _ = write!(shown, "<code>{}</code>", escape(part));
        } else {
            links(part, &mut shown);
        }
    }
    shown
}

/// Links within the page work; other pages are not served, and only named.
fn links(text: &str, to: &mut String) {
    let mut rest = text;
    while let Some((before, name, target, after)) = link(rest) {
        emphasis(before, to);
        match target.strip_prefix('#') {
            Some(section) => {
                let _ = write!(to, "<a href=\"#{}\">{}</a>", escape(section), escape(name));
            }
            None => {
                let _ = write!(to, "{} (docs/{})", escape(name), escape(target));
            }
        }
        rest = after;
    }
    emphasis(rest, to);
}

/// The text before the first link, its name, its target, and the text after it.
fn link(text: &str) -> Option<(&str, &str, &str, &str)> {
    let (before, after) = text.split_once('[')?;
    let (name, after) = after.split_once("](")?;
    let (target, after) = after.split_once(')')?;
    Some((before, name, target, after))
}

fn emphasis(text: &str, to: &mut String) {
    for (at, part) in text.split('*').enumerate() {
        let part = escape(part);
        to.push_str(&if at % 2 == 1 { format!("<em>{part}</em>") } else { part });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_have_anchors_and_links_resolve() {
        let page = String::from_utf8(runbook().to_vec()).unwrap();
        let titles = TEXT.lines().filter_map(|line| line.strip_prefix("### "));
        assert!(titles.clone().count() > 20);
        for title in titles {
            assert!(page.contains(&format!("<h3 id=\"{}\">{title}</h3>", title.to_lowercase())), "{title}");
        }
        for target in page.split("href=\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(page.contains(&format!("id=\"{target}\"")), "{target}");
        }
        for markup in ["](", "**", "`", "\n#"] {
            assert!(!page.contains(markup), "{markup} is left: {page}");
        }
    }

    #[test]
    fn renders_headings_paragraphs_and_code() {
        let shown = |text| {
            let mut to = String::new();
            show(text, &mut to);
            to
        };
        assert_eq!(shown("## For any: one"), "<h2 id=\"for-any-one\">For any: one</h2>\n");
        assert_eq!(
            shown("*a* `<b>*` [c](#d), [e](f.md#g)"),
            "<p><em>a</em> <code>&lt;b&gt;*</code> <a href=\"#d\">c</a>, e (docs/f.md#g)</p>\n"
        );
        assert_eq!(shown("    a <\n      b"), "<pre tabindex=\"0\">a &lt;\n  b</pre>\n");
        assert_eq!(shown("#hash"), "<p>#hash</p>\n");
    }
}
