//! Whether copying a C++ class takes code (is not trivial), so that it is passed by reference.

use super::{DEPTH, is_address, is_structure, plain};
use crate::elf::debug_info::{Finder, Node};

/// Returns whether a class's child entry is a base or a non-static member, of which each object has one.
pub(super) fn is_part(declared: &Node<'_>) -> bool {
    matches!(declared.entry.tag(), gimli::DW_TAG_inheritance | gimli::DW_TAG_member)
        && !declared.is_set(gimli::DW_AT_external)
        && !declared.is_set(gimli::DW_AT_declaration)
}

/// Returns the name of a class without its template arguments; empty if it has none.
fn class_name<'d>(finder: &Finder<'d>, node: &Node<'d>) -> &'d [u8] {
    let name = finder.text(node, gimli::DW_AT_name).unwrap_or_default();
    name.split(|byte| *byte == b'<').next().unwrap_or_default()
}

/// Returns whether copying or destroying a class takes code (is not trivial), so that it is passed by reference. `None`
/// if unknown.
pub(super) fn copies_by_code<'d>(finder: &Finder<'d>, node: &Node<'d>, depth: usize) -> Option<bool> {
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
                // Before DWARF 5, `= default` cannot be distinguished from a function with code.
                let by_code = (node.unit.header.version() >= 5).then_some(true);
                if called.starts_with(b"~") && !is_default {
                    return by_code;
                }
                let called = called.split(|byte| *byte == b'<').next().unwrap_or_default();
                if called == name && is_copy(finder, &child, node)? {
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

/// Returns whether a constructor takes another object of its class, to copy or to move it. `None` if unknown.
fn is_copy<'d>(finder: &Finder<'d>, constructor: &Node<'d>, class: &Node<'d>) -> Option<bool> {
    let children = finder.children(constructor);
    let mut taken = children.iter().filter(|child| {
        child.entry.tag() == gimli::DW_TAG_formal_parameter && !child.is_set(gimli::DW_AT_artificial)
    });
    let Some(first) = taken.next() else { return Some(false) };
    let Some(kind) = plain(finder, finder.follow(first, gimli::DW_AT_type)) else { return Some(false) };
    if !is_address(&kind) || kind.entry.tag() == gimli::DW_TAG_pointer_type {
        return Some(false);
    }
    let Some(to) = plain(finder, finder.follow(&kind, gimli::DW_AT_type)) else { return Some(false) };
    let name = finder.text(class, gimli::DW_AT_name).unwrap_or_default();
    if to.at == class.at || finder.text(&to, gimli::DW_AT_name) != Some(name) {
        return Some(to.at == class.at);
    }
    // Either the same class described twice, or another instance of the template, whose names lack arguments
    // (`-gsimple-template-names`).
    let is_argument = |child: &Node<'_>| {
        matches!(
            child.entry.tag(),
            gimli::DW_TAG_template_type_parameter | gimli::DW_TAG_template_value_parameter
        )
    };
    let is_plain = name.contains(&b'<') || !finder.children(class).iter().any(is_argument);
    is_plain.then_some(true)
}
