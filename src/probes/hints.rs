//! Suggests the next step if a program lacks what was requested.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::arguments::{name, position};
use crate::config::model::{ArgKind, Selector};
use crate::elf::{Image, go_binary};
use crate::plan::{ValueKind, ValuePlan, ValueSource};
use crate::procfs::{Mapping, text};
use crate::targets::{TargetFile, has_probes};

/// How to get USDT probes in a program: the start of its file's name, and what to do. Sources: their own build
/// instructions.
const HINTS: &[(&str, &str)] = &[
    ("bitcoind", "build it with cmake -DWITH_USDT=ON, which needs systemtap-sdt-dev"),
    ("postgres", "build it with ./configure --enable-dtrace; Debian's package postgresql-15 has it"),
    (
        "libjvm.so",
        "this JVM was built without probes: build it with configure --enable-dtrace, or use the JDK of a \
         distribution (Debian's openjdk-17-jdk-headless has them)",
    ),
    ("java", "the JVM's probes are in lib/server/libjvm.so of its directory"),
    ("libpython", "build it with ./configure --with-dtrace; Debian's package has it"),
    ("python", "build it with ./configure --with-dtrace, or look in its libpython if it has one"),
    ("libruby", "build it with ./configure --enable-dtrace"),
    ("ruby", "a shared build's probes are in its libruby; else build it with ./configure --enable-dtrace"),
    ("php", "build it with ./configure --enable-dtrace, and run it with USE_ZEND_DTRACE=1"),
    ("libphp", "build it with ./configure --enable-dtrace, and run it with USE_ZEND_DTRACE=1"),
    ("perl", "build it with ./Configure -Dusedtrace"),
    ("tclsh", "build it with ./configure --enable-dtrace"),
    ("node", "Node.js 18 was the last with ./configure --with-dtrace; for later ones name functions"),
    ("mysqld", "MySQL 5.7 was the last with cmake -DENABLE_DTRACE=ON; for later ones name functions"),
    ("libvirtd", "its probes are in libvirt.so; build it with meson -Ddtrace=enabled"),
    ("sssd", "build it with ./configure --enable-systemtap"),
    ("libc.so", "build glibc with configure --enable-systemtap; functions such as malloc need no probes"),
];

/// The interpreter in the first line of a script.
pub(super) fn interpreter(bytes: &[u8]) -> Option<String> {
    let line = bytes.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let text = std::str::from_utf8(&line[..line.len().min(256)]).ok()?.trim();
    (!text.is_empty() && !text.chars().any(char::is_control)).then(|| text.to_string())
}

/// Why a program has no USDT probes, and where there may be some.
pub(crate) fn no_notes(found: &TargetFile, image: &Image<'_>, selector: &Selector) -> String {
    let name = Path::new(&found.display).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let next = if image.lacks_notes() {
        "they were removed (by `llvm-strip` or the like): install its debug file, which has them, or use a file that was \
         stripped by `strip`"
            .to_string()
    } else if let Some(libraries) = libraries(found, selector) {
        libraries
    } else if let Some(jvm) = jvm_beside(name, &found.path) {
        format!("the JVM's probes are in its libjvm.so: `exporter probes {jvm}`")
    } else if go_binary(image) {
        "a Go program, and the Go toolchain creates none: list its functions with --functions 'main.*'"
            .to_string()
    } else {
        match HINTS.iter().find(|(begin, _)| name.starts_with(begin)) {
            Some((_, next)) => (*next).to_string(),
            None => "it was built without them (many programs have a build option, which often needs \
                 systemtap-sdt-dev), or they are in a shared library (see `ldd`); list its functions with \
                 --functions '*'"
                .to_string(),
        }
    };
    format!("no USDT probes (no .note.stapsdt section): {next}")
}

/// Limitations of tracing this program's functions.
pub(super) fn functions(image: &Image<'_>) -> Vec<String> {
    let mut remarks = Vec::new();
    if go_binary(image) {
        remarks.push(
            "a Go program: calls are probed behind the stack check, and `args` are words in Go's order: a \
             string is two words (`type: go_string`), a slice three, an interface two; a receiver comes first"
                .to_string(),
        );
    } else if image.is_stripped() {
        remarks.push(
            "stripped: only exported functions have names. Install the debug symbols, or use a file offset \
             (--functions 0x1234)"
                .to_string(),
        );
    }
    remarks
}

