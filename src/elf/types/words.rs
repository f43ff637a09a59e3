//! Which words the arguments of a function are passed in, one after the other, by the System V calling convention.

use std::ops::Range;

use super::{Passed, passed};
use crate::elf::debug_info::{Finder, Node};

/// General registers with arguments.
pub(in crate::elf) const REGISTERS: usize = 6;
const VECTOR_REGISTERS: usize = 8;

/// Gives out words as the System V calling convention does.
#[derive(Debug)]
pub(in crate::elf) struct Words {
    pub is_cpp: bool,
    general: usize,
    vector: usize,
    stack: usize,
    /// Something before was not understood, so that no more can be told.
    is_lost: bool,
    /// It may take more.
    pub is_open: bool,
}

impl Words {
    /// Before the first argument of a function; None in a language whose conventions are its own.
    pub fn of<'d>(finder: &Finder<'d>, function: &Node<'d>, declared: &Node<'d>) -> Option<Words> {
        let (mut is_c, mut is_cpp) = language(function);
        // With optimisation while linking, the code is in a unit of its own.
        if !is_c {
            (is_c, is_cpp) = language(declared);
        }
        let mut words = Words { is_cpp, general: 0, vector: 0, stack: 0, is_lost: !is_c, is_open: false };
        let declarations = || finder.declarations(declared.clone());
        let returned = declarations().find_map(|at| finder.follow(&at, gimli::DW_AT_type));
        let has_type = declarations().any(|at| at.entry.attr(gimli::DW_AT_type).is_some());
        match returned {
            Some(kind) => match passed(finder, Some(kind), is_cpp) {
                // The address where the result goes.
                Passed::Stack { even: true, words: 2 | 4 } => {}
                Passed::Stack { .. } | Passed::ByReference => words.general = 1,
                Passed::Unknown => words.is_lost = true,
                _ => {}
            },
            None => words.is_lost |= has_type,
        }
        Some(words)
    }

    /// None if it is not known.
    pub fn take(&mut self, passed: Passed) -> Option<Range<usize>> {
        if self.is_lost {
            return None;
        }
        let words = match passed {
            // Where only one register is left, GCC and older Clangs differ.
            Passed::Wide if self.general + 2 > REGISTERS => {
                self.is_lost = true;
                return None;
            }
            Passed::Wide => return Some(self.registers(2)),
            Passed::Unknown => {
                self.is_lost = true;
                return None;
            }
            Passed::Nothing => return Some(0..0),
            Passed::Vector(count) if self.vector + count <= VECTOR_REGISTERS => {
                self.vector += count;
                return Some(0..0);
            }
            Passed::Words(count) if self.general + count <= REGISTERS => return Some(self.registers(count)),
            Passed::ByReference if self.general < REGISTERS => return Some(self.registers(1)),
            Passed::Mixed(general, vector)
                if self.general + general <= REGISTERS && self.vector + vector <= VECTOR_REGISTERS =>
            {
                self.vector += vector;
                return Some(self.registers(general));
            }
            Passed::Stack { words, even } => {
                self.stack += usize::from(even && self.stack % 2 == 1);
                words
            }
            Passed::Words(count) | Passed::Vector(count) => count,
            Passed::Mixed(general, vector) => general + vector,
            Passed::ByReference => 1,
        };
        let first = REGISTERS + self.stack;
        self.stack = self.stack.saturating_add(words);
        Some(first..first.saturating_add(words))
    }

    fn registers(&mut self, count: usize) -> Range<usize> {
        self.general += count;
        self.general - count..self.general
    }

    /// How many there are in all.
    pub fn count(&self) -> Option<usize> {
        let all = if self.stack > 0 { REGISTERS + self.stack } else { self.general };
        (!self.is_lost && !self.is_open).then_some(all)
    }
}

/// Whether a unit is C or C++, and whether it is C++.
fn language(node: &Node<'_>) -> (bool, bool) {
    let mut entries = node.unit.entries();
    let root = entries.next_dfs().ok().flatten();
    let Some(number) = root.and_then(|root| root.attr(gimli::DW_AT_language)?.u16_value()) else {
        return (false, false);
    };
    match gimli::DwLang(number) {
        gimli::DW_LANG_C
        | gimli::DW_LANG_C89
        | gimli::DW_LANG_C99
        | gimli::DW_LANG_C11
        | gimli::DW_LANG_C17
        | gimli::DW_LANG_ObjC => (true, false),
        gimli::DW_LANG_C_plus_plus
        | gimli::DW_LANG_C_plus_plus_03
        | gimli::DW_LANG_C_plus_plus_11
        | gimli::DW_LANG_C_plus_plus_14
        | gimli::DW_LANG_C_plus_plus_17
        | gimli::DW_LANG_C_plus_plus_20
        | gimli::DW_LANG_ObjC_plus_plus => (true, true),
        _ => (false, false),
    }
}
