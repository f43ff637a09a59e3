//! Parser of mangled names; types and expressions are in modules of their own.

use std::borrow::Cow;

use super::operators::operator;
use super::{FunctionType, Id, Node, Qualifiers, ReferenceKind};

/// Limits how deep a name may be nested.
const MAX_DEPTH: usize = 200;

/// Short names of classes, their names, and those of their constructors.
const ALIASES: [(&str, &str, &str); 6] = [
    ("std::string", "std::basic_string<char, std::char_traits<char>, std::allocator<char> >", "basic_string"),
    ("std::istream", "std::basic_istream<char, std::char_traits<char> >", "basic_istream"),
    ("std::ostream", "std::basic_ostream<char, std::char_traits<char> >", "basic_ostream"),
    ("std::iostream", "std::basic_iostream<char, std::char_traits<char> >", "basic_iostream"),
    ("std::allocator", "std::allocator", "allocator"),
    ("std::basic_string", "std::basic_string", "basic_string"),
];

pub(super) struct Parser<'a> {
    rest: &'a str,
    pub nodes: Vec<Node<'a>>,
    pub(super) substitutions: Vec<Id>,
    /// Whether the type of a conversion operator is parsed, which the operator's own template arguments may follow.
    pub(super) in_conversion: bool,
    depth: usize,
}

/// What the parsed name implies for the function type that follows it.
#[derive(Debug, Default)]
pub(super) struct NameState {
    /// A constructor, destructor or conversion has no return type.
    is_untyped: bool,
    /// A function template's type includes the return type.
    is_template: bool,
    qualifiers: Qualifiers,
    reference: Option<ReferenceKind>,
}

impl<'a> Parser<'a> {
    pub fn new(rest: &'a str) -> Parser<'a> {
        Parser { rest, nodes: Vec::new(), substitutions: Vec::new(), in_conversion: false, depth: 0 }
    }

    pub(super) fn add(&mut self, node: Node<'a>) -> Id {
        self.nodes.push(node);
        Id::try_from(self.nodes.len() - 1).unwrap_or(Id::MAX)
    }

    pub(super) fn text(&mut self, text: &'a str) -> Id {
        self.add(Node::Text(Cow::Borrowed(text)))
    }

    /// Makes the node available to later references.
    pub(super) fn substitutable(&mut self, id: Id) -> Id {
        self.substitutions.push(id);
        id
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.rest.bytes().next()
    }

    pub(super) fn starts_with(&self, prefix: &str) -> bool {
        self.rest.starts_with(prefix)
    }

    pub(super) fn rest(&self) -> &'a str {
        self.rest
    }

    /// Continues at an earlier position.
    pub(super) fn back_to(&mut self, rest: &'a str) {
        self.rest = rest;
    }

