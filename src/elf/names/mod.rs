//! Source names of functions, and patterns for names.

mod clones;
mod cpp;
mod parameter_count;
mod words;

use std::fmt::{self, Write};

pub(super) use clones::{CloneKind, clone_of, coroutine_of, is_callable_fragment, is_fragment};
pub(super) use parameter_count::parameter_count;
pub(super) use words::{RequiredWords, has_abbreviated_path, identifiers, literal_words};

/// Longer symbols are not demangled, and longer demangled names are not produced: with substitutions, a short symbol
/// can stand for an enormous name.
const MAX_MANGLED: usize = 4096;
const MAX_DEMANGLED: usize = 16 << 10;

/// How much of a function's signature a demangled name includes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signature {
    /// `conv<double>`
    Name,
    /// `conv<double>(double)`
    Parameters,
    /// `int conv<double>(double)`; a Rust name including the hash that legacy symbols end in.
    Whole,
}

/// Returns the source name of a C++ or Rust function; `None` for any other. Suffixes that the compiler appended to the
/// symbol of a copy are omitted.
pub(super) fn demangle(name: &str, signature: Signature) -> Option<String> {
    let name = clone_of(name).map_or(name, |clone| clone.base);
    if name.len() > MAX_MANGLED || !name.starts_with("_Z") && !name.starts_with("_R") {
        return None;
    }
    let mut out = Bounded(String::new());
    // Legacy Rust symbols are C++ names that end in a hash.
    if name.starts_with("_R") || name.contains("17h") {
        let rust = rustc_demangle::try_demangle(name).ok();
        if let Some(rust) = rust {
            let written = match signature {
                Signature::Whole => write!(out, "{rust}"),
                _ => write!(out, "{rust:#}"),
            };
            return written.ok().map(|()| out.0);
        }
    }
    cpp::demangle(name, signature, &mut out).map(|()| out.0)
}

/// Returns whether the symbol is that of a thunk: it stands in for a virtual function where the object's address, or that
/// of the result, must be adjusted.
pub(super) fn is_thunk(symbol: &str) -> bool {
    ["_ZTh", "_ZTv", "_ZTc"].iter().any(|kind| symbol.starts_with(kind))
}

/// Returns the C++ or Rust name of a symbol, with what distinguishes it from others of the same name; `None` for any
/// other symbol.
pub fn signature(symbol: &str) -> Option<String> {
    let is_rust = symbol.starts_with("_R") || symbol.contains("17h");
    demangle(symbol, if is_rust { Signature::Whole } else { Signature::Parameters })
}

/// Classes of the C++ library with a shorter name, which only some demanglers use; [`canonical`] unifies both. The
/// third entry is the name of their constructor or destructor.
const SHORTENED: [(&str, &str, &str); 4] = [
    ("std::basic_string<char,std::char_traits<char>,std::allocator<char>>", "std::string", "basic_string"),
    ("std::basic_istream<char,std::char_traits<char>>", "std::istream", "basic_istream"),
    ("std::basic_ostream<char,std::char_traits<char>>", "std::ostream", "basic_ostream"),
    ("std::basic_iostream<char,std::char_traits<char>>", "std::iostream", "basic_iostream"),
];

/// Returns the canonical form that all spellings of a demangled name share: without ABI tags, blanks, placeholders for
/// an empty argument list, and the types of numbers among the template arguments (`f<3u>`, `f<(unsigned int)3>`).
pub(super) fn canonical(name: &str) -> String {
    let mut plain = without_tags(name);
    plain.retain(|c| c != ' ');
    for (empty, without) in [(",>", ">"), ("<,", "<")] {
        if plain.contains(empty) {
            plain = plain.replace(empty, without);
        }
    }
    for empty in ["(&&)", "(&)"] {
        // Not a reference to an array or a function.
        while let Some(at) = plain.find(empty).filter(|at| !plain[at + empty.len()..].starts_with(['[', '(']))
        {
            plain.replace_range(at..at + empty.len(), "()");
        }
    }
    // Their common prefix; few names have any of them.
    if plain.contains("basic_") {
        for (long, short, own) in SHORTENED {
            plain = plain.replace(long, short);
            let of_class = &short["std::".len()..];
            plain = plain.replace(&format!("{short}::{own}("), &format!("{short}::{of_class}("));
            plain = plain.replace(&format!("{short}::~{own}("), &format!("{short}::~{of_class}("));
        }
    }
    let bytes = plain.as_bytes();
    let mut out = String::with_capacity(plain.len());
    let mut at = 0;
    while at < bytes.len() {
        let before = at.checked_sub(1).map(|before| bytes[before]);
        // A cast of a number among template arguments.
        if bytes[at] == b'('
            && matches!(before, Some(b'<' | b','))
            && let Some(end) = plain[at..].find(')')
            && plain[at + 1..at + end].bytes().all(|byte| is_word(byte) || byte == b':')
            && bytes.get(at + end + 1).is_some_and(|byte| byte.is_ascii_digit() || *byte == b'-')
        {
            at += end + 1;
            continue;
        }
        if bytes[at].is_ascii_digit() && !before.is_some_and(is_word) {
            let digits = plain[at..].bytes().take_while(u8::is_ascii_digit).count();
            out.push_str(&plain[at..at + digits]);
            at += digits;
            let suffix = plain[at..].bytes().take_while(|byte| is_word(*byte)).count();
            if is_type_of_number(&plain[at..at + suffix]) {
                at += suffix;
            }
            // Rust's `3: usize`, as binutils write it.
            if let Some(of) = plain[at..].strip_prefix(':').filter(|of| !of.starts_with(':')) {
                at += 1 + of.bytes().take_while(|byte| is_word(*byte)).count();
            }
            continue;
        }
        let c = plain[at..].chars().next().unwrap_or_default();
        out.push(c);
        at += c.len_utf8();
    }
    out
}

