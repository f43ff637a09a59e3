//! Which functions of a file a name or a pattern means.

use std::collections::{BTreeMap, HashMap};

use super::copies::{drop_chained, remarks_on, remarks_on_each};
use super::names::{
    CloneKind, Signature, canonical, clone_of, demangle, glob, is_fragment, literal_words, may_demangle_to,
};
use super::near::nearest;
use super::symbols::{Kind, Symbol, is_stripped, symbols};
use super::{Image, SiteError, golang};

/// The functions that a pattern means.
#[derive(Debug)]
pub(super) struct Selected<'a> {
    pub by_address: BTreeMap<u64, Symbol<'a>>,
    /// The pattern is a whole name rather than a glob.
    pub exact: bool,
    /// What the user should know of the choice.
    pub remarks: Vec<String>,
}

/// The functions that a pattern means.
///
/// A symbol's own name goes before names as the source has them, and these before globs. A name means all whole copies
/// of the function that the compiler made under names of their own. Fragments that it moved elsewhere are found only by
/// their symbols: as the function, they would count some of its calls twice.
pub(super) fn matching<'a>(image: &Image<'a>, pattern: &str) -> Result<Selected<'a>, SiteError> {
    let selected = |by_address, exact, remarks| Ok(Selected { by_address, exact, remarks });
    let (name, version) = match pattern.split_once('@') {
        Some((name, version)) if !name.is_empty() => (name, Some(version.trim_start_matches('@'))),
        _ => (pattern, None),
    };
    let mut found = BTreeMap::new();
    let mut remarks = Vec::new();
    let mut refused = None;
    let mut labels = Vec::new();
    for symbol in symbols(image) {
        let is_copy = || {
            clone_of(symbol.name).is_some_and(|clone| clone.base == name && clone.kind != CloneKind::Fragment)
        };
        if symbol.name != name && !is_copy() || version.is_some_and(|version| symbol.version != Some(version))
        {
            continue;
        }
        match not_probeable(&symbol) {
            None => keep_best(&mut found, symbol),
            Some(_) if symbol.kind == Kind::Label && symbol.defined => labels.push(symbol),
            Some(why) => refused = refused.max(Some((symbol.kind == Kind::Ifunc, why))),
        }
    }
    if found.is_empty() {
        let code = labels.into_iter().filter(|label| image.code_at(label.vaddr, 1).is_some());
        code.for_each(|label| keep_best(&mut found, label));
    }
    match refused {
        // An IFUNC may keep a plain function of its name for programs linked long ago (memcpy in glibc). A
        // probe there would look right and see nothing.
        Some((ifunc, why)) if ifunc || found.is_empty() => {
            return Err(SiteError::NotProbeable { name: pattern.to_owned(), why });
        }
        _ if !found.is_empty() => {
            remarks.extend(remarks_on(image, pattern, &found));
            return selected(without_wrappers(image, found), true, remarks);
        }
        _ => {}
    }

    let is_glob = pattern.contains(['*', '?']);
    let has_signature = pattern.contains(['(', '<', ' ']);
    let words = literal_words(pattern);
    let wanted = canonical(pattern);
    let mut globbed = BTreeMap::new();
    for symbol in functions(image).filter(|s| !is_fragment(s.name)) {
        let of = |signature| demangle(symbol.name, signature);
        let plain = if may_demangle_to(symbol.name, &words) { of(Signature::Name) } else { None };
        // Parameters are written out only for a pattern that has some.
        let mut names = plain.into_iter().collect::<Vec<_>>();
        if has_signature && !names.is_empty() {
            names.extend([Signature::Parameters, Signature::Whole].into_iter().filter_map(of));
        } else if pattern.contains("::h") && !names.is_empty() {
            names.extend(of(Signature::Whole));
        }
        if names.iter().any(|name| name == pattern || canonical(name) == wanted) {
            keep_best(&mut found, symbol);
        } else if is_glob
            && (glob(pattern, symbol.name)
                || names.iter().any(|name| glob(pattern, name) || glob(&wanted, &canonical(name))))
        {
            keep_best(&mut globbed, symbol);
        }
    }
    match (found.is_empty(), globbed.is_empty()) {
        (false, _) => {
            drop_chained(image, &mut found, &mut remarks);
            remarks.extend(remarks_on(image, pattern, &found));
            selected(found, true, remarks)
        }
        (true, false) => {
            drop_chained(image, &mut globbed, &mut remarks);
            remarks.extend(remarks_on_each(image, &globbed));
            selected(without_wrappers(image, globbed), false, remarks)
        }
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
    let names =
        functions(image).map(|s| demangle(s.name, Signature::Name).unwrap_or_else(|| s.name.to_owned()));
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
