//! Which functions of a file a name or a pattern matches.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::copies::{drop_chained, listed, remarks_on, remarks_on_each};
use super::error::Unnamed;
use super::ifunc::implementations;
use super::names::{Signature, canonical, demangle, glob, is_fragment, literal_words};
use super::near::nearest;
use super::symbol_table::{Symbol, SymbolKind, versioned, versioned_pattern};
use super::{Image, SiteError, SymbolIndex, golang};

/// The functions that a pattern matches.
#[derive(Debug)]
pub(super) struct Selected<'a> {
    pub by_address: BTreeMap<u64, Symbol<'a>>,
    /// Whether the pattern is a whole name rather than a glob.
    pub exact: bool,
    /// Why functions of that name were left out, one sentence each.
    pub left_out: Vec<String>,
}

impl Selected<'_> {
    /// Returns what the user should know about the selection: sentences without a full stop.
    pub fn remarks(&self, index: &SymbolIndex<'_>, pattern: &str) -> Vec<String> {
        let mut remarks = self.left_out.clone();
        remarks.extend(match self.exact {
            true => remarks_on(index, pattern, &self.by_address),
            false => remarks_on_each(index, &self.by_address),
        });
        remarks
    }
}

/// Returns the functions that a pattern matches.
///
/// Symbols take precedence over source names, and these over globs. A name includes all whole copies of the function
/// that the compiler made under other names. Fragments that it moved elsewhere are found only by their symbols: counted
/// as the function, they would count some of its calls twice.
pub(super) fn matching<'a>(index: &SymbolIndex<'a>, pattern: &str) -> Result<Selected<'a>, SiteError> {
    let no_function = match of_symbol(index, pattern) {
        Ok(Some(selected)) => {
            let by_address = without_wrappers(index.image(), selected.by_address);
            return Ok(Selected { by_address, ..selected });
        }
        Err(error) if matches!(error, SiteError::Ifunc { .. }) => return Err(error),
        // A C++ function may have the same name as a variable, or as a function that the file only imports.
        Err(error) => Some(error),
        Ok(None) => None,
    };
    let mut left_out = Vec::new();
    let other_forms = match pattern.split_once(" [clone ") {
        Some((name, suffixes)) => Some(of_copy(index, name, suffixes)),
        None if index.is_go() => {
            pattern.split_once("[...]").map(|(before, after)| of_any_shape(index, before, after))
        }
        None => None,
    };
    match other_forms {
        Some(found) if !found.is_empty() => return Ok(Selected { by_address: found, exact: true, left_out }),
        // Without its suffix, the name would be that of another function.
        Some(_) => return Err(no_function.unwrap_or_else(|| missing(index, pattern))),
        None => {}
    }
    let mut found = BTreeMap::new();
    let (name, version) = versioned_pattern(pattern);
    let is_meant = |symbol: &Symbol<'_>| {
        version.is_none_or(|version| symbol.version.is_some_and(|of| glob(version, of)))
    };
    let has_signature = name.contains(['(', '<', ' ', '[']) || name.contains("::h");
    let is_resolver = |symbol: &Symbol<'_>| symbol.name.ends_with(".resolver");
    let called = index.called(name, has_signature).into_iter();
    let called = called.filter(|symbol| is_meant(symbol) && !is_resolver(symbol));
    called.for_each(|symbol| keep_best(&mut found, *symbol));
    if !found.is_empty() {
        drop_chained(index, &mut found, &mut left_out);
        return Ok(Selected { by_address: found, exact: true, left_out });
    }
    if pattern.contains(['*', '?']) {
        found = globbed(index, name, is_meant);
        if found.is_empty() && version.is_some() {
            // A name may contain an `@`, too.
            found = globbed(index, pattern, |_| true);
        }
        left_out.extend(without_ifuncs(index, name));
    }
    if found.is_empty() {
        return Err(no_function.unwrap_or_else(|| match index.imports(name) {
            true => SiteError::NotProbeable { name: pattern.to_owned(), reason: IMPORTED },
            false => missing(index, pattern),
        }));
    }
    drop_chained(index, &mut found, &mut left_out);
    Ok(Selected { by_address: without_wrappers(index.image(), found), exact: false, left_out })
}

