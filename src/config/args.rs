//! Probe arguments.

use std::borrow::Cow;

use super::fields::{Fields, Node};
use super::limits;
use super::model::{Arg, ArgKind, ArgOf, BUILT_INS, IntType, Unit, Unread};
use super::scalars::is_name;
use super::section::{Key, Schema, Section, words};
use super::words::{did_you_mean, quote};

/// An argument index.
pub(super) const POSITION: Schema = Schema::Integer(0, limits::ARGUMENT_INDEX as i64);
/// An argument index, or the word for the return value.
const POSITION_OR_RESULT: Schema = Schema::Either(&[POSITION, Schema::Words(|| vec![RESULT])]);
const RESULT: &str = "retval";
const BYTES: Schema = Schema::Integer(1, limits::TEXT_BYTES as i64);

/// An entry of `args:`, in its long form.
pub static ARGUMENT: Section = Section {
    name: "argument",
    what: "an argument",
    about: "A probe argument. A number alone is the index of an integer argument.",
    keys: Cow::Borrowed(&[
        Key::new(
            "index",
            POSITION_OR_RESULT,
            "Index of the argument, from 0; of functions also `retval`, for what the result points to.",
        )
        .required(),
        Key::new("to_index", POSITION, "Of a span: read the value at the end probe, at this index."),
        Key::new(
            "offset",
            Schema::Integer(-(limits::FIELD_OFFSET as i64), limits::FIELD_OFFSET as i64),
            "The argument points to a structure; read the value at this byte offset in it.",
        ),
        Key::new("type", Schema::Words(|| words(TYPES)), "Type of the value.").or("int"),
        Key::new(
            "max",
            BYTES,
            "Of text: maximum number of bytes to read; of `string` the NUL is one of them.",
        )
        .or("64"),
        Key::new(
            "length",
            POSITION_OR_RESULT,
            "Of `string_len`: index of the argument that holds the length; with `at: return` also `retval`.",
        ),
        Key::new("len", BYTES, "Of `hex` and `bytes`: number of bytes."),
        Key::new(
            "reverse",
            Schema::Boolean,
            "Of `hex` and `bytes`: print the last byte first, as block hashes are printed.",
        )
        .or("false"),
        Key::new(
            "unit",
            Schema::Words(|| words(UNITS)),
            "Unit of the value. Metrics are exported in seconds \
             and bytes.",
        ),
        Key::new(
            "at",
            Schema::Words(|| words(WHEN)),
            "Of functions: when to read the memory that the \
             argument points to.",
        )
        .or("entry"),
    ]),
    one_of: &[],
};

const HELP: &str = "write NAME: { index: 0, type: string }, or NAME: 0 for the integer argument with index 0";

const UNITS: &[(&str, Unit)] = &[
    ("ns", Unit::Nanoseconds),
    ("us", Unit::Microseconds),
    ("ms", Unit::Milliseconds),
    ("s", Unit::Seconds),
    ("bytes", Unit::Bytes),
    ("KiB", Unit::Kibibytes),
    ("MiB", Unit::Mebibytes),
    ("pages", Unit::Pages),
];

#[derive(Clone, Copy, PartialEq)]
enum Type {
    Int(Option<IntType>),
    Bool,
    Str,
    StrLen,
    GoString,
    Hex,
    Ipv4,
    Ipv6,
    SockAddr,
    Symbol,
}

const fn integer(bytes: u8, signed: bool) -> Type {
    Type::Int(Some(IntType { bytes, signed }))
}

const TYPES: &[(&str, Type)] = &[
    ("int", Type::Int(None)),
    ("bool", Type::Bool),
    ("i8", integer(1, true)),
    ("i16", integer(2, true)),
    ("i32", integer(4, true)),
    ("i64", integer(8, true)),
    ("u8", integer(1, false)),
    ("u16", integer(2, false)),
    ("u32", integer(4, false)),
    ("u64", integer(8, false)),
    ("string", Type::Str),
    ("string_len", Type::StrLen),
    ("go_string", Type::GoString),
    ("hex", Type::Hex),
    ("bytes", Type::Hex),
    ("ipv4", Type::Ipv4),
    ("ipv6", Type::Ipv6),
    ("sockaddr", Type::SockAddr),
    ("symbol", Type::Symbol),
];

