//! `when:`: `NAME OP VALUE`, joined by `and`.

use super::fields::Node;
use super::model::{Condition, Op, Operand};
use super::scalars::is_name;
use super::words::quote;

const OPS: &[(&str, Op)] = &[
    ("==", Op::Eq),
    ("!=", Op::Ne),
    ("<=", Op::Le),
    (">=", Op::Ge),
    ("<", Op::Lt),
    (">", Op::Gt),
    ("starts_with", Op::StartsWith),
];

const HELP: &str = "write NAME OP VALUE, joined by `and`: `size > 0 and kind == \"tx\"`; \
                    OP is ==, !=, <, <=, >, >= or starts_with";

/// Decodes the conditions of a text or of a list of texts. All must hold.
pub(super) fn decode(node: &Node<'_>) -> Vec<Condition> {
    let mut conditions = Vec::new();
    for part in node.one_or_list() {
        let Some(text) = part.text_as("a condition") else { continue };
        match parse(text) {
            Ok(parsed) => conditions.extend(parsed.into_iter().map(|(value, op, with)| Condition {
                at: part.at.clone(),
                value,
                op,
                with,
            })),
            Err(err) => part.error(err).help(HELP),
        }
    }
    conditions
}

type Parsed = (String, Op, Operand);

fn parse(text: &str) -> Result<Vec<Parsed>, String> {
    let tokens = tokens(text)?;
    let mut conditions = Vec::new();
    let mut rest = tokens.as_slice();
    loop {
        let (condition, after) = comparison(rest)?;
        conditions.push(condition);
        match after {
            [] => return Ok(conditions),
            [Token::Word("and"), more @ ..] => rest = more,
            [Token::Word("or") | Token::Symbol("||"), ..] => {
                return Err("`or` is not supported; write the metric twice, once with each condition".into());
            }
            [Token::Symbol("&&"), ..] => return Err("expected `and`, found `&&`".into()),
            [token, ..] => return Err(format!("expected `and` or the end, found {}", token.show())),
        }
    }
}

fn comparison<'t, 'x>(tokens: &'t [Token<'x>]) -> Result<(Parsed, &'t [Token<'x>]), String> {
    let show = |token: Option<&Token>| token.map_or("the end".to_owned(), Token::show);
    let name = match tokens.first() {
        Some(Token::Word(word)) if is_name(word) => *word,
        other => return Err(format!("expected the name of an argument, found {}", show(other))),
    };
    let op = match tokens.get(1) {
        Some(Token::Symbol("=")) => return Err("`=` is not a comparison operator; use `==`".into()),
        Some(Token::Symbol(op) | Token::Word(op)) => {
            OPS.iter().find(|(text, _)| text == op).map(|(_, op)| *op)
        }
        _ => None,
    };
    let Some(op) = op else {
        return Err(format!("expected a comparison after `{name}`, found {}", show(tokens.get(1))));
    };
    let with = match tokens.get(2) {
        Some(Token::Text(text)) => Operand::Str(text.clone()),
        Some(Token::Word("true")) => Operand::Int(1),
        Some(Token::Word("false")) => Operand::Int(0),
        Some(Token::Word(word)) => Operand::Int(integer(word)?),
        other => return Err(format!("expected a number or quoted text, found {}", show(other))),
    };
    match (op, &with) {
        (Op::StartsWith, Operand::Int(_)) => {
            Err("`starts_with` compares text: put the value in quotes".into())
        }
        (Op::Lt | Op::Le | Op::Gt | Op::Ge, Operand::Str(_)) => {
            Err("text can only be compared with ==, != and starts_with".into())
        }
        _ => Ok(((name.to_owned(), op, with), &tokens[3..])),
    }
}

/// Parses a decimal or `0x` number of at most 64 bits, signed or unsigned.
fn integer(word: &str) -> Result<i128, String> {
    let (negative, digits) = match word.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, word),
    };
    let magnitude = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) if hex.starts_with(|c: char| c.is_ascii_hexdigit()) => i128::from_str_radix(hex, 16),
        _ if digits.starts_with(|c: char| c.is_ascii_digit()) => digits.parse(),
        _ => return Err(format!("expected a number or quoted text, found {}", quote(word))),
    };
    let number = magnitude.map(|n| if negative { -n } else { n }).ok();
    number
        .filter(|n| (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(n))
        .ok_or_else(|| format!("{} is not a 64-bit integer", quote(word)))
}

