//! How the return of a function is traced, and why it cannot be. Pure.
//!
//! By exits: probes where the function's code leaves it ([`crate::elf::Functions`]). By trampoline: the kernel replaces
//! the return address with one of its own, which is faster, but ends the program if anything unwinds through the frame
//! or continues on another stack.

use crate::abi::{MAX_STRETCHES, location, location_op, site, site_flag, stretch};
use crate::elf::{
    Approach, Convention, Cost, Exit, ExitKind, Exits, Form, FunctionSite, Image, Passage, PassageKind, Reg,
    Site, SymbolIndex, is_program,
};

use crate::unusable::unusable_reason;

/// Where one function is left.
#[derive(Debug)]
pub struct Returns {
    /// Each exit with its site for the kernel, without the probe's values.
    pub sites: Vec<(Site, site)>,
    /// The same for places that a call passes on its way there.
    pub passages: Vec<(Site, site)>,
    pub exits: Exits,
}

impl Returns {
    /// Number of exits that cost two traps.
    pub fn single_stepped(&self) -> usize {
        self.sites.iter().filter(|(at, _)| at.cost() == Cost::SingleStepped).count()
    }
}

/// The exits of a function as sites; with `reads_result`, only a `ret` shows what is read there.
///
/// # Errors
/// If they are not known for certain, or a result cannot be read there; with the reason.
pub fn by_exits(
    index: &SymbolIndex<'_>,
    function: &FunctionSite,
    reads_result: bool,
) -> Result<Returns, String> {
    let exits = index.code().exits(function.entry, function.size)?;
    if reads_result && !exits.all_return() {
        return Err(
            "it ends with a tail call, so its return value is not visible; count and time it without \
             `retval` and `at: return`, or, if nothing unwinds through it, use `returns_by: trampoline`"
                .to_string(),
        );
    }
    let (image, functions) = (index.image(), index.code());
    let mut sites = Vec::new();
    for exit in &exits.exits {
        match approach_sites(image, exit, reads_result) {
            Some(cheaper) => sites.extend(cheaper),
            None => sites.push(exit_site(image, exit)?),
        }
    }
    let is_needed = |passage: &&Passage| passage.kind == PassageKind::LoopBack || functions.may_unwind();
    let passages = exits.passages.iter().filter(is_needed).map(|passage| passage_site(image, passage));
    let passages = passages.collect::<Result<_, String>>()?;
    Ok(Returns { sites, passages, exits })
}

/// The jumps by which a function that begins with a loop returns to its entry; none if it does not.
///
/// # Errors
/// If they cannot all be probed.
pub fn turns(index: &SymbolIndex<'_>, function: &FunctionSite) -> Result<Vec<(Site, site)>, String> {
    let turns = if function.at_entry { index.turns(function) } else { None };
    let sites = turns.into_iter().flatten().map(|turn| {
        let (at, mut entry) = passage_site(index.image(), &turn)?;
        entry.flags |= site_flag::SITE_LOOP_HEAD.0;
        Ok((at, entry))
    });
    sites.collect()
}

/// A human-readable summary of a probe's exits and their cost.
#[derive(Debug, Default)]
pub struct Costs {
    exits: usize,
    single_stepped: usize,
    are_go: bool,
    /// Whether a trampoline is an alternative for any of them.
    may_use_trampoline: bool,
    followed: Vec<String>,
    untold: Vec<String>,
    entered: Vec<String>,
}

impl Costs {
    pub fn add(&mut self, index: &SymbolIndex<'_>, name: &str, function: &FunctionSite, returns: &Returns) {
        self.are_go |= function.convention == Convention::GoRegisters;
        self.may_use_trampoline |= matches!(by_trampoline(index, function), Ok(None));
        self.exits += returns.sites.len();
        self.single_stepped += returns.single_stepped();
        if !returns.exits.followed.is_empty() {
            self.followed.push(name.to_string());
        }
        if !returns.exits.all_return() {
            self.untold.push(name.to_string());
        }
        if returns.exits.entered_from.is_some() {
            self.entered.push(name.to_string());
        }
    }

