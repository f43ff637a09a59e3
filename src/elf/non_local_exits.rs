//! Whether a program leaves functions without returning from them: by exceptions, `longjmp`, or by continuing on
//! another stack.
//!
//! The kernel's own way of tracing a return replaces the return address on the stack. Code that inspects that address,
//! or bypasses it, then crashes the program.

use std::fmt;

use object::elf;

use super::Image;
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
pub(super) fn named(image: &Image<'_>) -> Option<NonLocalExit> {
    let found = symbols(image)
        .filter_map(|symbol| NON_LOCAL_EXITS.iter().position(|(name, _)| *name == symbol.name))
        .min()?;
    let (symbol, what) = NON_LOCAL_EXITS[found];
    Some(NonLocalExit { symbol: symbol.to_string(), what })
}

/// Returns whether the file is a program rather than a library that others load.
pub fn is_program(image: &Image<'_>) -> bool {
    let dynamic = image.dynamic();
    let flags = dynamic.iter().find(|(tag, _)| *tag == elf::DT_FLAGS_1).map_or(0, |(_, value)| *value);
    let is_named = dynamic.iter().any(|(tag, _)| *tag == elf::DT_SONAME);
    !image.is_pie() || flags & elf::DF_1_PIE.0 != 0 || (image.has_interpreter() && !is_named)
}
