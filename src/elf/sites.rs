//! Sites: the places in a file where a probe is set.

use std::collections::{BTreeSet, HashSet};

use super::forms::cut;
use super::near::nearest;
use super::shape::MAX_SITE_BYTES;
use super::symbols::variables;
use super::{ArgForm, Cost, Form, FormError, Image, Note, SiteError, SiteShape, parse_args};

/// One place in a file where a probe is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Offset in the file of the instruction to probe.
    pub offset: u64,
    /// Offset in the file of the semaphore that the kernel increments while the probe is set; 0 if there is none.
    pub ref_ctr_offset: u64,
    /// Address of the instruction according to the file's headers. [`Form::Static`] is relative to it.
    pub vaddr: u64,
    /// One entry for each argument of a USDT probe; empty for a function.
    pub args: Vec<Result<ArgForm, FormError>>,
    pub shape: SiteShape,
}

/// A function, or a place in one, where a probe is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionSite {
    /// The symbol; followed by `+0x10` for a place inside the function; just `0x1234` for a file offset that no symbol
    /// covers.
    pub name: String,
    /// The name as in its C++ or Rust source, without parameters; `None` if the symbol is not mangled.
    pub demangled: Option<String>,
    /// Bytes of code; 0 if unknown.
    pub size: u64,
    pub site: Site,
    /// Whether the probe is at the function's entry: only there are its arguments in the calling
    /// convention's registers, and only there can its return be traced.
    pub at_entry: bool,
    /// Address of the function's entry; for a place that no symbol covers, its own address.
    pub entry: u64,
    /// Whether the site is known to be the first byte of an instruction. False only for a file offset that
    /// no symbol covers; a probe inside an instruction would corrupt the program.
    pub checked: bool,
    /// Whether the Go toolchain built the program: its returns must not be traced, see [`super::go_binary`].
    pub is_go: bool,
    /// Where the function's arguments are at its entry.
    pub convention: Convention,
    /// Whether this is a copy that the compiler specialized for some callers, and that the pattern does not itself
    /// name.
    pub specialised: bool,
    /// Whether the site is a "jump if below or equal" that is taken only if the call then starts over.
    pub if_above: bool,
}

/// How a function is called, as far as a probe at its entry must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Convention {
    /// As in C.
    SystemV,
    /// Go 1.17 and later: the words of all arguments, one after the other, in nine registers; R14 is the goroutine.
    GoRegisters,
    /// Earlier Go versions, and assembly ever since: arguments on the stack.
    GoStack,
    /// Go code for which neither is certain.
    Unknown,
    /// The words of all arguments, except floating point, in ten registers.
    OCaml,
    /// Unlike any C function, for this reason.
    Own(&'static str),
}

const CHECKED: &str = "the program may check this code by a checksum when it starts (FIPS 140), and ends if a breakpoint is in it";

const RELOCATED: &str =
    "the loader changes it (a text relocation), and the kernel would execute it as it is in the file";

impl Site {
    /// Returns the cost of a hit for the traced program.
    pub fn cost(&self) -> Cost {
        self.shape.cost()
    }

    /// Returns a site without arguments or semaphore. `None` if the file contains no code for the address.
    pub(crate) fn at(image: &Image<'_>, vaddr: u64) -> Option<Site> {
        let code = image.code_at(vaddr, MAX_SITE_BYTES)?;
        let (offset, is_writable) = image.code_offset(vaddr)?;
        let shape = match SiteShape::of(image.arch(), code) {
            _ if is_writable => SiteShape::Writable,
            _ if image.is_checked(vaddr) => SiteShape::Harmful(CHECKED),
            _ if image.is_relocated(vaddr, code) => SiteShape::Harmful(RELOCATED),
            shape => shape,
        };
        Some(Site { offset, ref_ctr_offset: 0, vaddr, args: Vec::new(), shape })
    }
}

/// Returns all sites of one USDT probe, in the order of their notes. Inlining duplicates a probe of the source, and the
/// arguments may be in different places at each site.
///
/// Variables named by arguments are looked up in the image's symbols; a variable that is not found causes an error for
/// that argument only.
pub fn usdt_sites(image: &Image<'_>, provider: &str, name: &str) -> Result<Vec<Site>, SiteError> {
    let all = image.notes()?;
    let mut sites = Vec::new();
    let mut seen = HashSet::new();
    for note in all.iter().filter(|n| n.provider == provider && n.name == name) {
        let site = usdt_site(image, note)?;
        // Set twice at the same place, a probe would count every hit twice.
        if seen.insert(site.offset) {
            sites.push(site);
        }
    }
    if sites.is_empty() {
        let names: BTreeSet<String> = all.into_iter().map(|n| format!("{}:{}", n.provider, n.name)).collect();
        let near = nearest(&format!("{provider}:{name}"), names);
        return Err(SiteError::NoProbe { provider: provider.to_owned(), name: name.to_owned(), near });
    }
    resolve_variables(image, &mut sites);
    Ok(sites)
}

