//! Where functions are entered and left. Pure.

use crate::abi::{site, site_flag};
use crate::arguments::{reads, with_calling_convention};
use crate::config::model::ReturnsBy;
use crate::elf::{Convention, FunctionResult, FunctionSite, Parameters, Site, SymbolIndex};
use crate::plan::{Pairing, ProbeHook, ProbePlan, ValueSource};
use crate::returns::{Costs, Returns, by_exits, by_trampoline, entered_inside, turns};
use crate::unusable::{UnusableSite, unusable_reason};

/// The x86 condition "above", as encoded for the kernel side.
const CONDITION_ABOVE: u32 = 7 + 1;

const OLD_CODE: &str = "the file was rewritten by BOLT, and some of its code is still executed at its old \
                        place, which has no names: calls of functions there are not counted";

const UNTOLD_ARGUMENTS: &str = "are specialised clones without debug information: the compiler may have removed arguments \
                               or moved them to other registers, so values read from them may be wrong";

const OCAML: &str = "arguments are read from OCaml's registers, in the order of the source, without `float`s; a whole number n is \
                     2n + 1 in them, and in retval";

/// A place for a probe, before its values are located.
#[derive(Debug)]
pub(crate) struct ProbePlace {
    pub at: Site,
    /// The part of the site that does not depend on values.
    pub entry: site,
    /// The number of the function's name.
    pub function: u32,
    /// The function, or the file offset of a USDT probe's site.
    pub name: String,
    /// File offset of the probe at the function's entry.
    pub offset: u64,
    pub is_exit: bool,
    /// The function's arguments from debug information.
    pub parameters: Option<Parameters>,
    /// The function's result from debug information, if it is read.
    pub result: Option<FunctionResult>,
}

/// Functions of one probe of which only the entry is traced, and which are examined nevertheless, at most.
const MAX_EXAMINED: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct FoundPlaces {
    pub places: Vec<ProbePlace>,
    /// Functions that cannot be traced as requested.
    pub unusable: Vec<UnusableSite>,
    pub remarks: Vec<String>,
    pub warnings: Vec<String>,
}

impl ProbePlace {
    pub fn of_usdt(at: Site) -> Self {
        let (offset, name) = (at.offset, format!("offset {:#x}", at.offset));
        let (entry, is_exit) = (site::default(), false);
        Self { at, entry, function: 0, name, offset, is_exit, parameters: None, result: None }
    }
}

