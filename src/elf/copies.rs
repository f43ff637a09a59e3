//! What a symbol does not reveal about the function that it names: copies and parts made by the compiler, code shared
//! by several functions, functions of the same name that call each other, and entries that are jumped to.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};

use super::names::{CloneKind, Signature, clone_of, coroutine_of, demangle, is_callable_fragment, is_thunk};
use super::symbol_table::{Symbol, SymbolKind};
use super::{FunctionSite, Image, Passage, Site, SymbolIndex};

/// The size of the largest function that is decoded.
const DECODED_MAX: u64 = 256 << 10;
/// Names that a note lists at most.
const MAX_LISTED: usize = 4;

/// Returns what the user should know about the functions found for a name.
pub(super) fn remarks_on(
    index: &SymbolIndex<'_>,
    pattern: &str,
    found: &BTreeMap<u64, Symbol<'_>>,
) -> Vec<String> {
    let mut remarks = Vec::new();
    let bases: BTreeSet<&str> =
        found.values().map(|symbol| clone_of(symbol.name).map_or(symbol.name, |clone| clone.base)).collect();
    let copies: Vec<&str> = found
        .values()
        .map(|symbol| symbol.name)
        .filter(|name| *name != pattern && clone_of(name).is_some_and(|c| c.kind == CloneKind::Specialised))
        .collect();
    if !copies.is_empty() {
        remarks.push(format!(
            "also attached to the specialised clone{} {}, whose arguments may be missing or in other registers (debug \
             information tells)",
            if copies.len() == 1 { "" } else { "s" },
            listed(&copies)
        ));
    }
    let mut parts = BTreeSet::new();
    let mut shared = BTreeSet::new();
    let mut resumed = BTreeSet::new();
    let mut same_name = 0;
    let own = |symbol: &Symbol<'_>| bases.contains(clone_of(symbol.name).map_or(symbol.name, |c| c.base));
    for symbol in found.keys().flat_map(|vaddr| index.functions_at(*vaddr)) {
        if !own(symbol) && differs(symbol, found) {
            shared.insert(symbol.name);
        }
    }
    for symbol in bases.iter().flat_map(|base| index.named(base)) {
        let is_part =
            symbol.kind == SymbolKind::Function && symbol.name.split('.').any(|suffix| suffix == "part");
        if is_part && symbol.defined && !found.contains_key(&symbol.vaddr) {
            parts.insert(symbol.name);
        } else if coroutine_of(symbol.name).is_some_and(|of| bases.contains(of))
            && is_callable_fragment(symbol.name)
        {
            resumed.insert(symbol.name);
        }
    }
    if found.len() > 1 && bases.len() == 1 && copies.is_empty() {
        same_name = found.values().filter(|symbol| !symbol.global).count();
    }
    if !parts.is_empty() {
        let parts: Vec<_> = parts.into_iter().collect();
        remarks.push(format!(
            "the compiler split off {}: calls whose first part was inlined into the caller are not counted",
            listed(&parts)
        ));
    }
    if !resumed.is_empty() {
        let names: Vec<_> = resumed.into_iter().collect();
        remarks.push(format!(
            "it is a coroutine: a call ends at the first suspension; the resumed part is {}",
            listed(&names)
        ));
    }
    if !shared.is_empty() {
        let names: Vec<_> = shared.into_iter().collect();
        let (have, their) = if names.len() == 1 { ("has", "its") } else { ("have", "their") };
        remarks.push(format!("{} {have} the same code, so {their} calls are counted too", listed(&names)));
    }
    if same_name > 1 {
        remarks.push(format!("{same_name} local functions have this name; calls of all of them are counted"));
    }
    remarks.extend(remarks_on_each(index, found));
    remarks
}

/// Returns what the user should know about each function individually, whatever pattern found it.
pub(super) fn remarks_on_each(index: &SymbolIndex<'_>, found: &BTreeMap<u64, Symbol<'_>>) -> Vec<String> {
    let mut remarks = Vec::new();
    let begins_with_untold_loop = |symbol: &&Symbol<'_>| {
        is_jumped_to(index, symbol.vaddr, symbol.size)
            && index.code().turns(symbol.vaddr, symbol.size).is_err()
    };
    let loops: Vec<&str> = found.values().filter(begins_with_untold_loop).map(|symbol| symbol.name).collect();
    if !loops.is_empty() {
        remarks.push(format!(
            "the first instruction of {} is also the target of a jump inside the function (a loop): each \
             iteration counts as a call",
            listed(&loops)
        ));
    }
    let is_later = |symbol: &&Symbol<'_>| {
        let is_unfit = Site::at(index.image(), symbol.vaddr).is_some_and(|site| !site.shape.takes_probe());
        is_unfit && index.code().probed_entry(symbol.vaddr) != symbol.vaddr
    };
    let later: Vec<&str> = found.values().filter(is_later).map(|symbol| symbol.name).collect();
    if !later.is_empty() {
        remarks.push(format!(
            "{} cannot be probed at the first instruction, but right behind it: arguments are the same there, memory may \
             have been changed by it",
            listed(&later)
        ));
    }
    remarks
}

