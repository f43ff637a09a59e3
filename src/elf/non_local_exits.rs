//! Whether a program leaves functions without returning from them: by exceptions, `longjmp`, or by continuing on
//! another stack.
//!
//! The kernel's own way of tracing a return replaces the return address on the stack. Code that inspects that address,
//! or bypasses it, then crashes the program.

use std::fmt;
use std::ops::Range;

use object::elf;

use super::Image;
use super::body::Body;
use super::code::Functions;
use super::symbols::symbols;

/// Names of functions that leave frames, and of symbols that only code with such frames refers to.
const NON_LOCAL_EXITS: &[(&str, &str)] = &[
    ("_Unwind_RaiseException", "exceptions"),
    ("_Unwind_Resume", "exceptions"),
    ("_Unwind_Resume_or_Rethrow", "exceptions"),
    ("_Unwind_ForcedUnwind", "exceptions"),
    ("_Unwind_Backtrace", "stack traces"),
    ("__cxa_throw", "exceptions"),
    ("__cxa_rethrow", "exceptions"),
    ("__cxa_begin_catch", "exceptions"),
    ("__gxx_personality_v0", "exceptions"),
    ("rust_eh_personality", "panics"),
    ("longjmp", "longjmp"),
    ("_longjmp", "longjmp"),
    ("siglongjmp", "longjmp"),
    ("__longjmp_chk", "longjmp"),
    ("setjmp", "longjmp"),
    ("_setjmp", "longjmp"),
    ("sigsetjmp", "longjmp"),
    ("__sigsetjmp", "longjmp"),
    ("swapcontext", "coroutines"),
    ("setcontext", "coroutines"),
    ("makecontext", "coroutines"),
    ("getcontext", "coroutines"),
    ("jump_fcontext", "coroutines"),
    ("ontop_fcontext", "coroutines"),
    ("bthread_jump_fcontext", "coroutines"),
    ("coctx_swap", "coroutines"),
    ("coroutine_transfer", "coroutines"),
    ("coro_transfer", "coroutines"),
    ("co_switch", "coroutines"),
    ("swap_context", "coroutines"),
    ("switch_stacks", "coroutines"),
    ("pthread_exit", "the end of threads"),
    ("pthread_cancel", "the end of threads"),
    ("__pthread_unwind", "the end of threads"),
    ("thrd_exit", "the end of threads"),
];

/// A way in which a program leaves functions without returning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NonLocalExit {
    /// The symbol that reveals it, or the function whose code does.
    pub symbol: String,
    /// `exceptions`, `coroutines`, ...
    pub what: &'static str,
}

impl fmt::Display for NonLocalExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.what, self.symbol)
    }
}

/// Returns the non-local exits that a file imports or defines. `None` if its symbols reveal none.
fn named(image: &Image<'_>) -> Option<NonLocalExit> {
    let found = symbols(image)
        .filter_map(|symbol| NON_LOCAL_EXITS.iter().position(|(name, _)| *name == symbol.name))
        .min()?;
    let (symbol, what) = NON_LOCAL_EXITS[found];
    Some(NonLocalExit { symbol: symbol.to_string(), what })
}

impl Functions<'_> {
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

/// Returns whether the file is a program rather than a library that others load.
pub fn is_program(image: &Image<'_>) -> bool {
    let dynamic = image.dynamic();
    let flags = dynamic.iter().find(|(tag, _)| *tag == elf::DT_FLAGS_1).map_or(0, |(_, value)| *value);
    let is_named = dynamic.iter().any(|(tag, _)| *tag == elf::DT_SONAME);
    !image.is_pie() || flags & elf::DF_1_PIE.0 != 0 || (image.has_interpreter() && !is_named)
}
