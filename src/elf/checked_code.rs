//! Code that a program verifies by a checksum of its own memory at startup, as FIPS 140 demands of cryptographic
//! modules. A breakpoint in such code changes it, and the program then exits.

use object::elf;
use object::read::elf::SectionHeader;

use super::headers::{Headers, LE};
use super::symbol_table::SymbolTable;

/// Suffixes of the symbols that delimit the code of BoringSSL and AWS-LC.
const BORINGSSL: [&str; 2] = ["BORINGSSL_bcm_text_start", "BORINGSSL_bcm_text_end"];
/// The section in which Go 1.24 and later record where this code is.
const GO: &[u8] = b".go.fipsinfo";
/// The offset of the code's start address in that section; its end address follows.
const GO_CODE: u64 = 16 + 32 + 8;

/// The address range of such code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CheckedCode {
    start: u64,
    end: u64,
}

impl CheckedCode {
    /// Returns `None` if the file declares no such code.
    pub fn of(headers: &Headers<'_>) -> Option<CheckedCode> {
        let [start, end] = of_go(headers).or_else(|| of_boringssl(headers))?;
        (start < end).then_some(CheckedCode { start, end })
    }

    pub fn holds(self, vaddr: u64) -> bool {
        (self.start..self.end).contains(&vaddr)
    }
}

fn of_go(headers: &Headers<'_>) -> Option<[u64; 2]> {
    let at = headers.section(GO)?.sh_addr(LE).checked_add(GO_CODE)?;
    Some([headers.pointer_at(at)?, headers.pointer_at(at.checked_add(8)?)?])
}

fn of_boringssl(headers: &Headers<'_>) -> Option<[u64; 2]> {
    let table = SymbolTable::of(headers, elf::SHT_SYMTAB)?;
    if !table.has_text(BORINGSSL[0].as_bytes()) {
        return None;
    }
    let ends = BORINGSSL.map(|end| {
        let mut symbols = table.symbols().filter(|symbol| symbol.defined);
        symbols.find(|symbol| symbol.name.ends_with(end)).map(|symbol| symbol.vaddr)
    });
    Some([ends[0]?, ends[1]?])
}
