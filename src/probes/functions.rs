//! Functions, if the user requested them.

use serde::Serialize;

use super::CostWord;
use crate::elf::{Convention, FunctionSite, SiteError, SymbolIndex, signature};
use crate::returns::{by_exits, by_trampoline};
use crate::unusable::unusable_reason;

/// A function, or a location in one.
#[derive(Debug, Clone, Serialize)]
pub struct Function {
    /// The symbol, as used in a configuration.
    pub name: String,
    /// The name in its C++ or Rust source.
    pub source_name: Option<String>,
    /// File offset of the probed instruction.
    pub offset: u64,
    /// Size of its code in bytes; 0 if unknown.
    pub size: u64,
    pub cost: CostWord,
    /// How its return is traced.
    #[serde(rename = "return")]
    pub returned: Return,
    /// What is not possible for this function.
    pub limits: Vec<&'static str>,
    /// Why it cannot be traced at all; `None` if it can.
    pub unusable: Option<String>,
}

/// How a function's return is traced: by probes at its exits, unless a probe sets `returns_by: trampoline`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Return {
    /// Number of probes at its exits; 0 if it cannot be traced.
    pub exits: usize,
    /// How many of them need two traps.
    pub single_stepped: usize,
    /// Why it cannot be traced by its exits; `None` if it can.
    pub refused: Option<String>,
    /// Why the kernel must not replace its return address; `None` if `returns_by: trampoline` is possible.
    pub trampoline_refused: Option<String>,
    /// Whether other functions jump into its middle.
    #[serde(skip)]
    is_entered_inside: bool,
}

impl Return {
    fn of(index: &SymbolIndex<'_>, found: &FunctionSite) -> Self {
        if !found.at_entry || matches!(found.convention, Convention::Unknown | Convention::GoStack) {
            // The reason is in `limits`.
            return Return::default();
        }
        let trampoline_refused = by_trampoline(index, found).err();
        match by_exits(index, found, false) {
            Ok(returns) => Return {
                exits: returns.sites.len(),
                single_stepped: returns.single_stepped(),
                refused: None,
                trampoline_refused,
                is_entered_inside: returns.exits.entered_from.is_some(),
            },
            Err(err) => Return { refused: Some(err), trampoline_refused, ..Return::default() },
        }
    }

    /// A short description.
    pub fn word(&self) -> String {
        match (self.exits, self.single_stepped) {
            (0, _) => "none".to_string(),
            (1, 0) => "1 exit".to_string(),
            (exits, 0) => format!("{exits} exits"),
            (1, _) => "1 exit, single-stepped".to_string(),
            (exits, stepped) => format!("{exits} exits, {stepped} single-stepped"),
        }
    }
}

/// Returns the functions that a pattern matches.
///
/// # Errors
/// If there are none; suggests the most similar names.
pub(super) fn functions(index: &SymbolIndex<'_>, pattern: &str) -> Result<Vec<Function>, SiteError> {
    let mut found: Vec<Function> =
        index.sites(pattern)?.into_iter().map(|site| function(index, site)).collect();
    found.sort_by(|a, b| display_name(a).cmp(display_name(b)));
    Ok(found)
}

/// The shortest source name that matches only this function; with parameters it may match others of the same name, too.
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
        Convention::Own(_) => limits.push("no arguments (passed in registers of its own)"),
        Convention::SystemV | Convention::GoRegisters | Convention::OCaml => {}
    }
    if !found.checked {
        limits.push("may not be an instruction boundary");
    }
    let returned = Return::of(index, &found);
    if returned.is_entered_inside {
        limits.push("calls that other functions in assembly make to its middle are not counted");
    }
    Function {
        offset: found.site.offset,
        cost: CostWord::of(found.site.cost()),
        unusable: unusable_reason(&found.site),
        source_name: source_name(index, &found),
        returned,
        name: found.name,
        size: found.size,
        limits,
    }
}

/// The name by which people know it.
pub(super) fn display_name(function: &Function) -> &str {
    function.source_name.as_deref().unwrap_or(&function.name)
}
