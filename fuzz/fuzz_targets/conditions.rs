//! `cargo fuzz run conditions corpus/conditions seeds/conditions` from `fuzz/`.
#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code)]
mod checks;

libfuzzer_sys::fuzz_target!(|text: &str| checks::conditions(text));
