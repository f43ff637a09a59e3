//! Identifiers that a symbol must contain to match a pattern, so that it need not be demangled to rule it out.

use super::{is_word, without_tags};

/// Identifiers are compared only up to this length.
const MAX_IDENTIFIER: usize = 255;

/// The identifiers of a pattern that every symbol with a matching demangled name must contain verbatim.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::elf) struct RequiredWords {
    pub whole: Vec<String>,
    /// The start of an identifier that a `*` or `?` follows.
    pub begun: Option<String>,
}

impl RequiredWords {
    /// Returns whether a symbol can stand for a name with these words.
    pub fn may_be_in(&self, symbol: &str) -> bool {
        has_abbreviated_path(symbol)
            || self.whole.iter().chain(&self.begun).all(|word| symbol.contains(word.as_str()))
    }
}

/// Returns what a symbol must contain to match a pattern. Demangling is slow, and most symbols can be ruled out without
/// it.
///
/// Mangling preserves the identifiers on the path to a function's name, apart from `std`; it does not preserve
/// operators, parameters, template arguments, text in braces and, for most functions, the return type.
pub(in crate::elf) fn literal_words(pattern: &str) -> RequiredWords {
    let pattern = without_tags(pattern).replace("(anonymous namespace)", "");
    let path = &pattern[..operator(&pattern).unwrap_or(pattern.len())];
    let mut skeleton = String::new();
    let mut depth = 0usize;
    for c in path.chars() {
        match c {
            // In brackets, Rust has the hash of a crate.
            '<' | '[' => depth += 1,
            '>' | ']' => depth = depth.saturating_sub(1),
            '(' | '{' if depth == 0 => break,
            _ if depth == 0 => skeleton.push(c),
            _ => {}
        }
    }
    // The return type precedes the name.
    let name = skeleton.rsplit(' ').next().unwrap_or_default();
    if name.contains("decltype") {
        return RequiredWords::default();
    }
    let end = name.find(['*', '?', '~', '&']);
    let mut whole: Vec<String> = pieces(&name.as_bytes()[..end.unwrap_or(name.len())])
        .map(|piece| String::from_utf8_lossy(piece).into_owned())
        .collect();
    let is_begun = end.is_some_and(|end| name[..end].bytes().next_back().is_some_and(is_word));
    let begun = if is_begun { whole.pop() } else { None };
    whole.retain(|word| word != "std" && word.len() <= MAX_IDENTIFIER);
    RequiredWords { whole, begun: begun.filter(|word| !"std".starts_with(word.as_str())) }
}

/// Returns where the name of an operator begins.
fn operator(name: &str) -> Option<usize> {
    const OPERATOR: &str = "operator";
    let bytes = name.as_bytes();
    let is_whole = |at: &usize| {
        let after = bytes.get(at + OPERATOR.len()).copied();
        !at.checked_sub(1).is_some_and(|before| is_word(bytes[before])) && !after.is_some_and(is_word)
    };
    name.match_indices(OPERATOR).map(|(at, _)| at).find(is_whole)
}

/// Splits an identifier into its ASCII words: a single one, unless it has characters that a mangled name encodes.
fn pieces(identifier: &[u8]) -> impl Iterator<Item = &[u8]> {
    identifier.split(|byte| !is_word(*byte)).filter(|piece| !piece.is_empty())
}

/// Iterates over everything that may be an identifier in a mangled name, where identifiers follow their length: a
/// superset of the actual ones.
pub(in crate::elf) fn identifiers(mangled: &str) -> impl Iterator<Item = &[u8]> {
    let bytes = mangled.as_bytes();
    let is_v0 = mangled.starts_with("_R");
    // A length may follow anything, including text that ends in digits.
    let starts = (0..bytes.len()).filter(|at| matches!(bytes[*at], b'1'..=b'9'));
    let found = starts.flat_map(move |start| {
        let digits = bytes[start..].iter().take(4).take_while(|byte| byte.is_ascii_digit()).count();
        let length =
            bytes[start..start + digits].iter().fold(0, |n, digit| 10 * n + usize::from(digit - b'0'));
        let at = start + digits;
        // In Rust, `_` separates the length from an identifier that begins with `_` or a digit.
        let starts = [Some(at), (is_v0 && bytes.get(at) == Some(&b'_')).then_some(at + 1)];
        starts.into_iter().flatten().filter_map(move |at| {
            let identifier = bytes.get(at..at.checked_add(length)?)?;
            let begin = &identifier[..length.min(MAX_IDENTIFIER)];
            // Of a longer identifier, the name before its template arguments.
            let word = begin.iter().take_while(|byte| is_word(**byte)).count();
            Some(if length > MAX_IDENTIFIER { &begin[..word] } else { begin })
        })
    });
    found.flat_map(pieces)
}

