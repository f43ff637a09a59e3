//! Types of C and C++ in debug information: how the source writes them, what their values are, and, in [`passing`], how the
//! System V calling convention passes them.

mod copying;
mod passing;
mod words;

use super::debug_info::{Finder, Node};

pub(super) use passing::{Passed, StackSpace, passed};
pub(super) use words::{ArgumentWords, REGISTERS};

/// The kind of a value, as far as a probe can make use of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueType {
    Integer {
        bytes: u8,
        signed: bool,
    },
    Address(Pointee),
    /// A structure, a non-integer number, or unknown.
    Other,
}

/// The kind of data at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pointee {
    Text,
    Structure,
    Other,
}

/// The maximum nesting depth of types.
const DEPTH: usize = 8;
/// The maximum number of qualifiers and typedefs that are resolved.
const ALIASES: usize = 32;

/// Returns an entry's type as in the source; `?` for one that is described in a file that is not read.
pub(super) fn written<'d>(finder: &Finder<'d>, of: &Node<'d>) -> String {
    written_to(finder, of, DEPTH)
}

fn written_to<'d>(finder: &Finder<'d>, of: &Node<'d>, depth: usize) -> String {
    if of.entry.attr(gimli::DW_AT_type).is_none() {
        return "void".to_owned();
    }
    let Some(node) = finder.follow(of, gimli::DW_AT_type) else { return "?".to_owned() };
    let node = &node;
    if depth == 0 {
        return "...".to_owned();
    }
    let inner = || finder.follow(node, gimli::DW_AT_type);
    let within = || written_to(finder, node, depth - 1);
    let suffix = match node.entry.tag() {
        gimli::DW_TAG_pointer_type if is_function(inner().as_ref()) => return "function *".to_owned(),
        gimli::DW_TAG_pointer_type => "*",
        gimli::DW_TAG_reference_type => "&",
        gimli::DW_TAG_rvalue_reference_type => "&&",
        gimli::DW_TAG_const_type => {
            let is_pointer = inner().as_ref().is_some_and(is_address);
            let within = within();
            return if is_pointer { format!("{within} const") } else { format!("const {within}") };
        }
        gimli::DW_TAG_volatile_type | gimli::DW_TAG_restrict_type | gimli::DW_TAG_atomic_type => {
            return within();
        }
        _ => {
            // A type with a unit of its own may have its name only there.
            let whole = finder.follow(node, gimli::DW_AT_signature);
            let name = finder.text(whole.as_ref().unwrap_or(node), gimli::DW_AT_name);
            let name = name.map(String::from_utf8_lossy);
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

/// Strips qualifiers and typedefs from a type; `None` for `void`, or if it is described elsewhere.
fn plain<'d>(finder: &Finder<'d>, of: Option<Node<'d>>) -> Option<Node<'d>> {
    let mut at = of?;
    for _ in 0..ALIASES {
        match at.entry.tag() {
            gimli::DW_TAG_typedef
            | gimli::DW_TAG_const_type
            | gimli::DW_TAG_volatile_type
            | gimli::DW_TAG_restrict_type
            | gimli::DW_TAG_atomic_type => at = finder.follow(&at, gimli::DW_AT_type)?,
            _ => return finder.follow(&at, gimli::DW_AT_signature).or(Some(at)),
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

/// Returns the kind of a value of this type.
pub(super) fn value<'d>(finder: &Finder<'d>, of: Option<Node<'d>>) -> ValueType {
    let Some(node) = plain(finder, of) else { return ValueType::Other };
    match node.entry.tag() {
        _ if is_address(&node) => {
            let pointee = plain(finder, finder.follow(&node, gimli::DW_AT_type));
            ValueType::Address(match pointee {
                Some(at) if is_structure(&at) => Pointee::Structure,
                Some(at)
                    if node.entry.tag() == gimli::DW_TAG_pointer_type
                        && matches!(
                            encoding(&at),
                            gimli::DW_ATE_signed_char | gimli::DW_ATE_unsigned_char
                        ) =>
                {
                    Pointee::Text
                }
                _ => Pointee::Other,
            })
        }
        gimli::DW_TAG_unspecified_type => ValueType::Address(Pointee::Other),
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
                _ => return ValueType::Other,
            };
            match bytes(&node) {
                Some(bytes @ (1 | 2 | 4 | 8)) => ValueType::Integer { bytes, signed },
                _ => ValueType::Other,
            }
        }
        _ => ValueType::Other,
    }
}
