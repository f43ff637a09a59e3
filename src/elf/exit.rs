//! What a way out of a function is.

use std::ops::Range;

use super::Form;
use super::approach::Approach;

/// How a function is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exits {
    /// In order of address.
    pub exits: Vec<Exit>,
    /// In order of address.
    pub passages: Vec<Passage>,
    /// Functions that it ends in, whose exits are its own.
    pub followed: Vec<u64>,
    /// Whether its unwind table names a handler: cleanups, or a catch.
    pub has_handler: bool,
}

/// An instruction that may leave a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub vaddr: u64,
    pub kind: ExitKind,
    /// Whether calls of other functions pass here too.
    pub shared: bool,
    /// The processor's condition (0 overflow to 15 greater) under which it leaves; None if it always does.
    pub when: Option<u8>,
    /// Of a `ret`: jumps that can be probed in its place, and cost less. None if there are none.
    pub approaches: Vec<Approach>,
}

/// An instruction at which the same call goes on elsewhere, which its probes must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    pub vaddr: u64,
    pub kind: PassageKind,
    /// The processor's condition under which it is one; None if it always is.
    pub when: Option<u8>,
    /// Of an indirect jump: where its target is found, and the one by which it is one.
    pub target: Option<(Form, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassageKind {
    /// A jump to the function's own entry: what is entered there is no other call.
    LoopBack,
    /// A jump to a function that the call ends in.
    TailJump,
    /// Where such a function is entered, by whomever. A call that has not come by its jump was left before: by an exception.
    CalleeEntry,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitKind {
    /// A `ret`.
    Return,
    /// A jump to a function that cannot be followed: it returns in this one's stead, unseen.
    TailCall,
    /// A jump whose target is known only when it is taken. Outside of these stretches of code it is a tail call.
    Decided { target: Form, inside: Vec<Range<u64>> },
}

impl Exit {
    /// Whether it is hit when nothing is left, too. What jumps to where one fixed pointer says is rarely anything but a call of
    /// another file's function.
    pub(super) fn is_costly(&self) -> bool {
        matches!(&self.kind, ExitKind::Decided { target, .. } if !matches!(target, Form::Static { .. }))
    }
}

impl Exits {
    /// Whether every exit is a `ret`, where the function's result is known.
    pub fn all_return(&self) -> bool {
        self.exits.iter().all(|exit| exit.kind == ExitKind::Return)
    }
}

/// Why no exits are known, to follow a colon.
pub type NoExits = String;