/// Where the functions are entered or left. Functions of several that cannot be traced are left out, with a note.
pub(crate) fn places_in(
    index: &SymbolIndex<'_>,
    probe: &ProbePlan,
    functions: Vec<FunctionSite>,
    name: &mut dyn FnMut(&str) -> u32,
) -> FoundPlaces {
    let is_return = probe.hook == ProbeHook::Return;
    // A start without its end would only use up space.
    let is_traced = is_return || probe.span.is_some_and(|span| span.by == Pairing::Frame);
    let mut found = FoundPlaces::default();
    let mut exits = Costs::default();
    let mut untold = Vec::new();
    let mut entered = Vec::new();
    // Examining all functions of a large file would take longer than attaching to them.
    let are_few = functions.len() <= MAX_EXAMINED;
    let reads_words = reads(&probe.values) || reads_result(probe);
    if reads_words && functions.iter().any(|function| function.convention == Convention::OCaml) {
        found.remarks.push(OCAML.to_string());
    }
    if !functions.is_empty() && index.code().runs_old_code() {
        found.warnings.push(OLD_CODE.to_string());
    }
    for (n, function) in functions.into_iter().enumerate() {
        let display = function.demangled.clone().unwrap_or_else(|| function.name.clone());
        if !function.at_entry && probe.values.iter().any(|value| value.source == ValueSource::Caller) {
            let reason = "`caller` is only known at a function's entry".to_string();
            found.unusable.push(UnusableSite { name: display, reason });
            continue;
        }
        let pairing = if is_traced { pairing_flags(&function) } else { 0 };
        let condition = if function.if_above { CONDITION_ABOVE } else { 0 };
        let entry = site { function: n as u32, flags: pairing, condition, ..site::default() };
        let mut left = Vec::new();
        if is_traced {
            match trace(index, probe, &function) {
                Ok(Traced::Exits(returns)) => {
                    exits.add(index, &display, &function, &returns);
                    left = returns.sites;
                    left.extend(returns.passages);
                }
                Ok(Traced::Trampoline(warning)) if is_return => found.warnings.extend(warning),
                Ok(Traced::Trampoline(_)) => {}
                Err(err) => {
                    let reason = format!("its return cannot be traced: {err}");
                    found.unusable.push(UnusableSite { name: display, reason });
                    continue;
                }
            }
        }
        let number = name(&display);
        let result = if reads_result(probe) { index.parameters(&function) } else { None };
        let result = result.and_then(|parameters| parameters.result);
        if is_return && probe.returns_by == ReturnsBy::Exits {
            found.places.extend(left.into_iter().map(|(at, exit)| ProbePlace {
                at,
                entry: site { function: n as u32, flags: pairing | exit.flags, ..exit },
                function: number,
                name: display.clone(),
                offset: function.site.offset,
                is_exit: true,
                parameters: None,
                result: result.clone(),
            }));
        } else {
            let offset = function.site.offset;
            if !is_traced && are_few && index.code().is_entered_inside(function.entry, function.size) {
                entered.push(display.clone());
            }
            // If its return is traced, the start of a call distinguishes it from an iteration of the loop.
            let turns = if is_traced { Ok(Vec::new()) } else { turns(index, &function) };
            let turns = turns.unwrap_or_else(|err| {
                found.warnings.push(format!(
                    "{display} begins with a loop, each iteration of which counts as a call: {err}"
                ));
                Vec::new()
            });
            let mut entry = entry;
            if !turns.is_empty() {
                entry.flags |= site_flag::SITE_LOOP_HEAD.0;
                found.remarks.push(format!(
                    "{display} begins with a loop, whose jumps are probed too: an iteration is not a call"
                ));
            }
            found.places.extend(turns.into_iter().map(|(at, turn)| ProbePlace {
                at,
                entry: site { function: n as u32, ..turn },
                function: number,
                name: display.clone(),
                offset,
                is_exit: true,
                parameters: None,
                result: None,
            }));
            let may_lack_arguments = function.specialised && reads(&probe.values);
            let (at, parameters) = with_calling_convention(index, function, reads(&probe.values));
            if may_lack_arguments && parameters.is_none() {
                untold.push(display.clone());
            }
            found.places.push(ProbePlace {
                at,
                entry,
                function: number,
                name: display,
                offset,
                is_exit: false,
                parameters,
                result,
            });
        }
    }
    if is_return {
        found.remarks.extend(exits.notes());
    }
    if !entered.is_empty() {
        found.remarks.push(entered_inside(&entered));
    }
    if !untold.is_empty() {
        found.warnings.push(format!("{} {UNTOLD_ARGUMENTS}", untold.join(", ")));
    }
    found
}

fn reads_result(probe: &ProbePlan) -> bool {
    probe
        .values
        .iter()
        .any(|value| matches!(value.source, ValueSource::Retval(_) | ValueSource::ResultField { .. }))
}

enum Traced {
    Exits(Returns),
    /// With a warning, if any.
    Trampoline(Option<String>),
}

fn trace(index: &SymbolIndex<'_>, probe: &ProbePlan, function: &FunctionSite) -> Result<Traced, String> {
    if let Some(reason) = unusable_reason(&function.site) {
        return Err(reason);
    }
    if !function.at_entry {
        return Err("the place is not a function entry".to_string());
    }
    if matches!(function.convention, Convention::Unknown | Convention::GoStack) {
        return Err("this is a Go program, which crashes if return addresses are replaced, and no register \
             holds the goroutine: the function is assembly, or built by Go before 1.17 or an unknown version"
            .to_string());
    }
    match probe.returns_by {
        ReturnsBy::Exits => {
            let reads_result = probe.span.is_some_and(|span| span.reads_result);
            by_exits(index, function, reads_result).map(Traced::Exits)
        }
        ReturnsBy::Trampoline if index.turns(function).is_some() => Err(
            "it begins with a loop, and `returns_by: trampoline` would take each turn for a call; remove it"
                .to_string(),
        ),
        ReturnsBy::Trampoline => by_trampoline(index, function).map(Traced::Trampoline),
    }
}

/// How a call is identified at its entry and its exits.
fn pairing_flags(function: &FunctionSite) -> u32 {
    if function.convention == Convention::GoRegisters { site_flag::SITE_GOROUTINE.0 } else { 0 }
}
