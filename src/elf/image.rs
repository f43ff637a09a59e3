//! A program or library, with every source of function names.

use std::ops::Deref;

use object::elf;

use super::checked_code::CheckedCode;
use super::debug::{crc32, debuglink};
use super::headers::Headers;
use super::notes::{Note, base_address, notes, notes_for};
use super::pclntab::{Pclntab, is_marked};
use super::symbol_table::SymbolTable;
use super::{ElfError, SiteError};

/// A linked 64-bit little-endian program or shared library: its [`Headers`], and symbol tables from elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    headers: Headers<'a>,
    debug_symbols: Option<SymbolTable<'a>>,
    /// The debug file from which the symbols are.
    debug_file: Option<Headers<'a>>,
    pclntab: Option<Pclntab<'a>>,
    checked: Option<CheckedCode>,
}

impl<'a> Deref for Image<'a> {
    type Target = Headers<'a>;

    fn deref(&self) -> &Headers<'a> {
        &self.headers
    }
}

impl<'a> Image<'a> {
    /// Parses the headers.
    ///
    /// A file without section headers is accepted (it has segments, but no notes and no symbols).
    pub fn parse(bytes: &'a [u8]) -> Result<Image<'a>, ElfError> {
        let headers = Headers::parse(bytes)?;
        let (pclntab, checked) = (Pclntab::of(&headers), CheckedCode::of(&headers));
        Ok(Image { headers, debug_symbols: None, debug_file: None, pclntab, checked })
    }

    /// Parses the headers of a file that contains only debug information, which dwz extracts from several files.
    pub fn of_debug_information(bytes: &'a [u8]) -> Result<Image<'a>, ElfError> {
        let headers = Headers::of_any_type(bytes)?;
        Ok(Image { headers, debug_symbols: None, debug_file: None, pclntab: None, checked: None })
    }

    /// Adds the symbols of a separate debug file (see [`super::debug_file_candidates`]) to the image's own.
    ///
    /// The file must be proven to belong to this build: by the same build ID or, if the program has none, by the
    /// checksum of the file's contents in the program's `.gnu_debuglink`. Symbols of another build would place probes
    /// inside instructions.
    pub fn with_debug_symbols(self, debug: &Image<'a>) -> Result<Image<'a>, SiteError> {
        let same = match self.build_id() {
            Some(id) => debug.build_id().as_ref() == Some(&id),
            None => debuglink(&self).is_some_and(|(_, crc)| crc == crc32(debug.bytes())),
        };
        if self.arch() != debug.arch() || !same {
            return Err(SiteError::OtherBuild);
        }
        let checked = self.checked.or_else(|| CheckedCode::of(debug));
        let debug_symbols = SymbolTable::of(debug, elf::SHT_SYMTAB);
        Ok(Image { debug_symbols, debug_file: Some(debug.headers), checked, ..self })
    }

    /// Adds the compressed symbols that are embedded in the program; `embedded` is the result of
    /// [`super::embedded_symbols`].
    pub fn with_embedded_symbols(self, embedded: &Image<'a>) -> Image<'a> {
        Image { debug_symbols: SymbolTable::of(embedded, elf::SHT_SYMTAB), ..self }
    }

    /// Returns the USDT notes of the program, or of its debug file: `llvm-strip` removes them from the program.
    pub fn notes(&self) -> Result<Vec<Note>, ElfError> {
        match (notes(self), &self.debug_file) {
            (Err(ElfError::NoNotes), Some(file)) => notes_for(self, file),
            (found, _) => found,
        }
    }

    /// Returns whether USDT notes were removed: what they refer to is left.
    pub fn lacks_notes(&self) -> bool {
        self.notes() == Err(ElfError::NoNotes) && base_address(self).is_some()
    }

    /// Returns whether only the dynamic symbols are left: neither the file nor a debug file added to it names the other
    /// functions.
    pub fn is_stripped(&self) -> bool {
        self.debug_symbols.is_none() && self.section_of_type(elf::SHT_SYMTAB).is_none()
    }

    /// Returns whether the program verifies the code there at startup, so that it must not be changed.
    pub(super) fn is_checked(&self, vaddr: u64) -> bool {
        self.checked.is_some_and(|code| code.holds(vaddr))
    }

    /// Returns the table that names a Go program's functions.
    pub(super) fn pclntab(&self) -> Option<Pclntab<'a>> {
        self.pclntab
    }

    pub(super) fn debug_symbols(&self) -> Option<SymbolTable<'a>> {
        self.debug_symbols
    }
}

/// Returns whether the Go toolchain built the program. Go moves its stacks, so a probe on a function's return would
/// crash it, and Go functions do not follow the C calling convention.
pub fn go_binary(image: &Image<'_>) -> bool {
    image.pclntab().is_some() || is_marked(image)
}
