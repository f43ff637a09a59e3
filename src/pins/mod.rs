//! What stays in the kernel when the exporter ends: its directory on a BPF file system.
//!
//! ```text
//! /sys/fs/bpf/exporter-9435/      this exporter's own: mode 0700, locked while one runs
//!     state                       what all engines together are for (a document)
//!     0/                          one engine: probes that were loaded together
//!         state                   which files its links are in (a document)
//!         maps/NAME
//!         links/NUMBER
//!     network/                    counters of packets (`net/pinned.rs`)
//! ```
//!
//! Such a file system holds maps, programs and links only, so a document is a map too.

mod dir;
mod document;
mod memory;
mod state;
mod tree;

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use ring::digest::{SHA256, digest};

pub use dir::{MapSpec, Pin, PinDir};
pub use state::{EnginePins, StateDirectory, VersionStamp, check_place, describe, leftovers, remove_all};

/// An operation on pinned state that failed.
#[derive(Debug)]
pub struct PinError {
    /// The operation, and its object.
    pub what: String,
    pub reason: Box<dyn Error + Send + Sync>,
    /// What to do next.
    pub next: String,
}

impl fmt::Display for PinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed to {}: {:#}", self.what, self.reason)?;
        if !self.next.is_empty() {
            write!(f, "; {}", self.next)?;
        }
        Ok(())
    }
}

impl Error for PinError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.reason.as_ref())
    }
}

impl From<PinError> for libbpf_rs::Error {
    fn from(err: PinError) -> Self {
        std::io::Error::other(err.to_string()).into()
    }
}

impl PinError {
    fn new(
        what: impl Into<String>,
        reason: impl Into<Box<dyn Error + Send + Sync>>,
        next: impl Into<String>,
    ) -> Self {
        Self { what: what.into(), reason: reason.into(), next: next.into() }
    }
}

/// An operation on a file or directory that failed.
fn failed(what: &str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> PinError {
    let path = path.into();
    move |err| PinError::new(format!("{what} {}", path.display()), err, "")
}

/// Incremented by hand when the meaning of documents or tables changes and none of the texts below does.
const EDITION: u32 = 1;

/// A fingerprint that differs between versions whose programs and tables are incompatible: of the contract with the
/// programs, and of the maps.
fn abi() -> String {
    let texts = [
        include_str!("../../bpf/abi.h"),
        include_str!("../../bpf/abi_filters.h"),
        include_str!("../../bpf/abi_processes.h"),
        include_str!("../../bpf/abi_starts.h"),
        include_str!("../../bpf/maps.bpf.h"),
        include_str!("../../bpf/numbers.bpf.h"),
    ];
    fingerprint(&format!("{EDITION}{}", code_of(&texts)))
}

/// Returns C sources without comments and with single spaces: pinned state must survive an upgrade that only rewords or
/// reformats them. None of the sources has a string that contains comment delimiters.
pub fn code_of(sources: &[&str]) -> String {
    let mut code = String::new();
    for source in sources {
        let mut rest = *source;
        while let Some((before, comment)) = rest.split_once("/*") {
            code.push_str(before);
            code.push(' ');
            rest = comment.split_once("*/").map_or("", |(_, after)| after);
        }
        code.push_str(rest);
    }
    code.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

/// A hash of a text, in sixteen characters that are valid in any file name.
pub fn fingerprint(text: &str) -> String {
    let hash = digest(&SHA256, text.as_bytes());
    hash.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignores_comments_and_layout_of_sources() {
        let source = "/* A row. */\nstruct row {\n\t__u64 a; /* first */\n\t__u32 b;\n};\n";
        let reworded = "/*\n * One row.\n */\nstruct row {\n\t__u64 a;   __u32 b; };";
        assert_eq!(code_of(&[source]), code_of(&[reworded]));
        assert_eq!(code_of(&[source]), "struct row { __u64 a; __u32 b; };");
        assert_ne!(code_of(&[source]), code_of(&[&source.replace("__u32", "__u64")]));
    }
}
