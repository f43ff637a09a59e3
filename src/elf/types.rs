//! Types of C and C++ in debug information: how the source writes them, and how the System V calling convention passes them.

use super::debug_info::{Finder, Node};

/// What a value is, as far as a probe can make use of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    Integer {
        bytes: u8,
        signed: bool,
    },
    Address(Pointee),
    /// A structure, a number that is no integer, or unknown.
    Other,
}

/// What is at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pointee {
    Text,
    Structure,
    Other,
}

/// Where an argument is passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passed {
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

/// How deep types are followed.
const DEPTH: usize = 8;
/// Qualifiers and names that are followed to what they stand for.
const ALIASES: usize = 32;
/// Structures larger than this are passed in memory.
const REGISTERS_MAX: u64 = 16;

/// The type as the source writes it.
pub(super) fn written<'d>(finder: &Finder<'d>, of: Option<&Node<'d>>) -> String {
    written_to(finder, of, DEPTH)
}

fn written_to<'d>(finder: &Finder<'d>, of: Option<&Node<'d>>, depth: usize) -> String {
    let Some(node) = of else { return "void".to_owned() };
    if depth == 0 {
        return "...".to_owned();
    }
    let inner = || finder.follow(node, gimli::DW_AT_type);
    let within = || written_to(finder, inner().as_ref(), depth - 1);
    let suffix = match node.entry.tag() {
        gimli::DW_TAG_pointer_type if is_function(inner().as_ref()) => return "function *".to_owned(),
        gimli::DW_TAG_pointer_type => "*",
        gimli::DW_TAG_reference_type => "&",
        gimli::DW_TAG_rvalue_reference_type => "&&",
        gimli::DW_TAG_const_type => {
            let inner = inner();
            let is_pointer = inner.as_ref().is_some_and(is_address);
            let within = written_to(finder, inner.as_ref(), depth - 1);
            return if is_pointer { format!("{within} const") } else { format!("const {within}") };
        }
        gimli::DW_TAG_volatile_type | gimli::DW_TAG_restrict_type | gimli::DW_TAG_atomic_type => {
            return within();
        }
        _ => {
            let name = finder.text(node, gimli::DW_AT_name).map(String::from_utf8_lossy);
            return name.map_or_else(|| "an unnamed type".to_owned(), |name| name.into_owned());
        }
    };
    let within = within();
    if within.ends_with(['*', '&']) { format!("{within}{suffix}") } else { format!("{within} {suffix}") }
}

fn is_function(node: Option<&Node<'_>>) -> bool {
    node.is_some_and(|node| node.entry.tag() == gimli::DW_TAG_subroutine_type)
}

fn is_address(node: &Node<'_>) -> bool {
    matches!(
        node.entry.tag(),
        gimli::DW_TAG_pointer_type | gimli::DW_TAG_reference_type | gimli::DW_TAG_rvalue_reference_type
    )
}

fn is_structure(node: &Node<'_>) -> bool {
    matches!(
        node.entry.tag(),
        gimli::DW_TAG_structure_type | gimli::DW_TAG_class_type | gimli::DW_TAG_union_type
    )
}

/// The type without qualifiers and names given to it; None for `void`, or if it is elsewhere.
fn plain<'d>(finder: &Finder<'d>, of: Option<Node<'d>>) -> Option<Node<'d>> {
    let mut at = of?;
    for _ in 0..ALIASES {
        match at.entry.tag() {
            gimli::DW_TAG_typedef
            | gimli::DW_TAG_const_type
            | gimli::DW_TAG_volatile_type
            | gimli::DW_TAG_restrict_type
            | gimli::DW_TAG_atomic_type => at = finder.follow(&at, gimli::DW_AT_type)?,
            _ => return Some(at),
        }
    }
    None
}

fn encoding(node: &Node<'_>) -> gimli::DwAte {
    let number = node.number(gimli::DW_AT_encoding).and_then(|number| u8::try_from(number).ok());
    gimli::DwAte(number.unwrap_or_default())
}

fn bytes(node: &Node<'_>) -> Option<u8> {
    u8::try_from(node.number(gimli::DW_AT_byte_size)?).ok()
}

