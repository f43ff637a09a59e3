//! The number of parameters in a C++ function's symbol.

use super::{Signature, demangle};

/// Returns how many parameters the symbol of a C++ function has. `None` for any other symbol, and if it is ambiguous.
pub(in crate::elf) fn parameter_count(symbol: &str) -> Option<usize> {
    let name = demangle(symbol, Signature::Parameters).filter(|_| symbol.starts_with("_Z"))?;
    let end = name.rfind(')')?;
    let mut depth = 0_usize;
    let start = name[..end].rfind(|c| match c {
        ')' => {
            depth += 1;
            false
        }
        '(' => depth.checked_sub(1).map(|less| depth = less).is_none(),
        _ => false,
    })?;
    let list = name[start + 1..end].strip_suffix("...").unwrap_or(&name[start + 1..end]);
    let list = list.trim_end().trim_end_matches(',');
    if list.is_empty() {
        return Some(0);
    }
    // An expression among template arguments.
    if list.contains("->") {
        return None;
    }
    let mut commas = 0;
    for c in list.chars() {
        match c {
            '(' | '<' | '[' | '{' => depth += 1,
            ')' | '>' | ']' | '}' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 => commas += 1,
            _ => {}
        }
    }
    (depth == 0).then_some(commas + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_parameters_of_mangled_names() {
        for (symbol, count) in [
            ("_Z1fv", 0),
            ("_Z1fi", 1),
            ("_Z1gi2NTlz", 3),
            ("_Z1fz", 0),
            ("_ZN1K1mEbSt10unique_ptrIiSt14default_deleteIiEEl", 3),
            ("_Z1fPFvilEl", 2),
            ("_ZNK1AclEil", 2),
            ("_ZN1AcviEv", 0),
            ("_Z1fILi3EEvRA3_iT_.constprop.0", 2),
        ] {
            let name = demangle(symbol, Signature::Parameters);
            assert_eq!(parameter_count(symbol), Some(count), "{symbol}: {name:?}");
        }
        for other in ["main", "_RNvC4main5weigh", "_ZN4main5weigh17h0123456789abcdefE"] {
            assert_eq!(parameter_count(other), None, "{other}");
        }
    }
}