impl SymbolIndex<'_> {
    /// Returns the jumps of the function to its first instruction, if it begins with a loop; `None` if it does not, or
    /// if that is not known for certain.
    pub fn turns(&self, function: &FunctionSite) -> Option<Vec<Passage>> {
        if !is_jumped_to(self, function.entry, function.size) {
            return None;
        }
        self.code().turns(function.entry, function.size).ok().filter(|turns| !turns.is_empty())
    }
}

/// Returns whether the source has another name for it, rather than just the file another symbol.
fn differs(symbol: &Symbol<'_>, found: &BTreeMap<u64, Symbol<'_>>) -> bool {
    let trimmed = |name: &str| name.trim_start_matches('_').to_owned();
    let plain = |name: &str| demangle(name, Signature::Parameters).unwrap_or_else(|| trimmed(name));
    found.get(&symbol.vaddr).is_some_and(|known| plain(known.name) != plain(symbol.name))
}

/// Formats the first few names, and how many more there are.
pub(super) fn listed(names: &[&str]) -> String {
    let displayed: Vec<String> = names
        .iter()
        .take(MAX_LISTED)
        .map(|name| match clone_of(name) {
            Some(_) => (*name).to_owned(),
            None => demangle(name, Signature::Name).unwrap_or_else(|| (*name).to_owned()),
        })
        .collect();
    let more = names.len().saturating_sub(MAX_LISTED);
    match more {
        0 => displayed.join(", "),
        more => format!("{} and {more} more", displayed.join(", ")),
    }
}

/// Returns the slots, filled in by the loader, through which a function calls and jumps, as with `-fno-plt`.
fn slots(image: &Image<'_>, symbol: &Symbol<'_>) -> Vec<u64> {
    let leads_on = |flow| matches!(flow, FlowControl::IndirectCall | FlowControl::IndirectBranch);
    instructions(image, symbol)
        .filter(|one| leads_on(one.flow_control()) && one.is_ip_rel_memory_operand())
        .map(|one| one.ip_rel_memory_address())
        .collect()
}

pub(super) fn instructions<'a>(
    image: &Image<'a>,
    symbol: &Symbol<'_>,
) -> impl Iterator<Item = Instruction> + use<'a> {
    instructions_at(image, symbol.vaddr, symbol.size)
}

fn instructions_at<'a>(
    image: &Image<'a>,
    vaddr: u64,
    size: u64,
) -> impl Iterator<Item = Instruction> + use<'a> {
    let is_read = size != 0 && size <= DECODED_MAX && image.arch() == super::Arch::X86_64;
    let code = if is_read { image.code_at(vaddr, size as usize) } else { None };
    let mut decoder = Decoder::with_ip(64, code.unwrap_or(&[]), vaddr, DecoderOptions::NONE);
    std::iter::from_fn(move || decoder.can_decode().then(|| decoder.decode()))
}

/// Returns the targets of direct jumps and calls in a function, and whether each is a call.
fn targets(image: &Image<'_>, symbol: &Symbol<'_>) -> Vec<(u64, bool)> {
    targets_at(image, symbol.vaddr, symbol.size)
}

fn targets_at(image: &Image<'_>, vaddr: u64, size: u64) -> Vec<(u64, bool)> {
    instructions_at(image, vaddr, size)
        .filter_map(|instruction| match instruction.flow_control() {
            FlowControl::Call => Some((instruction.near_branch_target(), true)),
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
                Some((instruction.near_branch_target(), false))
            }
            _ => None,
        })
        .filter(|(target, _)| *target != 0)
        .collect()
}

/// Returns whether a jump inside the function, or in a part that the compiler moved elsewhere, leads to the probed
/// instruction. Go functions jump back there when the stack has grown, and are probed after that check.
fn is_jumped_to(index: &SymbolIndex<'_>, entry: u64, size: u64) -> bool {
    if let Some(known) = index.jumped_to.borrow().get(&entry) {
        return *known;
    }
    let image = index.image();
    let is_jump_to_first = |(target, call): &(u64, bool)| !call && index.code().is_first(*target, entry);
    let targets = if image.pclntab().is_some() { Vec::new() } else { targets_at(image, entry, size) };
    let moved_away = |(target, call): &(u64, bool)| {
        let is_outside = !call && target.wrapping_sub(entry) >= size;
        let part =
            index.code().around(*target).filter(|part| is_outside && !index.code().is_function(part.start));
        part.map(|part| targets_at(image, part.start, part.end - part.start))
    };
    let is = targets.iter().any(is_jump_to_first)
        || targets.iter().filter_map(moved_away).any(|part| part.iter().any(is_jump_to_first))
        || is_switched_to(index, entry, size);
    index.jumped_to.borrow_mut().insert(entry, is);
    is
}

