//! The configurations and commands in README.md and docs/: every configuration is accepted, and every command is valid.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use exporter::config::{Environment, Overrides, read_bytes};
use exporter::plan::plan_draft;

use crate::support::documentation::{fenced, pages, whole};

#[test]
fn every_example_config_is_accepted() {
    let (mut seen, mut wrong) = (0, String::new());
    for (file, text) in pages() {
        for (line, block) in fenced(&text, "yaml") {
            seen += 1;
            let block =
                whole(&block, Path::new("/bin/true")).replace("/etc/fibre-exporter/", "tests/config/files/");
            let read =
                read_bytes("page", block.clone().into_bytes(), &Overrides::default(), &Environment::new());
            if let Err(err) = plan_draft(read) {
                wrong += &format!("{}:{line}:\n{block}\n{}\n", file.display(), err.render());
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(seen >= 6, "{seen} configurations");
}

/// Returns the command lines: those in indented blocks and in fenced blocks of `sh` and `console`.
fn commands(text: &str) -> Vec<String> {
    let mut lines: Vec<String> =
        text.lines().filter_map(|line| line.strip_prefix("    ")).map(ToString::to_string).collect();
    for language in ["sh", "console"] {
        lines.extend(
            fenced(text, language).iter().flat_map(|(_, block)| block.lines().map(ToString::to_string)),
        );
    }
    lines
}

#[test]
fn every_command_is_valid() {
    let (mut ours, mut scripts) = (0, 0);
    for (file, text) in pages() {
        for line in commands(&text) {
            let line = line.strip_prefix("$ ").unwrap_or(&line);
            let line = line.strip_prefix("sudo ").unwrap_or(line);
            let words: Vec<_> =
                line.split_whitespace().take_while(|word| !["#", ">", "|", "&&"].contains(word)).collect();
            let Some(first) = words.first() else { continue };
            if *first == "exporter" && words.len() > 1 {
                ours += 1;
                let parsed = exporter::cli::parse(&words);
                assert!(parsed.is_ok(), "{}: {line}: {}", file.display(), parsed.unwrap_err());
            } else if first.starts_with("./") || first.starts_with("scripts/") || first.starts_with(".ci/") {
                scripts += 1;
                let mode = fs::metadata(first).map(|data| data.permissions().mode());
                assert!(mode.is_ok_and(|mode| mode & 0o111 != 0), "{}: {line}", file.display());
                // The script must know the option.
                let script = fs::read_to_string(first).unwrap();
                for option in words[1..].iter().filter(|word| word.starts_with("--")) {
                    assert!(script.contains(option), "{}: {line}: no {option}", file.display());
                }
            }
        }
    }
    assert!(ours >= 5 && scripts >= 5, "{ours} commands, {scripts} scripts");
}

#[test]
fn every_link_resolves_and_every_page_is_in_the_book() {
    let mut linked = BTreeSet::new();
    for (file, text) in pages() {
        for rest in text.split("](").skip(1) {
            let target = rest.split([')', '#']).next().unwrap();
            if target.is_empty() || target.contains("://") || target.contains(' ') {
                continue;
            }
            let path = file.parent().unwrap_or(Path::new("")).join(target);
            assert!(path.exists(), "{}: {target}", file.display());
            if file.ends_with("SUMMARY.md") {
                linked.insert(path);
            }
        }
    }
    for (file, _) in pages() {
        let in_book = !file.starts_with("docs") || file.ends_with("SUMMARY.md") || linked.contains(&file);
        assert!(in_book, "{} is not in docs/SUMMARY.md", file.display());
    }
}

/// No text names a metric that was renamed or removed.
#[test]
fn every_mentioned_metric_exists() {
    let reference = fs::read_to_string("docs/metrics.md").unwrap();
    let mut known: BTreeSet<String> = BTreeSet::new();
    for row in reference.lines().filter_map(|line| line.strip_prefix("| `")) {
        let (name, rest) = row.split_once('`').unwrap();
        known.insert(name.to_owned());
        if rest.starts_with(" | histogram") {
            known.extend(["_bucket", "_sum", "_count"].map(|suffix| format!("{name}{suffix}")));
        }
    }
    let prefixes = ["fibre_", "xdp_", "tc_egress_", "network_", "bitcoin_"];
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (mut seen, mut wrong) = (0, String::new());
    let texts =
        pages().into_iter().chain(["docker/prometheus/rules", "grafana"].iter().flat_map(|directory| {
            let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
            files.filter(|file| file.is_file()).map(|file| (file.clone(), fs::read_to_string(file).unwrap()))
        }));
    for (file, text) in texts {
        for word in text.split(|c: char| !is_word(c)) {
            // A word that ends in `_` stands for several metrics.
            let is_metric = prefixes.iter().any(|prefix| word.starts_with(prefix))
                && ["_total", "_seconds", "_bytes", "_count", "_bucket", "_sum"]
                    .iter()
                    .any(|suffix| word.ends_with(suffix));
            seen += usize::from(is_metric);
            if is_metric && !known.contains(word) {
                wrong += &format!("{}: {word}\n", file.display());
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(seen > 100, "{seen} names");
}

/// Descriptions of the source do not refer to files or directories that were moved or removed.
#[test]
fn every_file_in_the_developer_docs_exists() {
    let mut files = BTreeSet::new();
    for directory in
        ["src", "bpf", "tests", "benches", "docs", "scripts", "profiles", "fuzz", "docker", ".ci"]
    {
        paths_below(Path::new(directory), &mut files);
    }
    files.extend(["config.example.yaml", "Cargo.toml", "rust-toolchain.toml"].map(ToString::to_string));
    let (mut seen, mut wrong) = (0, String::new());
    let mut pages: Vec<String> =
        files.iter().filter(|file| file.starts_with("docs/design/")).cloned().collect();
    pages.retain(|file| file.ends_with(".md"));
    pages.extend(["ARCHITECTURE.md", "CONTRIBUTING.md"].map(ToString::to_string));
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for path in text.split('`').skip(1).step_by(2) {
            let is_path =
                [".rs", ".c", ".h", ".sh", ".py", ".md", ".yaml", "/"].iter().any(|end| path.ends_with(end));
            if !is_path || path.contains([' ', '*', ':']) || path.contains("NAME") || path.starts_with('/') {
                continue;
            }
            seen += 1;
            let below = format!("/{path}");
            if !files.iter().any(|file| file == path || file.ends_with(&below)) {
                wrong += &format!("{page}: {path}\n");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(seen > 60, "{seen} paths");
}

/// Collects the paths of all files, and of directories with a trailing slash.
fn paths_below(directory: &Path, to: &mut BTreeSet<String>) {
    to.insert(format!("{}/", directory.display()));
    for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            paths_below(&entry, to);
        } else {
            to.insert(entry.to_str().unwrap().to_owned());
        }
    }
}