#[derive(Debug, Clone, PartialEq)]
enum Token<'t> {
    /// A name, number or keyword.
    Word(&'t str),
    /// A run of comparison characters.
    Symbol(&'t str),
    Text(String),
}

impl Token<'_> {
    fn show(&self) -> String {
        match self {
            Token::Word(text) | Token::Symbol(text) => quote(text),
            Token::Text(text) => format!("the text {}", quote(text)),
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token<'_>>, String> {
    let is_sign = |c: char| "=!<>&|".contains(c);
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let after = if first == '"' || first == '\'' {
            let (token, after) = quoted(rest, first)?;
            tokens.push(Token::Text(token));
            after
        } else if is_sign(first) {
            let (token, after) = rest.split_at(rest.find(|c| !is_sign(c)).unwrap_or(rest.len()));
            tokens.push(Token::Symbol(token));
            after
        } else {
            let ends = |c: char| c.is_whitespace() || is_sign(c) || c == '"' || c == '\'';
            let (token, after) = rest.split_at(rest.find(ends).unwrap_or(rest.len()));
            tokens.push(Token::Word(token));
            after
        };
        rest = after.trim_start();
    }
    Ok(tokens)
}

/// Parses quoted text, in which a backslash escapes a quote or a backslash.
fn quoted(text: &str, quote_mark: char) -> Result<(String, &str), String> {
    let mut content = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote_mark => return Ok((content, &text[at + 1..])),
            '\\' => match chars.next() {
                Some((_, c)) if c == quote_mark || c == '\\' => content.push(c),
                _ => return Err("a backslash is only allowed before a quote or another backslash".into()),
            },
            c => content.push(c),
        }
    }
    Err(format!("unterminated quote {}", quote(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Parsed {
        let mut parsed = parse(text).unwrap_or_else(|err| panic!("{text}: {err}"));
        assert_eq!(parsed.len(), 1, "{text}");
        parsed.remove(0)
    }

    #[test]
    fn parses_every_operator_and_operand() {
        let int = |name: &str, op, n| (name.to_owned(), op, Operand::Int(n));
        let text = |name: &str, op, t: &str| (name.to_owned(), op, Operand::Str(t.to_owned()));
        assert_eq!(one("retval > 0"), int("retval", Op::Gt, 0));
        assert_eq!(one("a>=-1"), int("a", Op::Ge, -1));
        assert_eq!(one("a<0x1F"), int("a", Op::Lt, 31));
        assert_eq!(one("a <= 18446744073709551615"), int("a", Op::Le, i128::from(u64::MAX)));
        assert_eq!(one("a == -0x8000000000000000"), int("a", Op::Eq, i128::from(i64::MIN)));
        assert_eq!(one("a != true"), int("a", Op::Ne, 1));
        assert_eq!(one("a == \"x y\""), text("a", Op::Eq, "x y"));
        assert_eq!(one("a == 'it\\'s \"\\\\'"), text("a", Op::Eq, "it's \"\\"));
        assert_eq!(one(" winner  starts_with 'F' "), text("winner", Op::StartsWith, "F"));
        assert_eq!(one("a == ''"), text("a", Op::Eq, ""));
        assert_eq!(one("and == 1"), int("and", Op::Eq, 1));
    }

    #[test]
    fn parses_joined_conditions() {
        let parsed = parse("a > 1 and b == 'and' and c<2").unwrap();
        assert_eq!(parsed.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    }

    #[test]
    fn rejects_invalid_conditions() {
        let cases = [
            ("a", "expected a comparison after `a`, found the end"),
            ("a 5", "expected a comparison after `a`, found \"5\""),
            ("a = 5", "`=` is not a comparison operator"),
            ("a =< 5", "expected a comparison after `a`, found \"=<\""),
            ("a >", "expected a number or quoted text, found the end"),
            ("a == abc", "expected a number or quoted text, found \"abc\""),
            ("a == 1 or b == 2", "`or` is not supported"),
            ("a == 1 || b == 2", "`or` is not supported"),
            ("a == 1 && b == 2", "expected `and`, found `&&`"),
            ("a == 1 b", "expected `and` or the end, found \"b\""),
            ("a == 1 and", "expected the name of an argument, found the end"),
            ("== 1", "expected the name of an argument, found \"==\""),
            ("5 == a", "expected the name of an argument, found \"5\""),
            ("a < 'x'", "text can only be compared with"),
            ("a starts_with 5", "`starts_with` compares text"),
            ("a == 'x", "unterminated quote"),
            ("a == 'x\\", "a backslash is only allowed"),
            ("a == 18446744073709551616", "is not a 64-bit integer"),
            ("a == 0x", "is not a 64-bit integer"),
            ("a == 1.5", "is not a 64-bit integer"),
            ("a == --1", "expected a number or quoted text"),
        ];
        for (text, expected) in cases {
            let found = parse(text).unwrap_err();
            assert!(found.contains(expected), "{text}: {found}");
        }
    }
}
