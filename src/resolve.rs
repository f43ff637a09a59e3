//! Plan and file to sites: where in this file a probe is set, and where each of its values is found there. Pure.

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::abi::{location, location_op, site};
use crate::arguments::{contradictions, described, in_word, listed, position, suggestions};
use crate::config::model::{ArgKind, IntType, Point, ReturnsBy};
use crate::elf::{
    ArgForm, Form, FormError, Parameters, Reg, SharedSemaphore, Site, SiteError, SiteShape, SymbolIndex,
    usdt_sites,
};
use crate::places::{Found, Place, places_in};
use crate::plan::{Hook, ProbePlan, Source, ValueKind, ValuePlan};
use crate::unfit::{UnfitSite, reasons, unfit};

/// A probe's sites in one file, ready to be attached.
#[derive(Debug, Clone)]
pub struct Resolved {
    pub sites: Vec<ResolvedSite>,
    /// Where a function's arguments are, with what debug information says of them; once for each kind of site.
    pub arguments: Vec<Vec<String>>,
    /// Positions of arguments whose types are not known at every site.
    pub untyped: BTreeSet<usize>,
    /// Those that no probe is set at: one bad site costs only that site.
    pub unfit: Vec<UnfitSite>,
    /// What the user should know of the sites' choice.
    pub remarks: Vec<String>,
    /// Bit i: value i is 8 bytes without a sign at every site, so it is shown without one.
    pub unsigned: u32,
    /// What may do harm.
    pub warnings: Vec<String>,
}

/// One place to attach.
#[derive(Debug, Clone)]
pub struct ResolvedSite {
    /// Offset in the file of the instruction.
    pub offset: u64,
    /// Offset in the file of the semaphore; 0 for none.
    pub ref_ctr_offset: u64,
    pub shape: SiteShape,
    /// The function, or the file offset of a USDT probe's site.
    pub name: String,
    /// Offset of the function's entry: its entry and its returns are probed together or not at all.
    pub function: u64,
    /// Set on the return of the function that begins here.
    pub is_return: bool,
    /// Leaves a function.
    pub is_exit: bool,
    /// The semaphore, if the kernel raises the wrong copy of it in processes that start later.
    pub shared_semaphore: Option<SharedSemaphore>,
    /// As the kernel is told; the probe's number is in it.
    pub(crate) entry: site,
}

/// Why a probe cannot be set in a file.
#[derive(Debug)]
pub enum ResolveError {
    /// The file has no such probe or function, or cannot be used at all.
    Site(SiteError),
    /// An argument that a metric uses cannot be read.
    Value { name: String, why: String },
    /// Fewer arguments than are asked for.
    Missing { name: String, index: usize, has: usize },
    /// At every site a probe would never fire, or would harm the program.
    NoneFit(Vec<UnfitSite>),
}

impl std::fmt::Display for ResolveError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ResolveError::Site(error) => error.fmt(f),
            ResolveError::Value { name, why } => write!(f, "argument \"{name}\" cannot be read: {why}"),
            ResolveError::Missing { name, index, has } => write!(
                f,
                "argument \"{name}\" has index {index}, but this probe has {has} arguments (the first has index 0)"
            ),
            ResolveError::NoneFit(sites) => f.write_str(&reasons(sites)),
        }
    }
}

impl std::error::Error for ResolveError {}

impl ResolveError {
    /// Whether it is only that the file lacks the probe.
    pub fn is_absent(&self) -> bool {
        matches!(self, ResolveError::Site(SiteError::NoProbe { .. } | SiteError::NoFunction { .. }))
    }
}