/// What a value of this type is.
pub(super) fn value<'d>(finder: &Finder<'d>, of: Option<Node<'d>>) -> Value {
    let Some(node) = plain(finder, of) else { return Value::Other };
    match node.entry.tag() {
        _ if is_address(&node) => {
            let pointee = plain(finder, finder.follow(&node, gimli::DW_AT_type));
            Value::Address(match pointee {
                Some(at) if is_structure(&at) => Pointee::Structure,
                Some(at)
                    if matches!(encoding(&at), gimli::DW_ATE_signed_char | gimli::DW_ATE_unsigned_char) =>
                {
                    Pointee::Text
                }
                _ => Pointee::Other,
            })
        }
        gimli::DW_TAG_unspecified_type => Value::Address(Pointee::Other),
        gimli::DW_TAG_base_type | gimli::DW_TAG_enumeration_type => {
            let underlying = plain(finder, finder.follow(&node, gimli::DW_AT_type));
            let of = underlying.as_ref().unwrap_or(&node);
            let signed = match encoding(of) {
                gimli::DW_ATE_signed | gimli::DW_ATE_signed_char => true,
                gimli::DW_ATE_unsigned
                | gimli::DW_ATE_unsigned_char
                | gimli::DW_ATE_boolean
                | gimli::DW_ATE_UTF => false,
                _ if node.entry.tag() == gimli::DW_TAG_enumeration_type => false,
                _ => return Value::Other,
            };
            match bytes(&node) {
                Some(bytes @ (1 | 2 | 4 | 8)) => Value::Integer { bytes, signed },
                _ => Value::Other,
            }
        }
        _ => Value::Other,
    }
}

/// How an argument of this type is passed.
pub(super) fn passed<'d>(finder: &Finder<'d>, of: Option<Node<'d>>, is_cpp: bool) -> Passed {
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
        Some(said) => Some(said == u64::from(gimli::DW_CC_pass_by_reference.0)),
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

/// Whether what a class declares is a base or a member, of which each object has one.
fn is_part(declared: &Node<'_>) -> bool {
    matches!(declared.entry.tag(), gimli::DW_TAG_inheritance | gimli::DW_TAG_member)
        && !declared.is_set(gimli::DW_AT_external)
        && !declared.is_set(gimli::DW_AT_declaration)
}

/// The name of a class without the arguments of its template; empty if it has none.
fn class_name<'d>(finder: &Finder<'d>, node: &Node<'d>) -> &'d [u8] {
    let name = finder.text(node, gimli::DW_AT_name).unwrap_or_default();
    name.split(|byte| *byte == b'<').next().unwrap_or_default()
}

/// Whether a class is copied or destroyed by code of its own, so that it is passed as its address. None if that is not known.
fn copies_by_code<'d>(finder: &Finder<'d>, node: &Node<'d>, depth: usize) -> Option<bool> {
    let depth = depth.checked_sub(1)?;
    if node.is_set(gimli::DW_AT_declaration) {
        return None;
    }
    let name = class_name(finder, node);
    let (mut copies, mut usable) = (0, 0);
    for child in finder.children(node) {
        match child.entry.tag() {
            gimli::DW_TAG_subprogram => {
                let Some(called) = finder.text(&child, gimli::DW_AT_name) else { continue };
                let is_default = child.number(gimli::DW_AT_defaulted) == Some(1);
                let is_deleted = child.is_set(gimli::DW_AT_deleted);
                // Before DWARF 5, what is `= default` is not told from what has code.
                let by_code = (node.unit.header.version() >= 5).then_some(true);
                if called.starts_with(b"~") && !is_default {
                    return by_code;
                }
                if called == name && is_copy(finder, &child, node, name) {
                    if !is_default && !is_deleted {
                        return by_code;
                    }
                    copies += 1;
                    usable += usize::from(!is_deleted);
                }
                if child.entry.attr(gimli::DW_AT_virtuality).is_some_and(|a| a.udata_value() != Some(0)) {
                    return Some(true);
                }
            }
            _ if is_part(&child) => {
                if child.number(gimli::DW_AT_virtuality).is_some_and(|kind| kind != 0) {
                    return Some(true);
                }
                let mut kind = plain(finder, finder.follow(&child, gimli::DW_AT_type))?;
                for _ in 0..DEPTH {
                    if kind.entry.tag() != gimli::DW_TAG_array_type {
                        break;
                    }
                    kind = plain(finder, finder.follow(&kind, gimli::DW_AT_type))?;
                }
                if is_structure(&kind) && copies_by_code(finder, &kind, depth)? {
                    return Some(true);
                }
            }
            _ => {}
        }
    }
    Some(copies > 0 && usable == 0)
}

/// Whether a constructor takes another of its class, to copy or to move it.
fn is_copy<'d>(finder: &Finder<'d>, constructor: &Node<'d>, class: &Node<'d>, name: &[u8]) -> bool {
    let children = finder.children(constructor);
    let mut taken = children.iter().filter(|child| {
        child.entry.tag() == gimli::DW_TAG_formal_parameter && !child.is_set(gimli::DW_AT_artificial)
    });
    let Some(first) = taken.next() else { return false };
    let Some(kind) = plain(finder, finder.follow(first, gimli::DW_AT_type)) else { return false };
    if !is_address(&kind) || kind.entry.tag() == gimli::DW_TAG_pointer_type {
        return false;
    }
    plain(finder, finder.follow(&kind, gimli::DW_AT_type))
        .is_some_and(|to| to.at == class.at || class_name(finder, &to) == name)
}