/// The integer types, which are also valid for a return value.
pub(super) const INTEGERS: &[(&str, IntType)] = &[
    ("i8", IntType { bytes: 1, signed: true }),
    ("i16", IntType { bytes: 2, signed: true }),
    ("i32", IntType { bytes: 4, signed: true }),
    ("i64", IntType { bytes: 8, signed: true }),
    ("u8", IntType { bytes: 1, signed: false }),
    ("u16", IntType { bytes: 2, signed: false }),
    ("u32", IntType { bytes: 4, signed: false }),
    ("u64", IntType { bytes: 8, signed: false }),
];

/// Whether the memory behind a function's argument is read on return.
const WHEN: &[(&str, bool)] = &[("entry", false), ("return", true)];

/// Decodes the valid arguments of `args:`; the names of the others are added to `unread`. `is_span` allows `to_index`,
/// `is_function` allows `at`.
pub(super) fn decode(node: &Node<'_>, is_span: bool, is_function: bool, unread: &mut Unread) -> Vec<Arg> {
    let Some(entries) =
        node.entries("a mapping of arguments, such as `{ peer: { index: 0, type: string } }`")
    else {
        unread.all_args = true;
        return Vec::new();
    };
    let mut right = Vec::new();
    for (name, node) in entries {
        let errors = node.diags.len();
        match arg(&name.text, &node, is_span, is_function) {
            Some(arg) if node.diags.len() == errors => right.push(arg),
            _ => unread.args.push(name.text.clone()),
        }
    }
    right
}

fn arg(name: &str, node: &Node<'_>, is_span: bool, is_function: bool) -> Option<Arg> {
    if !is_name(name) {
        node.error(format!("{} is not a valid argument name", quote(name)))
            .help("use letters, digits and underscores; the first character must not be a digit");
    } else if BUILT_INS.contains(&name) {
        node.error(format!("`{name}` is the name of a built-in value; choose another name for the argument"))
            .help(format!("the built-in values are {}", BUILT_INS.join(", ")));
    }
    let arg = |of, kind| Arg {
        at: node.at.clone(),
        name: name.to_owned(),
        of,
        to_index: None,
        at_return: false,
        offset: None,
        kind,
        unit: Unit::None,
    };
    if node.value.is_number() {
        return Some(arg(ArgOf::Call(position(node)?), ArgKind::Int(None)));
    }
    if !node.value.is_mapping() {
        node.expected("an argument").help(HELP);
        return None;
    }
    let fields = node.fields(&ARGUMENT)?;
    let of = fields.require("index", HELP).and_then(|n| position_or_result(&n, is_function));
    if !is_span {
        fields.forbid(&["to_index"], "only spans have an end probe");
    }
    let to_index = fields.get("to_index").and_then(|n| position(&n));
    if !is_function {
        fields.forbid(&["at"], "only functions have an entry and a return");
    }
    let at = fields.get("at");
    let at_return = at.as_ref().and_then(|n| n.one_of("time", WHEN)).unwrap_or(of == Some(ArgOf::Result));
    if let (Some(ArgOf::Result), false, Some(at)) = (of, at_return, at) {
        at.error("the result is only known at the return").help("leave out `at`");
    }
    let offset = fields
        .get("offset")
        .and_then(|n| n.integer("a number of bytes", -limits::FIELD_OFFSET..=limits::FIELD_OFFSET));
    let kind = match fields.get("type") {
        Some(node) => type_of(&node).and_then(|kind| kind_of(&fields, kind, of, is_function)),
        None => kind_of(&fields, Type::Int(None), of, is_function),
    };
    let unit = fields.get("unit").and_then(|n| n.one_of("unit", UNITS)).unwrap_or_default();
    if !matches!(kind, None | Some(ArgKind::Int(_))) {
        fields.forbid(&["unit"], "only numeric types have a unit");
    }
    Some(Arg { to_index, at_return, offset, unit, ..arg(of?, kind?) })
}

