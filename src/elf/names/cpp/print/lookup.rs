//! What the parts of a name stand for where they are written.

use super::super::{Id, Node, Qualifiers, ReferenceKind};
use super::{MAX_DEPTH, Printer};

impl<'n, 'a> Printer<'n, 'a> {
    pub(super) fn node(&self, id: Id) -> Option<&'n Node<'a>> {
        self.nodes.get(id as usize)
    }

    /// Returns what `id` stands for: the argument of a template parameter, the current element of one for a pack.
    pub(super) fn meant(&self, id: Id) -> Option<Id> {
        let Node::Parameter(number) = self.node(id)? else { return Some(id) };
        if self.in_lambda {
            return Some(id);
        }
        let argument = *self.templates.last()?.get(*number)?;
        match (self.node(argument)?, self.element) {
            (Node::Pack(list), Some(element)) => list.get(element).copied(),
            // Malformed: an argument that refers to itself.
            (Node::Parameter(_), _) => None,
            _ => Some(argument),
        }
    }

    /// Returns the arguments of the function template with this name.
    pub(super) fn arguments_of(&self, mut name: Id) -> Option<Option<&'n [Id]>> {
        loop {
            name = match self.node(name)? {
                Node::Template(_, arguments) => return Some(Some(arguments)),
                Node::Local { name, .. } | Node::Tagged(name, _) => *name,
                _ => return Some(None),
            };
        }
    }

    pub(super) fn unqualified(&self, id: Id) -> Option<Id> {
        self.meant(self.qualified(id)?.0)
    }

    /// Returns whether a pointer to the type needs parentheses.
    pub(super) fn is_declarator(&self, of: Id) -> Option<bool> {
        Some(matches!(self.node(self.unqualified(of)?)?, Node::FunctionType(_) | Node::Array { .. }))
    }

    /// Returns whether anything follows the declared name of the type.
    pub(super) fn has_right(&self, mut id: Id) -> Option<bool> {
        for _ in 0..MAX_DEPTH {
            id = match self.node(self.unqualified(id)?)? {
                Node::FunctionType(_) | Node::Array { .. } => return Some(true),
                Node::Pointer(of) | Node::Member { of, .. } | Node::Reference(of, _) => *of,
                _ => return Some(false),
            };
        }
        None
    }

    /// Unites the qualifiers of a type and of the template argument to which they apply.
    pub(super) fn qualified(&self, mut id: Id) -> Option<(Id, Qualifiers)> {
        let mut all = Qualifiers::default();
        for _ in 0..MAX_DEPTH {
            let Node::Qualified(of, qualifiers) = self.node(self.meant(id)?)? else { return Some((id, all)) };
            all = all.and(*qualifiers);
            id = *of;
        }
        None
    }

    /// Unites a reference to a reference: both must be `&&`, or the result is `&`.
    pub(super) fn reference(&self, mut id: Id) -> Option<(Id, ReferenceKind)> {
        let mut all = ReferenceKind::Rvalue;
        for _ in 0..MAX_DEPTH {
            let Node::Reference(of, kind) = self.node(self.meant(id)?)? else { return Some((id, all)) };
            if *kind == ReferenceKind::Lvalue {
                all = ReferenceKind::Lvalue;
            }
            id = *of;
        }
        None
    }

    /// Returns the number of elements of the first parameter pack in `id`.
    pub(super) fn length(&mut self, id: Id) -> Option<Option<usize>> {
        self.visit(|printer| {
            let node = printer.node(id)?;
            let mut parts = Vec::new();
            match node {
                // All the arguments for a pack, or something that is repeated by itself.
                Node::Pack(_) | Node::Expansion(_) => return Some(None),
                Node::Parameter(number) => {
                    let argument = printer.templates.last().and_then(|all| all.get(*number));
                    return match argument.and_then(|argument| printer.node(*argument)) {
                        Some(Node::Pack(list)) => Some(Some(list.len())),
                        _ => Some(None),
                    };
                }
                _ => node.for_each(&mut |part| parts.push(part)),
            }
            for part in parts {
                if let Some(length) = printer.length(part)? {
                    return Some(Some(length));
                }
            }
            Some(None)
        })
    }
}
