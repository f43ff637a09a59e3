//! The pages of the documentation, and the configurations that they contain.

use std::fs;
use std::path::{Path, PathBuf};

/// Returns README.md, CONTRIBUTING.md and the pages of docs/, with their texts.
pub fn pages() -> Vec<(PathBuf, String)> {
    let mut files = vec![PathBuf::from("README.md"), PathBuf::from("CONTRIBUTING.md")];
    files.extend(fs::read_dir("docs").unwrap().map(|entry| entry.unwrap().path()));
    files.retain(|file| file.extension().is_some_and(|extension| extension == "md"));
    files.sort();
    files.into_iter().map(|file| (file.clone(), fs::read_to_string(&file).unwrap())).collect()
}

/// Returns the fenced blocks of a language, with the line number where each begins.
pub fn fenced(text: &str, language: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, bool, String)> = None;
    for (number, line) in text.lines().enumerate() {
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(info), None) => open = Some((number + 1, info == language, String::new())),
            (Some(_), Some(_)) => {
                let (at, wanted, block) = open.take().unwrap();
                found.extend(wanted.then_some((at, block)));
            }
            (None, Some((_, _, block))) => *block += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block without an end");
    found
}

/// Completes a part of a configuration by adding the keys above it. Probes without a target get the target `any`.
pub fn whole(block: &str, any: &Path) -> String {
    let first = block.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let indent = first.len() - first.trim_start().len();
    let lines: Vec<_> = block.lines().map(|line| line.get(indent..).unwrap_or_default()).collect();
    let part = |key: &str| first.trim_start().strip_prefix("- ").is_some_and(|rest| rest.starts_with(key));
    let mut text = String::new();
    if part("name:") {
        text += "targets:\n";
    } else if ["on:", "function:", "span:"].iter().any(|key| part(key)) {
        text += &format!("targets:\n- name: any\n  binary: {}\n  probes:\n", any.display());
    }
    let deeper = if text.ends_with("probes:\n") { "  " } else { "" };
    for line in &lines {
        text += &format!("{deeper}{line}\n");
    }
    // A part that traces nothing is meant to accompany one that does.
    if !["targets:", "bitcoind_path:", "network:"].iter().any(|key| text.contains(key)) {
        text += "bitcoind_path: /usr/local/bin/bitcoind\n";
    }
    text
}
