//! Expressions among template arguments and in the types of function templates.

use super::operators::{Kind, operator};
use super::parse::Parser;
use super::types::builtin;
use super::{Id, Node};

impl<'a> Parser<'a> {
    pub(super) fn expression(&mut self) -> Option<Id> {
        self.nested(Self::any_expression)
    }

    fn any_expression(&mut self) -> Option<Id> {
        if self.eat("gs") {
            let of = self.any_expression()?;
            return Some(self.add(Node::Unary("::", of)));
        }
        let code = self.rest().get(..2)?;
        match code.as_bytes() {
            [b'L', _] => return self.literal(),
            [b'T', _] => return self.template_parameter(),
            [b'0'..=b'9', _] => return self.unresolved(),
            b"fp" | b"fL" => return self.function_parameter(),
            b"on" => {
                self.take(2)?;
                return self.unresolved();
            }
            _ => {}
        }
        self.take(2)?;
        Some(match code {
            "sr" => self.scoped()?,
            "st" | "at" | "ti" | "sz" | "az" | "te" => {
                let of = if matches!(code, "st" | "at" | "ti") { self.type_()? } else { self.expression()? };
                let before = match code.as_bytes()[0] {
                    b's' => "sizeof (",
                    b'a' => "alignof (",
                    _ => "typeid (",
                };
                self.add(Node::Around(before, vec![of], ")"))
            }
            "nx" => {
                let of = self.expression()?;
                self.add(Node::Around("noexcept (", vec![of], ")"))
            }
            "tw" => {
                let of = self.expression()?;
                self.add(Node::Unary("throw ", of))
            }
            "tr" => self.text("throw"),
            "sZ" => {
                let of = if self.peek()? == b'T' {
                    self.template_parameter()?
                } else {
                    self.function_parameter()?
                };
                self.add(Node::Length(of))
            }
            "sP" => {
                let arguments = self.list(Self::template_argument)?;
                let pack = self.add(Node::Pack(arguments));
                self.add(Node::Length(pack))
            }
            "sp" => {
                let of = self.expression()?;
                self.add(Node::Expansion(of))
            }
            "cl" => {
                let function = self.expression()?;
                let arguments = self.list(Self::expression)?;
                self.add(Node::Call(function, arguments))
            }
            "cv" => {
                let to = self.type_()?;
                let values = match self.eat("_") {
                    true => self.list(Self::expression)?,
                    false => vec![self.expression()?],
                };
                self.add(Node::Cast(to, values))
            }
            "tl" => {
                let of = self.type_()?;
                let values = self.list(Self::initializer)?;
                let list = self.add(Node::Around("{", values, "}"));
                self.add(Node::Around("", vec![of, list], ""))
            }
            "il" => {
                let values = self.list(Self::initializer)?;
                self.add(Node::Around("{", values, "}"))
            }
            "dc" | "sc" | "cc" | "rc" => {
                let to = self.type_()?;
                let value = self.expression()?;
                let cast = match code {
                    "dc" => "dynamic_cast",
                    "sc" => "static_cast",
                    "cc" => "const_cast",
                    _ => "reinterpret_cast",
                };
                self.add(Node::NamedCast(cast, to, value))
            }
            "qu" => {
                let [condition, yes, no] = [self.expression()?, self.expression()?, self.expression()?];
                self.add(Node::Conditional(condition, yes, no))
            }
            "ix" => {
                let (of, index) = (self.expression()?, self.expression()?);
                let index = self.add(Node::Around("[", vec![index], "]"));
                self.add(Node::Binary(of, "", index))
            }
            "dt" | "pt" => {
                let (of, member) = (self.expression()?, self.unresolved()?);
                self.add(Node::Binary(of, if code == "dt" { "." } else { "->" }, member))
            }
            "pp" | "mm" if !self.eat("_") => {
                // Without `_`, the operator follows its operand.
                let of = self.expression()?;
                let text = self.text(if code == "pp" { "++" } else { "--" });
                self.add(Node::Binary(of, "", text))
            }
            _ => match operator(code)? {
                (text, Kind::Prefix) => {
                    let of = self.expression()?;
                    self.add(Node::Unary(text, of))
                }
                (text, Kind::Binary) => {
                    let (left, right) = (self.expression()?, self.expression()?);
                    self.add(Node::Binary(left, text, right))
                }
                _ => return None,
            },
        })
    }

