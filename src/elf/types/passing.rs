//! How the System V calling convention passes an argument, by its type.

use super::copying::{copies_by_code, is_part};
use super::{DEPTH, bytes, encoding, is_address, is_function, is_structure, plain};
use crate::elf::debug_info::{Finder, Node};

/// Structures larger than this are passed in memory.
const MAX_REGISTER_BYTES: u64 = 16;

/// Where an argument is passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::elf) enum Passed {
    /// In this many general-purpose and vector registers if enough are left for all of it, otherwise on the stack;
    /// `stack` is `None` if the space it needs there is unknown.
    Registers {
        general: usize,
        vector: usize,
        stack: Option<StackSpace>,
    },
    /// In two general-purpose registers, or on the stack. If only one register is left, compilers differ.
    Wide,
    /// By reference.
    ByReference,
    /// On the stack. As a result: in x87 registers, or at an address that the caller passes.
    Stack {
        room: StackSpace,
        in_x87: bool,
    },
    /// Not at all: it is empty.
    Nothing,
    Unknown,
}

/// The space that an argument takes on the stack, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::elf) struct StackSpace {
    pub words: usize,
    /// It begins at a multiple of this many words.
    pub alignment: usize,
}

impl Passed {
    /// Integers and addresses of one word each.
    fn words(count: usize) -> Self {
        Passed::Registers {
            general: count,
            vector: 0,
            stack: Some(StackSpace { words: count, alignment: 1 }),
        }
    }

    /// Values in vector registers, which take this many words on the stack.
    fn vector(count: usize, words: usize, alignment: usize) -> Self {
        Passed::Registers { general: 0, vector: count, stack: Some(StackSpace { words, alignment }) }
    }

    fn x87(words: usize) -> Self {
        Passed::Stack { room: StackSpace { words, alignment: 2 }, in_x87: true }
    }
}

/// Returns whether a result of this type is written to an address that is passed before the arguments. `None` if
/// unknown.
pub(super) fn is_returned_by_address<'d>(finder: &Finder<'d>, of: Node<'d>, is_cpp: bool) -> Option<bool> {
    match passed(finder, Some(of), is_cpp) {
        Passed::Stack { in_x87, .. } => Some(!in_x87),
        Passed::ByReference => Some(true),
        Passed::Unknown => None,
        Passed::Registers { .. } | Passed::Wide | Passed::Nothing => Some(false),
    }
}

/// Returns how an argument of this type is passed.
pub(in crate::elf) fn passed<'d>(finder: &Finder<'d>, of: Option<Node<'d>>, is_cpp: bool) -> Passed {
    let Some(node) = plain(finder, of) else { return Passed::Unknown };
    match node.entry.tag() {
        _ if is_address(&node) => Passed::words(1),
        // Clang assigns no register to `std::nullptr_t`, so that subsequent arguments are in other places than with
        // GCC.
        gimli::DW_TAG_unspecified_type => Passed::Unknown,
        gimli::DW_TAG_enumeration_type if bytes(&node).is_some_and(|bytes| bytes <= 8) => Passed::words(1),
        // A pointer to a member function has two words.
        gimli::DW_TAG_ptr_to_member_type => {
            Passed::words(1 + usize::from(is_function(finder.follow(&node, gimli::DW_AT_type).as_ref())))
        }
        gimli::DW_TAG_base_type => passed_number(finder, &node),
        gimli::DW_TAG_array_type if is_vector(&node) && vector_bytes(finder, &node) == Some(16) => {
            Passed::vector(1, 2, 2)
        }
        _ if is_structure(&node) => passed_structure(finder, &node, is_cpp),
        _ => Passed::Unknown,
    }
}