/// Finds all sites of probe number `number` in the file.
///
/// `name` gives a number to each function's name, always the same to the same name.
///
/// # Errors
/// If the probe is not there, or a value that it uses cannot be read at one of its sites. Arguments that are not used
/// are not looked at.
pub fn resolve(
    index: &SymbolIndex<'_>,
    number: u32,
    probe: &ProbePlan,
    name: &mut dyn FnMut(&str) -> u32,
) -> Result<Resolved, ResolveError> {
    let image = index.image();
    let places = match &probe.point {
        Point::Usdt { provider, name } => usdt_sites(image, provider, name)
            .map_err(ResolveError::Site)?
            .into_iter()
            .map(Place::of_usdt)
            .collect(),
        Point::Function(_) => Vec::new(),
    };
    let mut found = Found { places, ..Found::default() };
    if let Point::Function(pattern) = &probe.point {
        let (functions, told) = index.remarked_sites(pattern).map_err(ResolveError::Site)?;
        found = places_in(index, probe, functions, name);
        found.remarks.extend(told);
    }
    let is_function = matches!(probe.point, Point::Function(_));
    let is_return = probe.hook == Hook::Return && probe.returns_by == ReturnsBy::Trampoline;
    let mut sites = Vec::with_capacity(found.places.len());
    let mut arguments = Vec::new();
    let mut unsigned = u32::MAX;
    let mut untyped = BTreeSet::new();
    let mut typed = Typed::default();
    let mut not_used = found.unfit;
    let mut unreadable = None;
    'places: for Place { at, entry, function, name, offset: function_offset, is_exit, parameters } in
        found.places
    {
        if let Some(why) = unfit(&at) {
            not_used.push(UnfitSite { name, why });
            continue;
        }
        let mut entry = site { probe: number, ..entry };
        if is_return {
            entry.frame_offset = POPPED;
        }
        for (n, (to, value)) in entry.values.iter_mut().zip(&probe.values).enumerate() {
            *to = match locate(&at, &narrowed(value, is_function), function) {
                Ok(location) => location,
                // Copies of a function may lack an argument.
                Err(why) if is_function => {
                    not_used.push(UnfitSite { name, why: why.to_string() });
                    unreadable.get_or_insert(why);
                    continue 'places;
                }
                Err(why) => return Err(why),
            };
            if let Some(index) = position(value)
                && parameters.as_ref().is_none_or(|parameters| in_word(parameters, index).is_none())
            {
                untyped.insert(index);
            }
            if to.bytes != 8 || to.is_signed != 0 {
                unsigned &= !(1 << n);
            }
        }
        typed.add(probe, parameters.as_ref());
        let places = places_of(&at, parameters.as_ref());
        if is_function && !arguments.contains(&places) {
            arguments.push(places);
        }
        let (offset, ref_ctr_offset) = (at.offset, at.ref_ctr_offset);
        sites.push(ResolvedSite {
            offset,
            ref_ctr_offset,
            shared_semaphore: image.semaphore_loaded_twice(ref_ctr_offset).filter(|_| ref_ctr_offset != 0),
            shape: at.shape,
            name,
            function: function_offset,
            is_return,
            is_exit,
            entry,
        });
    }
    if sites.is_empty() {
        return Err(unreadable.unwrap_or(ResolveError::NoneFit(not_used)));
    }
    found.remarks.extend(typed.notes);
    found.warnings.extend(typed.warnings);
    if sites.iter().any(|site| site.shared_semaphore.is_some()) {
        found.remarks.push(SHARED_PAGE.to_string());
    }
    Ok(Resolved {
        sites,
        unfit: not_used,
        arguments,
        untyped,
        remarks: found.remarks,
        warnings: found.warnings,
        unsigned,
    })
}

/// What the types of parameters say of the values that a probe reads.
#[derive(Debug, Default)]
struct Typed {
    notes: Vec<String>,
    warnings: BTreeSet<String>,
}

impl Typed {
    fn add(&mut self, probe: &ProbePlan, parameters: Option<&Parameters>) {
        let Some(parameters) = parameters else { return };
        if self.notes.is_empty() {
            self.notes.push(listed(parameters));
            self.notes.extend(suggestions(&probe.values, parameters));
        }
        self.warnings.extend(contradictions(&probe.values, parameters));
    }
}

/// Where the arguments are at a site, and what they are as far as that is known: `%rdi (int n)`.
fn places_of(at: &Site, parameters: Option<&Parameters>) -> Vec<String> {
    let one = |(word, form): (usize, &Result<ArgForm, FormError>)| {
        let place = form.as_ref().map_or("?", ArgForm::place);
        match parameters.and_then(|parameters| in_word(parameters, word)) {
            Some(parameter) => format!("{place} ({})", described(parameter)),
            None => place.to_string(),
        }
    };
    at.args.iter().enumerate().map(one).collect()
}

/// What is to be said of a semaphore that the kernel raises where the program does not look.
const SHARED_PAGE: &str = "the linker (lld) put the probe's semaphore on a file page that is mapped twice, \
     and in processes that start later the kernel raises the wrong copy; the exporter raises the right one \
     some milliseconds after the start (in a library up to 5 s), and hits before that are not counted. Link \
     with -z separate-loadable-segments, or with another linker";

/// Places in the x86-64 `struct pt_regs`.
const RETURN_REGISTER: u8 = 10;
const STACK_POINTER: u8 = 19;

