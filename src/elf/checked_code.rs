//! Code that a program checks by a checksum of its own memory when it starts, as FIPS 140 asks of cryptographic modules. A breakpoint
//! in it is a change, after which the program ends.

use object::elf;
use object::read::elf::SectionHeader;

use super::headers::{Headers, LE};
use super::symbol_table::SymbolTable;

/// What the names of the symbols around the code of BoringSSL and AWS-LC end in.
const BORINGSSL: [&str; 2] = ["BORINGSSL_bcm_text_start", "BORINGSSL_bcm_text_end"];
/// Where Go since 1.24 says which of its code that is.
const GO: &[u8] = b".go.fipsinfo";
/// Where in there is the address of the code; behind it that of its end.
const GO_CODE: u64 = 16 + 32 + 8;

/// The addresses of such code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CheckedCode {
    start: u64,
    end: u64,
}

impl CheckedCode {
    /// None if the file has none that it tells of.
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
