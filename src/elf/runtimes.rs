//! Compilers whose code does not call and return as C's does, known by names.

use super::Convention;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Runtime {
    /// GHC keeps a stack of its own (`%rbp`) and only ever jumps.
    Haskell,
    /// OCaml before 4.10 raises an exception by taking the stack pointer back to the handler (`%r14`).
    OCaml,
    /// What V8's own assembler has made, in Node.js and others.
    V8,
    /// GNU Prolog keeps arguments and the place to go on at in memory of its own.
    Prolog,
}

impl Runtime {
    /// The one that every program with this symbol is linked with.
    pub(super) fn with_symbol(symbol: &str) -> Option<Runtime> {
        match symbol {
            "stg_upd_frame_info" => Some(Runtime::Haskell),
            "caml_raise_exn" => Some(Runtime::OCaml),
            "Builtins_InterpreterEntryTrampoline" => Some(Runtime::V8),
            "Pl_Start_Prolog" => Some(Runtime::Prolog),
            _ => None,
        }
    }

    /// The one whose functions have such names, and how these are called, if the program is linked with it.
    pub(super) fn of_name(function: &str) -> Option<(Runtime, Convention)> {
        if function.ends_with("_info") {
            let reason = "it is code of GHC, which passes arguments in registers and on a stack of its own, and may not have evaluated them";
            Some((Runtime::Haskell, Convention::Own(reason)))
        } else if is_ocaml(function) {
            Some((Runtime::OCaml, Convention::OCaml))
        } else if function.starts_with("Builtins_") {
            let reason = "it is a builtin of V8, which passes arguments in registers and places of its own";
            Some((Runtime::V8, Convention::Own(reason)))
        } else if is_prolog(function) {
            let reason = "it is a predicate, whose arguments GNU Prolog passes in memory of its own";
            Some((Runtime::Prolog, Convention::Own(reason)))
        } else {
            None
        }
    }
}

/// `camlModule__function_12`, and what OCaml makes for calls with other than the declared number of arguments. The functions of
/// its runtime in C are called `caml_alloc`.
fn is_ocaml(function: &str) -> bool {
    let Some(rest) = function.strip_prefix("caml") else { return false };
    let made = ["_apply", "_curry", "_tuplify", "_send"];
    rest.starts_with(|first: char| first.is_ascii_uppercase())
        || made.iter().any(|made| {
            rest.strip_prefix(made).is_some_and(|of| of.starts_with(|c: char| c.is_ascii_digit()))
        })
}

/// `X1_636E74__a3`: how the name is written, the name, and the number of arguments.
fn is_prolog(function: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    function.strip_prefix('X').and_then(|rest| rest.split_once('_')).is_some_and(|(how, rest)| {
        is_number(how) && rest.rsplit_once("__a").is_some_and(|(_, count)| is_number(count))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let of = |name: &str| Runtime::of_name(name).map(|(runtime, _)| runtime);
        for name in ["camlO__add3_81", "camlStdlib__List.map_12", "caml_apply3", "caml_curry2_1"] {
            assert_eq!(of(name), Some(Runtime::OCaml), "{name}");
        }
        assert_eq!(of("base_GHCziBase_map_info"), Some(Runtime::Haskell));
        assert_eq!(of("Builtins_MathMax"), Some(Runtime::V8));
        assert_eq!(of("X1_636E74__a3"), Some(Runtime::Prolog));
        for name in ["caml_alloc", "caml_apply", "camlp4", "X_a__a3", "X1_a", "X509_new", "info", "main"] {
            assert_eq!(of(name), None, "{name}");
        }
    }
}
