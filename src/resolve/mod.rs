//! From plan and file to sites: where a probe is placed in this file, and where each of its values is located there.
//! Pure.

mod locate;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::abi::{site, site_flag};
use crate::arguments::{
    contradicted_result, contradictions, described, in_word, listed, name as name_of, position, suggestions,
};
use crate::config::model::{ArgKind, Point, ReturnsBy};
use crate::elf::{
    ArgForm, Cost, FormError, FunctionResult, Parameters, Semaphore, Site, SiteError, SiteShape, SymbolIndex,
    usdt_sites,
};
use crate::places::{FoundPlaces, ProbePlace, places_in};
use crate::plan::{Plan, ProbeHook, ProbePlan, ValueKind, ValueSource};
use crate::unusable::{UnusableSite, reasons, unusable_reason};
use locate::{locate, narrowed};

/// A probe's sites in one file, ready to be attached.
#[derive(Debug, Clone)]
pub struct Resolved {
    pub sites: Vec<ResolvedSite>,
    /// Where a function's arguments are, and their types from debug information; one entry for each kind of site.
    pub arguments: Vec<Vec<String>>,
    /// Positions of arguments whose types are unknown at some site.
    pub untyped: BTreeSet<usize>,
    /// Whether some function's result is read as 64 bits because its type is unknown.
    pub untyped_result: bool,
    /// Sites without a probe: a bad site makes only that site unusable.
    pub unusable: Vec<UnusableSite>,
    /// Remarks for the user on how the sites were chosen.
    pub remarks: Vec<String>,
    /// Bit i: value i is unsigned at every site, and is shown as such.
    pub unsigned: u32,
    /// Possible harm.
    pub warnings: Vec<String>,
}

/// One place to attach.
#[derive(Debug, Clone)]
pub struct ResolvedSite {
    /// File offset of the instruction.
    pub offset: u64,
    /// File offset of the semaphore; 0 for none.
    pub ref_ctr_offset: u64,
    pub shape: SiteShape,
    /// The function, or the file offset of a USDT probe's site.
    pub name: String,
    /// Offset of the function's entry: its entry and its returns are probed together or not at all.
    pub function: u64,
    /// Placed on the return of the function that starts here.
    pub is_return: bool,
    /// An exit of a function.
    pub is_exit: bool,
    /// The semaphore, if the kernel might not raise it everywhere.
    pub semaphore: Option<Semaphore>,
    /// The site as passed to the kernel, including the probe's number.
    pub(crate) entry: site,
}

/// Why a probe cannot be placed in a file.
#[derive(Debug)]
pub enum ResolveError {
    /// The file has no such probe or function, or is unusable.
    Site(SiteError),
    /// An argument that a metric uses cannot be read.
    Value { name: String, reason: String },
    /// Fewer arguments than requested.
    Missing { name: String, index: usize, has: usize },
    /// At every site a probe would never fire, or would harm the program.
    NoneFit(Vec<UnusableSite>),
}

impl std::fmt::Display for ResolveError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ResolveError::Site(error) => error.fmt(f),
            ResolveError::Value { name, reason } => write!(f, "argument \"{name}\" cannot be read: {reason}"),
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
    /// Whether the only problem is that the file lacks the probe.
    pub fn is_absent(&self) -> bool {
        matches!(self, ResolveError::Site(SiteError::NoProbe { .. } | SiteError::NoFunction { .. }))
    }
}

