//! Copies and parts of functions, recognized by the names that compilers give them.

/// A copy or a part of a function that the compiler made and named after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::elf) struct Clone<'a> {
    /// The function's symbol.
    pub base: &'a str,
    pub kind: CloneKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::elf) enum CloneKind {
    /// A whole function, called like the original: renamed because others have the same name.
    Renamed,
    /// A whole function, specialized for some callers: arguments may be missing or elsewhere.
    Specialised,
    /// Only rarely taken branches, or what remained after the rest was inlined.
    Fragment,
}

/// Parses a symbol's suffixes: GCC's `.isra.0`, `.constprop.0`, `.part.0`, `.cold`, `.lto_priv.0`, LLVM's `.llvm.123`,
/// `.__uniq.123` and, for basic blocks in sections of their own, `.__part.1` and `.eh`. `None` for a symbol without
/// suffixes, or with other ones.
pub(in crate::elf) fn clone_of(name: &str) -> Option<Clone<'_>> {
    if let Some(base) = coroutine_of(name) {
        return Some(Clone { base, kind: CloneKind::Fragment });
    }
    let (base, suffixes) = name.split_once('.').filter(|(base, _)| !base.is_empty())?;
    Some(Clone { base, kind: kind_of(suffixes)? })
}

/// Returns what suffixes such as `constprop.0.cold` mean; `None` if one of them is not a compiler's.
fn kind_of(suffixes: &str) -> Option<CloneKind> {
    let mut kind = None;
    let mut suffixes = suffixes.split('.').peekable();
    while let Some(suffix) = suffixes.next() {
        let is_numbered = suffixes.peek().is_some_and(|next| is_number(next));
        let found = match suffix {
            "cold" | "eh" => CloneKind::Fragment,
            "localalias" => CloneKind::Renamed,
            number if is_number(number) => continue,
            // May be the name of a Go function.
            _ if !is_numbered => return None,
            "part" | "__part" => CloneKind::Fragment,
            "isra" | "constprop" | "specialized" => CloneKind::Specialised,
            "lto_priv" | "llvm" | "__uniq" | "clone" => CloneKind::Renamed,
            _ => return None,
        };
        kind = kind.max(Some(found));
    }
    kind
}

fn is_number(suffix: &str) -> bool {
    !suffix.is_empty() && suffix.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns the symbol of the C++ coroutine of which this is a part that runs when it is resumed or destroyed:
/// `X.resume`, `X.destroy` and `X.cleanup` by LLVM, `...X.Frame.actor` and `...X.Frame.destroy` by GCC. All demangle to
/// the coroutine's name.
pub(in crate::elf) fn coroutine_of(name: &str) -> Option<&str> {
    coroutine_part(name).map(|(coroutine, _)| coroutine)
}

/// Splits the symbol of a coroutine's part into the coroutine's symbol and the suffixes of a copy or part of that part
/// (`.cold`), which may be empty.
fn coroutine_part(name: &str) -> Option<(&str, &str)> {
    if !name.starts_with("_Z") || !name.contains('.') {
        return None;
    }
    let by_gcc = [".Frame.actor", ".Frame.destroy"].into_iter().find_map(|part| name.split_once(part));
    let by_llvm = || [".resume", ".destroy", ".cleanup"].into_iter().find_map(|part| name.split_once(part));
    let (coroutine, suffixes) = match by_gcc {
        Some((frame, suffixes)) => (&frame[frame.rfind("_Z")?..], suffixes),
        None => by_llvm()?,
    };
    let is_known = suffixes.is_empty() || suffixes.strip_prefix('.').and_then(kind_of).is_some();
    is_known.then_some((coroutine, suffixes))
}

impl PartialOrd for CloneKind {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for CloneKind {
    /// Orders by how much of the function is missing.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (*self as u8).cmp(&(*other as u8))
    }
}

/// Returns whether a symbol is a part of a function that the compiler moved elsewhere.
pub(in crate::elf) fn is_fragment(name: &str) -> bool {
    clone_of(name).is_some_and(|clone| clone.kind == CloneKind::Fragment)
}

/// Returns whether a part of a function that the compiler moved elsewhere is also called from outside: by functions
/// into which it inlined the rest, or to resume a coroutine.
pub(in crate::elf) fn is_callable_fragment(name: &str) -> bool {
    if let Some((_, suffixes)) = coroutine_part(name) {
        return !suffixes.contains(".cold");
    }
    let mut suffixes = name.split('.').skip(1);
    suffixes.clone().any(|suffix| suffix == "part") && !suffixes.any(|suffix| suffix == "cold")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::names::{Signature, demangle};

    #[test]
    fn recognizes_function_clones() {
        let of = |name| clone_of(name).map(|clone| (clone.base, clone.kind));
        assert_eq!(of("calc.constprop.0"), Some(("calc", CloneKind::Specialised)));
        assert_eq!(of("calc.isra.0.lto_priv.3"), Some(("calc", CloneKind::Specialised)));
        assert_eq!(of("calc.constprop.0.cold"), Some(("calc", CloneKind::Fragment)));
        assert_eq!(of("calc.llvm.1234567890abcdef"), Some(("calc", CloneKind::Renamed)));
        assert_eq!(of("calc.__uniq.12345.llvm.678"), Some(("calc", CloneKind::Renamed)));
        for other in [
            "calc",
            "calc.0",
            "main.add",
            "main.part",
            "main.clone",
            "net/http.(*conn).serve",
            ".cold",
            "calc.default",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
        assert_eq!(demangle("_Z3fooi.constprop.0", Signature::Parameters).as_deref(), Some("foo(int)"));
    }

    #[test]
    fn recognizes_fragments_and_coroutines() {
        assert_eq!(coroutine_of("_Z3genPZ3geniE13_Z3geni.Frame.actor"), Some("_Z3geni"));
        assert_eq!(coroutine_of("_ZN1A3genEi.resume"), Some("_ZN1A3genEi"));
        assert_eq!(coroutine_of("_Z3genPZ3geniE13_Z3geni.Frame.actor.cold"), Some("_Z3geni"));
        assert_eq!(coroutine_of("_Z3geni.destroy.cold.1"), Some("_Z3geni"));
        assert_eq!(coroutine_of("_Z3geni.resumed"), None);
        assert_eq!(coroutine_of("thread.resume"), None);
        assert!(is_fragment("_Z3genPZ3geniE13_Z3geni.Frame.actor.cold"));
        assert!(is_callable_fragment("_Z3genPZ3geniE13_Z3geni.Frame.actor"));
        assert!(!is_callable_fragment("_Z3genPZ3geniE13_Z3geni.Frame.actor.cold"));
        assert!(is_fragment("_Z3geni.destroy"));
        assert!(is_fragment("_Z3foov.cold") && is_fragment("foo.part.0") && is_fragment("foo.isra.0.cold"));
        assert!(is_fragment("foo.__part.12"));
        assert!(!is_fragment("foo.isra.0") && !is_fragment("foo") && !is_fragment("cold"));
    }
}
