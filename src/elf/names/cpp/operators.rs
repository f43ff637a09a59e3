//! Operators by their code in mangled names.

/// How many operands an operator has in an expression, and how it is written there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Prefix,
    Binary,
    /// Not in expressions, or handled separately there.
    Other,
}

/// Returns the operator that the first two characters of `code` stand for: the text after `operator`, and its kind.
pub(super) fn operator(code: &str) -> Option<(&'static str, Kind)> {
    use Kind::{Binary, Other, Prefix};
    Some(match code.get(..2)? {
        "nw" => (" new", Other),
        "na" => (" new[]", Other),
        "dl" => (" delete", Other),
        "da" => (" delete[]", Other),
        "aw" => (" co_await", Other),
        "ps" => ("+", Prefix),
        "ng" => ("-", Prefix),
        "ad" => ("&", Prefix),
        "de" => ("*", Prefix),
        "co" => ("~", Prefix),
        "nt" => ("!", Prefix),
        "pl" => ("+", Binary),
        "mi" => ("-", Binary),
        "ml" => ("*", Binary),
        "dv" => ("/", Binary),
        "rm" => ("%", Binary),
        "an" => ("&", Binary),
        "or" => ("|", Binary),
        "eo" => ("^", Binary),
        "aS" => ("=", Binary),
        "pL" => ("+=", Binary),
        "mI" => ("-=", Binary),
        "mL" => ("*=", Binary),
        "dV" => ("/=", Binary),
        "rM" => ("%=", Binary),
        "aN" => ("&=", Binary),
        "oR" => ("|=", Binary),
        "eO" => ("^=", Binary),
        "ls" => ("<<", Binary),
        "rs" => (">>", Binary),
        "lS" => ("<<=", Binary),
        "rS" => (">>=", Binary),
        "eq" => ("==", Binary),
        "ne" => ("!=", Binary),
        "lt" => ("<", Binary),
        "gt" => (">", Binary),
        "le" => ("<=", Binary),
        "ge" => (">=", Binary),
        "ss" => ("<=>", Binary),
        "aa" => ("&&", Binary),
        "oo" => ("||", Binary),
        "pp" => ("++", Prefix),
        "mm" => ("--", Prefix),
        "cm" => (",", Binary),
        "pm" => ("->*", Binary),
        "pt" => ("->", Binary),
        "dt" => (".", Binary),
        "ds" => (".*", Binary),
        "cl" => ("()", Other),
        "ix" => ("[]", Other),
        "qu" => ("?", Other),
        _ => return None,
    })
}
