//! Test code in assembly.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::program::run;

/// Each function ends with `end`, which sets its size.
const FUNCTIONS: &str = r#"
.macro begin name
	.text
	.globl \name
	.type \name, @function
\name:
	.cfi_startproc
.endm
.macro end name
	.cfi_endproc
	.size \name, . - \name
	.p2align 4
.endm
"#;

/// Builds a shared library of the code, whose functions are between `begin NAME` and `end NAME`.
pub fn library(directory: &Path, code: &str) -> PathBuf {
    linked(directory, code, &[])
}

/// The same, with more arguments for the linker.
pub fn linked(directory: &Path, code: &str, flags: &[&str]) -> PathBuf {
    let (source, library) = (directory.join("code.S"), directory.join("libcode.so"));
    fs::write(&source, [FUNCTIONS, code].concat()).unwrap();
    run(Command::new("gcc").arg("-shared").args(flags).arg("-o").arg(&library).arg(&source));
    library
}

/// Returns the address of every symbol.
pub fn symbols(file: &Path) -> BTreeMap<String, u64> {
    let listed = run(Command::new("nm").arg(file));
    let parts = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let defined = parts.filter(|parts| parts.len() == 3);
    defined.map(|parts| (parts[2].to_string(), u64::from_str_radix(parts[0], 16).unwrap())).collect()
}
