//! A YAML document as a tree whose nodes have positions.

use std::fmt;
use std::sync::Arc;

/// A one-based line and column in a text. Columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

/// A node. An alias stands for the node of its anchor, with the anchor's position: that is the text to fix.
#[derive(Clone, PartialEq)]
pub struct Tree {
    /// `None` for values that do not come from a text.
    pub position: Option<Position>,
    pub value: TreeValue,
    /// The number of nodes and bytes of text (including itself, with aliases expanded), and the depth below it.
    pub(super) weight: Weight,
}

/// The cost of walking a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Weight {
    pub nodes: usize,
    pub text: usize,
    pub depth: usize,
}

#[derive(Clone, PartialEq)]
pub enum TreeValue {
    Scalar(Scalar),
    List(Vec<Arc<Tree>>),
    Map(Vec<Field>),
    /// Could not be read, which has been reported.
    Unread,
}

/// A key of a mapping with its value.
#[derive(Clone, PartialEq)]
pub struct Field {
    pub key: Scalar,
    pub key_position: Option<Position>,
    pub value: Arc<Tree>,
}

/// Text, and its meaning if it was written without quotes.
#[derive(Clone, PartialEq)]
pub struct Scalar {
    /// Without quotes and escapes.
    pub text: String,
    /// Whether it was written without quotes.
    pub is_plain: bool,
    pub meaning: Meaning,
}

/// The meaning of a scalar in YAML 1.2's core schema, except for numbers with a leading zero: some parsers read them as
/// octal and others as decimal, so they are text here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Meaning {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text,
}

impl Scalar {
    /// Creates a scalar for text in quotes, or from the command line or environment.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_plain: false, meaning: Meaning::Text }
    }

    /// Creates a scalar for text written without quotes in a file.
    pub fn plain(text: impl Into<String>) -> Self {
        let text = text.into();
        let meaning = meaning(&text);
        Self { text, is_plain: true, meaning }
    }

    /// Returns the same string for equivalent keys: `0x10` and `16`, `5` and `"5"`.
    pub(super) fn identity(&self) -> String {
        match self.meaning {
            Meaning::Integer(number) => number.to_string(),
            Meaning::Bool(value) => value.to_string(),
            _ => self.text.clone(),
        }
    }
}

impl Tree {
    /// Creates a node for text that does not come from a file.
    pub fn text(text: impl Into<String>) -> Self {
        Self::new(None, TreeValue::Scalar(Scalar::text(text)))
    }

    pub(super) fn new(position: Option<Position>, value: TreeValue) -> Self {
        let mut weight = Weight { nodes: 1, text: 0, depth: 0 };
        let mut add = |child: &Tree| {
            weight.nodes += child.weight.nodes;
            weight.text += child.weight.text;
            weight.depth = weight.depth.max(child.weight.depth + 1);
        };
        match &value {
            TreeValue::Scalar(scalar) => weight.text = scalar.text.len(),
            TreeValue::List(items) => items.iter().for_each(|item| add(item)),
            TreeValue::Map(entries) => {
                entries.iter().for_each(|entry| add(&entry.value));
                weight.text += entries.iter().map(|entry| entry.key.text.len()).sum::<usize>();
            }
            TreeValue::Unread => {}
        }
        Self { position, value, weight }
    }

    fn meaning(&self) -> Option<Meaning> {
        match &self.value {
            TreeValue::Scalar(scalar) => Some(scalar.meaning),
            _ => None,
        }
    }

    /// Whether it has no value.
    pub fn is_null(&self) -> bool {
        self.meaning() == Some(Meaning::Null)
    }

    pub fn is_number(&self) -> bool {
        matches!(self.meaning(), Some(Meaning::Integer(_) | Meaning::Float(_)))
    }

    pub fn is_mapping(&self) -> bool {
        matches!(self.value, TreeValue::Map(_))
    }

    pub fn is_sequence(&self) -> bool {
        matches!(self.value, TreeValue::List(_))
    }