/// Returns whether a word after a number is its type: `u`, `l`, `ul` in C++, `usize`, `i8` in Rust.
fn is_type_of_number(word: &str) -> bool {
    let is_cpp = word.bytes().all(|byte| matches!(byte, b'u' | b'l'));
    is_cpp || matches!(word.strip_prefix(['i', 'u']), Some("8" | "16" | "32" | "64" | "128" | "size"))
}

/// Strips ABI tags, as `nm -C` writes them (`[abi:cxx11]`), and `[clone ...]`.
fn without_tags(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find("[abi:").into_iter().chain(rest.find(" [clone ")).min() {
        out.push_str(&rest[..at]);
        rest = rest[at..].split_once(']').map_or("", |(_, after)| after);
    }
    out + rest
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// A string that refuses to grow past [`MAX_DEMANGLED`].
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        if self.0.len() + s.len() > MAX_DEMANGLED {
            return Err(fmt::Error);
        }
        self.0.push_str(s);
        Ok(())
    }
}

/// Returns whether `text` matches `pattern`, in which `*` stands for any number of characters and `?` for any single
/// one.
pub(super) fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to resume after the last star has consumed one more byte.
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
    fn glob_matching() {
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
    fn equivalent_spellings_compare_equal() {
        for (a, b) in [
            ("HexStr[abi:cxx11](int)", "HexStr(int)"),
            ("f(std::vector<A, std::allocator<A> >)", "f(std::vector<A,std::allocator<A>>)"),
            ("lit<3u>", "lit<3>"),
            ("lit<(unsigned int)3>", "lit<3ul>"),
            ("gen::<str, 3: usize>", "gen::<str, 3>"),
            ("gen::<str, 3: usize>", "gen::<str, 3usize>"),
            ("f<, void>", "f<void>"),
            ("a<(b::kind)2, 3l>::f", "a<2, 3>::f"),
            ("f(int) [clone .constprop.0]", "f(int)"),
            ("a::make<b, >(&&)", "a::make<b>()"),
            ("f(std::ostream&)", "f(std::basic_ostream<char, std::char_traits<char> >&)"),
            (
                "std::ostream::basic_ostream(int)",
                "std::basic_ostream<char, std::char_traits<char> >::basic_ostream(int)",
            ),
            (
                "std::string::~string()",
                "std::basic_string<char, std::char_traits<char>, std::allocator<char> >::~basic_string()",
            ),
        ] {
            assert_eq!(canonical(a), canonical(b), "{a} {b}");
        }
        for (a, b) in [
            ("lit<3>", "lit<4>"),
            ("x3u", "x3"),
            ("f(int)", "f(long)"),
            ("f<int>", "f<(int)>"),
            ("f(int (&) [3])", "f(int (&&) [3])"),
        ] {
            assert_ne!(canonical(a), canonical(b), "{a} {b}");
        }
        assert_eq!(canonical("größe::f"), "größe::f");
    }

    #[test]
    fn demangles_cpp_and_rust_names() {
        let plain = |name| demangle(name, Signature::Name);
        assert_eq!(plain("_ZN8CConnman5StartERi").as_deref(), Some("CConnman::Start"));
        assert_eq!(
            demangle("_ZN8CConnman5StartERi", Signature::Parameters).as_deref(),
            Some("CConnman::Start(int&)")
        );
        assert_eq!(plain("_ZN4core3fmt5write17h0123456789abcdefE").as_deref(), Some("core::fmt::write"));
        assert_eq!(plain("_RNvC5mylib3foo").as_deref(), Some("mylib::foo"));
        assert_eq!(
            plain("_ZThn104_N10Item_float4nameEv").as_deref(),
            Some("non-virtual thunk to Item_float::name")
        );
        let whole = demangle("_ZTv0_n24_NSt10ostrstreamD0Ev", Signature::Parameters);
        assert_eq!(whole.as_deref(), Some("virtual thunk to std::ostrstream::~ostrstream()"));
        assert_eq!(plain("main"), None);
        assert_eq!(plain("_Zgarbage"), None);
    }

    #[test]
    fn exponentially_growing_name_is_abandoned() {
        // `f(a, b<a, a>, b<b<a, a>, b<a, a>>, ...)`: each parameter contains the previous one twice.
        let growing = |parameters: u32| {
            let substitution = |number: u32| match number.checked_sub(1) {
                None => "S_".to_owned(),
                Some(digit) => {
                    format!("S{}_", char::from_digit(digit, 36).unwrap().to_ascii_uppercase())
                }
            };
            // The first is `a`, followed by the template `b` and its instances.
            let instances = (2..=parameters).map(|number| {
                let last = substitution(if number == 2 { 0 } else { number - 1 });
                format!("S0_I{last}{last}E")
            });
            format!("_Z1f1a1bIS_S_E{}", instances.skip(1).collect::<String>())
        };
        for (parameters, is_made) in [(5, true), (9, true), (16, false), (20, false)] {
            let name = growing(parameters);
            assert!(name.len() < MAX_MANGLED);
            assert_eq!(demangle(&name, Signature::Whole).is_some(), is_made, "{name}");
        }
    }

    #[test]
    fn overlong_symbol_is_not_demangled() {
        let named = |length: usize| format!("_Z{length}{}v", "x".repeat(length));
        assert_eq!(demangle(&named(4000), Signature::Name), Some("x".repeat(4000)));
        assert_eq!(demangle(&named(MAX_MANGLED), Signature::Name), None);
    }
}
