//! Where the System V calling convention passes an argument of a type.

use super::copying::{copies_by_code, is_part};
use super::{DEPTH, bytes, encoding, is_address, is_function, is_structure, plain};
use crate::elf::debug_info::{Finder, Node};

/// Structures larger than this are passed in memory.
const REGISTERS_MAX: u64 = 16;

/// Where an argument is passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::elf) enum Passed {
    /// In general registers if all of it fits into those that are left, else on the stack: so many words.
    Words(usize),
    /// In two general registers, or on the stack.
    Wide,
    /// As its address.
    ByReference,
    /// In vector registers.
    Vector(usize),
    /// In so many general and vector registers, or as a whole on the stack.
    Mixed(usize, usize),
    /// On the stack: words, and whether it begins at an even one.
    Stack {
        words: usize,
        even: bool,
    },
    /// Not at all: it has no contents.
    Nothing,
    Unknown,
}

/// How an argument of this type is passed.
pub(in crate::elf) fn passed<'d>(finder: &Finder<'d>, of: Option<Node<'d>>, is_cpp: bool) -> Passed {
    let Some(node) = plain(finder, of) else { return Passed::Unknown };
    match node.entry.tag() {
        _ if is_address(&node) => Passed::Words(1),
        gimli::DW_TAG_unspecified_type => Passed::Words(1),
        gimli::DW_TAG_enumeration_type if bytes(&node).is_some_and(|bytes| bytes <= 8) => Passed::Words(1),
        // The pointer to a member function has two words.
        gimli::DW_TAG_ptr_to_member_type => {
            Passed::Words(1 + usize::from(is_function(finder.follow(&node, gimli::DW_AT_type).as_ref())))
        }
        gimli::DW_TAG_base_type => passed_number(finder, &node),
        gimli::DW_TAG_array_type if is_vector(&node) && vector_bytes(finder, &node) == Some(16) => {
            Passed::Vector(1)
        }
        _ if is_structure(&node) => passed_structure(finder, &node, is_cpp),
        _ => Passed::Unknown,
    }
}

fn passed_number<'d>(finder: &Finder<'d>, node: &Node<'d>) -> Passed {
    let name = finder.text(node, gimli::DW_AT_name).map(String::from_utf8_lossy).unwrap_or_default();
    match (encoding(node), bytes(node)) {
        (gimli::DW_ATE_float | gimli::DW_ATE_decimal_float, Some(2 | 4 | 8)) => Passed::Vector(1),
        (gimli::DW_ATE_float, Some(16)) if name.contains("long double") => {
            Passed::Stack { words: 2, even: true }
        }
        (gimli::DW_ATE_float | gimli::DW_ATE_decimal_float, Some(16)) => Passed::Vector(1),
        (gimli::DW_ATE_complex_float, Some(8)) => Passed::Vector(1),
        (gimli::DW_ATE_complex_float, Some(16)) => Passed::Vector(2),
        (gimli::DW_ATE_complex_float, Some(32)) => Passed::Stack { words: 4, even: true },
        (gimli::DW_ATE_float | gimli::DW_ATE_decimal_float | gimli::DW_ATE_complex_float, _) => {
            Passed::Unknown
        }
        (_, Some(1..=8)) => Passed::Words(1),
        (gimli::DW_ATE_signed | gimli::DW_ATE_unsigned, Some(16)) if !name.starts_with("_BitInt") => {
            Passed::Wide
        }
        _ => Passed::Unknown,
    }
}

fn is_vector(node: &Node<'_>) -> bool {
    node.entry.attr(gimli::DW_AT_GNU_vector).is_some()
}

fn vector_bytes<'d>(finder: &Finder<'d>, node: &Node<'d>) -> Option<u64> {
    let each = plain(finder, finder.follow(node, gimli::DW_AT_type))?.number(gimli::DW_AT_byte_size)?;
    each.checked_mul(elements(finder, node)?)
}

/// How many elements an array has.
fn elements<'d>(finder: &Finder<'d>, node: &Node<'d>) -> Option<u64> {
    let mut all = 1_u64;
    for range in finder.children(node) {
        if range.entry.tag() == gimli::DW_TAG_subrange_type {
            let last = || range.number(gimli::DW_AT_upper_bound)?.checked_add(1);
            all = all.checked_mul(range.number(gimli::DW_AT_count).or_else(last)?)?;
        }
    }
    Some(all)
}

