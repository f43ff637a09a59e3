//! Assigns argument words to the consecutive arguments of a function, by the System V calling convention.

use std::ops::Range;

use super::passing::is_returned_by_address;
use super::{Passed, StackSpace};
use crate::elf::debug_info::{Finder, Node};

/// The number of general-purpose registers for arguments.
pub(in crate::elf) const REGISTERS: usize = 6;
const VECTOR_REGISTERS: usize = 8;

/// Assigns words as the System V calling convention does.
#[derive(Debug)]
pub(in crate::elf) struct ArgumentWords {
    /// C or C++.
    pub is_c: bool,
    pub is_cpp: bool,
    /// Whether the language has a calling convention of its own, other than C's.
    pub is_own: bool,
    general: usize,
    vector: usize,
    stack: usize,
    /// An earlier argument was not understood, so that no further positions are known.
    pub is_lost: bool,
    /// The function may take more arguments.
    pub is_open: bool,
}

impl ArgumentWords {
    /// Starts before the first argument of a function. A result that is returned by address takes the first word.
    pub fn of<'d>(finder: &Finder<'d>, function: &Node<'d>, declared: &Node<'d>) -> Option<ArgumentWords> {
        let mut language = language_of(function);
        // With link-time optimization, the code is in a unit of its own.
        if !matches!(language, Language::C | Language::Cpp) {
            language = language_of(declared);
        }
        let is_cpp = language == Language::Cpp;
        let is_c = is_cpp || language == Language::C;
        let mut words = ArgumentWords {
            is_c,
            is_cpp,
            is_own: language == Language::Zig,
            general: 0,
            vector: 0,
            stack: 0,
            is_lost: !is_c,
            is_open: false,
        };
        let declarations = || finder.declarations(declared.clone());
        let returned = declarations().find_map(|at| finder.follow(&at, gimli::DW_AT_type));
        let has_type = declarations().any(|at| at.entry.attr(gimli::DW_AT_type).is_some());
        match returned {
            Some(kind) => match is_returned_by_address(finder, kind, is_cpp) {
                Some(is_first) => words.general = usize::from(is_first),
                None => words.is_lost = true,
            },
            None => words.is_lost |= has_type,
        }
        Some(words)
    }

    /// Assigns the next argument; `None` if its position is unknown.
    pub fn take(&mut self, passed: Passed) -> Option<Range<usize>> {
        if self.is_lost {
            return None;
        }
        let room = match passed {
            Passed::Wide if self.general + 2 <= REGISTERS => return Some(self.registers(2)),
            Passed::Nothing => return Some(0..0),
            Passed::Registers { general, vector, .. }
                if self.general + general <= REGISTERS && self.vector + vector <= VECTOR_REGISTERS =>
            {
                self.vector += vector;
                return Some(if general == 0 { 0..0 } else { self.registers(general) });
            }
            Passed::ByReference if self.general < REGISTERS => return Some(self.registers(1)),
            Passed::Registers { stack: Some(room), .. } | Passed::Stack { room, .. } => room,
            Passed::ByReference => StackSpace { words: 1, alignment: 1 },
            // If only one register is left for two words, GCC and older Clangs differ.
            Passed::Wide | Passed::Registers { stack: None, .. } | Passed::Unknown => {
                self.is_lost = true;
                return None;
            }
        };
        let first = REGISTERS + self.stack.next_multiple_of(room.alignment);
        let after = first.saturating_add(room.words);
        self.stack = after - REGISTERS;
        Some(first..after)
    }

    fn registers(&mut self, count: usize) -> Range<usize> {
        self.general += count;
        self.general - count..self.general
    }

    /// Returns the total number of words.
    pub fn count(&self) -> Option<usize> {
        let all = if self.stack > 0 { REGISTERS + self.stack } else { self.general };
        (!self.is_lost && !self.is_open).then_some(all)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    C,
    Cpp,
    /// Functions that are not callable from other languages have a different convention in each of its back ends.
    Zig,
    Other,
}

/// Returns the language of the unit.
fn language_of(node: &Node<'_>) -> Language {
    let mut entries = node.unit.entries();
    let root = entries.next_dfs().ok().flatten();
    let number = root.and_then(|root| root.attr(gimli::DW_AT_language)?.u16_value());
    match number.map(gimli::DwLang) {
        Some(
            gimli::DW_LANG_C
            | gimli::DW_LANG_C89
            | gimli::DW_LANG_C99
            | gimli::DW_LANG_C11
            | gimli::DW_LANG_C17
            | gimli::DW_LANG_ObjC,
        ) => Language::C,
        Some(
            gimli::DW_LANG_C_plus_plus
            | gimli::DW_LANG_C_plus_plus_03
            | gimli::DW_LANG_C_plus_plus_11
            | gimli::DW_LANG_C_plus_plus_14
            | gimli::DW_LANG_C_plus_plus_17
            | gimli::DW_LANG_C_plus_plus_20
            | gimli::DW_LANG_ObjC_plus_plus,
        ) => Language::Cpp,
        Some(gimli::DW_LANG_Zig) => Language::Zig,
        _ => Language::Other,
    }
}
