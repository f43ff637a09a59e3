//! Where a function is left: every `ret`, and every jump to code that is not its own.
//!
//! A function can be more than one stretch of code. What the compiler considered unlikely is placed elsewhere
//! (`f.cold`), and a call at the very end becomes a jump (a tail call): the callee then returns in the function's
//! place, from the same position on the stack. The target of every direct jump is therefore included, whatever it is,
//! until no direct jump leads out; a `ret` anywhere in that code at which the stack is as it was on entry is the
//! function's return. Nothing is guessed: code that cannot be fully decoded, or a jump whose target cannot be
//! determined, causes an error.

use super::code::Functions;
use super::exit::{Exits, NoExits, Passage, PassageKind};
use super::search::Search;
use super::{Arch, golang};

impl<'a> Functions<'a> {
    /// Finds the exits of the function that is entered at `entry`; `size` is its symbol's size, or 0.
    ///
    /// # Errors
    /// Why they cannot be determined with certainty.
    pub fn exits(&self, entry: u64, size: u64) -> Result<Exits, NoExits> {
        if self.image.arch() != Arch::X86_64 {
            return Err("exits are only supported in x86-64 code".to_string());
        }
        if let Some(table) = self.image.pclntab()
            && let Some(function) = table.covering(entry).filter(|function| function.entry == entry)
        {
            return golang::exits(&self.image, &table, &function);
        }
        if self.is_moved(entry) {
            return Err("OCaml 5 moves a stack that grows, so that a return cannot be told to be of the same call: count its \
                        entries"
                .to_string());
        }
        self.search(entry, size)?.exits()
    }

    /// Finds the jumps of the function to its own first instruction, made by a loop that begins there: arriving by one
    /// of them is not another call.
    ///
    /// # Errors
    /// Why they cannot be determined with certainty.
    pub fn turns(&self, entry: u64, size: u64) -> Result<Vec<Passage>, NoExits> {
        if self.image.arch() != Arch::X86_64 || self.image.pclntab().is_some() {
            return Err(
                "loop iterations can only be told from calls in x86-64 code other than Go's".to_string()
            );
        }
        let passages = self.search(entry, size)?.passages();
        Ok(passages.filter(|passage| passage.kind == PassageKind::LoopBack).collect())
    }

    /// Returns whether another function jumps into the middle of this one, as functions in assembly do; false if that
    /// cannot be determined.
    pub fn is_entered_inside(&self, entry: u64, size: u64) -> bool {
        self.image.arch() == Arch::X86_64
            && self.image.pclntab().is_none()
            && self.search(entry, size).is_ok_and(|search| search.entered_from().is_some())
    }

    fn search(&self, entry: u64, size: u64) -> Result<Search<'_, 'a>, NoExits> {
        if self.is_haskell(entry) {
            return Err(
                "it is code of GHC, which calls and returns by a stack of its own: count its entries"
                    .to_string(),
            );
        }
        if let Some(frame) = self.unwind.covering(entry) {
            let row = if frame.start == entry { frame.at_start } else { self.above(entry).flatten() };
            if row != Some(8) {
                return Err(
                    "it is not entered by a call: there is no return address on top of the stack".to_string()
                );
            }
        }
        let mut range = self.around(entry).unwrap_or(entry..entry);
        range.end = range.end.max(entry.saturating_add(size));
        if range.is_empty() {
            return Err("its size is unknown: neither its symbol nor an unwind table has it".to_string());
        }
        let mut search = Search::new(self, entry);
        search.add(range)?;
        search.close()?;
        Ok(search)
    }
}
