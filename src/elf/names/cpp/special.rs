//! Names of functions that the compiler adds to a program.

use super::parse::Parser;
use super::{Id, Node};

impl Parser<'_> {
    pub(super) fn special(&mut self) -> Option<Id> {
        let (kind, text) = match self.take(2)? {
            "TH" => (Kind::Name, "TLS init function for "),
            "TW" => (Kind::Name, "TLS wrapper function for "),
            "TA" => (Kind::Argument, "template parameter object for "),
            "Th" => {
                self.offset("h")?;
                (Kind::Encoding, "non-virtual thunk to ")
            }
            "Tv" => {
                self.offset("v")?;
                (Kind::Encoding, "virtual thunk to ")
            }
            "Tc" => {
                for _ in 0..2 {
                    let kind = self.take(1)?;
                    self.offset(kind)?;
                }
                (Kind::Encoding, "covariant return thunk to ")
            }
            "GA" => {
                self.take(1)?;
                (Kind::Encoding, "hidden alias for ")
            }
            "GT" => match self.take(1)? {
                "n" => (Kind::Encoding, "non-transaction clone for "),
                _ => (Kind::Encoding, "transaction clone for "),
            },
            _ => return None,
        };
        let of = match kind {
            Kind::Name => self.name(None)?,
            Kind::Argument => self.template_argument()?,
            Kind::Encoding => self.encoding()?,
        };
        Some(self.add(Node::Special(text, of)))
    }

    /// Skips by how much a thunk adjusts an address.
    fn offset(&mut self, kind: &str) -> Option<()> {
        let numbers = match kind {
            "h" => 1,
            "v" => 2,
            _ => return None,
        };
        for _ in 0..numbers {
            self.eat("n");
            if self.digits().is_empty() {
                return None;
            }
            self.expect("_")?;
        }
        Some(())
    }
}

enum Kind {
    Name,
    Argument,
    Encoding,
}
