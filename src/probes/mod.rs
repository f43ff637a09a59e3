//! What can be traced in a program: the `probes` command.
//!
//! [`list`] gathers plain data, which [`columns`], [`json`] and [`yaml`] format.

mod columns;
mod functions;
mod hints;
mod json;
mod usdt;
mod yaml;

use std::path::{Path, PathBuf};

use serde::Serialize;

pub use columns::columns;
pub use functions::Function;
pub(crate) use hints::{arguments, no_notes};
pub use json::json;
pub use usdt::{Argument, Probe, Provider};
pub use yaml::yaml;

use crate::config::model::Selector;
use crate::debug_symbols::{debug_symbols, with_names};
use crate::elf::{Arch, Cost, ElfError, Image, SymbolIndex, go_binary, lacks_variables};
use crate::targets::{TargetFile, find};

/// Everything about one target.
#[derive(Debug, Clone, Serialize)]
pub struct Listing {
    /// As the user wrote it.
    pub target: String,
    #[serde(skip)]
    pub selector: Selector,
    /// Processes of the same name may run different files.
    pub files: Vec<File>,
}

/// One program or library.
#[derive(Debug, Clone, Serialize)]
pub struct File {
    pub file: String,
    pub architecture: &'static str,
    pub position_independent: bool,
    /// Only exported functions have names.
    pub stripped: bool,
    pub go: bool,
    /// In hexadecimal.
    pub build_id: Option<String>,
    pub providers: Vec<Provider>,
    /// The requested functions; `None` if none were requested.
    pub functions: Option<Vec<Function>>,
    /// What is unusable here, why, and what to do instead.
    pub remarks: Vec<String>,
}

/// The cost of a hit, in one or two words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CostWord {
    Cheap,
    SingleStepped,
    NeverFires,
}

impl CostWord {
    pub fn of(cost: Cost) -> Self {
        match cost {
            Cost::Cheap => CostWord::Cheap,
            Cost::SingleStepped => CostWord::SingleStepped,
            Cost::NeverFires => CostWord::NeverFires,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            CostWord::Cheap => "cheap",
            CostWord::SingleStepped => "single-stepped",
            CostWord::NeverFires => "never fires",
        }
    }
}

/// Lists the probes of a target, which is a path, a process id, or else a process name. `functions` also lists
/// functions, by a name, a glob, `name+0x10` or a file offset.
///
/// # Errors
/// If there is no such target, or its file cannot be traced; the message suggests what to do next.
pub fn list(target: &str, functions: Option<&str>) -> Result<Listing, String> {
    let selector = selector(target)?;
    let found = find(&selector)?;
    let files = found.iter().map(|found| file(found, &selector, functions)).collect::<Result<_, _>>()?;
    Ok(Listing { target: target.to_string(), selector, files })
}

/// Parses the target: see [`list`].
fn selector(target: &str) -> Result<Selector, String> {
    let path = Path::new(target);
    if target.contains('/') || path.exists() {
        let path = std::path::absolute(path).map_err(|err| format!("{target}: {err}"))?;
        return Ok(Selector::binary(path));
    }
    if let Ok(pid) = target.parse() {
        return Ok(Selector::pid(pid));
    }
    let selector = Selector::process(target);
    find(&selector).map_err(|err| {
        let next = match in_search_path(target) {
            Some(path) => format!("For the program of that name use `exporter probes {}`", path.display()),
            None => "Give a file path, a process id or the name of a running process".to_string(),
        };
        format!("there is no file {target}, and {err}. {next}.")
    })?;
    Ok(selector)
}

fn in_search_path(name: &str) -> Option<PathBuf> {
    let directories = std::env::var_os("PATH")?;
    std::env::split_paths(&directories).map(|directory| directory.join(name)).find(|path| path.is_file())
}

fn file(found: &TargetFile, selector: &Selector, functions: Option<&str>) -> Result<File, String> {
    let name = &found.display;
    let bytes = found.read().map_err(|err| format!("failed to read {name}: {err}"))?;
    let image = Image::parse(&bytes).map_err(|err| match hints::interpreter(&bytes) {
        Some(interpreter) if err == ElfError::NotElf => format!(
            "{name}: not an ELF file but a script for {interpreter}: use the program that it starts, or the \
             interpreter"
        ),
        _ => format!("{name}: {err}"),
    })?;
    let mut remarks = Vec::new();
    if foreign(image.arch()) {
        remarks.push(format!(
            "built for {}, but this machine is {}: its probes can be listed but not traced here",
            architecture(image.arch()),
            std::env::consts::ARCH
        ));
    }
    let wants_names = functions.is_some() || lacks_variables(&image);
    let debug = if wants_names { debug_symbols(&image, &found.path, name) } else { None };
    let image = with_names(image, debug.as_ref());
    let providers = match usdt::providers(&image) {
        Ok(providers) => {
            remarks.extend(hints::libraries(found, selector));
            providers
        }
        Err(err) => {
            remarks.push(match err {
                ElfError::NoNotes if functions.is_some() => {
                    "no USDT probes (no .note.stapsdt section)".to_string()
                }
                ElfError::NoNotes => hints::no_notes(found, &image, selector),
                err => err.to_string(),
            });
            Vec::new()
        }
    };
    let functions = functions.map(|pattern| {
        functions::functions(&SymbolIndex::of(&image), pattern).unwrap_or_else(|err| {
            remarks.push(err.to_string());
            Vec::new()
        })
    });
    if functions.is_some() {
        remarks.extend(hints::functions(&image));
    }
    Ok(File {
        file: name.clone(),
        architecture: architecture(image.arch()),
        position_independent: image.is_pie(),
        stripped: image.is_stripped(),
        go: go_binary(&image),
        build_id: image.build_id().map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect()),
        providers,
        functions,
        remarks,
    })
}

fn architecture(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "x86_64",
        Arch::Aarch64 => "aarch64",
    }
}

/// Whether this machine cannot run such programs.
pub(crate) fn foreign(arch: Arch) -> bool {
    architecture(arch) != std::env::consts::ARCH
}

/// `1 site`, `2 sites`.
fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