    /// One sentence each; none if there are no exits.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.exits == 0 {
            return notes;
        }
        let exits = if self.exits == 1 { "one exit".to_string() } else { format!("{} exits", self.exits) };
        let cost = match self.single_stepped {
            0 => "less than 1 us per call".to_string(),
            all if all == self.exits => "single-stepped, 5 to 15 us per call".to_string(),
            some => {
                format!("5 to 15 us per call at {some} of them (single-stepped), less than 1 at the others")
            }
        };
        let besides = match (self.are_go, self.single_stepped > 0 && self.may_use_trampoline) {
            (true, _) => "; calls are paired by goroutine",
            (false, true) => {
                "; where nothing unwinds through the function, `returns_by: trampoline` costs about 1 us"
            }
            (false, false) => "",
        };
        notes.push(format!("the return is traced at {exits}: {cost}{besides}"));
        if !self.followed.is_empty() {
            notes.push(format!(
                "{} with a call to functions in tail position: their exits are probed too, for every caller",
                some(&self.followed, "ends", "end")
            ));
        }
        if !self.untold.is_empty() {
            notes.push(format!(
                "{} with a tail call that cannot be followed: the duration ends at the jump",
                some(&self.untold, "may end", "may end")
            ));
        }
        if !self.entered.is_empty() {
            notes.push(entered_inside(&self.entered));
        }
        notes
    }
}

/// What is not counted of these functions.
pub fn entered_inside(functions: &[String]) -> String {
    let are = some(functions, "is", "are");
    format!("{are} also entered in the middle, by other functions in assembly: such calls are not counted")
}

/// `a ends`, `a, b and 3 more end`.
fn some(names: &[String], one: &str, many: &str) -> String {
    match names {
        [name] => format!("{name} {one}"),
        [a, b] => format!("{a} and {b} {many}"),
        [a, b, rest @ ..] => format!("{a}, {b} and {} more {many}", rest.len()),
        [] => many.to_string(),
    }
}

fn exit_site(image: &Image<'_>, exit: &Exit) -> Result<(Site, site), String> {
    let (at, mut entry) = site_at(image, exit.vaddr, exit.when)?;
    if exit.shared {
        entry.flags |= site_flag::SITE_SHARED.0;
    }
    if let ExitKind::Decided { target, inside } = &exit.kind {
        if inside.len() > MAX_STRETCHES {
            return Err("it has indirect jumps, and its code is split into too many parts".to_string());
        }
        entry.flags |= site_flag::SITE_JUMP.0;
        entry.target = target_at(target, exit.vaddr);
        for (to, part) in entry.inside.iter_mut().zip(inside) {
            *to = stretch { from: part.start.wrapping_sub(exit.vaddr) as i64, bytes: part.end - part.start };
        }
    }
    Ok((at, entry))
}

/// The sites that are probed instead of a `ret`, if that is possible and shows the result if it is read.
fn approach_sites(image: &Image<'_>, exit: &Exit, reads_result: bool) -> Option<Vec<(Site, site)>> {
    let approaches = &exit.approaches;
    if approaches.is_empty() || reads_result && !approaches.iter().all(|approach| approach.is_final) {
        return None;
    }
    let site_of = |approach: &Approach| {
        let (at, mut entry) = site_at(image, approach.vaddr, approach.when).ok()?;
        entry.frame_offset = approach.above;
        if exit.shared {
            entry.flags |= site_flag::SITE_SHARED.0;
        }
        (at.cost() != Cost::SingleStepped).then_some((at, entry))
    };
    approaches.iter().map(site_of).collect()
}

fn passage_site(image: &Image<'_>, passage: &Passage) -> Result<(Site, site), String> {
    let (at, mut entry) = site_at(image, passage.vaddr, passage.when)?;
    entry.flags |= match passage.kind {
        PassageKind::LoopBack => site_flag::SITE_LOOP_BACK,
        PassageKind::TailJump => site_flag::SITE_TAIL_JUMP,
        PassageKind::CalleeEntry => site_flag::SITE_CALLEE_ENTRY,
    }
    .0;
    if let Some((form, to)) = &passage.target {
        entry.flags |= site_flag::SITE_JUMP.0;
        entry.target = target_at(form, passage.vaddr);
        // Every target but this one counts as inside the function.
        let behind = to.wrapping_add(1).wrapping_sub(passage.vaddr);
        entry.inside[0] = stretch { from: behind as i64, bytes: u64::MAX };
    }
    Ok((at, entry))
}

