//! Which functions of a file a name or a pattern means.

use std::collections::{BTreeMap, HashMap};

use super::names::{demangle, glob, is_fragment, literal_words, may_demangle_to};
use super::near::nearest;
use super::symbols::{Kind, Symbol, is_stripped, symbols};
use super::{Image, SiteError, golang};

/// The matching functions by address, and whether the pattern is one's whole name rather than a glob.
///
/// A symbol's own name goes before names as the source has them, and these before globs. Fragments of a
/// function that the compiler moved elsewhere are found only by their symbols: as the function, they would
/// count some of its calls twice.
pub(super) fn matching<'a>(
    image: &Image<'a>,
    pattern: &str,
) -> Result<(BTreeMap<u64, Symbol<'a>>, bool), SiteError> {
    let mut found = BTreeMap::new();
    let mut refused = None;
    for symbol in symbols(image).filter(|s| s.name == pattern) {
        match not_probeable(&symbol) {
            None => keep_best(&mut found, symbol),
            Some(why) => refused = refused.max(Some((symbol.kind == Kind::Ifunc, why))),
        }
    }
    match refused {
        // An IFUNC may keep a plain function of its name for programs linked long ago (memcpy in glibc). A
        // probe there would look right and see nothing.
        Some((ifunc, why)) if ifunc || found.is_empty() => {
            return Err(SiteError::NotProbeable { name: pattern.to_owned(), why });
        }
        _ if !found.is_empty() => return Ok((without_wrappers(image, found), true)),
        _ => {}
    }

    let is_glob = pattern.contains(['*', '?']);
    let words = literal_words(pattern);
    let mut globbed = BTreeMap::new();
    for symbol in functions(image).filter(|s| !is_fragment(s.name)) {
        let plain = if may_demangle_to(symbol.name, &words) { demangle(symbol.name, false) } else { None };
        let is = |name: &Option<String>| name.as_deref() == Some(pattern);
        // Parameters are written out only for a pattern that has some.
        if is(&plain) || plain.is_some() && pattern.contains(['(', '<']) && is(&demangle(symbol.name, true)) {
            keep_best(&mut found, symbol);
        } else if is_glob && (glob(pattern, symbol.name) || plain.is_some_and(|name| glob(pattern, &name))) {
            keep_best(&mut globbed, symbol);
        }
    }
    match (found.is_empty(), globbed.is_empty()) {
        (false, _) => Ok((found, true)),
        (true, false) => Ok((without_wrappers(image, globbed), false)),
        (true, true) => Err(missing(image, pattern)),
    }
}

/// A call from Go code to assembly, or back, may go through a function that puts the arguments elsewhere. A stripped
/// program names both alike, another gives one of them the suffix `.abi0`; the wrapper is left out, so that such a call
/// counts once.
fn without_wrappers<'a>(
    image: &Image<'a>,
    mut found: BTreeMap<u64, Symbol<'a>>,
) -> BTreeMap<u64, Symbol<'a>> {
    let Some(table) = image.pclntab() else { return found };
    let mut alike: HashMap<&str, Vec<u64>> = HashMap::new();
    for symbol in found.values() {
        let name = symbol.name.strip_suffix(".abi0").unwrap_or(symbol.name);
        alike.entry(name).or_default().push(symbol.vaddr);
    }
    for group in alike.into_values().filter(|group| group.len() > 1) {
        for wrapper in golang::wrappers(image, &table, &group) {
            found.remove(&wrapper);
        }
    }
    found
}

/// Why no probe can be set on what a symbol names.
fn not_probeable(symbol: &Symbol<'_>) -> Option<&'static str> {
    match symbol {
        Symbol { defined: false, .. } => {
            Some("this file only refers to it; name the shared library that holds it as the binary")
        }
        Symbol { kind: Kind::Ifunc, .. } => Some(
            "which code it stands for is chosen when the program starts (an IFUNC); probe the implementation \
             that this processor uses",
        ),
        Symbol { kind: Kind::Function, .. } => None,
        _ => Some("it is not a function"),
    }
}

/// Why no function matches.
pub(super) fn missing(image: &Image<'_>, pattern: &str) -> SiteError {
    let names = functions(image).map(|s| demangle(s.name, false).unwrap_or_else(|| s.name.to_owned()));
    SiteError::NoFunction {
        pattern: pattern.to_owned(),
        near: nearest(pattern, names),
        stripped: is_stripped(image) && image.pclntab().is_none(),
    }
}

/// The functions whose code the file holds.
pub(super) fn functions<'a>(image: &Image<'a>) -> impl Iterator<Item = Symbol<'a>> + use<'a> {
    symbols(image).filter(|s| s.kind == Kind::Function && s.defined)
}

/// Of several names for one address, the exported one, then the one with the fewest leading underscores.
fn keep_best<'a>(found: &mut BTreeMap<u64, Symbol<'a>>, symbol: Symbol<'a>) {
    let rank = |s: &Symbol<'a>| {
        let underscores = s.name.len() - s.name.trim_start_matches('_').len();
        (!s.global, underscores, s.name.len(), s.name)
    };
    found
        .entry(symbol.vaddr)
        .and_modify(|old| {
            if rank(&symbol) < rank(old) {
                *old = symbol;
            }
        })
        .or_insert(symbol);
}