/// When a uretprobe is hit, the function's `ret` has taken the return address from the stack.
const POPPED: i32 = -8;

/// A function's truth value is a byte: what is above it in the register is left over from something else. A USDT probe's note
/// says how wide it is.
fn narrowed(value: &ValuePlan, is_function: bool) -> Cow<'_, ValuePlan> {
    match value.kind {
        ValueKind::Arg(ArgKind::Bool) if is_function => {
            let kind = ValueKind::Arg(ArgKind::Int(Some(IntType { bytes: 1, signed: false })));
            Cow::Owned(ValuePlan { kind, ..value.clone() })
        }
        _ => Cow::Borrowed(value),
    }
}

fn locate(site: &Site, value: &ValuePlan, function: u32) -> Result<location, ResolveError> {
    let mut to = location { bytes: 8, is_signed: 1, ..location::default() };
    let op = match value.source {
        Source::Arg(index) => return locate_argument(site, value, index),
        Source::Field { index, offset } => return locate_field(site, value, index, offset),
        Source::Retval(kind) => {
            (to.reg, to.bytes, to.is_signed) = (RETURN_REGISTER, kind.bytes, u8::from(kind.signed));
            location_op::LOC_REGISTER
        }
        Source::Duration => location_op::LOC_DURATION,
        Source::Carried(number) | Source::CarriedAddress { number, offset: None } => {
            to.index = u8::try_from(number).unwrap_or(u8::MAX);
            location_op::LOC_CARRIED
        }
        Source::CarriedAddress { number, offset: Some(offset) } => {
            let IntType { bytes, signed } = width_in_memory(&value.kind);
            to.index = u8::try_from(number).unwrap_or(u8::MAX);
            (to.offset, to.bytes, to.is_signed) = (i64::from(offset), bytes, u8::from(signed));
            location_op::LOC_CARRIED_MEMORY
        }
        // At the entry the return address is on top of the stack.
        Source::Caller => {
            to.reg = STACK_POINTER;
            location_op::LOC_MEMORY
        }
        Source::Function => {
            to.offset = i64::from(function);
            location_op::LOC_CONST
        }
        Source::Pid => location_op::LOC_PID,
        Source::Tid => location_op::LOC_TID,
        Source::Cpu => location_op::LOC_CPU,
        Source::Cgroup => location_op::LOC_CGROUP,
        Source::Comm => location_op::LOC_COMM,
        Source::Time => location_op::LOC_TIME,
    };
    to.op = op.0 as u8;
    Ok(to)
}

/// What lies `offset` bytes into the structure that the argument points to: a number, or the address of a text.
fn locate_field(site: &Site, value: &ValuePlan, index: usize, offset: i32) -> Result<location, ResolveError> {
    let kind = ValueKind::Arg(ArgKind::Int(None));
    let mut to = locate_argument(site, &ValuePlan { kind, ..value.clone() }, index)?;
    if to.op != location_op::LOC_REGISTER.0 as u8 || to.bytes != 8 {
        let text = site.args.get(index).and_then(|form| form.as_ref().ok()).map_or("", |form| &form.text);
        let why = format!("`{text}` is not a pointer in a register, so `offset` cannot be applied to it");
        return Err(ResolveError::Value { name: value.name.clone(), why });
    }
    let IntType { bytes, signed } = width_in_memory(&value.kind);
    (to.op, to.offset) = (location_op::LOC_MEMORY.0 as u8, i64::from(offset));
    (to.bytes, to.is_signed) = (bytes, u8::from(signed));
    Ok(to)
}

/// How many bytes of memory are a value of this kind; of text it is the address that lies there.
fn width_in_memory(kind: &ValueKind) -> IntType {
    match kind {
        ValueKind::Arg(ArgKind::Int(Some(asked))) => *asked,
        ValueKind::Arg(ArgKind::Bool) => IntType { bytes: 1, signed: false },
        _ => IntType { bytes: 8, signed: true },
    }
}