/// Finds all sites of probe number `number` in the file.
///
/// `name` assigns a number to each function's name, always the same for the same name.
///
/// # Errors
/// If the probe is not in the file, or a value that it uses cannot be read at one of its sites. Unused arguments are
/// not checked.
pub fn resolve(
    index: &SymbolIndex<'_>,
    number: u32,
    plan: &Plan,
    name: &mut dyn FnMut(&str) -> u32,
) -> Result<Resolved, ResolveError> {
    let image = index.image();
    let probe = &plan.probes[number as usize];
    let other_end: HashSet<u64> =
        plan.other_ends(number as usize).flat_map(|end| offsets(index, &end.point)).collect();
    let places = match &probe.point {
        Point::Usdt { provider, name } => usdt_sites(image, provider, name)
            .map_err(ResolveError::Site)?
            .into_iter()
            .map(ProbePlace::of_usdt)
            .collect(),
        Point::Function(_) => Vec::new(),
    };
    let mut found = FoundPlaces { places, ..FoundPlaces::default() };
    if let Point::Function(pattern) = &probe.point {
        let (functions, remarks) = index.remarked_sites(pattern).map_err(ResolveError::Site)?;
        found = places_in(index, probe, functions, name);
        found.remarks.extend(remarks);
    }
    let is_function = matches!(probe.point, Point::Function(_));
    let is_return = probe.hook == ProbeHook::Return && probe.returns_by == ReturnsBy::Trampoline;
    let mut sites = Vec::with_capacity(found.places.len());
    let mut arguments = Vec::new();
    // Bit i: value i has no sign at any site; it has 64 bits and no sign at some.
    let (mut unsigned, mut wide) = (u32::MAX, 0_u32);
    let (mut untyped, mut untyped_result) = (BTreeSet::new(), false);
    let mut typed = Typed::default();
    let mut not_used = found.unusable;
    let mut unreadable = None;
    'places: for place in found.places {
        let ProbePlace { at, entry, function, name, offset: function_offset, is_exit, parameters, result } =
            place;
        if let Some(reason) = unusable_reason(&at) {
            not_used.push(UnusableSite { name, reason });
            continue;
        }
        if other_end.contains(&at.offset) {
            not_used.push(UnusableSite { name, reason: SAME_PLACE.to_string() });
            continue;
        }
        let mut entry = site { probe: number, ..entry };
        if is_return {
            entry.frame_offset = POPPED;
        }
        // Where the kernel replaces the return address, it is the entry that is single-stepped, which may be that of a
        // start.
        if at.cost() == Cost::SingleStepped && !(is_return && probe.span.is_some()) {
            entry.flags |= site_flag::SITE_STEPPED.0;
        }
        // At a jump to the entry, nothing is read.
        let is_turn = entry.flags & site_flag::SITE_LOOP_HEAD.0 != 0 && is_exit;
        let values = if is_turn { &[][..] } else { &probe.values };
        let frame = i64::from(entry.frame_offset);
        for (n, (to, value)) in entry.values.iter_mut().zip(values).enumerate() {
            untyped_result |= value.source == ValueSource::Retval(None) && result.is_none();
            *to = match locate(&at, &narrowed(value, is_function, result.as_ref()), function) {
                Ok(location) => location,
                // Some copies of a function may lack an argument.
                Err(err) if is_function => {
                    not_used.push(UnusableSite { name, reason: err.to_string() });
                    unreadable.get_or_insert(err);
                    continue 'places;
                }
                Err(err) => return Err(err),
            };
            if value.source == ValueSource::ReturnAddress {
                to.offset = frame;
            }
            if let Some(index) = position(value)
                && parameters.as_ref().is_none_or(|parameters| in_word(parameters, index).is_none())
            {
                untyped.insert(index);
            }
            if to.is_signed != 0 {
                unsigned &= !(1 << n);
            } else if to.bytes == 8 {
                wide |= 1 << n;
            }
        }
        typed.add(probe, parameters.as_ref());
        if let Some(result) = &result {
            typed.add_result(probe, &name, result);
        }
        let places = places_of(&at, parameters.as_ref());
        if is_function && !is_turn && !arguments.contains(&places) {
            arguments.push(places);
        }
        let (offset, ref_ctr_offset) = (at.offset, at.ref_ctr_offset);
        sites.push(ResolvedSite {
            offset,
            ref_ctr_offset,
            semaphore: image.semaphore(ref_ctr_offset).filter(|_| ref_ctr_offset != 0),
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
    found.warnings.extend(typed.warnings_of_results());
    found.remarks.extend(typed.notes);
    found.warnings.extend(typed.warnings);
    found.warnings.extend(probe.values.iter().enumerate().filter_map(|(n, value)| {
        let is_mixed =
            wide & !unsigned & 1 << n != 0 && matches!(value.kind, ValueKind::Arg(ArgKind::Int(None)));
        is_mixed.then(|| format!("{} {MIXED_SIGNS}", name_of(value)))
    }));
    if sites.iter().any(|site| site.semaphore.is_some_and(|of| of.is_on_shared_page)) {
        found.remarks.push(SHARED_PAGE.to_string());
    }
    Ok(Resolved {
        sites,
        unusable: not_used,
        arguments,
        untyped,
        untyped_result,
        remarks: found.remarks,
        warnings: found.warnings,
        unsigned,
    })
}

/// What the types of parameters say about the values that a probe reads.
#[derive(Debug, Default)]
struct Typed {
    notes: Vec<String>,
    warnings: BTreeSet<String>,
    /// Functions whose result type contradicts what is read, by the contradiction.
    results: BTreeMap<String, BTreeSet<String>>,
}

impl Typed {
    fn add_result(&mut self, probe: &ProbePlan, name: &str, result: &FunctionResult) {
        for value in &probe.values {
            if let Some(wrong) = contradicted_result(value, result) {
                self.results.entry(wrong).or_default().insert(name.to_string());
            }
        }
    }

    fn warnings_of_results(&self) -> impl Iterator<Item = String> {
        self.results.iter().map(|(wrong, names)| {
            let named: Vec<&str> = names.iter().take(MAX_LISTED_RESULTS).map(String::as_str).collect();
            let more = match names.len().saturating_sub(MAX_LISTED_RESULTS) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("{wrong}: {}{more}", named.join(", "))
        })
    }

    fn add(&mut self, probe: &ProbePlan, parameters: Option<&Parameters>) {
        let Some(parameters) = parameters else { return };
        if self.notes.is_empty() {
            self.notes.push(listed(parameters));
            self.notes.extend(suggestions(&probe.values, parameters));
        }
        self.warnings.extend(contradictions(&probe.values, parameters));
    }
}

/// Where the arguments are at a site, and their types if known: `%rdi (int n)`.
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

/// File offsets of a probe.
fn offsets(index: &SymbolIndex<'_>, point: &Point) -> Vec<u64> {
    match point {
        Point::Usdt { provider, name } => {
            let sites = usdt_sites(index.image(), provider, name).unwrap_or_default();
            sites.iter().map(|site| site.offset).collect()
        }
        Point::Function(pattern) => {
            let sites = index.sites(pattern).unwrap_or_default();
            sites.iter().map(|function| function.site.offset).collect()
        }
    }
}

/// Said of an argument of which the note of each site gives another type.
const MIXED_SIGNS: &str = "is signed at some of its sites, and unsigned with 64 bits at others, where numbers from 2^63 up are shown \
     as negative: choose one by `type: u64` or `type: i64`";

/// Functions that a warning about results names.
const MAX_LISTED_RESULTS: usize = 4;

/// Why neither end of a span is placed at an instruction: two names may refer to the same code.
const SAME_PLACE: &str = "the span's other end is at the same instruction (two names of one function, or two functions \
     that the linker folded into one), so that a hit does not tell which end it is";

/// The remark on a semaphore that the kernel increments where the program does not read it.
const SHARED_PAGE: &str = "the linker (lld) put the probe's semaphore on a file page that is mapped twice, \
     and in processes that start later the kernel raises the wrong copy; the exporter raises the right one \
     some milliseconds after the start (in a library up to 5 s), and hits before that are not counted. Link \
     with -z separate-loadable-segments, or with another linker";

/// When a uretprobe is hit, the function's `ret` has popped the return address from the stack.
const POPPED: i32 = -8;
