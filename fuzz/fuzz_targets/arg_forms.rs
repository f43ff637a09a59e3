//! Run from `fuzz/`: `cargo fuzz run arg_forms corpus/arg_forms seeds/arg_forms`.
#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code)]
mod checks;

libfuzzer_sys::fuzz_target!(|text: &str| checks::arg_forms(text));
