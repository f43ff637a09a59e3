//! The listing as an initial configuration.

use std::collections::HashSet;
use std::fmt::Write;
use std::path::Path;

use super::functions::display_name;
use super::{Argument, Function, Listing, Probe, count};
use crate::config::is_probe_word;
use crate::config::limits;

/// Functions that are written; a configuration has 1 MiB at most.
const MAX_FUNCTIONS: usize = 1000;

/// Sites that can be attached without setting `limits.sites`.
const DEFAULT_SITES: usize = 8192;

/// The longest generated metric name.
const NAME_MAX: usize = 120;

/// Generates a configuration with a counter for every usable probe, which `exporter check` accepts.
///
/// # Errors
/// If no probe is usable, with the reason.
pub fn yaml(listing: &Listing) -> Result<String, String> {
    let mut writer = Writer { target: target_name(listing), ..Writer::default() };
    for file in &listing.files {
        for provider in &file.providers {
            for probe in &provider.probes {
                writer.probe(&provider.provider, probe);
            }
        }
    }
    for function in listing.files.iter().flat_map(|file| file.functions.iter().flatten()) {
        writer.function(function);
    }
    if writer.seen.is_empty() {
        let remarks: Vec<_> = listing.files.iter().flat_map(|file| file.remarks.clone()).collect();
        let reason =
            if remarks.is_empty() { "it has no usable probe".to_string() } else { remarks.join("; ") };
        return Err(format!("{}: cannot generate a configuration: {reason}", listing.target));
    }
    Ok(writer.finish(listing))
}

#[derive(Default)]
struct Writer {
    target: String,
    probes: String,
    /// Probes that have been written: `usdt:a:b`, or a function's name.
    seen: HashSet<String>,
    metrics: HashSet<String>,
    sites: usize,
    functions: usize,
    /// Number of functions left out.
    left_out: usize,
}

impl Writer {
    fn probe(&mut self, provider: &str, probe: &Probe) {
        let on = format!("usdt:{provider}:{}", probe.name);
        let problem = match &probe.unusable {
            Some(reason) => Some(reason.clone()),
            None if !is_probe_word(provider) || !is_probe_word(&probe.name) => {
                Some("its name contains characters that are not allowed in a configuration".to_string())
            }
            None => None,
        };
        if let Some(reason) = problem {
            let _ = writeln!(self.probes, "\n      # {} cannot be used: {}", comment(&on), comment(&reason));
            return;
        }
        if !self.seen.insert(on.clone()) {
            return;
        }
        self.sites += probe.sites;
        let metric = self.metric(&[provider, &probe.name], "total");
        let _ = writeln!(self.probes, "\n      # {}", count(probe.sites, "site"));
        let _ = writeln!(self.probes, "      - on: {on}");
        self.arguments(&probe.args);
        let _ = writeln!(
            self.probes,
            "        metrics:\n          - counter: {metric}\n            help: Hits of {provider}:{}.",
            probe.name
        );
    }

    /// Writes arguments as comments: `check` warns about arguments that no metric uses.
    fn arguments(&mut self, args: &[Argument]) {
        if !args.is_empty() {
            self.probes.push_str("        # args:\n");
        }
        for (index, arg) in args.iter().enumerate() {
            let forms = comment(&arg.forms.join(" or "));
            let _ = match &arg.unreadable {
                None => {
                    writeln!(self.probes, "        #   arg{index}: {index} # {}: {forms}", arg.type_word())
                }
                Some(reason) => {
                    writeln!(self.probes, "        #   # arg{index} cannot be read: {}", comment(reason))
                }
            };
        }
    }

    fn function(&mut self, function: &Function) {
        if function.unusable.is_some() || function.name.chars().any(char::is_control) {
            return;
        }
        if self.functions == MAX_FUNCTIONS {
            self.left_out += 1;
            return;
        }
        if !self.seen.insert(function.name.clone()) {
            return;
        }
        self.functions += 1;
        self.sites += 1;
        let target = self.target.clone();
        let metric = self.metric(&[&target, display_name(function)], "calls_total");
        let name = quoted(&function.name);
        if let Some(source) = &function.source_name {
            let _ = writeln!(self.probes, "\n      # {}", comment(source));
        } else {
            self.probes.push('\n');
        }
        let _ = writeln!(
            self.probes,
            "      - function: {name}\n        metrics:\n          - counter: {metric}\n            help: {}",
            quoted(&format!("Calls of {}.", display_name(function)))
        );
    }

