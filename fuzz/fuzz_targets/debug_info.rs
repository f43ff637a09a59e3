//! `cargo fuzz run debug_info corpus/debug_info seeds/debug_info` from `fuzz/`: what it finds goes to `corpus`, which is not kept; what is worth keeping goes to `seeds`.
#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code)]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::debug_info(bytes));
