//! Where a Go program's code begins. Since Go 1.18 `.gopclntab` counts from there.
//!
//! It is not where `.text` begins: with cgo, C code comes first. The table's header holds the address up to Go 1.25, in a
//! position-independent program only as a relocation; the runtime's `moduledata` holds it in every version.

use super::u64_at;
use crate::elf::headers::Headers;

/// Fields of `runtime.moduledata`, the same since Go 1.16: the address of the table, and after it those of the names (a
/// part of the table), of the lowest function, and of the code.
const NAMES: u64 = 8;
const LOWEST: u64 = 160;
const TEXT: u64 = 176;

/// Addresses of the table that are followed: it is in `moduledata` and hardly anywhere else.
const FOLLOWED: usize = 64;

/// The address, if one is found by which the table makes sense.
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
    image.pointers_to(table).take(FOLLOWED).find_map(by_module)
}
