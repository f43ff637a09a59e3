//! Run from `fuzz/`: `cargo fuzz run debug_info corpus/debug_info seeds/debug_info`. New inputs go to `corpus`, which
//! is not committed; those worth keeping belong in `seeds`.
#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code)]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::debug_info(bytes));