fn site_at(image: &Image<'_>, vaddr: u64, when: Option<u8>) -> Result<(Site, site), String> {
    let at = Site::at(image, vaddr).ok_or("its code is not in the file")?;
    if let Some(reason) = unusable_reason(&at) {
        return Err(format!("at an instruction by which it may be left, {reason}"));
    }
    Ok((at, site { condition: when.map_or(0, |code| u32::from(code) + 1), ..site::default() }))
}

/// Where to read the target of a jump when it is taken.
fn target_at(form: &Form, vaddr: u64) -> location {
    let mut to = location { bytes: 8, ..location::default() };
    let from_here = |address: u64| address.wrapping_sub(vaddr) as i64;
    let op = match form {
        Form::Reg(reg) => {
            to.reg = reg.pt_regs_index();
            location_op::LOC_REGISTER
        }
        Form::Mem { base, offset } => {
            (to.reg, to.offset) = (base.pt_regs_index(), *offset);
            location_op::LOC_MEMORY
        }
        Form::Indexed { base, index, scale, offset } => {
            // Without a base it is an address in the file, whose distance from here is the same as in the file.
            let (base, offset) =
                base.map_or((Reg::X86_64_IP, from_here(*offset as u64)), |base| (base, *offset));
            (to.reg, to.index, to.offset) = (base.pt_regs_index(), index.pt_regs_index(), offset);
            to.scale = scale.trailing_zeros() as u8;
            location_op::LOC_INDEXED
        }
        Form::Static { vaddr } => {
            (to.reg, to.offset) = (Reg::X86_64_IP.pt_regs_index(), from_here(*vaddr));
            location_op::LOC_MEMORY
        }
        // Not used by jumps.
        Form::Const(_) | Form::Symbol { .. } | Form::Absolute { .. } | Form::Float { .. } => {
            location_op::LOC_CONST
        }
    };
    to.op = op.0 as u8;
    to
}

/// Checks whether the kernel may replace a function's return address; `Ok(Some)` is a warning.
///
/// # Errors
/// If it would end the program.
pub fn by_trampoline(index: &SymbolIndex<'_>, function: &FunctionSite) -> Result<Option<String>, String> {
    if function.is_go {
        return Err(
            "`returns_by: trampoline` would crash it: Go programs move their stacks; remove it".to_string()
        );
    }
    if matches!(function.convention, Convention::OCaml | Convention::Own(_)) {
        return Err("`returns_by: trampoline` would crash the program: its compiler's code does not call and return as C's does, or \
             looks at return addresses; remove it"
            .to_string());
    }
    let code = index.code();
    if code.has_handler(function.entry) {
        return Err("`returns_by: trampoline` would crash the program: the function's unwind table has a \
             handler, so exceptions pass through it; remove it"
            .to_string());
    }
    let Some(non_local_exit) = code.non_local_exit() else { return Ok(None) };
    if is_program(index.image()) {
        return Err(format!(
            "`returns_by: trampoline` could crash the program: it uses {non_local_exit}, which may leave this function without \
             returning; remove it"
        ));
    }
    Ok(Some(format!(
        "`returns_by: trampoline` is used and the library uses {non_local_exit}: a program crashes if that passes \
         through this function"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_say_what_a_return_costs() {
        let notes = |exits, single_stepped, may_use_trampoline| {
            Costs { exits, single_stepped, may_use_trampoline, ..Costs::default() }.notes()
        };
        assert_eq!(notes(0, 0, true), [""; 0]);
        assert_eq!(notes(1, 0, true), ["the return is traced at one exit: less than 1 us per call"]);
        assert_eq!(
            notes(2, 2, false),
            ["the return is traced at 2 exits: single-stepped, 5 to 15 us per call"]
        );
        let some = notes(3, 1, true).concat();
        assert!(
            some.contains("at 1 of them (single-stepped), less than 1") && some.contains("trampoline"),
            "{some}"
        );
    }
}
