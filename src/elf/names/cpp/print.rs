//! Writes a parsed name.

mod lookup;

use std::fmt::Write;

use super::super::MAX_DEMANGLED;
use super::{FunctionType, Id, Node, Qualifiers, ReferenceKind, Signature};

/// Limits the nesting of what is written, which substitutions can make much deeper than the symbol.
const MAX_DEPTH: usize = 400;
/// Limits the nodes that are visited. Those that write nothing do not count against the length of the name.
const MAX_VISITS: usize = 100_000;

pub(super) fn print(nodes: &[Node<'_>], root: Id, signature: Signature, to: &mut impl Write) -> Option<()> {
    let mut printer = Printer {
        nodes,
        out: String::new(),
        templates: Vec::new(),
        in_lambda: false,
        element: None,
        depth: 0,
        visits: 0,
    };
    printer.root(root, signature)?;
    to.write_str(&printer.out).ok()
}

struct Printer<'n, 'a> {
    nodes: &'n [Node<'a>],
    out: String,
    /// The arguments of the function templates that are written; template parameters are those of the last.
    templates: Vec<&'n [Id]>,
    /// Whether template parameters are those of a lambda expression.
    in_lambda: bool,
    /// Which element of each parameter pack is written.
    element: Option<usize>,
    depth: usize,
    visits: usize,
}

impl<'n, 'a> Printer<'n, 'a> {
    fn push(&mut self, text: &str) -> Option<()> {
        if self.out.len() + text.len() > MAX_DEMANGLED {
            return None;
        }
        self.out.push_str(text);
        Some(())
    }

    fn visit<T>(&mut self, visit: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        self.visits += 1;
        if self.depth >= MAX_DEPTH || self.visits >= MAX_VISITS {
            return None;
        }
        self.depth += 1;
        let result = visit(self);
        self.depth -= 1;
        result
    }

    /// Writes a whole name. Only its own function is written according to `signature`.
    fn root(&mut self, id: Id, signature: Signature) -> Option<()> {
        match self.node(id)? {
            Node::Function { name, function } => {
                let returns = function.returns.filter(|_| signature == Signature::Whole);
                self.function(*name, function, returns, signature != Signature::Name)
            }
            Node::Special(text, of) => {
                self.push(text)?;
                self.visit(|printer| printer.root(*of, signature))
            }
            Node::Copy(of, suffix) => {
                self.visit(|printer| printer.root(*of, signature))?;
                self.push(" [clone ")?;
                self.push(suffix)?;
                self.push("]")
            }
            _ => self.whole(id),
        }
    }

    fn function(
        &mut self,
        name: Id,
        function: &FunctionType,
        returns: Option<Id>,
        parameters: bool,
    ) -> Option<()> {
        let template = self.arguments_of(name)?;
        let outer = self.templates.len();
        self.templates.extend(template);
        if let Some(returns) = returns {
            self.result(returns)?;
        }
        self.whole(name)?;
        if parameters {
            self.in_parentheses(&function.parameters)?;
            if let Some(returns) = returns {
                self.right(returns)?;
            }
            self.after_parameters(function)?;
        }
        self.templates.truncate(outer);
        Some(())
    }

    /// Writes a function's return type as far as it precedes the name.
    fn result(&mut self, of: Id) -> Option<()> {
        self.left(of)?;
        let after = if self.has_right(of)? { "" } else { " " };
        self.push(after)
    }

    fn after_parameters(&mut self, function: &FunctionType) -> Option<()> {
        self.qualifiers(function.qualifiers)?;
        self.push(match function.reference {
            Some(ReferenceKind::Lvalue) => " &",
            Some(ReferenceKind::Rvalue) => " &&",
            None => "",
        })?;
        function.exception.map_or(Some(()), |exception| self.whole(exception))
    }

    fn qualifiers(&mut self, qualifiers: Qualifiers) -> Option<()> {
        self.push(if qualifiers.is_const { " const" } else { "" })?;
        self.push(if qualifiers.is_volatile { " volatile" } else { "" })?;
        self.push(if qualifiers.is_restrict { " __restrict" } else { "" })
    }

    fn whole(&mut self, id: Id) -> Option<()> {
        self.left(id)?;
        self.right(id)
    }

