//! Types, template parameters and arguments, and references to earlier parts of a name.

use super::parse::Parser;
use super::{FunctionType, Id, Node, Qualifiers};

impl<'a> Parser<'a> {
    pub(super) fn type_(&mut self) -> Option<Id> {
        self.nested(Self::any_type)
    }

    fn any_type(&mut self) -> Option<Id> {
        let next = self.peek()?;
        if let Some(name) = builtin(next) {
            self.take(1)?;
            return Some(self.text(name));
        }
        let type_ = match next {
            b'r' | b'V' | b'K' => {
                let qualifiers = self.qualifiers();
                if is_function(self.rest()) {
                    self.function_type(qualifiers)?
                } else {
                    let of = self.type_()?;
                    self.add(Node::Qualified(of, qualifiers))
                }
            }
            b'U' if !self.starts_with("Ut") && !self.starts_with("Ul") => {
                self.take(1)?;
                let mut word = self.source_name()?;
                if self.peek() == Some(b'I') {
                    let arguments = self.template_arguments()?;
                    word = self.add(Node::Template(word, arguments));
                }
                let of = self.type_()?;
                self.add(Node::Vendor(of, word))
            }
            b'P' => {
                self.take(1)?;
                let of = self.type_()?;
                self.add(Node::Pointer(of))
            }
            b'R' | b'O' => {
                let kind = self.reference_qualifier()?;
                let of = self.type_()?;
                self.add(Node::Reference(of, kind))
            }
            b'C' | b'G' => {
                let after = if self.take(1)? == "C" { " _Complex" } else { " _Imaginary" };
                let of = self.type_()?;
                self.add(Node::Around("", vec![of], after))
            }
            b'M' => {
                self.take(1)?;
                let class = self.type_()?;
                let of = self.type_()?;
                self.add(Node::Member { class, of })
            }
            b'A' => self.array()?,
            b'F' => self.function_type(Qualifiers::default())?,
            b'D' => return self.d_type(),
            b'u' => {
                self.take(1)?;
                let name = self.source_name()?;
                if self.peek() == Some(b'I') {
                    let arguments = self.template_arguments()?;
                    self.add(Node::Template(name, arguments))
                } else {
                    name
                }
            }
            b'T' if matches!(self.rest().as_bytes().get(1), Some(b's' | b'u' | b'e')) => {
                self.take(2)?;
                self.name(None)?
            }
            b'T' => {
                let parameter = self.template_parameter()?;
                if self.peek() != Some(b'I') || self.in_conversion && !self.is_argument_list_of_type() {
                    parameter
                } else {
                    self.substitutable(parameter);
                    let arguments = self.template_arguments()?;
                    self.add(Node::Template(parameter, arguments))
                }
            }
            b'S' if !self.starts_with("St") => {
                let substitution = self.substitution()?;
                if self.peek() != Some(b'I') {
                    return Some(substitution);
                }
                let arguments = self.template_arguments()?;
                self.add(Node::Template(substitution, arguments))
            }
            _ => self.name(None)?,
        };
        Some(self.substitutable(type_))
    }

    /// Returns whether the template arguments that follow a conversion's type belong to that type: if others follow,
    /// these are those of the conversion.
    fn is_argument_list_of_type(&mut self) -> bool {
        let (nodes, substitutions) = (self.nodes.len(), self.substitutions.len());
        let rest = self.rest();
        let is_own = self.template_arguments().is_some() && self.peek() == Some(b'I');
        self.nodes.truncate(nodes);
        self.substitutions.truncate(substitutions);
        self.back_to(rest);
        is_own
    }

    fn d_type(&mut self) -> Option<Id> {
        let type_ = match self.rest().get(1..2)? {
            "d" => "decimal64",
            "e" => "decimal128",
            "f" => "decimal32",
            "h" => "half",
            "i" => "char32_t",
            "s" => "char16_t",
            "u" => "char8_t",
            "a" => "auto",
            "c" => "decltype(auto)",
            "n" => "decltype(nullptr)",
            "t" | "T" => {
                let of = self.decltype()?;
                return Some(self.substitutable(of));
            }
            "p" => {
                self.take(2)?;
                let of = self.type_()?;
                let expansion = self.add(Node::Expansion(of));
                return Some(self.substitutable(expansion));
            }
            "o" | "O" | "w" | "x" => {
                let function = self.function_type(Qualifiers::default())?;
                return Some(self.substitutable(function));
            }
            "v" => {
                self.take(2)?;
                let length = if self.eat("_") { self.expression()? } else { self.array_length()? };
                self.expect("_")?;
                let of = self.type_()?;
                let length = self.add(Node::Around("__vector(", vec![length], ")"));
                let vector = self.add(Node::Vendor(of, length));
                return Some(self.substitutable(vector));
            }
            "F" => {
                self.take(2)?;
                let bits = self.digits();
                let suffix = if self.eat("x") { "x" } else { "" };
                if suffix.is_empty() && !self.eat("_") {
                    // `std::bfloat16_t`.
                    self.expect("b")?;
                    return (bits == "16").then(|| self.text("std::bfloat16_t"));
                }
                return Some(self.add(Node::Text(format!("_Float{bits}{suffix}").into())));
            }
            "B" | "U" => {
                let before = if self.take(2)? == "DB" { "signed _BitInt(" } else { "unsigned _BitInt(" };
                let bits = self.array_length()?;
                self.expect("_")?;
                return Some(self.add(Node::Around(before, vec![bits], ")")));
            }
            _ => return None,
        };
        self.take(2)?;
        Some(self.text(type_))
    }

