//! The fuzzers' seeds as an ordinary test: each input in `fuzz/seeds` once.

#[path = "../../fuzz/checks.rs"]
mod checks;

use std::fs;
use std::path::Path;

use crate::support::random::Xorshift;

/// Reads the seeds of a target; there must be some.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let files = fs::read_dir(&directory).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap());
    let files: Vec<_> = files.collect();
    assert!(files.len() > 3, "{} has {} files", directory.display(), files.len());
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

/// Each seed, and variants of each with some bytes changed, mainly in the debug information sections.
#[test]
fn debug_information() {
    let (mut random, mut understood) = (Xorshift(7), 0);
    for bytes in seeds("debug_info") {
        let image = exporter::elf::Image::parse(&bytes).expect("a whole program");
        let index = exporter::elf::SymbolIndex::of(&image);
        let functions = index.sites("*").expect("functions");
        understood += functions.iter().filter_map(|function| index.parameters(function)).count();
        checks::debug_info(&bytes);
        for _ in 0..150 {
            let mut changed = bytes.clone();
            for _ in 0..=random.below(6) {
                let at = random.below(changed.len());
                changed[at] = match random.below(4) {
                    0 => 0,
                    1 => 0xff,
                    2 => changed[at] ^ 1_u8 << random.below(8),
                    _ => random.below(256) as u8,
                };
            }
            checks::debug_info(&changed);
        }
    }
    assert!(understood > 10, "{understood}");
}

#[test]
fn configurations() {
    for bytes in seeds("config") {
        checks::config(&bytes);
    }
}

#[test]
fn conditions() {
    for text in seeds("conditions") {
        checks::conditions(&String::from_utf8_lossy(&text));
    }
}

#[test]
fn ring_buffer_records() {
    let (mut events, mut processes) = (0, 0);
    for record in seeds("ring") {
        events += usize::from(exporter::untrusted::event(&record).is_some());
        processes += usize::from(exporter::untrusted::process_event(&record));
        (0..=record.len()).for_each(|end| checks::ring(&record[..end]));
    }
    assert!(events > 3 && processes > 3, "{events} events of hits, {processes} of processes");
}

#[test]
fn netlink_datagrams() {
    let mut names = Vec::new();
    for datagram in seeds("netlink") {
        names.extend(exporter::untrusted::interfaces(&datagram).unwrap_or_default());
        (0..=datagram.len()).for_each(|end| checks::netlink(&datagram[..end]));
        for at in 0..datagram.len() {
            for byte in [0, 1, 0x7f, 0xff] {
                let mut changed = datagram.clone();
                changed[at] = byte;
                checks::netlink(&changed);
            }
        }
    }
    assert!(names.iter().any(|name| name == "lo") && names.iter().any(|name| name == "exn0"), "{names:?}");
}
