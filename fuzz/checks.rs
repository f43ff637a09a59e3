//! Invariants that must hold for any input. The fuzz targets check them on generated inputs,
//! `tests/unprivileged/fuzz_seeds.rs` on the seeds.

use std::path::Path;

use exporter::config::{Environment, Overrides, read_bytes};
use exporter::plan::plan_draft;
use exporter::untrusted;

use exporter::elf::{
    Arch, Image, SymbolIndex, debug_file_candidates, function_sites, go_binary, notes, parse_args, usdt_sites,
};

/// Parses any text as argument forms, for both architectures.
pub fn arg_forms(text: &str) {
    for arch in [Arch::X86_64, Arch::Aarch64] {
        for arg in parse_args(arch, text) {
            // Either way the argument's own text is kept for the error message.
            let kept = arg.map_or_else(|error| error.text, |form| form.text);
            assert!(!kept.is_empty() && text.contains(&kept));
        }
    }
}

/// Reads a hostile program file: everything that is read before a probe is attached.
pub fn elf_notes(bytes: &[u8]) {
    let Ok(image) = Image::parse(bytes) else { return };
    let _ = (go_binary(&image), debug_file_candidates(&image, Path::new("/bin/true")));
    let _ = image.with_debug_symbols(&image);
    for note in notes(&image).into_iter().flatten().take(4) {
        for site in usdt_sites(&image, &note.provider, &note.name).into_iter().flatten() {
            // The kernel is given these two offsets; if they were outside the file, it would reject them, or worse.
            assert!(site.offset < bytes.len() as u64);
            assert!(site.ref_ctr_offset < bytes.len() as u64);
        }
    }
    for pattern in ["main", "main+4", "shop::*", "0x1150"] {
        let _ = function_sites(&image, pattern);
    }
}

/// Reads a hostile program file: everything that is read from its debug information.
pub fn debug_info(bytes: &[u8]) {
    let Ok(image) = Image::parse(bytes) else { return };
    let index = SymbolIndex::of(&image).with_debug_file(Some(image));
    for function in index.sites("*").into_iter().flatten().take(16) {
        let Some(parameters) = index.parameters(&function) else { continue };
        let all = || parameters.all.iter().filter_map(|parameter| parameter.words.clone());
        assert!(all().all(|words| words.start <= words.end));
        // A name cannot be longer than the file.
        assert!(parameters.all.iter().all(|parameter| parameter.name.len() <= bytes.len()));
        let _ = index.inlined_copies(&function.name);
    }
    let _ = index.debug_info_lacks();
}

/// Reads a configuration of any bytes: it is either planned, or rejected with a position for everything that has one in
/// the file.
pub fn config(bytes: &[u8]) {
    let draft = read_bytes("c.yaml", bytes.to_vec(), &Overrides::default(), &Environment::new());
    let Err(errors) = plan_draft(draft) else { return };
    let text = errors.render();
    assert!(!text.is_empty() && !text.contains("hunter2"));
    for line in text.lines().filter(|line| line.starts_with("c.yaml")) {
        let mut place = line["c.yaml".len()..].split(':').skip(1).map(|part| part.parse::<usize>());
        let is_too_large = bytes.len() > 1 << 20;
        assert!(
            is_too_large || matches!((place.next(), place.next()), (Some(Ok(1..)), Some(Ok(1..)))),
            "{line}"
        );
    }
}

/// Parses any text as a condition: whether it is accepted must not depend on the surrounding text.
pub fn conditions(text: &str) {
    // Control characters have a meaning in YAML.
    if text.chars().any(char::is_control) {
        return;
    }
    let is_understood = |text: &str| {
        let yaml = format!(
            "targets:\n- name: a\n  binary: /a\n  probes:\n  - on: usdt:a:b\n    args: {{ n: 0, size: 1, kind: {{ index: 2, type: str }} }}\n    \
             metrics: [{{ counter: c_total, when: '{}' }}]\n",
            text.replace('\'', "''")
        );
        let draft = read_bytes("c.yaml", yaml.into_bytes(), &Overrides::default(), &Environment::new());
        plan_draft(draft).map_err(|errors| assert!(errors.render().starts_with("c.yaml:"))).is_ok()
    };
    let once = is_understood(text);
    assert_eq!(is_understood(&format!("  {text} ")), once, "with blanks");
    assert_eq!(is_understood(&format!("n > 1 and {text}")), once, "behind another");
    assert!(!once || is_understood(&format!("{text} and {text}")), "twice");
}

/// Parses a record of either ring buffer.
pub fn ring(record: &[u8]) {
    if let Some(texts) = untrusted::event(record) {
        // Texts may overlap, but none is longer than the record.
        assert!(texts.iter().all(|length| *length < record.len()));
    }
    untrusted::process_event(record);
}

/// Parses a netlink datagram.
pub fn netlink(datagram: &[u8]) {
    for name in untrusted::interfaces(datagram).unwrap_or_default() {
        assert!(!name.is_empty() && !name.contains('\0'));
    }
}
