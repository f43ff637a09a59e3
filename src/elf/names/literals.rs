//! User-defined literals of C++ (`operator"" _km`), which the demangler does not support.

/// Prefix of the identifier that replaces a literal's operator while a name is parsed.
const PLACEHOLDER: &str = "__operator_of_literal__";

/// Returns a mangled name in which an ordinary identifier replaces the name of a literal operator; `None` for any other
/// function. Both count alike in substitutions.
pub(super) fn as_plain_name(symbol: &str) -> Option<String> {
    let mut rest = symbol.strip_prefix("_Z")?;
    rest = rest.strip_prefix('L').unwrap_or(rest);
    if let Some(nested) = rest.strip_prefix('N') {
        // Not a type: there, `li` would be two parameters or template arguments.
        rest = nested.strip_prefix("St").unwrap_or(nested);
        while let Some((_, after)) = source_name(rest) {
            rest = after;
        }
        rest = rest.strip_prefix('L').unwrap_or(rest);
    }
    let before = &symbol[..symbol.len() - rest.len()];
    let (suffix, after) = source_name(rest.strip_prefix("li")?)?;
    Some(format!("{before}{}{PLACEHOLDER}{suffix}{after}", PLACEHOLDER.len() + suffix.len()))
}

/// Converts the demangled form of a name from [`as_plain_name`] to what `nm -C` writes.
pub(super) fn as_operator(name: &str) -> String {
    name.replacen(PLACEHOLDER, "operator\"\" ", 1)
}

/// Splits a mangled name into its leading identifier and the rest.
fn source_name(mangled: &str) -> Option<(&str, &str)> {
    let digits = mangled.bytes().take_while(u8::is_ascii_digit).count();
    let length = mangled[..digits].parse::<usize>().ok()?;
    mangled[digits..].split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use crate::elf::names::{Signature, demangle};

    #[test]
    fn literal_operators_match_nm_output() {
        for (symbol, plain, signature) in [
            ("_Zli2_py", "operator\"\" _p", "operator\"\" _p(unsigned long long)"),
            ("_ZLli2_py", "operator\"\" _p", "operator\"\" _p(unsigned long long)"),
            ("_ZN3litli2_rEe", "lit::operator\"\" _r", "lit::operator\"\" _r(long double)"),
            (
                "_ZNSt8literals15string_literalsli1sB5cxx11EPKcm",
                "std::literals::string_literals::operator\"\" s[abi:cxx11]",
                "std::literals::string_literals::operator\"\" s[abi:cxx11](char const*, unsigned long)",
            ),
            // A template.
            ("_Zli2_tIJLc49EEE1Wv", "operator\"\" _t<(char)49>", "operator\"\" _t<(char)49>()"),
            // Parameters of types long and int, followed by one of a class type.
            ("_Z1fli2AA", "f", "f(long, int, AA)"),
            ("_ZN1AIli1BE1fEv", "A<long, int, B>::f", "A<long, int, B>::f()"),
        ] {
            assert_eq!(demangle(symbol, Signature::Name).as_deref(), Some(plain), "{symbol}");
            assert_eq!(demangle(symbol, Signature::Parameters).as_deref(), Some(signature), "{symbol}");
        }
    }
}
