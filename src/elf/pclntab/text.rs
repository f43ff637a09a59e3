//! Where a Go program's code begins. Since Go 1.18, the addresses in `.gopclntab` are relative to it.
//!
//! It is not the start of `.text`: with cgo, C code comes first. The table's header contains the address up to Go 1.25,
//! though in a position-independent program only as a relocation; the runtime's `moduledata` contains it in every
//! version.

use super::u64_at;
use crate::elf::headers::Headers;

/// Offsets in `runtime.moduledata`, the same since Go 1.16: it starts with the address of the table, followed by those
/// of the names (a part of the table), of the lowest function, and of the code.
const NAMES: u64 = 8;
const LOWEST: u64 = 160;
const TEXT: u64 = 176;

/// Candidate addresses of the table that are followed: besides `moduledata`, hardly anything holds it.
const MAX_CANDIDATES: usize = 64;

/// Returns the address, if one is found with which the table is plausible.
pub(super) fn text_start(
    image: &Headers<'_>,
    table: u64,
    data: &[u8],
    fits: &dyn Fn(u64) -> bool,
) -> Option<u64> {
    let in_header = image.pointer_at(table.checked_add(24)?);
    if let Some(text) = in_header.filter(|&text| text != 0 && fits(text)) {
        return Some(text);
    }
    let names = table.checked_add(u64_at(data, 32)?)?;
    let by_module = |module: u64| {
        let field = |at| image.pointer_at(module.checked_add(at)?);
        let text = field(TEXT)?;
        (field(NAMES) == Some(names) && field(LOWEST)? >= text && fits(text)).then_some(text)
    };
    image.pointers_to(table).take(MAX_CANDIDATES).find_map(by_module)
}
