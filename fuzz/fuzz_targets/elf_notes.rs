//! A hostile program file: everything that is asked of one before a probe is set.
//! Start from real files: `cargo fuzz run elf_notes CORPUS`, with small programs in the directory CORPUS.
#![no_main]

use std::path::Path;

use exporter::elf::{Image, debug_file_candidates, function_sites, go_binary, notes, usdt_sites};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(image) = Image::parse(bytes) else { return };
    let _ = (go_binary(&image), debug_file_candidates(&image, Path::new("/bin/true")));
    let _ = image.with_debug_symbols(&image);
    for note in notes(&image).into_iter().flatten().take(4) {
        for site in usdt_sites(&image, &note.provider, &note.name).into_iter().flatten() {
            // The kernel is told these two; outside the file they would be refused, or worse.
            assert!(site.offset < bytes.len() as u64);
            assert!(site.ref_ctr_offset < bytes.len() as u64);
        }
    }
    for pattern in ["main", "main+4", "shop::*", "0x1150"] {
        let _ = function_sites(&image, pattern);
    }
});
