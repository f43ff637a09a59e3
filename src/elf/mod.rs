//! From the bytes of a program to the places where probes are set.
//!
//! Everything here is a pure function of bytes: no file is opened, and the kernel is not involved. The bytes are
//! untrusted: no input makes these functions panic, and time and memory are bounded by the file's size.
//!
//! [`Image`] holds the headers, [`notes()`] returns the USDT notes, [`parse_args`] parses the argument forms in them;
//! [`usdt_sites`] and [`function_sites`] combine these into [`Site`]s.

mod address_names;
mod approach;
mod body;
mod checked_code;
mod code;
mod copies;
mod debug;
mod debug_info;
mod error;
mod exit;
mod exits;
mod first;
mod foreign_code;
pub mod forms;
mod functions;
mod golang;
mod headers;
mod idle;
mod ifunc;
mod image;
mod index;
mod inlined;
mod minidebug;
mod names;
mod near;
mod non_local_exits;
pub mod notes;
mod packed;
mod parameters;
mod pclntab;
pub mod probeable;
mod raw_notes;
mod relocated;
mod runtimes;
mod search;
mod select;
mod shape;
mod sites;
mod stack_switches;
mod stored_arguments;
mod symbol_table;
mod symbols;
mod thunks;
mod types;
mod unwind;

pub use address_names::{AddressNames, shown_name};
pub use approach::Approach;
pub use code::Functions;
pub use debug::{debug_file_candidates, shared_debug_candidates};
pub use debug_info::DebugInfo;
pub use error::{ElfError, FormError, SiteError, Unnamed};
pub use exit::{Exit, ExitKind, Exits, NoExits, Passage, PassageKind};
pub use forms::{ArgForm, Form, Reg, parse_args};
pub use functions::function_sites;
pub use headers::{Arch, Headers, Semaphore};
pub use image::{Image, go_binary};
pub use index::SymbolIndex;
pub use minidebug::embedded_symbols;
pub use names::signature;
pub use non_local_exits::{NonLocalExit, is_program};
pub use notes::{Note, notes};
pub use parameters::{FunctionResult, OtherWords, Parameter, ParameterPlace, Parameters};
pub use probeable::LONGEST_INSTRUCTION;
pub use shape::{Cost, SiteShape};
pub use sites::{Convention, FunctionSite, Site, lacks_variables, usdt_sites};
pub use types::{Pointee, ValueType};
