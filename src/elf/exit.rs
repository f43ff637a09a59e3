//! The ways in which control leaves a function.

use std::ops::Range;

use super::Form;
use super::approach::Approach;

/// All ways in which a function is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exits {
    /// Sorted by address.
    pub exits: Vec<Exit>,
    /// Sorted by address.
    pub passages: Vec<Passage>,
    /// Functions that it tail-calls, whose exits count as its own.
    pub followed: Vec<u64>,
    /// The entry of another function that jumps into its middle: such calls never pass its entry.
    pub entered_from: Option<u64>,
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
    /// The processor's condition code (0 overflow to 15 greater) under which it leaves; `None` if it always does.
    pub when: Option<u8>,
    /// For a `ret`: jumps that can be probed in its place at a lower cost; empty if there are none.
    pub approaches: Vec<Approach>,
}

/// An instruction at which the same call continues elsewhere, which the probes of the call must take into account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    pub vaddr: u64,
    pub kind: PassageKind,
    /// The processor's condition code under which it is a passage; `None` if it always is.
    pub when: Option<u8>,
    /// For an indirect jump: where its target is found, and the target for which it is a passage.
    pub target: Option<(Form, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassageKind {
    /// A jump to the function's own entry: reaching the entry this way is not another call.
    LoopBack,
    /// A jump to a function that the call ends in (a tail call).
    TailJump,
    /// The entry of such a function, reached by any of its callers. A recorded call at the same stack position that did
    /// not get here by its own jump was left earlier, by an exception.
    CalleeEntry,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitKind {
    /// A `ret`.
    Return,
    /// A jump to a function that cannot be followed: it returns in this one's place, unseen.
    TailCall,
    /// A jump whose target is known only when it is taken. If the target is outside these stretches of code, it is a
    /// tail call.
    Decided { target: Form, inside: Vec<Range<u64>> },
}

impl Exit {
    /// Returns whether it is also hit when the function is not left. A jump through a fixed pointer is nearly always a
    /// call of another file's function.
    pub(super) fn is_costly(&self) -> bool {
        matches!(&self.kind, ExitKind::Decided { target, .. } if !matches!(target, Form::Static { .. }))
    }
}

impl Exits {
    /// Returns whether every exit is a `ret`, where the function's result is known.
    pub fn all_return(&self) -> bool {
        self.exits.iter().all(|exit| exit.kind == ExitKind::Return)
    }
}

/// Why no exits are known, phrased to follow a colon.
pub type NoExits = String;