fn passed_structure<'d>(finder: &Finder<'d>, node: &Node<'d>, is_cpp: bool) -> Passed {
    let Some(size) = node.number(gimli::DW_AT_byte_size).filter(|_| !node.is_set(gimli::DW_AT_declaration))
    else {
        return Passed::Unknown;
    };
    let by_reference = match node.number(gimli::DW_AT_calling_convention) {
        Some(convention) => Some(convention == u64::from(gimli::DW_CC_pass_by_reference.0)),
        None if is_cpp => copies_by_code(finder, node, DEPTH),
        None => Some(false),
    };
    match by_reference {
        Some(true) => return Passed::ByReference,
        Some(false) => {}
        None => return Passed::Unknown,
    }
    let mut parts = Parts::default();
    if parts.add(finder, node, 0, DEPTH).is_none() {
        return Passed::Unknown;
    }
    let words = usize::try_from(size.div_ceil(8)).unwrap_or(usize::MAX / 16);
    if size > REGISTERS_MAX || parts.in_memory {
        let even = parts.aligned || node.number(gimli::DW_AT_alignment).is_some_and(|to| to > 8);
        return Passed::Stack { words, even };
    }
    let count = |kind| parts.words.iter().filter(|part| **part == Some(kind)).count();
    match (count(Part::General), count(Part::Vector)) {
        (0, 0) => Passed::Nothing,
        (general, 0) => Passed::Words(general),
        (0, vector) => Passed::Vector(vector),
        (general, vector) => Passed::Mixed(general, vector),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    General,
    Vector,
}

/// What the first two words of a structure hold.
#[derive(Debug, Default)]
struct Parts {
    words: [Option<Part>; 2],
    /// A member keeps it out of registers.
    in_memory: bool,
    /// A member wants to be at an even word.
    aligned: bool,
}

impl Parts {
    fn set(&mut self, offset: u64, bytes: u64, part: Part) {
        let last = offset.saturating_add(bytes.max(1) - 1) / 8;
        for word in offset / 8..=last.min(1) {
            if let Some(known) = self.words.get_mut(word as usize) {
                *known = if *known == Some(Part::General) { *known } else { Some(part) };
            }
        }
    }

    /// Adds what lies at `offset`. None if it is not known.
    fn add<'d>(&mut self, finder: &Finder<'d>, node: &Node<'d>, offset: u64, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match node.entry.tag() {
            _ if is_structure(node) => {
                for member in finder.children(node) {
                    self.add_member(finder, &member, offset, depth)?;
                }
                Some(())
            }
            gimli::DW_TAG_array_type if is_vector(node) => None,
            gimli::DW_TAG_array_type => {
                let element = plain(finder, finder.follow(node, gimli::DW_AT_type))?;
                let each = element.number(gimli::DW_AT_byte_size).or(is_address(&element).then_some(8))?;
                // What follows the second word is passed in memory, whatever it is.
                for number in 0..elements(finder, node)?.min(REGISTERS_MAX) {
                    self.add(finder, &element, offset.checked_add(number.checked_mul(each)?)?, depth)?;
                }
                Some(())
            }
            _ => {
                let (bytes, part) = match passed(finder, Some(node.clone()), false) {
                    Passed::Words(words) => {
                        let bytes = node.number(gimli::DW_AT_byte_size);
                        (bytes.unwrap_or(8 * words as u64), Part::General)
                    }
                    Passed::Wide => {
                        self.aligned = true;
                        (16, Part::General)
                    }
                    Passed::Vector(_) => (node.number(gimli::DW_AT_byte_size)?, Part::Vector),
                    Passed::Stack { even, .. } => {
                        (self.in_memory, self.aligned) = (true, even);
                        return Some(());
                    }
                    _ => return None,
                };
                let alignment = bytes.min(8).next_power_of_two();
                self.in_memory |= !offset.is_multiple_of(alignment);
                self.aligned |= bytes > 8 && part == Part::Vector;
                self.set(offset, bytes, part);
                Some(())
            }
        }
    }

    fn add_member<'d>(
        &mut self,
        finder: &Finder<'d>,
        member: &Node<'d>,
        offset: u64,
        depth: usize,
    ) -> Option<()> {
        if !is_part(member) {
            return Some(());
        }
        let location = member.entry.attr(gimli::DW_AT_data_member_location);
        let into = location.map_or(Some(0), gimli::Attribute::udata_value)?;
        let at = offset.checked_add(into)?;
        let kind = plain(finder, finder.follow(member, gimli::DW_AT_type))?;
        if let Some(bits) = member.number(gimli::DW_AT_bit_size) {
            match member.number(gimli::DW_AT_data_bit_offset) {
                Some(into) => {
                    let first = offset.checked_mul(8)?.checked_add(into)?;
                    let last = first.checked_add(bits.max(1) - 1)?;
                    self.set(first / 8, last / 8 - first / 8 + 1, Part::General);
                }
                // As older DWARF has it: somewhere in a number at that place.
                None => self.set(at, kind.number(gimli::DW_AT_byte_size)?, Part::General),
            }
            return Some(());
        }
        self.add(finder, &kind, at, depth)
    }
}