    /// Consumes `prefix` if it is next.
    pub(super) fn eat(&mut self, prefix: &str) -> bool {
        let rest = self.rest.strip_prefix(prefix);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    pub(super) fn expect(&mut self, prefix: &str) -> Option<()> {
        self.eat(prefix).then_some(())
    }

    pub(super) fn take(&mut self, length: usize) -> Option<&'a str> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    pub(super) fn digits(&mut self) -> &'a str {
        let length = self.rest.bytes().take_while(u8::is_ascii_digit).count();
        self.take(length).unwrap_or_default()
    }

    pub(super) fn number(&mut self) -> Option<usize> {
        self.digits().parse().ok()
    }

    /// Parses `_`, `0_`, `1_`, ..., which count from 0.
    pub(super) fn counted(&mut self) -> Option<usize> {
        let digits = self.digits();
        let number = if digits.is_empty() { 0 } else { digits.parse::<usize>().ok()?.checked_add(1)? };
        self.expect("_").map(|()| number)
    }

    /// Parses a list until `E`.
    pub(super) fn list(&mut self, mut element: impl FnMut(&mut Self) -> Option<Id>) -> Option<Vec<Id>> {
        let mut list = Vec::new();
        while !self.eat("E") {
            list.push(element(self)?);
        }
        Some(list)
    }

    /// Runs a parser for something that may contain itself.
    pub(super) fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        if self.depth >= MAX_DEPTH {
            return None;
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    /// Parses a whole symbol after `_Z`, with the suffixes of copies.
    pub fn symbol(&mut self) -> Option<Id> {
        let mut root = self.encoding()?;
        while self.starts_with(".") {
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let mut length = 1 + self.rest[1..].find(|c| !word(c)).unwrap_or(self.rest.len() - 1);
            // A number belongs to the word before it.
            while let Some(next) = self.rest[length..].strip_prefix('.').filter(|_| length > 1) {
                let digits = next.bytes().take_while(u8::is_ascii_digit).count();
                if digits == 0 || next[digits..].starts_with(word) {
                    break;
                }
                length += 1 + digits;
            }
            let suffix = self.take(length)?;
            root = self.add(Node::Copy(root, suffix));
        }
        self.rest.is_empty().then_some(root)
    }

    pub(super) fn encoding(&mut self) -> Option<Id> {
        self.nested(|parser| match parser.peek()? {
            b'T' | b'G' => parser.special(),
            _ => parser.function(),
        })
    }

    /// Parses a function, or a variable.
    fn function(&mut self) -> Option<Id> {
        let mut state = NameState::default();
        let name = self.name(Some(&mut state))?;
        if matches!(self.peek(), None | Some(b'E' | b'.')) {
            return Some(name);
        }
        let NameState { is_untyped, is_template, qualifiers, reference } = state;
        let returns = if is_template && !is_untyped { Some(self.type_()?) } else { None };
        let mut parameters = Vec::new();
        if !self.eat("v") {
            while !matches!(self.peek(), None | Some(b'E' | b'.')) {
                parameters.push(self.type_()?);
            }
        }
        let function = FunctionType { returns, parameters, qualifiers, reference, exception: None };
        Some(self.add(Node::Function { name, function }))
    }

    /// Parses the name of a function, variable or type. `state` is that of the function whose name it is.
    pub(super) fn name(&mut self, mut state: Option<&mut NameState>) -> Option<Id> {
        match self.peek()? {
            b'N' => return self.nested(|parser| parser.nested_name(state)),
            b'Z' => return self.nested(|parser| parser.local_name(state)),
            b'S' if !self.starts_with("St") => {
                let name = self.substitution()?;
                return match self.peek() {
                    Some(b'I') => self.template(name, state),
                    _ => Some(name),
                };
            }
            _ => {}
        }
        let scope = self.eat("St");
        let name = self.unqualified(None, state.as_deref_mut())?;
        let name = if scope {
            let std = self.text("std");
            self.add(Node::Scoped(std, name))
        } else {
            name
        };
        if self.peek() != Some(b'I') {
            return Some(name);
        }
        self.substitutable(name);
        self.template(name, state)
    }

    /// Parses the template arguments of `name`.
    fn template(&mut self, name: Id, state: Option<&mut NameState>) -> Option<Id> {
        let arguments = self.template_arguments()?;
        if let Some(state) = state {
            state.is_template = true;
        }
        Some(self.add(Node::Template(name, arguments)))
    }

    fn nested_name(&mut self, mut state: Option<&mut NameState>) -> Option<Id> {
        self.expect("N")?;
        let qualifiers = self.qualifiers();
        let reference = self.reference_qualifier();
        if let Some(state) = &mut state {
            (state.qualifiers, state.reference) = (qualifiers, reference);
        }
        let mut path: Option<Id> = None;
        while !self.eat("E") {
            if let Some(state) = &mut state {
                state.is_template = false;
            }
            let next = match (self.peek()?, self.rest.as_bytes().get(1).copied()) {
                (b'I', _) => self.template(path?, state.as_deref_mut())?,
                (b'T', _) if path.is_none() => self.template_parameter()?,
                (b'D', Some(b't' | b'T')) if path.is_none() => self.decltype()?,
                (b'S', Some(b't')) if path.is_none() => {
                    self.take(2)?;
                    path = Some(self.text("std"));
                    continue;
                }
                (b'S', _) if path.is_none() => {
                    path = Some(self.substitution()?);
                    continue;
                }
                // The scope of a lambda expression in a member's initializer.
                (b'M', _) => {
                    self.take(1)?;
                    continue;
                }
                (first, second) => {
                    if matches!((first, second), (b'C' | b'D', Some(b'0'..=b'9' | b'I'))) {
                        path = Some(self.without_alias(path?));
                    }
                    let name = self.unqualified(path, state.as_deref_mut())?;
                    match path {
                        Some(scope) => self.add(Node::Scoped(scope, name)),
                        None => name,
                    }
                }
            };
            path = Some(self.substitutable(next));
        }
        // The whole is only a candidate as a type, which adds it itself.
        self.substitutions.pop();
        path
    }

    fn local_name(&mut self, state: Option<&mut NameState>) -> Option<Id> {
        self.expect("Z")?;
        let function = self.encoding()?;
        self.expect("E")?;
        let mut default_argument = None;
        let name = if self.eat("s") {
            self.discriminator();
            self.text("string literal")
        } else {
            if self.eat("d") {
                default_argument = Some(self.counted()? + 1);
            }
            let name = self.name(state)?;
            self.discriminator();
            name
        };
        Some(self.add(Node::Local { function, name, default_argument }))
    }

    /// Skips what distinguishes variables of one name in a function.
    fn discriminator(&mut self) {
        let rest = self.rest;
        if self.eat("__") && !self.digits().is_empty() && self.eat("_") {
            return;
        }
        self.rest = rest;
        if !(self.eat("_") && self.peek().is_some_and(|next| next.is_ascii_digit()) && self.take(1).is_some())
        {
            self.rest = rest;
        }
    }

    /// Parses a name without a scope; constructors and destructors take theirs from `class`.
    pub(super) fn unqualified(&mut self, class: Option<Id>, state: Option<&mut NameState>) -> Option<Id> {
        // Internal linkage, or a friend's definition.
        while self.eat("L") || self.eat("F") {}
        let mut is_untyped = false;
        let name = match (self.peek()?, self.rest.as_bytes().get(1).copied()) {
            (b'C' | b'D', Some(b'0'..=b'9' | b'I')) => {
                is_untyped = true;
                self.structor(class?)?
            }
            (b'D', Some(b'C')) => {
                self.take(2)?;
                let names = self.list(|parser| parser.source_name())?;
                self.add(Node::Around("[", names, "]"))
            }
            (b'U', Some(b't')) => {
                self.take(2)?;
                let number = self.counted()? + 1;
                self.add(Node::Text(format!("{{unnamed type#{number}}}").into()))
            }
            (b'U', Some(b'l')) => self.lambda()?,
            (b'0'..=b'9', _) => self.source_name()?,
            (b'c', Some(b'v')) => {
                self.take(2)?;
                is_untyped = true;
                let outer = std::mem::replace(&mut self.in_conversion, state.is_some());
                let to = self.type_();
                self.in_conversion = outer;
                let to = to?;
                self.add(Node::Conversion(to))
            }
            (b'l', Some(b'i')) => {
                self.take(2)?;
                let name = self.source_name()?;
                let Node::Text(name) = &self.nodes[name as usize] else { return None };
                self.add(Node::Text(format!("operator\"\" {name}").into()))
            }
            _ => {
                let (text, _) = operator(self.rest)?;
                self.take(2)?;
                self.add(Node::Text(format!("operator{text}").into()))
            }
        };
        if let Some(state) = state {
            state.is_untyped = is_untyped;
        }
        self.tags(name)
    }

    /// Parses a constructor or destructor of the class; an inherited constructor names its base class.
    fn structor(&mut self, class: Id) -> Option<Id> {
        let kind = self.take(1)?;
        let name = self.own_name(class)?;
        if kind == "D" {
            self.take(1)?;
            return Some(self.add(Node::Destructor(name)));
        }
        if self.eat("I") {
            self.take(1)?;
            self.type_()?;
        } else {
            self.take(1)?;
        }
        Some(name)
    }

    /// Replaces the short name of a class of the C++ library, from which its constructors' name cannot be told.
    fn without_alias(&mut self, class: Id) -> Id {
        let Node::Text(text) = &self.nodes[class as usize] else { return class };
        let alias = ALIASES.iter().find(|(short, ..)| *short == &**text);
        alias.map_or(class, |(_, whole, _)| self.text(whole))
    }

    /// Returns the name of a class without its scope and template arguments.
    fn own_name(&mut self, class: Id) -> Option<Id> {
        let mut id = class;
        loop {
            id = match &self.nodes[id as usize] {
                Node::Scoped(_, name) | Node::Template(name, _) | Node::Tagged(name, _) => *name,
                Node::Local { name, .. } => *name,
                Node::Text(text) => {
                    let alias = ALIASES.iter().find(|(_, whole, _)| *whole == &**text);
                    return Some(alias.map_or(id, |(_, _, own)| self.text(own)));
                }
                _ => return Some(id),
            };
        }
    }

    pub(super) fn source_name(&mut self) -> Option<Id> {
        let length = self.number()?;
        let name = self.take(length).filter(|name| !name.is_empty())?;
        let is_anonymous = name
            .strip_prefix("_GLOBAL_")
            .is_some_and(|rest| rest.starts_with(['.', '_', '$']) && rest[1..].starts_with('N'));
        Some(self.text(if is_anonymous { "(anonymous namespace)" } else { name }))
    }

    fn lambda(&mut self) -> Option<Id> {
        self.expect("Ul")?;
        let parameters = if self.eat("vE") { Vec::new() } else { self.list(Self::type_)? };
        let number = self.counted()? + 1;
        Some(self.add(Node::Lambda { parameters, number }))
    }

    /// Parses the ABI tags of a name.
    pub(super) fn tags(&mut self, mut name: Id) -> Option<Id> {
        while self.eat("B") {
            let length = self.number()?;
            let tag = self.take(length)?;
            name = self.add(Node::Tagged(name, tag));
        }
        Some(name)
    }

    pub(super) fn qualifiers(&mut self) -> Qualifiers {
        Qualifiers { is_restrict: self.eat("r"), is_volatile: self.eat("V"), is_const: self.eat("K") }
    }

    pub(super) fn reference_qualifier(&mut self) -> Option<ReferenceKind> {
        match () {
            () if self.eat("R") => Some(ReferenceKind::Lvalue),
            () if self.eat("O") => Some(ReferenceKind::Rvalue),
            () => None,
        }
    }
}