/// Returns the functions with a symbol's name; `None` if there is no such symbol.
fn of_symbol<'a>(index: &SymbolIndex<'a>, pattern: &str) -> Result<Option<Selected<'a>>, SiteError> {
    let (name, version) = versioned(pattern);
    let mut found = BTreeMap::new();
    let mut refused = None;
    let mut labels = Vec::new();
    for symbol in index.named(name) {
        let is_part = symbol.name != name && is_fragment(symbol.name);
        let is_other = |version| symbol.version != Some(version) && (version != "plt" || symbol.defined);
        if is_part || version.is_some_and(is_other) {
            continue;
        }
        // Besides an IFUNC, a plain function of the same name may exist for programs linked long ago (memcpy in glibc).
        // A probe there would look right but never fire.
        if symbol.kind == SymbolKind::Ifunc && symbol.defined {
            return implemented(index, pattern, symbol).map(Some);
        }
        match not_probeable(symbol) {
            None => keep_best(&mut found, *symbol),
            Some(_) if symbol.kind == SymbolKind::Label && symbol.defined => labels.push(*symbol),
            Some(reason) => refused = Some(reason),
        }
    }
    if found.is_empty() {
        let code = labels.into_iter().filter(|label| index.image().code_at(label.vaddr, 1).is_some());
        code.for_each(|label| keep_best(&mut found, label));
    }
    match refused {
        Some(reason) if found.is_empty() => Err(SiteError::NotProbeable { name: pattern.to_owned(), reason }),
        _ if found.is_empty() => Ok(None),
        _ => Ok(Some(Selected { by_address: found, exact: true, left_out: Vec::new() })),
    }
}

/// Returns the functions with a name such as `f(int) [clone .constprop.0]`: the copy or part of a function whose symbol
/// ends in that suffix.
fn of_copy<'a>(index: &SymbolIndex<'a>, name: &str, suffixes: &str) -> BTreeMap<u64, Symbol<'a>> {
    let mut found = BTreeMap::new();
    let suffix = suffixes.trim_end_matches(']').replace("] [clone ", "");
    let wanted = canonical(name);
    for symbol in index.functions() {
        if symbol.name.strip_suffix(suffix.as_str()).is_some_and(|symbol| is_called(symbol, &wanted)) {
            keep_best(&mut found, *symbol);
        }
    }
    found
}

/// Returns whether this is a source name, in canonical form, of the function with this symbol.
pub(super) fn is_called(symbol: &str, wanted: &str) -> bool {
    let mut ways = [Signature::Name, Signature::Parameters, Signature::Whole].into_iter();
    ways.any(|how| demangle(symbol, how).is_some_and(|name| canonical(&name) == wanted))
}

/// Returns the instances of a generic Go function by the name that stack traces and stripped programs have for all of
/// them, `main.Map[...]`.
fn of_any_shape<'a>(index: &SymbolIndex<'a>, before: &str, after: &str) -> BTreeMap<u64, Symbol<'a>> {
    let mut found = BTreeMap::new();
    for symbol in index.functions() {
        let shape = symbol.name.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
        if shape.is_some_and(|shape| shape.starts_with('[') && shape.ends_with(']')) {
            keep_best(&mut found, *symbol);
        }
    }
    found
}

/// Returns the functions from which a program chooses one at startup for an IFUNC, if they are variants that the
/// compiler generated from a single source function (`target_clones`) and are reached only through the IFUNC.
fn implemented<'a>(
    index: &SymbolIndex<'a>,
    pattern: &str,
    ifunc: &Symbol<'_>,
) -> Result<Selected<'a>, SiteError> {
    let all = implementations(index, ifunc);
    let is_own = |symbol: &&Symbol<'a>| {
        symbol.name.strip_prefix(ifunc.name).is_some_and(|suffix| suffix.starts_with('.'))
    };
    let own = |vaddr: &u64| index.functions_at(*vaddr).find(is_own).map(|symbol| (*vaddr, *symbol));
    let by_address: BTreeMap<u64, Symbol<'a>> = all.iter().filter_map(own).collect();
    if by_address.is_empty() || by_address.len() < all.len() {
        let offset = |vaddr| index.image().file_offset(vaddr).map(|offset| format!("{offset:#x}"));
        let named = |vaddr: u64| match index.functions_at(vaddr).next() {
            Some(symbol) => Some(symbol.name.to_owned()),
            None => offset(vaddr),
        };
        let implementations = all.into_iter().filter_map(named).collect();
        return Err(SiteError::Ifunc { name: pattern.to_owned(), implementations });
    }
    let told = "the program chooses one of its variants at its start; calls of all of them are counted";
    Ok(Selected { by_address, exact: true, left_out: vec![told.to_owned()] })
}