fn position(node: &Node<'_>) -> Option<usize> {
    node.integer("an argument index", 0..=limits::ARGUMENT_INDEX)
}

fn position_or_result(node: &Node<'_>, is_function: bool) -> Option<ArgOf> {
    if node.value.as_str() != Some(RESULT) {
        return position(node).map(ArgOf::Call);
    }
    if !is_function {
        node.error(format!("`{RESULT}` is not valid here: only functions return"));
        return None;
    }
    Some(ArgOf::Result)
}

/// Whether it names a type whose values are read from memory.
pub(super) fn is_behind_an_address(name: &str) -> bool {
    let found = TYPES.iter().find(|(known, _)| *known == name);
    found.is_some_and(|(_, kind)| !matches!(kind, Type::Int(_) | Type::Bool | Type::Symbol))
}

fn type_of(node: &Node<'_>) -> Option<Type> {
    let text = node.text_as("a type")?;
    let found = TYPES.iter().find(|(name, _)| *name == text).map(|(_, kind)| *kind);
    if ["f64", "f32", "double", "float"].iter().any(|name| name.eq_ignore_ascii_case(text)) {
        node.error(format!("{}: floating-point numbers cannot be read", quote(text)))
            .help("metrics are computed from integers; use another argument");
        return None;
    }
    if found.is_none() {
        let other = ["str", "char*", "ip", "hash", "boolean", "integer"];
        let meant = ["string", "string", "ipv4", "hex", "bool", "int"];
        let near = match other.iter().position(|name| name.eq_ignore_ascii_case(text)) {
            Some(n) => format!(" (did you mean {:?}?)", meant[n]),
            None => did_you_mean(text, TYPES.iter().map(|(name, _)| *name)),
        };
        let all: Vec<_> = TYPES.iter().map(|(name, _)| *name).collect();
        node.error(format!("unknown type {}{near}", quote(text)))
            .help(format!("the types are {}", all.join(", ")));
    }
    found
}

fn kind_of(fields: &Fields<'_>, kind: Type, of: Option<ArgOf>, is_function: bool) -> Option<ArgKind> {
    if !matches!(kind, Type::Str | Type::StrLen | Type::GoString) {
        fields.forbid(&["max"], "only the types string, string_len and go_string have it");
    }
    if kind != Type::StrLen {
        fields.forbid(&["length"], "only the type string_len has it");
    }
    if kind != Type::Hex {
        fields.forbid(&["len", "reverse"], "only the types hex and bytes have it");
    }
    let max = || match fields.get("max") {
        Some(node) => node.integer("a number of bytes", 1..=limits::TEXT_BYTES),
        None => Some(limits::DEFAULT_TEXT_BYTES),
    };
    Some(match kind {
        Type::Int(int) => ArgKind::Int(int),
        Type::Bool => ArgKind::Bool,
        Type::Str => ArgKind::Str { max: max()? },
        Type::StrLen => {
            let help = "set it to the index of the argument that holds the length: length: 2";
            let length = fields.require("length", help).and_then(|n| position_or_result(&n, is_function));
            let max = max();
            ArgKind::StrLen { length: length?, max: max? }
        }
        // A Go string consists of two words, which are two consecutive arguments.
        Type::GoString => match of? {
            ArgOf::Call(index) => ArgKind::StrLen { length: ArgOf::Call(index + 1), max: max()? },
            ArgOf::Result => {
                fields.forbid(&["type"], "of a result only the first word can be read");
                return None;
            }
        },
        Type::Hex => {
            let help = "set the number of bytes: len: 32";
            let len = fields
                .require("len", help)
                .and_then(|n| n.integer("a number of bytes", 1..=limits::TEXT_BYTES));
            let reverse = fields.get("reverse").map_or(Some(false), |n| n.boolean());
            ArgKind::Hex { len: len?, reverse: reverse? }
        }
        Type::Ipv4 => ArgKind::Ipv4,
        Type::Ipv6 => ArgKind::Ipv6,
        Type::SockAddr => ArgKind::SockAddr,
        Type::Symbol => ArgKind::Symbol,
    })
}
