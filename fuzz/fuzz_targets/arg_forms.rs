//! Argument forms of any text, for both processors.
#![no_main]

use exporter::elf::{Arch, parse_args};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for arch in [Arch::X86_64, Arch::Aarch64] {
        for arg in parse_args(arch, text) {
            // Either way the argument's own text is kept, for the person who reads the message.
            let kept = arg.map_or_else(|error| error.text, |form| form.text);
            assert!(!kept.is_empty() && text.contains(&kept));
        }
    }
});
