//! Functions, where the user asks for some.

use serde::Serialize;

use super::CostWord;
use crate::elf::{Convention, FunctionSite, SiteError, SymbolIndex, signature};
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
pub(super) fn functions(index: &SymbolIndex<'_>, pattern: &str) -> Result<Vec<Function>, SiteError> {
    let mut found: Vec<Function> =
        index.sites(pattern)?.into_iter().map(|site| function(index, site)).collect();
    found.sort_by(|a, b| shown(a).cmp(shown(b)));
    Ok(found)
}

/// The shortest name in the source that means this function alone; with parameters it may mean others of the same name, too.
fn source_name(index: &SymbolIndex<'_>, found: &FunctionSite) -> Option<String> {
    let name = found.demangled.clone()?;
    if index.entries(&name) == [found.entry] {
        return Some(name);
    }
    signature(&found.name).filter(|whole| index.entries(whole).contains(&found.entry))
}

fn function(index: &SymbolIndex<'_>, found: FunctionSite) -> Function {
    let mut limits = Vec::new();
    if !found.at_entry {
        limits.push("no return, no arguments (not a function entry)");
    }
    match found.convention {
        Convention::Unknown => limits.push("no return, no arguments (assembly, or an unknown Go version)"),
        Convention::GoStack => limits.push("no return (arguments on the stack)"),
        Convention::SystemV | Convention::GoRegisters => {}
    }
    if !found.checked {
        limits.push("may not be an instruction boundary");
    }
    Function {
        offset: found.site.offset,
        cost: CostWord::of(found.site.cost()),
        unusable: unfit(&found.site, true),
        source_name: source_name(index, &found),
        name: found.name,
        size: found.size,
        limits,
    }
}

/// The name that people know it by.
pub(super) fn shown(function: &Function) -> &str {
    function.source_name.as_deref().unwrap_or(&function.name)
}
