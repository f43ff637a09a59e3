//! Run from `fuzz/`: `cargo fuzz run ring corpus/ring seeds/ring`.
#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code)]
mod checks;

libfuzzer_sys::fuzz_target!(|record: &[u8]| checks::ring(record));