    /// Returns the text; unquoted numbers and booleans are not text.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            TreeValue::Scalar(scalar) if scalar.meaning == Meaning::Text => Some(&scalar.text),
            _ => None,
        }
    }

    pub fn as_integer(&self) -> Option<i128> {
        match self.meaning() {
            Some(Meaning::Integer(number)) => Some(number),
            _ => None,
        }
    }

    pub fn as_u64(&self) -> Option<u64> {
        u64::try_from(self.as_integer()?).ok()
    }

    /// Returns the value of any number.
    pub fn as_f64(&self) -> Option<f64> {
        match self.meaning() {
            Some(Meaning::Integer(number)) => Some(number as f64),
            Some(Meaning::Float(number)) => Some(number),
            _ => None,
        }
    }

    pub fn as_sequence(&self) -> Option<&[Arc<Tree>]> {
        match &self.value {
            TreeValue::List(items) => Some(items),
            _ => None,
        }
    }

    /// Returns the value of a key, if this is a mapping that contains it.
    pub fn get(&self, key: &str) -> Option<&Tree> {
        match &self.value {
            TreeValue::Map(entries) => find(entries, key).map(|entry| &*entry.value),
            _ => None,
        }
    }
}

/// Finds the entry of a key.
pub(super) fn find<'e>(entries: &'e [Field], key: &str) -> Option<&'e Field> {
    entries.iter().find(|entry| entry.key.text == key)
}

/// Omits the content, which may be a password.
impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree").field("position", &self.position).field("nodes", &self.weight.nodes).finish()
    }
}

fn meaning(text: &str) -> Meaning {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Meaning::Null,
        "true" | "True" | "TRUE" => return Meaning::Bool(true),
        "false" | "False" | "FALSE" => return Meaning::Bool(false),
        _ => {}
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let sign: i128 = if text.starts_with('-') { -1 } else { 1 };
    for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if let Some(digits) = unsigned.strip_prefix(prefix)
            && digits.starts_with(|c: char| c.is_ascii_alphanumeric())
            && let Ok(number) = i128::from_str_radix(digits, radix)
        {
            return Meaning::Integer(sign * number);
        }
    }
    let is_digit = |c: char| c.is_ascii_digit();
    if !unsigned.is_empty() && unsigned.chars().all(is_digit) {
        let is_ambiguous = unsigned.len() > 1 && unsigned.starts_with('0');
        // A number too large for any setting must still be rejected as a number.
        return match text.parse() {
            _ if is_ambiguous => Meaning::Text,
            Ok(number) => Meaning::Integer(number),
            Err(_) => Meaning::Float(text.parse().unwrap_or(f64::INFINITY)),
        };
    }
    match unsigned {
        ".inf" | ".Inf" | ".INF" => return Meaning::Float(sign as f64 * f64::INFINITY),
        ".nan" | ".NaN" | ".NAN" if unsigned.len() == text.len() => return Meaning::Float(f64::NAN),
        _ => {}
    }
    // Rust's own words for infinity and "not a number" are text here.
    let digits = unsigned.trim_start_matches('.').starts_with(is_digit);
    let is_float = digits && unsigned.chars().all(|c| is_digit(c) || ".eE+-".contains(c));
    match text.parse() {
        Ok(number) if is_float => Meaning::Float(number),
        _ => Meaning::Text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_follow_yaml_1_2() {
        use Meaning::*;
        let cases = [
            ("", Null),
            ("~", Null),
            ("null", Null),
            ("nUll", Text),
            ("True", Bool(true)),
            ("yes", Text),
            ("off", Text),
            ("0", Integer(0)),
            ("-7", Integer(-7)),
            ("+7", Integer(7)),
            ("0x1F", Integer(31)),
            ("-0o17", Integer(-15)),
            ("0b101", Integer(5)),
            ("0x", Text),
            ("0x-1", Text),
            ("0123", Text),
            ("-00", Text),
            ("1_000", Text),
            ("12:30", Text),
            ("18446744073709551615", Integer(u64::MAX as i128)),
            ("1.5", Float(1.5)),
            (".5", Float(0.5)),
            ("5.", Float(5.0)),
            ("1e3", Float(1000.0)),
            ("1.2.3", Text),
            ("-.inf", Float(f64::NEG_INFINITY)),
            ("inf", Text),
            ("nan", Text),
            ("infinity", Text),
            ("-", Text),
            (".", Text),
            ("e3", Text),
            ("127.0.0.1", Text),
            ("١", Text),
        ];
        for (text, expected) in cases {
            assert_eq!(Scalar::plain(text).meaning, expected, "{text:?}");
        }
        assert!(matches!(Scalar::plain(".nan").meaning, Float(n) if n.is_nan()));
        assert!(matches!(Scalar::plain("9".repeat(60)).meaning, Float(n) if n > 1e59));
        assert_eq!(Scalar::text("5").meaning, Text);
    }

    #[test]
    fn debug_output_hides_content() {
        let tree = Tree::text("hunter2");
        assert!(!format!("{tree:?}").contains("hunter2"));
    }
}
