//! User-defined literals of C++ (`operator"" _km`), which the demangler does not read.

/// What an identifier begins with that stands in for a literal's operator.
const STAND_IN: &str = "__operator_of_literal__";

/// A mangled name in which an ordinary identifier stands where the function's own name is that of a literal; None for any other
/// function. Both take part alike in substitutions.
pub(super) fn as_plain_name(symbol: &str) -> Option<String> {
    let mut rest = symbol.strip_prefix("_Z")?;
    rest = rest.strip_prefix('L').unwrap_or(rest);
    if let Some(nested) = rest.strip_prefix('N') {
        // No type: there `li` would be two parameters or template arguments.
        rest = nested.strip_prefix("St").unwrap_or(nested);
        while let Some((_, after)) = source_name(rest) {
            rest = after;
        }
        rest = rest.strip_prefix('L').unwrap_or(rest);
    }
    let before = &symbol[..symbol.len() - rest.len()];
    let (suffix, after) = source_name(rest.strip_prefix("li")?)?;
    Some(format!("{before}{}{STAND_IN}{suffix}{after}", STAND_IN.len() + suffix.len()))
}

/// A demangled name as `nm -C` writes it, of what [`as_plain_name`] gave.
pub(super) fn as_operator(name: &str) -> String {
    name.replacen(STAND_IN, "operator\"\" ", 1)
}

/// The identifier that a mangled name begins with, and what follows it.
fn source_name(mangled: &str) -> Option<(&str, &str)> {
    let digits = mangled.bytes().take_while(u8::is_ascii_digit).count();
    let length = mangled[..digits].parse::<usize>().ok()?;
    mangled[digits..].split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use crate::elf::names::{Signature, demangle};

    #[test]
    fn literals_have_the_names_that_nm_writes() {
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
            // Parameters of the types long and int before one of a class.
            ("_Z1fli2AA", "f", "f(long, int, AA)"),
            ("_ZN1AIli1BE1fEv", "A<long, int, B>::f", "A<long, int, B>::f()"),
        ] {
            assert_eq!(demangle(symbol, Signature::Name).as_deref(), Some(plain), "{symbol}");
            assert_eq!(demangle(symbol, Signature::Parameters).as_deref(), Some(signature), "{symbol}");
        }
    }
}