/// Returns whether a jump table of the function leads to its first instruction.
fn is_switched_to(index: &SymbolIndex<'_>, entry: u64, size: u64) -> bool {
    let image = index.image();
    let is_indirect = |now: Instruction| now.flow_control() == FlowControl::IndirectBranch;
    image.pclntab().is_none()
        && instructions_at(image, entry, size).any(is_indirect)
        && index.code().turns(entry, size).is_ok_and(|turns| !turns.is_empty())
}

/// Removes, from functions with the same name, those that call or jump to another one of them: a deleting destructor
/// that calls the complete one, or a thunk. Such calls would be counted twice.
pub(super) fn drop_chained(
    index: &SymbolIndex<'_>,
    found: &mut BTreeMap<u64, Symbol<'_>>,
    remarks: &mut Vec<String>,
) {
    let leads_on = |symbol: &Symbol<'_>| {
        let is_found = |target: u64| {
            let stub = stub_name(index, target).into_iter().flat_map(|name| index.named(name));
            target != symbol.vaddr
                && (found.contains_key(&target) || stub.into_iter().any(|of| found.contains_key(&of.vaddr)))
        };
        is_thunk(symbol.name) && targets(index.image(), symbol).iter().any(|(target, _)| is_found(*target))
    };
    let thunks: Vec<u64> =
        found.values().filter(|symbol| leads_on(symbol)).map(|symbol| symbol.vaddr).collect();
    if !thunks.is_empty() {
        thunks.iter().for_each(|thunk| _ = found.remove(thunk));
        remarks.push(match thunks.len() {
            1 => "without a thunk: it leads to a function that is counted".to_owned(),
            count => format!("without {count} thunks: they lead to functions that are counted"),
        });
    }
    let mut alike: BTreeMap<String, Vec<Symbol<'_>>> = BTreeMap::new();
    for symbol in found.values().filter(|symbol| is_structor(symbol.name)) {
        if let Some(name) = demangle(symbol.name, Signature::Parameters) {
            alike.entry(name).or_default().push(*symbol);
        }
    }
    for group in alike.into_values().filter(|group| group.len() > 1) {
        let complete_names: Vec<(u64, String)> =
            group.iter().map(|symbol| (symbol.vaddr, complete(symbol.name))).collect();
        let into_another = |symbol: &Symbol<'_>| {
            let is_other = |target: Option<u64>, slot: Option<&str>| {
                let stub = slot.map(complete);
                let mut others = complete_names.iter().filter(|(vaddr, _)| *vaddr != symbol.vaddr);
                others.any(|(vaddr, name)| Some(*vaddr) == target || stub.as_ref() == Some(name))
            };
            let direct = targets(index.image(), symbol);
            direct.iter().any(|(target, _)| is_other(Some(*target), stub_name(index, *target)))
                || slots(index.image(), symbol)
                    .into_iter()
                    .any(|slot| is_other(index.image().pointer_at(slot), index.stub(slot)))
        };
        let chained: Vec<Symbol<'_>> = group.iter().copied().filter(|symbol| into_another(symbol)).collect();
        // If each calls another one, none would be left.
        if chained.len() == group.len() {
            continue;
        }
        for symbol in chained {
            found.remove(&symbol.vaddr);
            let name = demangle(symbol.name, Signature::Name).unwrap_or_default();
            remarks.push(format!("{} of {name} calls another variant of it, which is counted", symbol.name));
        }
    }
}

/// Returns the same symbol for the complete and the base variant: without virtual base classes they are the same code,
/// and a library calls it by either.
fn complete(name: &str) -> String {
    name.replacen("D2E", "D1E", 1).replacen("C2E", "C1E", 1)
}

/// Returns the target of the linker's stub at this address. A library calls functions that it exports through such
/// stubs, since a program may override them.
fn stub_name<'a>(index: &SymbolIndex<'a>, vaddr: u64) -> Option<&'a str> {
    let code = index.image().code_at(vaddr, 16)?;
    let mut decoder = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE);
    let mut jump = decoder.decode();
    if jump.mnemonic() == Mnemonic::Endbr64 {
        jump = decoder.decode();
    }
    if jump.flow_control() != FlowControl::IndirectBranch || !jump.is_ip_rel_memory_operand() {
        return None;
    }
    index.stub(jump.ip_rel_memory_address())
}

/// Returns whether a symbol is one of the variants of a constructor or destructor: `C1`, `C2`, `D0`, `D1`, `D2` before
/// the end of its nested name, or `C4` and `D4`, the shared code to which GCC's other variants jump to save space.
fn is_structor(name: &str) -> bool {
    const KINDS: [&str; 11] = ["C1E", "C2E", "C3E", "C4E", "D0E", "D1E", "D2E", "D4E", "C1I", "C2I", "C4I"];
    name.starts_with("_ZN") && KINDS.iter().any(|kind| name.contains(kind))
}
