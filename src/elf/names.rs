//! Names as the source has them, and patterns for names.

use std::fmt::{self, Write};

/// Longer symbols are not demangled, and longer demangled names are not made: substitutions let a short
/// symbol stand for an endless name.
const MANGLED_MAX: usize = 4096;
const DEMANGLED_MAX: usize = 16 << 10;

/// The name of a C++ or Rust function as its source has it; None for any other.
pub(super) fn demangle(name: &str, params: bool) -> Option<String> {
    if name.len() > MANGLED_MAX || !name.starts_with("_Z") && !name.starts_with("_R") {
        return None;
    }
    let mut out = Bounded(String::new());
    // Old Rust symbols are C++ names that end in a hash.
    if name.starts_with("_R") || name.contains("17h") {
        let rust = rustc_demangle::try_demangle(name).ok();
        if let Some(rust) = rust {
            return write!(out, "{rust:#}").ok().map(|()| out.0);
        }
    }
    let mut options = cpp_demangle::DemangleOptions::new();
    if !params {
        options = options.no_params().no_return_type();
    }
    let symbol = cpp_demangle::Symbol::new(name).ok()?;
    symbol.structured_demangle(&mut out, &options).ok().map(|()| out.0)
}

/// Whether a symbol is a part of a function that the compiler moved away: the branches that are seldom
/// taken, or what was left when the rest was inlined.
pub(super) fn is_fragment(name: &str) -> bool {
    name.split_once('.').is_some_and(|(_, suffixes)| suffixes.split('.').any(|s| s == "cold" || s == "part"))
}

/// The identifiers of a pattern that every symbol whose demangled name matches must contain as they are.
/// Demangling is slow, and most symbols need not be.
///
/// Mangling keeps the identifiers on the path to a function's name, apart from `std`; it does not keep
/// operators, parameters, template arguments and what stands in braces.
pub(super) fn literal_words(pattern: &str) -> Vec<&str> {
    let end = pattern.find(['*', '?', '(', '<', '{', '~', ' ']).unwrap_or(pattern.len());
    let path = &pattern[..end];
    let path = &path[..path.find("operator").unwrap_or(path.len())];
    let words = path.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|&word| word != "std" && !word.is_empty()).collect()
}

/// Whether a symbol can stand for a name with these [`literal_words`].
pub(super) fn may_demangle_to(name: &str, words: &[&str]) -> bool {
    // Ss and the like stand for whole names of the C++ library; St is only its namespace.
    let rest = name.strip_prefix("_ZNK").or_else(|| name.strip_prefix("_ZN")).unwrap_or("");
    let abbreviated = rest.strip_prefix('S').is_some_and(|r| r.starts_with(['a', 'b', 's', 'i', 'o', 'd']));
    abbreviated || words.iter().all(|word| name.contains(word))
}

/// A string that refuses to grow past [`DEMANGLED_MAX`].
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        if self.0.len() + s.len() > DEMANGLED_MAX {
            return Err(fmt::Error);
        }
        self.0.push_str(s);
        Ok(())
    }
}

/// Whether `text` matches `pattern`, in which `*` is any number of characters and `?` any one.
pub(super) fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on after the last star took one byte more.
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match &mut star {
                Some((after, from)) => {
                    *from += 1;
                    (p, t) = (*after, *from);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, text) in [
            ("*", ""),
            ("a*", "abc"),
            ("*c", "abc"),
            ("a*b*c", "axbxbxc"),
            ("a?c", "abc"),
            ("f(char*)", "f(char*)"),
        ] {
            assert!(glob(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("", "a"), ("a*", "ba"), ("a?c", "ac"), ("a*b", "abc"), ("?", "")] {
            assert!(!glob(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn what_a_pattern_requires_is_in_every_symbol_that_it_matches() {
        for (pattern, words) in [
            ("CConnman::Start", &["CConnman", "Start"][..]),
            ("CTxMem*::addUnchecked", &["CTxMem"]),
            ("std::vector<int>::push_back", &["vector"]),
            ("a::operator new", &["a"]),
            ("(anonymous namespace)::f", &[]),
            ("*write*", &[]),
            ("Foo::~Foo", &["Foo"]),
        ] {
            assert_eq!(literal_words(pattern), words, "{pattern}");
        }
        let string_append = "_ZNSs6appendEPKc";
        assert_eq!(demangle(string_append, false).as_deref(), Some("std::string::append"));
        assert!(may_demangle_to(string_append, &literal_words("std::string::append")));
        assert!(!may_demangle_to("_ZN8CConnman5StartERi", &["CTxMemPool"]));
    }

    #[test]
    fn fragments() {
        assert!(is_fragment("_Z3foov.cold") && is_fragment("foo.part.0") && is_fragment("foo.isra.0.cold"));
        assert!(!is_fragment("foo.isra.0") && !is_fragment("foo") && !is_fragment("cold"));
    }

    #[test]
    fn names_of_cpp_and_rust() {
        let plain = |name| demangle(name, false);
        assert_eq!(plain("_ZN8CConnman5StartERi").as_deref(), Some("CConnman::Start"));
        assert_eq!(demangle("_ZN8CConnman5StartERi", true).as_deref(), Some("CConnman::Start(int&)"));
        assert_eq!(plain("_ZN4core3fmt5write17h0123456789abcdefE").as_deref(), Some("core::fmt::write"));
        assert_eq!(plain("_RNvC5mylib3foo").as_deref(), Some("mylib::foo"));
        assert_eq!(plain("main"), None);
        assert_eq!(plain("_Zgarbage"), None);
    }

    #[test]
    fn a_name_that_grows_without_end_is_given_up() {
        // Each substitution holds the one before it twice.
        let mut name = String::from("_Z1fI1aE");
        for i in 0..60 {
            let last = std::char::from_digit(i % 36, 36).unwrap().to_ascii_uppercase();
            name.push_str(&format!("1bIS{last}_S{last}_E"));
        }
        assert!(demangle(&name, true).is_none_or(|n| n.len() <= DEMANGLED_MAX));
        let mut out = Bounded(String::new());
        assert!(out.write_str(&"x".repeat(DEMANGLED_MAX)).is_ok());
        assert!(out.write_str("x").is_err());
    }
}