fn locate_argument(site: &Site, value: &ValuePlan, index: usize) -> Result<location, ResolveError> {
    let name = || value.name.clone();
    let form = match site.args.get(index) {
        None => return Err(ResolveError::Missing { name: name(), index, has: site.args.len() }),
        Some(Err(error)) => return Err(unreadable(&value.name, error)),
        Some(Ok(form)) => form,
    };
    if let Some(why) = form.unreadable() {
        return Err(ResolveError::Value { name: name(), why });
    }
    let asked = match &value.kind {
        ValueKind::Arg(ArgKind::Int(asked)) => *asked,
        _ => None,
    };
    let IntType { bytes, signed } = width_as_read(asked, form);
    let mut to = location { bytes, is_signed: u8::from(signed), ..location::default() };
    match &form.form {
        Form::Const(number) => {
            (to.op, to.offset) = (location_op::LOC_CONST.0 as u8, extended(*number, bytes, signed));
        }
        Form::Reg(reg) => {
            (to.op, to.reg) = (location_op::LOC_REGISTER.0 as u8, reg.pt_regs_index());
        }
        Form::Mem { base, offset } => {
            to.op = location_op::LOC_MEMORY.0 as u8;
            (to.reg, to.offset) = (base.pt_regs_index(), *offset);
        }
        Form::Indexed { base: Some(base), index, scale, offset } => {
            to.op = location_op::LOC_INDEXED.0 as u8;
            (to.reg, to.index, to.offset) = (base.pt_regs_index(), index.pt_regs_index(), *offset);
            to.scale = scale.trailing_zeros() as u8;
        }
        // Wherever the file was loaded, it is as far from the instruction as it is in the file.
        Form::Static { vaddr } => {
            to.op = location_op::LOC_MEMORY.0 as u8;
            to.reg = Reg::X86_64_IP.pt_regs_index();
            to.offset = vaddr.wrapping_sub(site.vaddr) as i64;
        }
        Form::Indexed { base: None, .. } | Form::Symbol { .. } | Form::Float { .. } => {
            let why = format!("the operand `{}` is not supported", form.text);
            return Err(ResolveError::Value { name: name(), why });
        }
    }
    Ok(to)
}

/// The width and sign by which an argument is read. What lies beyond the width that its note gives is not the argument: in
/// memory it is what comes next, in a register often zero where the sign would be.
fn width_as_read(asked: Option<IntType>, form: &ArgForm) -> IntType {
    let noted = IntType { bytes: form.size, signed: form.signed };
    asked.filter(|asked| asked.bytes <= noted.bytes).unwrap_or(noted)
}

/// The low bytes of a number, extended by its sign or by zeros.
fn extended(number: i64, bytes: u8, signed: bool) -> i64 {
    let unused = 64 - 8 * u32::from(bytes);
    let high = number << unused;
    if signed { high >> unused } else { ((high as u64) >> unused) as i64 }
}

fn unreadable(name: &str, error: &FormError) -> ResolveError {
    ResolveError::Value { name: name.to_string(), why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::{Arch, parse_args};

    fn located(note: &str, asked: Option<IntType>) -> location {
        let args = parse_args(Arch::X86_64, note);
        let value = ValuePlan {
            at: crate::config::place::Place::none(),
            name: "a".to_string(),
            source: Source::Arg(0),
            kind: ValueKind::Arg(ArgKind::Int(asked)),
            unit: crate::config::model::Unit::None,
        };
        let site = Site { offset: 0, vaddr: 0, ref_ctr_offset: 0, shape: SiteShape::Nop, args };
        locate(&site, &value, 0).unwrap()
    }

    #[test]
    fn an_argument_is_never_read_wider_than_its_note_says() {
        let int = |bytes, signed| Some(IntType { bytes, signed });
        for (note, asked, bytes, signed) in [
            ("-4@-20(%rbp)", int(8, true), 4, true),
            ("-4@-20(%rbp)", int(8, false), 4, true),
            ("4@%eax", int(8, true), 4, false),
            ("1@%al", int(4, true), 1, false),
            ("-4@%eax", int(4, false), 4, false),
            ("8@%rax", int(2, true), 2, true),
            ("%rax", None, 8, false),
        ] {
            let at = located(note, asked);
            assert_eq!((at.bytes, at.is_signed), (bytes, u8::from(signed)), "{note} as {asked:?}");
        }
    }

    #[test]
    fn a_constant_has_the_width_that_is_asked_for() {
        let int = |bytes, signed| Some(IntType { bytes, signed });
        for (note, asked, number) in [
            ("-4@$-1", None, -1),
            ("-4@$-1", int(4, false), 0xffff_ffff),
            ("4@$-1", int(4, true), -1),
            ("8@$-1", int(1, false), 255),
            ("-8@$300", int(1, true), 44),
            ("8@$18446744073709551615", int(8, false), -1),
            ("-4@$-1", int(8, false), -1),
        ] {
            assert_eq!(located(note, asked).offset, number, "{note} as {asked:?}");
        }
    }
}