    /// Parses an element of an initializer list, which may name its member.
    fn initializer(&mut self) -> Option<Id> {
        if self.eat("di") {
            let (member, value) = (self.source_name()?, self.expression()?);
            let member = self.add(Node::Around(".", vec![member], "="));
            return Some(self.add(Node::Around("", vec![member, value], "")));
        }
        self.expression()
    }

    /// Parses a name in a scope that depends on template arguments.
    fn scoped(&mut self) -> Option<Id> {
        let rest = self.rest();
        let path = match self.peek()? {
            b'N' if self.eat("N") => {
                let path = self.type_()?;
                self.levels(path)
            }
            b'0'..=b'9' => {
                let path = self.unresolved()?;
                self.levels(path)
            }
            _ => None,
        };
        let path = match path {
            Some(path) => path,
            // As GCC abbreviates it.
            None => {
                self.back_to(rest);
                self.type_()?
            }
        };
        let name = self.base_name()?;
        let name = self.add(Node::Scoped(path, name));
        self.with_arguments(name)
    }

    /// Parses further names of a scope until its end, which another name must follow.
    fn levels(&mut self, mut path: Id) -> Option<Id> {
        while !self.eat("E") {
            let name = self.unresolved()?;
            path = self.add(Node::Scoped(path, name));
        }
        matches!(self.peek()?, b'0'..=b'9' | b'o' | b'd').then_some(path)
    }

    /// Parses a name that depends on template arguments.
    fn unresolved(&mut self) -> Option<Id> {
        if self.eat("sr") {
            return self.scoped();
        }
        let name = self.base_name()?;
        self.with_arguments(name)
    }

    fn base_name(&mut self) -> Option<Id> {
        self.eat("on");
        if !self.eat("dn") {
            return self.unqualified(None, None);
        }
        let of = match self.peek()? {
            b'0'..=b'9' => self.source_name()?,
            _ => self.type_()?,
        };
        Some(self.add(Node::Destructor(of)))
    }

    fn with_arguments(&mut self, name: Id) -> Option<Id> {
        if self.peek() != Some(b'I') {
            return Some(name);
        }
        let arguments = self.template_arguments()?;
        Some(self.add(Node::Template(name, arguments)))
    }

    fn function_parameter(&mut self) -> Option<Id> {
        if self.eat("fpT") {
            return Some(self.text("this"));
        }
        if self.eat("fL") {
            self.number()?;
        } else {
            self.expect("f")?;
        }
        self.expect("p")?;
        self.qualifiers();
        let number = self.counted()? + 1;
        Some(self.add(Node::Text(format!("{{parm#{number}}}").into())))
    }

    /// Parses a constant, or the function or variable whose address is meant.
    pub(super) fn literal(&mut self) -> Option<Id> {
        self.expect("L")?;
        if self.eat("_Z") || self.eat("Z") {
            let of = self.encoding()?;
            self.expect("E")?;
            return Some(of);
        }
        let code = self.peek()?;
        let of = self.type_()?;
        let value = self.rest().split_once('E')?.0;
        self.take(value.len() + 1)?;
        let suffix = match code {
            _ if builtin(code).is_none() => None,
            b'i' => Some(""),
            b'j' => Some("u"),
            b'l' => Some("l"),
            b'm' => Some("ul"),
            b'x' => Some("ll"),
            b'y' => Some("ull"),
            b'b' if value == "0" || value == "1" => {
                let value = self.text(if value == "0" { "false" } else { "true" });
                return Some(self.add(Node::Around("", vec![value], "")));
            }
            b'f' | b'd' | b'e' | b'g' => {
                let value = self.text(value);
                let value = self.add(Node::Around("[", vec![value], "]"));
                return Some(self.add(Node::Constant(of, value)));
            }
            _ => None,
        };
        let (sign, digits) = value.strip_prefix('n').map_or(("", value), |digits| ("-", digits));
        Some(match suffix {
            Some(suffix) => {
                let number = self.add(Node::Text(format!("{sign}{digits}{suffix}").into()));
                self.add(Node::Around("", vec![number], ""))
            }
            None if value.is_empty() => of,
            None => {
                let number = self.add(Node::Text(format!("{sign}{digits}").into()));
                self.add(Node::Constant(of, number))
            }
        })
    }
}