    /// A unique metric name made from words.
    fn metric(&mut self, words: &[&str], ending: &str) -> String {
        let mut name = String::new();
        for c in words.join("_").chars() {
            let c = if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
            if c != '_' || !name.is_empty() && !name.ends_with('_') {
                name.push(c);
            }
        }
        name.truncate(NAME_MAX);
        let mut name = name.trim_end_matches('_');
        let prefixed = format!("probe_{name}");
        let reserved = limits::reserved(name).is_some();
        if name.is_empty() || reserved || name.starts_with(|c: char| c.is_ascii_digit()) {
            name = prefixed.trim_end_matches('_');
        }
        let mut unique = format!("{name}_{ending}");
        let mut n = 1;
        while !self.metrics.insert(unique.clone()) {
            n += 1;
            unique = format!("{name}_{n}_{ending}");
        }
        unique
    }

    fn finish(&self, listing: &Listing) -> String {
        let mut to = format!(
            "# Starter configuration, generated by `exporter probes --yaml {}`:\n# a counter for each usable \
             probe. Delete what you do not need. To use arguments, uncomment them,\n# give them meaningful \
             names, and refer to these in metrics: in `value:`, `labels:` and `when:`.\n# The notes only give \
             width and signedness: a 64-bit argument may be a pointer to text\n# ({{ index: 0, type: string \
             }}) or bytes (type: hex). `exporter check FILE` shows what would be traced, or all errors.\n",
            comment(&listing.target)
        );
        if self.sites > DEFAULT_SITES {
            let _ = writeln!(to, "limits: {{ sites: {} }}", self.sites.next_power_of_two());
        }
        let _ = writeln!(to, "targets:\n  - name: {}", quoted(&self.target));
        let _ = match (listing.selector.path(), listing.selector.processes.pid()) {
            (Some(path), _) => writeln!(to, "    binary: {}", quoted(&path.display().to_string())),
            (None, Some(pid)) => self.of_process(&mut to, listing, pid),
            (None, None) => {
                let name = listing.selector.processes.name().unwrap_or_default();
                writeln!(to, "    process: {}", quoted(name))
            }
        };
        to.push_str("    probes:");
        to.push_str(&self.probes);
        if self.left_out > 0 {
            let _ = writeln!(
                to,
                "\n      # {} more functions are omitted; narrow --functions to list them",
                self.left_out
            );
        }
        to
    }

    /// A process ends, but its file stays: uses the file's path if it leads to the same file outside the process's own
    /// view.
    fn of_process(&self, to: &mut String, listing: &Listing, pid: u32) -> std::fmt::Result {
        let same_file = |path: &Path| {
            use std::os::unix::fs::MetadataExt;
            let (a, b) = (path.metadata().ok()?, Path::new(&format!("/proc/{pid}/exe")).metadata().ok()?);
            Some((a.dev(), a.ino()) == (b.dev(), b.ino()))
        };
        match listing.files.first().map(|file| &file.file) {
            Some(file) if same_file(Path::new(file)) == Some(true) => {
                writeln!(to, "    binary: {} # pid: {pid} here counts only that process", quoted(file))
            }
            _ => writeln!(to, "    pid: {pid}"),
        }
    }
}

/// A name for the target, from its file.
fn target_name(listing: &Listing) -> String {
    let of_file = || listing.files.first().map_or("", |file| file.file.as_str());
    let file = listing.selector.processes.name().unwrap_or_else(of_file);
    let name = Path::new(file).file_name().and_then(|name| name.to_str()).unwrap_or(file);
    if name.is_empty() { "program".to_string() } else { name.to_string() }
}

/// Text that cannot break out of a comment's line.
fn comment(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A YAML string, quoted where necessary: JSON strings are valid YAML.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/_-.".contains(c);
    if text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/') && text.chars().all(plain) {
        // Words that YAML does not read as text are short.
        if text.len() > 5 {
            return text.to_string();
        }
    }
    serde_json::to_string(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_names_are_valid_and_unique() {
        let mut writer = Writer::default();
        let mut name = |words: &[&str]| writer.metric(words, "total");
        assert_eq!(name(&["postgresql", "query__start"]), "postgresql_query_start_total");
        assert_eq!(name(&["postgresql", "query-start"]), "postgresql_query_start_2_total");
        assert_eq!(name(&["7zip", "x"]), "probe_7zip_x_total");
        assert_eq!(name(&["process", "x"]), "probe_process_x_total");
        assert_eq!(name(&["é", "::"]), "probe_total");
        assert_eq!(name(&["demo", &"x".repeat(500)]).len(), NAME_MAX + "_total".len());
    }

    #[test]
    fn strings_round_trip() {
        for text in
            ["/usr/bin/x", "yes", "null", "a: b", "it's \"x\"", "0x10", "~", "tab\t", "é", "a #b", "true"]
        {
            let read: serde_yaml::Value = serde_yaml::from_str(&quoted(text)).unwrap();
            assert_eq!(read.as_str(), Some(text), "{}", quoted(text));
        }
    }
}