fn passed_number<'d>(finder: &Finder<'d>, node: &Node<'d>) -> Passed {
    let name = finder.text(node, gimli::DW_AT_name).map(String::from_utf8_lossy).unwrap_or_default();
    match (encoding(node), bytes(node)) {
        (gimli::DW_ATE_float | gimli::DW_ATE_decimal_float, Some(2 | 4 | 8)) => Passed::vector(1, 1, 1),
        (gimli::DW_ATE_float, Some(16)) if name.contains("long double") => Passed::x87(2),
        (gimli::DW_ATE_float | gimli::DW_ATE_decimal_float, Some(16)) => Passed::vector(1, 2, 2),
        (gimli::DW_ATE_complex_float, Some(8)) => Passed::vector(1, 1, 1),
        (gimli::DW_ATE_complex_float, Some(16)) => Passed::vector(2, 2, 1),
        (gimli::DW_ATE_complex_float, Some(32)) if name.contains("long double") => Passed::x87(4),
        (gimli::DW_ATE_float | gimli::DW_ATE_decimal_float | gimli::DW_ATE_complex_float, _) => {
            Passed::Unknown
        }
        (_, Some(1..=8)) => Passed::words(1),
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

/// Returns how many elements an array has.
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
    let alignment = node.number(gimli::DW_AT_alignment).unwrap_or(1);
    let alignment = alignment.max(if parts.is_misaligned { 1 } else { parts.alignment });
    // A structure that is aligned more strictly than its members has padding after them; older debug information does
    // not record how much.
    let is_known = alignment > 8 || size.saturating_sub(parts.end) < 8;
    let words = usize::try_from(size.div_ceil(8)).unwrap_or(usize::MAX / 16);
    let room =
        StackSpace { words, alignment: usize::try_from(alignment / 8).map_or(1, |words| words.max(1)) };
    let is_small = size <= MAX_REGISTER_BYTES && !parts.is_misaligned;
    if !is_small || parts.has_x87 {
        let in_x87 = is_small && !parts.has_others;
        return if is_known { Passed::Stack { room, in_x87 } } else { Passed::Unknown };
    }
    let general = parts.words.iter().filter(|part| **part == Some(Part::General)).count();
    let vector = parts.words.iter().flatten().count() - general;
    match (general, vector) {
        (0, 0) => Passed::Nothing,
        (2, 0) if alignment > 8 => Passed::Wide,
        (general, vector) => Passed::Registers { general, vector, stack: is_known.then_some(room) },
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Vector,
    General,
}

/// The contents of a structure.
#[derive(Debug, Default)]
struct Parts {
    /// The first two words.
    words: [Option<Part>; 2],
    has_x87: bool,
    has_others: bool,
    /// A member is not aligned as its type requires, which excludes the whole structure from registers.
    is_misaligned: bool,
    /// In bytes: the alignment that members require, and the end of the last one.
    alignment: u64,
    end: u64,
}

impl Parts {
    fn set(&mut self, offset: u64, bytes: u64, part: Part) {
        self.has_others = true;
        let end = offset.saturating_add(bytes.max(1));
        self.end = self.end.max(end);
        for word in offset / 8..=((end - 1) / 8).min(1) {
            if let Some(known) = self.words.get_mut(word as usize) {
                *known = (*known).max(Some(part));
            }
        }
    }

    /// Adds a type at `offset`. `None` if it is unknown.
    fn add<'d>(&mut self, finder: &Finder<'d>, node: &Node<'d>, offset: u64, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match node.entry.tag() {
            _ if is_structure(node) => {
                self.alignment = self.alignment.max(node.number(gimli::DW_AT_alignment).unwrap_or(1));
                for member in finder.children(node) {
                    self.add_member(finder, &member, offset, depth)?;
                }
                Some(())
            }
            gimli::DW_TAG_array_type if is_vector(node) => None,
            gimli::DW_TAG_array_type => {
                let element = plain(finder, finder.follow(node, gimli::DW_AT_type))?;
                let each = element.number(gimli::DW_AT_byte_size).or(is_address(&element).then_some(8))?;
                let count = elements(finder, node)?;
                // Anything beyond the second word is passed in memory, whatever it is.
                for number in 0..count.min(MAX_REGISTER_BYTES) {
                    self.add(finder, &element, offset.checked_add(number.checked_mul(each)?)?, depth)?;
                }
                self.end = self.end.max(offset.checked_add(count.checked_mul(each)?)?);
                Some(())
            }
            _ => self.add_plain(finder, node, offset),
        }
    }

    /// Adds a number or an address.
    fn add_plain<'d>(&mut self, finder: &Finder<'d>, node: &Node<'d>, offset: u64) -> Option<()> {
        let bytes = node.number(gimli::DW_AT_byte_size);
        let (bytes, alignment) = match passed(finder, Some(node.clone()), false) {
            Passed::Registers { general, vector: 0, .. } => {
                let bytes = bytes.unwrap_or(8 * general as u64);
                self.set(offset, bytes, Part::General);
                (bytes, 8)
            }
            Passed::Wide => {
                self.set(offset, 16, Part::General);
                (16, 16)
            }
            // A 16-byte vector: GCC passes it in the register, Clang on the stack.
            Passed::Registers { vector: 1, stack: Some(StackSpace { words: 2, .. }), .. } => return None,
            Passed::Registers { .. } => {
                let is_complex = encoding(node) == gimli::DW_ATE_complex_float;
                self.set(offset, bytes?, Part::Vector);
                (bytes?, if is_complex { bytes? / 2 } else { 8 })
            }
            Passed::Stack { room, in_x87: true } => {
                let bytes = 8 * room.words as u64;
                self.has_x87 = true;
                self.end = self.end.max(offset.checked_add(bytes)?);
                (bytes, 16)
            }
            _ => return None,
        };
        let alignment = alignment.min(bytes.next_power_of_two());
        self.is_misaligned |= !offset.is_multiple_of(alignment);
        self.alignment = self.alignment.max(alignment);
        Some(())
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
        self.alignment = self.alignment.max(member.number(gimli::DW_AT_alignment).unwrap_or(1));
        if let Some(bits) = member.number(gimli::DW_AT_bit_size) {
            match member.number(gimli::DW_AT_data_bit_offset) {
                Some(into) => {
                    let first = offset.checked_mul(8)?.checked_add(into)?;
                    let last = first.checked_add(bits.max(1) - 1)?;
                    self.set(first / 8, last / 8 - first / 8 + 1, Part::General);
                }
                // In older DWARF: somewhere within an integer at that offset.
                None => self.set(at, kind.number(gimli::DW_AT_byte_size)?, Part::General),
            }
            return Some(());
        }
        self.add(finder, &kind, at, depth)
    }
}
