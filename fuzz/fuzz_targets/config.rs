//! Run from `fuzz/`: `cargo fuzz run config corpus/config seeds/config`.
#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code)]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::config(bytes));