/// Returns whether a symbol has fewer identifiers than its function's name: `Ss` and the like stand for whole names of
/// the C++ library (`St` is only its namespace), and Rust encodes non-ASCII characters.
pub(in crate::elf) fn has_abbreviated_path(symbol: &str) -> bool {
    let bytes = symbol.as_bytes();
    if bytes.starts_with(b"_R") {
        return bytes.windows(2).any(|two| two[0] == b'u' && two[1].is_ascii_digit());
    }
    bytes.starts_with(b"_Z")
        && bytes.iter().enumerate().any(|(at, byte)| {
            *byte == b'N' && {
                let rest = &bytes[at + 1..];
                let qualifiers = rest.iter().take_while(|byte| b"rVKRO".contains(byte)).count();
                matches!(&rest[qualifiers..], [b'S', b'a' | b'b' | b's' | b'i' | b'o' | b'd', ..])
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::names::{Signature, demangle};

    #[test]
    fn required_words_occur_in_every_matching_symbol() {
        for (pattern, words) in [
            ("CConnman::Start", &["CConnman", "Start"][..]),
            ("CTxMem*::addUnchecked", &[]),
            ("std::vector<int>::push_back", &["vector", "push_back"]),
            ("a::operator new", &["a"]),
            ("(anonymous namespace)::f", &["f"]),
            ("a::(anonymous namespace)::co_operator_f(int)", &["a", "co_operator_f"]),
            ("*write*", &[]),
            ("Foo::~Foo", &["Foo"]),
            ("int conv<double>(double)", &["conv"]),
            ("std::vector<std::pair<int, A> > a::make(B)", &["a", "make"]),
            ("char* text", &["text"]),
            ("decltype(auto) f()", &[]),
            ("HexStr[abi:cxx11](int)", &["HexStr"]),
            ("core[c1f1a4ba060b9bfa]::hint::black_box", &["core", "hint", "black_box"]),
        ] {
            assert_eq!(literal_words(pattern).whole, words, "{pattern}");
        }
        assert_eq!(literal_words("CTxMem*::addUnchecked").begun.as_deref(), Some("CTxMem"));
        let string_append = "_ZNSs6appendEPKc";
        assert_eq!(demangle(string_append, Signature::Name).as_deref(), Some("std::string::append"));
        assert!(literal_words("std::string::append").may_be_in(string_append));
        assert!(!literal_words("CTxMemPool::*").may_be_in("_ZN8CConnman5StartERi"));
    }

    #[test]
    fn identifiers_follow_their_length_prefix() {
        for (symbol, words) in [
            ("_ZN4foo13barE", &["foo1", "bar"][..]),
            ("_ZNSt7__cxx1112basic_stringIcE", &["__cxx11", "basic_string"]),
            ("_ZN3FooILj3EE3getEv", &["Foo", "get"]),
            ("_ZN5alloc3vec16Vec$LT$T$C$A$GT$4push17h0123456789abcdefE", &["alloc", "vec", "Vec", "push"]),
            ("_RNvC5mylib3__x1", &["mylib", "_x1"]),
        ] {
            let found: Vec<_> = identifiers(symbol).map(String::from_utf8_lossy).collect();
            words.iter().for_each(|word| assert!(found.contains(&(*word).into()), "{symbol}: {found:?}"));
        }
        for symbol in ["_Z99999999999x", "_Z9", "_Z255x", "_Z0"] {
            assert_eq!(identifiers(symbol).count(), 0, "{symbol}");
        }
        for (abbreviated, whole) in
            [("_ZNSt3fooE", false), ("_ZNKSs4sizeEv", true), ("_ZN3FooC1ERKSs", false)]
        {
            assert_eq!(has_abbreviated_path(abbreviated), whole, "{abbreviated}");
        }
    }
}