/// Returns whether arguments of the program's USDT probes are in variables that its own symbols do not name, or its
/// notes were removed: a debug file may have them.
pub fn lacks_variables(image: &Image<'_>) -> bool {
    if !image.is_stripped() {
        return false;
    }
    if image.lacks_notes() {
        return true;
    }
    let args = image.notes().unwrap_or_default();
    let args: Vec<_> = args.iter().flat_map(|note| parse_args(image.arch(), &note.args)).collect();
    let names: BTreeSet<&str> = args.iter().filter_map(named).collect();
    let names: Vec<&str> = names.into_iter().collect();
    variables(image, &names).values().any(Result::is_err)
}

/// Returns the variable that an argument names.
fn named(arg: &Result<ArgForm, FormError>) -> Option<&str> {
    match arg {
        Ok(ArgForm { form: Form::Symbol { name, .. } | Form::Absolute { name, .. }, .. }) => Some(name),
        _ => None,
    }
}

fn usdt_site(image: &Image<'_>, note: &Note) -> Result<Site, SiteError> {
    let what = |part: &str| format!("the {part} of {}:{}", note.provider, note.name);
    let site = Site::at(image, note.location);
    let mut site = site.ok_or_else(|| SiteError::Unmapped { what: what("site"), vaddr: note.location })?;
    if note.semaphore != 0 {
        // Without its semaphore, the program would never reach the probe.
        if image.is_zero_filled(note.semaphore) {
            let name = format!("{}:{}", note.provider, note.name);
            let reason = "its semaphore is in .bss, which is cleared at program start, so the kernel cannot keep \
                 it raised: put it in the section `.probes`, as the macros of <sys/sdt.h> do";
            return Err(SiteError::NotProbeable { name, reason });
        }
        site.ref_ctr_offset = semaphore(image, note)
            .ok_or_else(|| SiteError::Unmapped { what: what("semaphore"), vaddr: note.semaphore })?;
    }
    site.args = parse_args(image.arch(), &note.args);
    Ok(site)
}

/// Returns the file offset of the semaphore; `None` if there is none, or if it is not in the file.
fn semaphore(image: &Image<'_>, note: &Note) -> Option<u64> {
    image.file_offset(note.semaphore).filter(|&offset| note.semaphore != 0 && offset != 0)
}

/// Assigns to functions that begin with a USDT probe that probe's semaphore: the kernel supports only one per place,
/// and rejects a further probe at the same place with a different one, or with none.
pub(super) fn share_semaphores(image: &Image<'_>, functions: &mut [FunctionSite]) {
    use SiteShape::{Nop, Nop5, NopNop5, NopNop10};
    let is_nop = |site: &Site| matches!(site.shape, Nop | Nop5 | NopNop5 | NopNop10);
    let mut nops =
        functions.iter_mut().map(|function| &mut function.site).filter(|site| is_nop(site)).peekable();
    let all = nops.peek().and_then(|_| image.notes().ok()).unwrap_or_default();
    for site in nops {
        let here = all.iter().filter(|note| note.location == site.vaddr);
        site.ref_ctr_offset = here.filter_map(|note| semaphore(image, note)).next().unwrap_or(0);
    }
}

/// Replaces symbols by addresses.
fn resolve_variables(image: &Image<'_>, sites: &mut [Site]) {
    let args = sites.iter().flat_map(|site| &site.args);
    let names: BTreeSet<String> = args.filter_map(named).map(str::to_owned).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let found = variables(image, &names);
    for arg in sites.iter_mut().flat_map(|site| &mut site.args) {
        let Some(name) = named(arg) else { continue };
        let place = &found[name];
        let Ok(ArgForm { form, text, size, signed, .. }) = arg else { continue };
        let known = match (place, &*form) {
            (Err(err), _) => Err(err.clone()),
            (Ok(vaddr), Form::Symbol { offset, .. }) => {
                Ok(Form::Static { vaddr: vaddr.wrapping_add_signed(*offset) })
            }
            (Ok(_), Form::Absolute { name, .. }) if image.is_pie() => Err(format!(
                "it is made of the address that the linker gave `{name}`, and the program is loaded elsewhere"
            )),
            (Ok(vaddr), Form::Absolute { form, .. }) => Ok(match form.clone().moved(*vaddr) {
                Form::Const(address) => Form::Const(cut(address, *size, *signed)),
                moved => moved,
            }),
            (Ok(_), _) => continue,
        };
        match known {
            Ok(known) => *form = known,
            Err(err) => *arg = Err(FormError::new(text, err)),
        }
    }
}
