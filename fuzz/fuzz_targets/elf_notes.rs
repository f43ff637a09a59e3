//! Run from `fuzz/`: `cargo fuzz run elf_notes corpus/elf_notes seeds/elf_notes`. New inputs go to `corpus`, which is
//! not committed; those worth keeping belong in `seeds`.
#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code)]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::elf_notes(bytes));
