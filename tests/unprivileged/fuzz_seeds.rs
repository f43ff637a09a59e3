//! The fuzzers' seeds as an ordinary test: every input in `fuzz/seeds` once.

#[path = "../../fuzz/checks.rs"]
mod checks;

use std::fs;
use std::path::Path;

/// The files of one target's seeds; there must be some.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let files = fs::read_dir(&folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap());
    let files: Vec<_> = files.collect();
    assert!(files.len() > 3, "{} has {} files", folder.display(), files.len());
    files
}

#[test]
fn argument_forms() {
    for text in seeds("arg_forms") {
        checks::arg_forms(&String::from_utf8_lossy(&text));
    }
}

#[test]
fn program_files() {
    let mut programs = 0;
    for bytes in seeds("elf_notes") {
        programs += usize::from(exporter::elf::Image::parse(&bytes).is_ok());
        checks::elf_notes(&bytes);
    }
    assert!(programs > 0, "a whole program is among them, or nothing was looked at");
}

#[test]
fn configurations() {
    for bytes in seeds("config") {
        checks::config(&bytes);
    }
}