    /// Writes what precedes a declared name of the type; all of anything else than a type.
    fn left(&mut self, id: Id) -> Option<()> {
        self.visit(|printer| printer.left_of(id))
    }

    fn left_of(&mut self, id: Id) -> Option<()> {
        match self.node(id)? {
            Node::Text(text) => self.push(text),
            Node::Scoped(scope, name) => {
                self.whole(*scope)?;
                self.push("::")?;
                self.whole(*name)
            }
            Node::Local { function, name, default_argument } => {
                match self.node(*function)? {
                    Node::Function { name, function } => self.function(*name, function, None, true)?,
                    _ => self.whole(*function)?,
                }
                if let Some(number) = default_argument {
                    self.push(&format!("::{{default arg#{number}}}"))?;
                }
                self.push("::")?;
                self.whole(*name)
            }
            Node::Template(name, arguments) => {
                self.whole(*name)?;
                self.push(if self.out.ends_with('<') { " <" } else { "<" })?;
                let outer = std::mem::replace(&mut self.in_lambda, false);
                self.list(arguments)?;
                self.in_lambda = outer;
                self.push(if self.out.ends_with('>') { " >" } else { ">" })
            }
            Node::Conversion(to) => {
                self.push("operator ")?;
                self.whole(*to)
            }
            Node::Destructor(name) => {
                self.push("~")?;
                self.whole(*name)
            }
            Node::Tagged(name, tag) => {
                self.whole(*name)?;
                self.push(&format!("[abi:{tag}]"))
            }
            Node::Lambda { parameters, number } => {
                self.push("{lambda")?;
                let outer = std::mem::replace(&mut self.in_lambda, true);
                self.in_parentheses(parameters)?;
                self.in_lambda = outer;
                self.push(&format!("#{number}}}"))
            }
            Node::Function { name, function } => self.function(*name, function, function.returns, true),
            Node::Special(..) | Node::Copy(..) => self.root(id, Signature::Whole),
            Node::Qualified(..) => {
                let (of, qualifiers) = self.qualified(id)?;
                self.left(of)?;
                self.qualifiers(qualifiers)
            }
            Node::Vendor(of, word) => {
                self.whole(*of)?;
                self.push(" ")?;
                self.whole(*word)
            }
            Node::Pointer(of) => self.left_of_address(*of, "*"),
            Node::Reference(..) => {
                let (of, kind) = self.reference(id)?;
                self.left_of_address(of, if kind == ReferenceKind::Lvalue { "&" } else { "&&" })
            }
            Node::Member { class, of } => {
                self.left(*of)?;
                let before = if self.is_declarator(*of)? { "(" } else { " " };
                self.push(before)?;
                self.whole(*class)?;
                self.push("::*")
            }
            Node::FunctionType(function) => self.result(function.returns?),
            Node::Array { of, .. } => self.left(*of),
            Node::Around(before, list, after) => {
                self.push(before)?;
                match *before {
                    "" => list.iter().try_for_each(|id| self.whole(*id))?,
                    _ => self.list(list)?,
                }
                self.push(after)
            }
            Node::Pack(list) => self.list(list),
            Node::Parameter(number) if self.in_lambda => self.push(&format!("auto:{}", number + 1)),
            Node::Parameter(_) => self.argument(id, Self::left),
            Node::Expansion(of) => self.expansion(*of),
            Node::Constant(of, value) => {
                self.in_parentheses(&[*of])?;
                self.whole(*value)
            }
            Node::Unary(operator, of) => {
                self.push(operator)?;
                match self.node(*of)? {
                    // The address of a function.
                    Node::Function { name, function }
                        if function.is_plain() && matches!(self.node(*name), Some(Node::Scoped(..))) =>
                    {
                        self.whole(*name)
                    }
                    _ if *operator == "::" => self.whole(*of),
                    _ => self.operand(*of),
                }
            }
            Node::Binary(left, operator, right) => {
                // It would end the template arguments.
                let is_closing = *operator == ">";
                self.push(if is_closing { "(" } else { "" })?;
                self.operand(*left)?;
                self.push(operator)?;
                match *operator {
                    "" => self.whole(*right)?,
                    _ => self.operand(*right)?,
                }
                self.push(if is_closing { ")" } else { "" })
            }
            Node::Conditional(condition, yes, no) => {
                self.operand(*condition)?;
                self.push("?")?;
                self.operand(*yes)?;
                self.push(" : ")?;
                self.operand(*no)
            }
            Node::Call(function, arguments) => {
                match self.node(*function)? {
                    Node::Function { name, .. } => self.operand(*name)?,
                    _ => self.operand(*function)?,
                }
                self.in_parentheses(arguments)
            }
            Node::Cast(to, values) => {
                self.in_parentheses(&[*to])?;
                match values[..] {
                    [value] => self.operand(value),
                    _ => self.in_parentheses(values),
                }
            }
            Node::NamedCast(cast, to, value) => {
                self.push(cast)?;
                self.push("<")?;
                self.whole(*to)?;
                self.push(">")?;
                self.in_parentheses(&[*value])
            }
            Node::Length(of) => {
                let length = self.length(*of)?.unwrap_or(0);
                self.push(&length.to_string())
            }
        }
    }

