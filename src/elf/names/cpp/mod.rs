//! C++ names in the form in which `nm -C`, `c++filt` and GDB write them.
//!
//! Mangled names are those of the [Itanium C++ ABI](https://itanium-cxx-abi.github.io/cxx-abi/abi.html#mangling), which
//! GCC and LLVM share. [`parse`] builds a graph of [`Node`]s, [`print`] writes it. A name can be exponentially longer
//! than its symbol, so both give up at a limit.

mod expressions;
mod operators;
mod parse;
mod print;
mod special;
mod types;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt::Write;

use super::Signature;

/// Demangles a C++ symbol into `to`. `None` if it is not one, or not a function or variable.
pub(super) fn demangle(symbol: &str, signature: Signature, to: &mut impl Write) -> Option<()> {
    let mut parser = parse::Parser::new(symbol.strip_prefix("_Z")?);
    let root = parser.symbol()?;
    print::print(&parser.nodes, root, signature, to)
}

/// The index of a node in its graph.
type Id = u32;

/// A part of a name. Parts that occur several times are shared.
#[derive(Debug)]
enum Node<'a> {
    /// An identifier, or the name of a built-in type.
    Text(Cow<'a, str>),
    /// `scope::name`.
    Scoped(Id, Id),
    /// What is declared within a function, and the number of the default argument that contains it.
    Local {
        function: Id,
        name: Id,
        default_argument: Option<usize>,
    },
    /// `name<arguments>`.
    Template(Id, Vec<Id>),
    /// `operator type`.
    Conversion(Id),
    Destructor(Id),
    /// `name[abi:tag]`.
    Tagged(Id, &'a str),
    Lambda {
        parameters: Vec<Id>,
        number: usize,
    },
    /// A function with its type; `returns` only where the symbol includes it.
    Function {
        name: Id,
        function: FunctionType,
    },
    /// `vtable for` and the like, before what it is for.
    Special(&'static str, Id),
    /// A suffix that the compiler appended to a copy of a function.
    Copy(Id, &'a str),

    Qualified(Id, Qualifiers),
    /// A type followed by a word of the compiler's own.
    Vendor(Id, Id),
    Pointer(Id),
    Reference(Id, ReferenceKind),
    Member {
        class: Id,
        of: Id,
    },
    FunctionType(FunctionType),
    Array {
        length: Option<Id>,
        of: Id,
    },
    /// `before`, a list, `after`: `_Complex T`, vectors, literals, initializer lists.
    Around(&'static str, Vec<Id>, &'static str),

    /// The arguments for a parameter pack.
    Pack(Vec<Id>),
    /// What is repeated for each element of the packs within it.
    Expansion(Id),
    /// A template parameter of the function in whose type it is, or of a lambda expression.
    Parameter(usize),

    /// A constant of a type: `(type)value`.
    Constant(Id, Id),
    Unary(&'static str, Id),
    Binary(Id, &'static str, Id),
    Conditional(Id, Id, Id),
    /// A called function and its arguments.
    Call(Id, Vec<Id>),
    /// `(type)(values)`.
    Cast(Id, Vec<Id>),
    /// `cast<type>(value)`.
    NamedCast(&'static str, Id, Id),
    /// The number of elements of the packs within.
    Length(Id),
}

/// The parts of a function's type.
#[derive(Debug, Clone, Default)]
struct FunctionType {
    returns: Option<Id>,
    parameters: Vec<Id>,
    qualifiers: Qualifiers,
    reference: Option<ReferenceKind>,
    /// `noexcept` and the like.
    exception: Option<Id>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReferenceKind {
    Lvalue,
    Rvalue,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Qualifiers {
    is_const: bool,
    is_volatile: bool,
    is_restrict: bool,
}

impl Qualifiers {
    fn is_empty(self) -> bool {
        self == Qualifiers::default()
    }

    fn and(self, other: Qualifiers) -> Qualifiers {
        Qualifiers {
            is_const: self.is_const || other.is_const,
            is_volatile: self.is_volatile || other.is_volatile,
            is_restrict: self.is_restrict || other.is_restrict,
        }
    }
}

impl Node<'_> {
    /// Calls `f` with each part of the node.
    fn for_each(&self, f: &mut dyn FnMut(Id)) {
        match self {
            Node::Text(_) | Node::Parameter(_) => {}
            Node::Conversion(of)
            | Node::Destructor(of)
            | Node::Tagged(of, _)
            | Node::Special(_, of)
            | Node::Copy(of, _)
            | Node::Qualified(of, _)
            | Node::Pointer(of)
            | Node::Reference(of, _)
            | Node::Expansion(of)
            | Node::Unary(_, of)
            | Node::Length(of) => f(*of),
            Node::Scoped(a, b)
            | Node::Constant(a, b)
            | Node::Vendor(a, b)
            | Node::Binary(a, _, b)
            | Node::NamedCast(_, a, b) => {
                f(*a);
                f(*b);
            }
            Node::Local { function: a, name: b, .. } | Node::Member { class: a, of: b } => {
                f(*a);
                f(*b);
            }
            Node::Template(of, list) | Node::Call(of, list) | Node::Cast(of, list) => {
                f(*of);
                list.iter().for_each(|id| f(*id));
            }
            Node::Lambda { parameters: list, .. } | Node::Around(_, list, _) | Node::Pack(list) => {
                list.iter().for_each(|id| f(*id));
            }
            Node::Function { name, function } => {
                f(*name);
                function.for_each(f);
            }
            Node::FunctionType(function) => function.for_each(f),
            Node::Array { length, of } => {
                length.iter().for_each(|id| f(*id));
                f(*of);
            }
            Node::Conditional(a, b, c) => [a, b, c].into_iter().for_each(|id| f(*id)),
        }
    }
}

impl FunctionType {
    /// Returns whether it is the type of a function without qualifiers.
    fn is_plain(&self) -> bool {
        self.qualifiers.is_empty() && self.reference.is_none()
    }

    fn for_each(&self, f: &mut dyn FnMut(Id)) {
        self.returns.iter().chain(&self.parameters).chain(&self.exception).for_each(|id| f(*id));
    }
}