/// Returns a remark on the names matching a glob whose implementation the program chooses at startup.
fn without_ifuncs(index: &SymbolIndex<'_>, pattern: &str) -> Option<String> {
    let names: BTreeSet<&str> = index.ifuncs().filter(|name| glob(pattern, name)).collect();
    let names: Vec<&str> = names.into_iter().collect();
    (!names.is_empty()).then(|| {
        format!("without {}: IFUNCs, whose implementations are chosen at program start", listed(&names))
    })
}

/// Returns the functions whose symbols or source names match a glob.
fn globbed<'a>(
    index: &SymbolIndex<'a>,
    pattern: &str,
    is_meant: impl Fn(&Symbol<'a>) -> bool,
) -> BTreeMap<u64, Symbol<'a>> {
    let has_signature = pattern.contains(['(', '<', ' ']);
    let wanted = canonical(pattern);
    let mut found = BTreeMap::new();
    for (symbol, plain) in index.plain_names_with(&literal_words(pattern)) {
        if is_fragment(symbol.name) || !is_meant(symbol) {
            continue;
        }
        let matches = |name: &str| glob(pattern, name) || glob(&wanted, &canonical(name));
        // Parameters are demangled only for a pattern that contains some.
        let signatures = || {
            let of = |signature| demangle(symbol.name, signature);
            let wanted: &[Signature] = match plain {
                Some(_) if has_signature => &[Signature::Parameters, Signature::Whole],
                Some(_) if pattern.contains("::h") => &[Signature::Whole],
                _ => &[],
            };
            wanted.iter().filter_map(|signature| of(*signature)).any(|name| matches(&name))
        };
        if glob(pattern, symbol.name) || plain.is_some_and(matches) || signatures() {
            keep_best(&mut found, *symbol);
        }
    }
    found
}

/// Removes Go's ABI wrappers. A call from Go code to assembly, or back, may go through a function that rearranges the
/// arguments. In a stripped program both have the same name, otherwise one of them has the suffix `.abi0`; the wrapper
/// is left out, so that such a call counts once.
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

const IMPORTED: &str = "this file only imports it; use the shared library that defines it as the binary";

/// Returns why a symbol cannot be probed.
fn not_probeable(symbol: &Symbol<'_>) -> Option<&'static str> {
    match symbol {
        Symbol { defined: false, .. } => Some(IMPORTED),
        Symbol { kind: SymbolKind::Function, .. } => None,
        _ => Some("it is not a function"),
    }
}

/// Returns the error for a pattern that matches no function.
pub(super) fn missing(index: &SymbolIndex<'_>, pattern: &str) -> SiteError {
    let image = index.image();
    let names = index.plain_names().map(|(symbol, plain)| plain.unwrap_or(symbol.name).to_owned());
    let is_packed = || image.section(b".gnu_debugdata").is_some();
    let unnamed = (image.is_stripped() && image.pclntab().is_none()).then(|| match index.misfit() {
        Some(path) => Unnamed::Misfit(path.to_owned()),
        None if is_packed() => Unnamed::Packed,
        None => Unnamed::Stripped,
    });
    SiteError::NoFunction { pattern: pattern.to_owned(), near: nearest(pattern, names), unnamed }
}

/// Of several names for one address, prefers the exported one, then the one with the fewest leading underscores. Of
/// several symbols with that name, one tells its version.
fn keep_best<'a>(found: &mut BTreeMap<u64, Symbol<'a>>, symbol: Symbol<'a>) {
    let rank = |s: &Symbol<'a>| {
        let underscores = s.name.len() - s.name.trim_start_matches('_').len();
        (!s.global, underscores, s.name.len(), s.name, s.version.is_none())
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