    /// Writes the argument of a template parameter.
    fn argument(&mut self, id: Id, write: fn(&mut Self, Id) -> Option<()>) -> Option<()> {
        let argument = self.meant(id)?;
        let outer = self.element.take();
        write(self, argument)?;
        self.element = outer;
        Some(())
    }

    fn left_of_address(&mut self, of: Id, sign: &str) -> Option<()> {
        self.left(of)?;
        self.push(match self.node(self.unqualified(of)?)? {
            Node::Array { .. } => " (",
            Node::FunctionType(_) => "(",
            _ => "",
        })?;
        self.push(sign)
    }

    /// Writes what follows a declared name of the type.
    fn right(&mut self, id: Id) -> Option<()> {
        self.visit(|printer| printer.right_of(id))
    }

    fn right_of(&mut self, id: Id) -> Option<()> {
        match self.node(id)? {
            Node::Qualified(of, _) => self.right(*of),
            Node::Parameter(_) if !self.in_lambda => self.argument(id, Self::right),
            Node::Pointer(of) | Node::Member { of, .. } => self.right_of_address(*of),
            Node::Reference(..) => {
                let (of, _) = self.reference(id)?;
                self.right_of_address(of)
            }
            Node::FunctionType(function) => {
                self.in_parentheses(&function.parameters)?;
                self.right(function.returns?)?;
                self.after_parameters(function)
            }
            Node::Array { length, of } => {
                self.push(if self.out.ends_with(']') { "[" } else { " [" })?;
                if let Some(length) = length {
                    self.whole(*length)?;
                }
                self.push("]")?;
                self.right(*of)
            }
            _ => Some(()),
        }
    }

    fn right_of_address(&mut self, of: Id) -> Option<()> {
        if self.is_declarator(of)? {
            self.push(")")?;
        }
        self.right(of)
    }

    fn in_parentheses(&mut self, list: &[Id]) -> Option<()> {
        self.push("(")?;
        self.list(list)?;
        self.push(")")
    }

    /// Writes an operand, in parentheses unless it is only a name.
    fn operand(&mut self, id: Id) -> Option<()> {
        match self.node(self.meant(id)?)? {
            Node::Text(_) | Node::Scoped(..) | Node::Around("{", ..) => self.whole(id),
            _ => self.in_parentheses(&[id]),
        }
    }

    fn list(&mut self, list: &[Id]) -> Option<()> {
        self.separated(list, Self::whole)
    }

    /// Writes a list; elements without text, such as an empty pack, are left out.
    fn separated<T: Copy>(
        &mut self,
        list: &[T],
        mut write: impl FnMut(&mut Self, T) -> Option<()>,
    ) -> Option<()> {
        let mut end = None;
        for element in list {
            let before = self.out.len();
            if end.is_some() {
                self.push(", ")?;
            }
            let start = self.out.len();
            write(self, *element)?;
            match self.out.len() == start {
                true => self.out.truncate(before),
                false => end = Some(self.out.len()),
            }
        }
        Some(())
    }

    fn expansion(&mut self, of: Id) -> Option<()> {
        let Some(length) = self.length(of)? else {
            self.operand(of)?;
            return self.push("...");
        };
        let outer = self.element;
        let elements: Vec<usize> = (0..length).collect();
        let printed = self.separated(&elements, |printer, element| {
            printer.element = Some(element);
            printer.whole(of)
        });
        self.element = outer;
        printed
    }
}
