//! What can be wrong with a file, with a probe in it, or with one argument of a probe.

use std::fmt;
use std::path::PathBuf;

/// Why a file cannot be read as a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ElfError {
    /// The first four bytes are not those of an ELF file.
    NotElf,
    /// A 32-bit program; the number is the header's `e_machine`.
    Class32(u16),
    /// A big-endian program.
    BigEndian,
    /// Built for another processor; the number is the header's `e_machine`.
    Machine(u16),
    /// An object file, a core dump or something else that is not executable; the number is the header's `e_type`.
    NotLinked(u16),
    /// A table that is inconsistent with the file.
    Malformed { what: &'static str, reason: String },
    /// A `.note.stapsdt` entry that violates its format; the offset is into the file.
    BadNote { offset: u64, reason: &'static str },
    /// The file has no USDT probes.
    NoNotes,
    /// The file has no section headers, without which its USDT probes, if any, cannot be found.
    NoSections,
    /// The code is unpacked from the file only when it starts.
    Packed,
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ElfError::NotElf => f.write_str(
                "not an ELF file: use the program itself, not a script or wrapper that starts it",
            ),
            ElfError::Class32(machine) => {
                let name = match machine {
                    3 => "i386".to_string(),
                    62 => "x32".to_string(),
                    other => format!("ELF machine {other}"),
                };
                write!(
                    f,
                    "a 32-bit program ({name}): only 64-bit programs are supported; use a 64-bit build"
                )
            }
            ElfError::BigEndian => f.write_str("a big-endian program: only x86_64 and aarch64 are supported"),
            ElfError::Machine(machine) => write!(
                f,
                "built for another architecture (ELF machine {machine}): only x86_64 (62) and aarch64 (183) \
                 are supported"
            ),
            ElfError::NotLinked(kind) => write!(
                f,
                "not an executable or shared library (ELF type {kind}): use the file that is run or loaded"
            ),
            ElfError::Malformed { what, reason } => {
                write!(f, "invalid {what} ({reason}): the file is damaged or incomplete")
            }
            ElfError::BadNote { offset, reason } => write!(
                f,
                "malformed .note.stapsdt entry at file offset {offset:#x} ({reason}): the file is damaged or was \
                 rewritten by a tool that does not keep notes"
            ),
            ElfError::NoSections => f.write_str(
                "its USDT probes cannot be found: the section headers, which lead to them, were removed (by \
                 sstrip or the like); use the file as it was linked",
            ),
            ElfError::Packed => f.write_str(
                "packed by UPX: its code is unpacked into memory when it starts, where no probe can be set; \
                 unpack the file with `upx -d`",
            ),
            ElfError::NoNotes => f.write_str(
                "no USDT probes (no .note.stapsdt section): the program was built without them (many programs \
                 have a build option, which often needs systemtap-sdt-dev), or they are in a shared library",
            ),
        }
    }
}

impl std::error::Error for ElfError {}

/// Why one argument of a probe cannot be read. Irrelevant unless that argument is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormError {
    /// The argument as written in its note.
    pub text: String,
    /// The reason, phrased to follow a colon.
    pub reason: String,
}

impl FormError {
    pub(crate) fn new(text: &str, reason: impl Into<String>) -> FormError {
        FormError { text: text.to_owned(), reason: reason.into() }
    }
}

impl fmt::Display for FormError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "argument `{}` cannot be read: {}", self.text, self.reason)
    }
}

impl std::error::Error for FormError {}

/// Why a probe or a function has no sites in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SiteError {
    /// The file itself is unusable.
    Elf(ElfError),
    /// The file has USDT probes, but not this one; `near` holds `provider:name`, the nearest first.
    NoProbe { provider: String, name: String, near: Vec<String> },
    /// There is no function of that name; `near` holds the closest names, `unnamed` why functions may have no names.
    NoFunction { pattern: String, near: Vec<String>, unnamed: Option<Unnamed> },
    /// The name exists, but not for anything that can be probed.
    NotProbeable { name: String, reason: &'static str },
    /// The program chooses the code at startup; `implementations` holds names, or file offsets.
    Ifunc { name: String, implementations: Vec<String> },
    /// The pattern is invalid.
    BadPattern { pattern: String, reason: String },
    /// An address outside the file's loaded segments.
    Unmapped { what: String, vaddr: u64 },
    /// An offset that is not at the start of an instruction: a probe there would corrupt the program.
    InsideInstruction { what: String, before: u64, after: u64 },
    /// A separate debug file that belongs to another build of the program.
    OtherBuild,
}

/// Why a file's functions may have no names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unnamed {
    Stripped,
    /// It is stripped, and this debug file is of another build.
    Misfit(PathBuf),
    /// It is stripped, and its embedded symbols cannot be decompressed.
    Packed,
}

impl From<ElfError> for SiteError {
    fn from(error: ElfError) -> SiteError {
        SiteError::Elf(error)
    }
}

impl fmt::Display for SiteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SiteError::Elf(error) => error.fmt(f),
            SiteError::NoProbe { provider, name, near } => {
                write!(f, "no USDT probe {provider}:{name} in this file{}", Near(near))
            }
            SiteError::NoFunction { pattern, near, unnamed } => {
                write!(f, "no function {pattern} in this file{}", Near(near))?;
                let why = match unnamed {
                    None => return Ok(()),
                    Some(Unnamed::Stripped) => String::new(),
                    Some(Unnamed::Misfit(path)) => {
                        format!(" and {} is damaged or of another build,", path.display())
                    }
                    Some(Unnamed::Packed) => {
                        " and its .gnu_debugdata is damaged, too large or packed otherwise than by `xz` alone,"
                            .to_owned()
                    }
                };
                write!(
                    f,
                    "; the file is stripped,{why} so only exported functions have names: install the debug symbols, or \
                     use a file offset such as 0x1234"
                )
            }
            SiteError::NotProbeable { name, reason } => write!(f, "{name} cannot be probed: {reason}"),
            SiteError::Ifunc { name, implementations } => {
                write!(
                    f,
                    "{name} cannot be probed: it is an IFUNC, whose implementation is chosen at program start"
                )?;
                match implementations.as_slice() {
                    [] => f.write_str("; probe the implementation that this processor uses"),
                    some => write!(f, "; probe the one that this processor uses: {}", some.join(", ")),
                }
            }
            SiteError::BadPattern { pattern, reason } => {
                write!(f, "`{pattern}` does not name a function: {reason}")
            }
            SiteError::Unmapped { what, vaddr } => write!(
                f,
                "{what} is at address {vaddr:#x}, which is in no suitable segment of the file: the file is \
                 damaged or was rewritten after linking"
            ),
            SiteError::InsideInstruction { what, before, after } => write!(
                f,
                "{what} is inside an instruction, and a probe there would corrupt the program: the nearest \
                 instructions start at +{before:#x} and +{after:#x}"
            ),
            SiteError::OtherBuild => f.write_str(
                "the debug file is from another build (different build id): install the debug symbols of the \
                 installed version",
            ),
        }
    }
}

impl std::error::Error for SiteError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            SiteError::Elf(error) => Some(error),
            _ => None,
        }
    }
}

/// Formats as `; the nearest are a, b`, or as nothing.
struct Near<'a>(&'a [String]);

impl fmt::Display for Near<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => Ok(()),
            [one] => write!(f, "; the nearest is {one}"),
            many => write!(f, "; the nearest are {}", many.join(", ")),
        }
    }
}
