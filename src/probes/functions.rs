//! Functions, where the user asks for some.

use std::collections::HashMap;

use serde::Serialize;

use super::CostWord;
use crate::elf::{Convention, FunctionSite, Image, SiteError, function_sites, signature};
use crate::resolve::unfit;

/// A function, or a place in one.
#[derive(Debug, Clone, Serialize)]
pub struct Function {
    /// The symbol, as a configuration names it.
    pub name: String,
    /// The name in its C++ or Rust source.
    pub source_name: Option<String>,
    /// Offset in the file of the instruction that is probed.
    pub offset: u64,
    /// Bytes of code; 0 when unknown.
    pub size: u64,
    pub cost: CostWord,
    /// What is not possible here.
    pub limits: Vec<&'static str>,
    /// Why it cannot be traced at all; None if it can.
    pub unusable: Option<String>,
}

/// The functions that a pattern names.
///
/// # Errors
/// If there is none; with the nearest names.
pub(super) fn functions(image: &Image<'_>, pattern: &str) -> Result<Vec<Function>, SiteError> {
    let mut found: Vec<Function> = function_sites(image, pattern)?.into_iter().map(function).collect();
    name_by_signature(&mut found);
    found.sort_by(|a, b| shown(a).cmp(shown(b)));
    Ok(found)
}

/// Names functions that have one name by their parameters too, so that each can be chosen by what is shown of it.
fn name_by_signature(found: &mut [Function]) {
    let mut count: HashMap<String, usize> = HashMap::new();
    for name in found.iter().filter_map(|function| function.source_name.as_ref()) {
        *count.entry(name.clone()).or_default() += 1;
    }
    for function in found {
        let ambiguous = function.source_name.as_ref().is_some_and(|name| count[name] > 1);
        if ambiguous && let Some(whole) = signature(&function.name) {
            function.source_name = Some(whole);
        }
    }
}

fn function(found: FunctionSite) -> Function {
    let mut limits = Vec::new();
    if !found.at_entry {
        limits.push("no return, no arguments (not an entry)");
    }
    match found.convention {
        Convention::Unknown => limits.push("no return, no arguments (assembly, or a Go that is not known)"),
        Convention::GoStack => limits.push("no return (arguments on the stack)"),
        Convention::SystemV | Convention::GoRegisters => {}
    }
    if !found.checked {
        limits.push("not known to be the start of an instruction");
    }
    Function {
        offset: found.site.offset,
        cost: CostWord::of(found.site.cost()),
        unusable: unfit(&found.site, true),
        name: found.name,
        source_name: found.demangled,
        size: found.size,
        limits,
    }
}

/// The name that people know it by.
pub(super) fn shown(function: &Function) -> &str {
    function.source_name.as_deref().unwrap_or(&function.name)
}