/// Assumptions about the arguments of unknown type that a function's probe reads.
pub(crate) fn arguments(values: &[ValuePlan], untyped: &BTreeSet<usize>) -> impl Iterator<Item = String> {
    let read: Vec<&ValuePlan> =
        values.iter().filter(|value| position(value).is_some_and(|index| untyped.contains(&index))).collect();
    let wide = |value: &&&ValuePlan| {
        matches!((&value.source, &value.kind), (ValueSource::Arg(_), ValueKind::Arg(ArgKind::Int(None))))
    };
    let names: Vec<&str> = read.iter().filter(wide).map(|value| name(value)).collect();
    let width = (!names.is_empty()).then(|| {
        format!(
            "{} read as signed 64-bit integers; for C's int use `type: i32`, for unsigned `type: u32`",
            names.join(", ")
        )
    });
    let order = (!read.is_empty()).then(|| {
        "argument indexes follow the C calling convention for integers and pointers: float and double do not \
         count; C++'s `this` and the pointer to a large result come first; a structure of 9 to 16 bytes \
         passed by value counts as two, a larger one is on the stack"
            .to_string()
    });
    width.into_iter().chain(order)
}

fn jvm_beside(name: &str, path: &Path) -> Option<String> {
    let directory = (name == "java").then(|| path.canonicalize().ok())??.parent()?.parent()?.to_path_buf();
    let jvm = directory.join("lib/server/libjvm.so");
    jvm.is_file().then(|| jvm.display().to_string())
}

/// The libraries with USDT probes that a process has loaded: these are often the intended ones. `None` if the target is
/// not selected by process, or has loaded none.
pub(super) fn libraries(found: &TargetFile, selector: &Selector) -> Option<String> {
    let process = found.path.parent().filter(|_| selector.is_by_process())?;
    let maps = text(process.join("maps")).ok()?;
    let code = maps.lines().filter_map(Mapping::parse).filter(Mapping::is_executable);
    let of_files = code.filter(|mapping| mapping.name.starts_with('/') && mapping.name != found.display);
    // One of several mappings of a file.
    let entries: BTreeMap<&str, String> = of_files.map(|mapping| (mapping.name, mapping.entry())).collect();
    let with_probes: Vec<String> = entries
        .into_iter()
        .filter_map(|(name, entry)| {
            if !name.ends_with(" (deleted)") {
                let path = process.join("root").join(name.trim_start_matches('/'));
                return has_probes(&path).then(|| format!("`exporter probes {name}`"));
            }
            // It has no path: it is in a memfd, or was replaced.
            let path = process.join("map_files").join(entry);
            has_probes(&path).then(|| format!("`exporter probes {}` ({name})", path.display()))
        })
        .collect();
    (!with_probes.is_empty())
        .then(|| format!("it has loaded libraries that have some of their own: {}", with_probes.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_interpreter_lines() {
        assert_eq!(interpreter(b"#!/usr/bin/env bash\nexit\n").as_deref(), Some("/usr/bin/env bash"));
        assert_eq!(interpreter(b"#! /bin/sh").as_deref(), Some("/bin/sh"));
        for none in [&b"#!"[..], b"", b"\x7fELF", b"#!\x01\n", b"#!\xff\n"] {
            assert_eq!(interpreter(none), None, "{none:?}");
        }
    }

    #[test]
    fn more_specific_program_names_come_first() {
        let known =
            |name: &str| HINTS.iter().find(|(begin, _)| name.starts_with(begin)).map(|(begin, _)| *begin);
        assert_eq!(known("libpython3.11.so.1.0"), Some("libpython"));
        assert_eq!(known("python3.11"), Some("python"));
        assert_eq!(known("php8.2"), Some("php"));
        assert_eq!(known("cat"), None);
    }
}