    pub(super) fn decltype(&mut self) -> Option<Id> {
        self.take(2)?;
        let of = self.expression()?;
        self.expect("E")?;
        Some(self.add(Node::Around("decltype (", vec![of], ")")))
    }

    fn array_length(&mut self) -> Option<Id> {
        match self.peek()? {
            b'0'..=b'9' => {
                let digits = self.digits();
                Some(self.text(digits))
            }
            _ => self.expression(),
        }
    }

    fn array(&mut self) -> Option<Id> {
        self.expect("A")?;
        let length = match self.peek()? {
            b'_' => None,
            _ => Some(self.array_length()?),
        };
        self.expect("_")?;
        let of = self.type_()?;
        Some(self.add(Node::Array { length, of }))
    }

    fn function_type(&mut self, qualifiers: Qualifiers) -> Option<Id> {
        let exception = if self.eat("Do") {
            Some(self.text(" noexcept"))
        } else if self.eat("DO") {
            let of = self.expression()?;
            self.expect("E")?;
            Some(self.add(Node::Around(" noexcept(", vec![of], ")")))
        } else if self.eat("Dw") {
            let types = self.list(Self::type_)?;
            Some(self.add(Node::Around(" throw(", types, ")")))
        } else {
            None
        };
        let exception = if self.eat("Dx") { Some(self.text(" transaction_safe")) } else { exception };
        self.expect("F")?;
        // A function of C.
        self.eat("Y");
        let returns = Some(self.type_()?);
        let mut parameters = Vec::new();
        let mut reference = None;
        self.eat("v");
        while !self.eat("E") {
            if self.starts_with("RE") || self.starts_with("OE") {
                reference = self.reference_qualifier();
                continue;
            }
            parameters.push(self.type_()?);
        }
        let function = FunctionType { returns, parameters, qualifiers, reference, exception };
        Some(self.add(Node::FunctionType(function)))
    }

    pub(super) fn substitution(&mut self) -> Option<Id> {
        self.expect("S")?;
        let name = match self.peek()? {
            b'a' => "std::allocator",
            b'b' => "std::basic_string",
            b's' => "std::string",
            b'i' => "std::istream",
            b'o' => "std::ostream",
            b'd' => "std::iostream",
            _ => {
                let digits = self.rest().bytes().take_while(u8::is_ascii_alphanumeric).count();
                let digits = self.take(digits)?;
                self.expect("_")?;
                let number = match digits {
                    "" => 0,
                    _ => usize::from_str_radix(digits, 36).ok()?.checked_add(1)?,
                };
                return self.substitutions.get(number).copied();
            }
        };
        self.take(1)?;
        let name = self.text(name);
        let tagged = self.tags(name)?;
        if tagged != name {
            self.substitutable(tagged);
        }
        Some(tagged)
    }

    pub(super) fn template_parameter(&mut self) -> Option<Id> {
        self.expect("T")?;
        if self.eat("L") {
            // Of an outer template; only within lambda expressions with template parameters of their own.
            self.counted()?;
        }
        let number = self.counted()?;
        Some(self.add(Node::Parameter(number)))
    }

    pub(super) fn template_arguments(&mut self) -> Option<Vec<Id>> {
        self.expect("I")?;
        let outer = std::mem::take(&mut self.in_conversion);
        let list = self.nested(|parser| parser.list(Self::template_argument));
        self.in_conversion = outer;
        list
    }

    pub(super) fn template_argument(&mut self) -> Option<Id> {
        match self.peek()? {
            b'X' => {
                self.take(1)?;
                let value = self.expression()?;
                self.expect("E").map(|()| value)
            }
            b'J' => {
                self.take(1)?;
                let list = self.nested(|parser| parser.list(Self::template_argument))?;
                Some(self.add(Node::Pack(list)))
            }
            b'L' => self.nested(Self::literal),
            _ => self.type_(),
        }
    }
}

/// Returns whether a function's type is next.
fn is_function(rest: &str) -> bool {
    let rest = rest.as_bytes();
    matches!(rest, [b'F', ..] | [b'D', b'o' | b'O' | b'w' | b'x', ..])
}

pub(super) fn builtin(code: u8) -> Option<&'static str> {
    Some(match code {
        b'v' => "void",
        b'w' => "wchar_t",
        b'b' => "bool",
        b'c' => "char",
        b'a' => "signed char",
        b'h' => "unsigned char",
        b's' => "short",
        b't' => "unsigned short",
        b'i' => "int",
        b'j' => "unsigned int",
        b'l' => "long",
        b'm' => "unsigned long",
        b'x' => "long long",
        b'y' => "unsigned long long",
        b'n' => "__int128",
        b'o' => "unsigned __int128",
        b'f' => "float",
        b'd' => "double",
        b'e' => "long double",
        b'g' => "__float128",
        b'z' => "...",
        _ => return None,
    })
}
