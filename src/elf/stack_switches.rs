//! Whether the code of a file leaves functions without returning from them.

use std::ops::Range;

use super::body::Body;
use super::code::Functions;
use super::non_local_exits::{NonLocalExit, is_program, named};

impl Functions<'_> {
    /// Returns whether a call may end other than through an exit: by an exception or `longjmp`. False only for a
    /// program that has none of these.
    pub fn may_unwind(&self) -> bool {
        *self.may_unwind.get_or_init(|| {
            !is_program(&self.image) || self.symbols.is_empty() || self.non_local_exit().is_some()
        })
    }

    /// Returns the non-local exits that the file's symbols reveal, or else its code: handlers of exceptions, in whatever
    /// language, and functions that continue on another stack, whatever their names are.
    pub fn non_local_exit(&self) -> Option<&NonLocalExit> {
        let find = || {
            named(&self.image).or_else(|| {
                let handler = self.unwind.frames().find(|frame| frame.has_handler);
                let handles = handler.map(|frame| (frame.start, "exceptions"));
                let (at, what) = handles.or_else(|| Some((self.stack_switch()?, "coroutines")))?;
                let symbol = Some(self.name(at)).filter(|name| !name.is_empty());
                Some(NonLocalExit { symbol: symbol.map_or_else(|| format!("{at:#x}"), str::to_string), what })
            })
        };
        self.non_local_exit.get_or_init(find).as_ref()
    }

    /// Returns the first function that loads the stack pointer with an address on another stack.
    fn stack_switch(&self) -> Option<u64> {
        let switches = |range: &Range<u64>| {
            let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
            // Decoding takes a hundred times longer.
            if !self.image.code_at(range.start, length).is_some_and(may_switch_stacks) {
                return false;
            }
            let body = Body::decode(&self.image, range.clone());
            body.is_ok_and(|body| body.stack_switches.iter().any(|at| self.leaves_stack(&body, *at)))
        };
        let framed = self.unwind.frames().map(|frame| frame.start..frame.end);
        let sized = self.symbols.iter().map(|(&start, (size, _))| start..start.saturating_add(*size));
        let unframed = sized.filter(|range| self.unwind.covering(range.start).is_none());
        framed.chain(unframed).find(switches).map(|range| range.start)
    }

    /// Returns whether an instruction that loads the stack pointer leaves the function's own stack, as far as can be told:
    /// a function with a frame pointer restores its stack from it, whatever it does in between; and where the unwind
    /// table shows by how much the stack has moved, it has returned to an earlier position.
    pub(super) fn leaves_stack(&self, body: &Body, at: u64) -> bool {
        let [before, after] = [at, body.after(at)].map(|at| self.above(at));
        let is_told = before == Some(None) || before.is_some() && before != after;
        !is_told && !body.restores_stack(&self.image, at)
    }
}

/// Returns whether any of the bytes may be an instruction that writes to the stack pointer other than by adding to it:
/// `mov`, `lea`, `xchg` or `pop`.
fn may_switch_stacks(code: &[u8]) -> bool {
    const POP: u8 = 0x5c;
    code.contains(&POP)
        || code.windows(3).any(|code| {
            let &[rex, opcode, operands] = code else { return false };
            let (register, other) = (operands >> 3 & 7, operands & 7);
            // The register numbered 4 without the prefix's extension bit, of which each operand has its own.
            let is_stack = |number: u8, extension: u8| number == 4 && rex & extension == 0;
            let of_register = is_stack(register, 4);
            let of_other = operands >> 6 == 3 && is_stack(other, 1);
            rex & 0xf8 == 0x48
                && match opcode {
                    0x89 => of_other,
                    0x8b | 0x8d => of_register,
                    0x87 => of_register || of_other,
                    _ => false,
                }
        })
}
