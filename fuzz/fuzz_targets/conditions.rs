//! Run from `fuzz/`: `cargo fuzz run conditions corpus/conditions seeds/conditions`.
#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code)]
mod checks;

libfuzzer_sys::fuzz_target!(|text: &str| checks::conditions(text));
