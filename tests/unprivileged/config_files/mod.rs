//! Whole configurations: every file in `tests/config/good` loads, and every file in `tests/config/bad` is rejected, by
//! the reader or by the plan, with exactly the text of the `.expect` file beside it.
//!
//! After changing a message, run once with `UPDATE_EXPECT=1` and review the diff.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

mod language;
mod precedence;
mod web;

use exporter::config::{Environment, Overrides, load, load_bytes, read, read_bytes};
use exporter::plan::plan_draft;
use serde_yaml::{Mapping, Value};

/// Returns the files with this extension in a directory of `tests/config`.
fn files(directory: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(Path::new("tests/config").join(directory)).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|found| found == extension));
    files.sort();
    files
}

/// Returns how the actual text for a file differs from the `.expect` file beside it; empty if they are equal. The text
/// must not contain a secret.
fn difference(path: &Path, found: &str) -> String {
    assert!(!found.contains("hunter2"), "a secret is shown: {found}");
    let expect = path.with_extension("expect");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&expect, found).unwrap();
    }
    let expected = fs::read_to_string(&expect).unwrap_or_default();
    if found == expected {
        return String::new();
    }
    format!("{}\n--- expected\n{expected}--- found\n{found}\n", path.display())
}

#[test]
fn good_files_load() {
    let files = files("good", "yaml");
    assert!(files.len() >= 9);
    for path in files {
        let loaded = load(&Overrides::file(&path), &Environment::new());
        let loaded = loaded.unwrap_or_else(|diags| panic!("{}:\n{diags}", path.display()));
        assert!(loaded.warnings.is_empty());
        assert!(!loaded.config.targets.is_empty() || loaded.config.network.is_some());
    }
}

#[test]
fn bad_files_produce_the_expected_errors() {
    let files = files("bad", "yaml");
    assert!(files.len() >= 60);
    let mut wrong = String::new();
    for path in files {
        let found = match plan_draft(read(&Overrides::file(&path), &Environment::new())) {
            Ok(_) => "it is accepted\n".to_owned(),
            Err(diags) => diags.render().replace("tests/config/bad/", ""),
        };
        wrong += &difference(&path, &found);
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Each file has one error, except the file that shows many at once.
#[test]
fn each_error_is_reported_once() {
    for path in files("bad", "yaml") {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let expect = fs::read_to_string(path.with_extension("expect")).unwrap();
        let count = expect.lines().filter(|line| !line.starts_with("    help: ")).count();
        assert_eq!(count == 1, name != "many", "{name}:\n{expect}");
    }
}

/// Each error is reported regardless of the other, and nothing valid is.
#[test]
fn combined_files_report_the_errors_of_both() {
    let singles: Vec<_> = files("bad", "yaml").iter().filter_map(|path| Single::read(path)).collect();
    assert!(singles.len() >= 120, "{} files can be put together", singles.len());
    let (mut seen, mut pairs, mut wrong) = (0, 0, String::new());
    for (n, one) in singles.iter().enumerate() {
        for other in &singles[n + 1..] {
            // A sample of the pairs is enough: all of them take a minute.
            seen += 1;
            let beside = (seen % 53 == 0).then(|| one.beside(other)).flatten();
            let within = (seen % 5 == 0).then(|| one.within(other)).flatten();
            for joined in [beside, within].into_iter().flatten() {
                let found = errors(&joined);
                let expected = BTreeSet::from([one.error.as_str(), other.error.as_str()]);
                if found.iter().map(String::as_str).collect::<BTreeSet<_>>() != expected
                    || found.len() != expected.len()
                {
                    wrong += &format!("--- {} and {}\n{joined}{}\n", one.name, other.name, found.join("\n"));
                }
                pairs += 1;
            }
        }
    }
    assert!(pairs > 300, "{pairs}");
    assert!(wrong.is_empty(), "{wrong}");
}

/// What the kernel identifies by a number can only be a label.
#[test]
fn exe_and_cmdline_are_allowed_only_as_labels() {
    let with = |probe: &str| {
        let text = format!(
            "verbose: true\ntargets:\n- name: one\n  binary: /usr/bin/one\n  probes:\n  - function: serve\n{probe}"
        );
        errors(&text).join("\n")
    };
    let metrics = |rest: &str| with(&format!("    metrics: [{{ {rest} }}]\n"));
    assert_eq!(metrics("counter: a_total, labels: { e: exe, c: cmdline }"), "");
    let compared = "is resolved to a name only for display and cannot be compared";
    assert_eq!(metrics("counter: a_total, when: 'cmdline == \"x\"'"), format!("\"cmdline\" {compared}"));
    let matched = "counter: a_total, labels: { e: { value: exe, match: { \"/usr/*\": system } } }";
    assert_eq!(metrics(matched), format!("\"exe\" {compared}"));
    let kept = "histogram: a_seconds, value: duration, slow: { over: 5ms, fields: [exe] }";
    assert_eq!(metrics(kept), "\"exe\" can only be a label");
    assert_eq!(with("    log: \"by {cmdline}\"\n"), "\"cmdline\" can only be a label");
}

/// A file with a single error that can be combined with another such file.
struct Single {
    name: String,
    tree: Mapping,
    error: String,
}

impl Single {
    fn read(path: &Path) -> Option<Self> {
        let name = path.file_stem()?.to_string_lossy().into_owned();
        let text = fs::read_to_string(path).ok()?;
        let tree: Mapping = serde_yaml::from_str(&text).ok()?;
        let errors = errors(&text);
        let [error] = errors.as_slice() else { return None };
        // Errors that end parsing, that hide names, or that disappear beside another target or with another name.
        let alone = [
            "YAML tag",
            "expected a list of targets",
            "expected a mapping of arguments",
            "nothing to trace",
            "`pid` needs bitcoind_path",
            "duplicate target name",
            // The number depends on the other file.
            "values are needed",
        ];
        let fits = alone.iter().all(|text| !error.contains(text));
        fits.then(|| Self { name, tree, error: error.clone() })
    }

    /// Combines the settings and targets of both files, unless both set the same setting.
    fn beside(&self, other: &Self) -> Option<String> {
        let mut tree = self.tree.clone();
        for (key, value) in &other.tree {
            match (tree.get_mut(key), value) {
                (None, _) => {
                    tree.insert(key.clone(), value.clone());
                }
                (Some(Value::Sequence(targets)), Value::Sequence(more)) if key == "targets" => {
                    let renamed = |target: &Value| {
                        let mut target = target.clone();
                        if let Some(Value::String(name)) = target.get_mut("name") {
                            name.push_str(" of the other");
                        }
                        target
                    };
                    targets.extend(more.iter().map(renamed));
                }
                _ => return None,
            }
        }
        serde_yaml::to_string(&tree).ok()
    }

    /// Combines the metrics and arguments of both in one probe, if the files differ in nothing else.
    fn within(&self, other: &Self) -> Option<String> {
        // What is missing in one file may be present in the other.
        if [self, other].iter().any(|file| file.error.contains("is missing")) {
            return None;
        }
        let mut tree = Value::Mapping(self.tree.clone());
        let theirs = Value::Mapping(other.tree.clone());
        let (mine, probe) = (only_probe(&mut tree)?, &mut theirs.clone());
        let probe = only_probe(probe)?;
        if mine.get("on") != probe.get("on") || mine.get("on").is_none() {
            return None;
        }
        for (key, value) in probe {
            match (mine.get_mut(key), value) {
                (None, value) => {
                    mine.insert(key.clone(), value.clone());
                }
                (Some(Value::Sequence(all)), Value::Sequence(more)) => {
                    // A duplicate is an error of its own.
                    more.retain(|one| !all.contains(one));
                    all.append(more);
                }
                (Some(Value::Mapping(all)), Value::Mapping(more)) => {
                    if more.iter().any(|(name, arg)| all.get(name).is_some_and(|known| known != arg)) {
                        return None;
                    }
                    all.extend(std::mem::take(more));
                }
                (Some(known), value) if *known == *value => {}
                _ => return None,
            }
        }
        serde_yaml::to_string(&tree).ok()
    }
}

/// Returns the only probe of a file with a single target.
fn only_probe(tree: &mut Value) -> Option<&mut Mapping> {
    let settings = tree.as_mapping()?.keys().filter(|key| *key != "targets").count();
    let [target] = tree.get_mut("targets")?.as_sequence_mut()?.as_mut_slice() else { return None };
    let whole = ["name", "binary", "probes"].iter().all(|key| target.get(key).is_some());
    if settings > 0 || !whole || target.as_mapping()?.len() != 3 {
        return None;
    }
    let [probe] = target.get_mut("probes")?.as_sequence_mut()?.as_mut_slice() else { return None };
    probe.as_mapping_mut()
}

/// Returns the error messages without positions.
fn errors(text: &str) -> Vec<String> {
    let file = "tests/config/bad/pair.yaml";
    let read = read_bytes(file, text.into(), &Overrides::default(), &Environment::new());
    let Err(diags) = plan_draft(read) else { return Vec::new() };
    let errors = diags.into_vec().into_iter().map(|one| {
        // Positions of other errors, which move: "... than at targets[0].probes[1]: ...".
        let message = one.message.split(" at targets[").next().unwrap_or_default();
        let message = message.split(", first used on line ").next().unwrap_or_default();
        message.split(": targets[").next().unwrap_or_default().to_owned()
    });
    let mut errors: Vec<_> = errors.collect();
    errors.dedup();
    errors
}

#[test]
fn example_file_and_commented_examples_load() {
    let text = fs::read_to_string("config.example.yaml").unwrap();
    let load_text = |text: &str| {
        let loaded =
            load_bytes("config.example.yaml", text.into(), &Overrides::default(), &Environment::new());
        loaded.unwrap_or_else(|diags| panic!("{diags}")).config
    };
    assert_eq!(load_text(&text).targets.len(), 1);

    let (flat, targets) = text.split_at(text.find("# targets:").unwrap());
    let uncommented: String =
        targets.lines().map(|line| format!("{}\n", line.strip_prefix("# ").unwrap_or(""))).collect();
    let config = load_text(&format!("{flat}{uncommented}"));
    let names: Vec<_> = config.targets.iter().map(|target| target.name.as_str()).collect();
    assert_eq!(names, ["bitcoind", "cluster", "relay", "tls"]);
    assert_eq!(config.targets[2].probes.len(), 2);

    for line in flat.lines() {
        let Some(setting) =
            line.strip_prefix("# ").filter(|l| l.starts_with("ring:") || l.starts_with("limits:"))
        else {
            continue;
        };
        load_text(&format!("bitcoind_path: x\n{setting}\n"));
    }
}

/// An editing mistake in a good file: it may load or not, but must be reported without a panic.
#[test]
fn mangled_files_never_panic() {
    let (overrides, env) = (Overrides::default(), Environment::new());
    let (mut loaded, mut refused) = (0, 0);
    // The plan receives what could be parsed of the file, including placeholders.
    let mut check =
        |bytes: Vec<u8>| match plan_draft(read_bytes("tests/config/good/x.yaml", bytes, &overrides, &env)) {
            Ok(_) => loaded += 1,
            Err(diags) => {
                assert!(!diags.render().is_empty());
                refused += 1;
            }
        };
    for path in files("good", "yaml") {
        let bytes = fs::read(&path).unwrap();
        for end in 0..bytes.len() {
            check(bytes[..end].to_vec());
        }
        for at in (0..bytes.len()).step_by(23) {
            for byte in [b' ', b'\n', b':', b'[', b'}', b'"', b'&', b'*', b'-', 0xff, 0] {
                let mut changed = bytes.clone();
                changed[at] = byte;
                check(changed);
            }
        }
        let lines: Vec<_> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
        for left_out in 0..lines.len() {
            let kept = lines.iter().enumerate().filter(|(n, _)| *n != left_out);
            check(kept.flat_map(|(_, line)| line.to_vec()).collect());
        }
    }
    assert!(loaded > 100 && refused > 1000, "{loaded} loaded, {refused} refused");
}

#[test]
fn equal_labels_in_another_order_add_a_target_label() {
    let target = |name: &str, labels: &str| {
        format!(
            "  - name: {name}\n    binary: /usr/bin/{name}\n    labels: {labels}\n    probes:\n      - on: usdt:a:b\n        \
             metrics: [{{ counter: hits_total }}]\n"
        )
    };
    let labels = |other: &str| {
        let text = format!("targets:\n{}{}", target("one", "{ x: 1, y: 2 }"), target("two", other));
        let read = read_bytes("c.yaml", text.into(), &Overrides::default(), &Environment::new());
        plan_draft(read).unwrap_or_else(|diags| panic!("{diags}")).1.metrics[0].labels.clone()
    };
    assert_eq!(labels("{ y: 2, x: 1 }"), ["node", "x", "y", "target"]);
    assert_eq!(labels("{ y: 1, x: 2 }"), ["node", "x", "y"]);
}

#[test]
fn unused_argument_is_a_located_warning() {
    let text = "targets:\n- name: one\n  binary: /bin/one\n  probes:\n  - on: usdt:a:b\n    args: { n: 0 }\n";
    let read = read_bytes("c.yaml", text.into(), &Overrides::default(), &Environment::new());
    let (_, plan) = plan_draft(read).unwrap_or_else(|diags| panic!("{diags}"));
    assert_eq!(plan.warnings.len(), 1, "{:?}", plan.warnings);
    assert!(
        plan.warnings[0].starts_with("c.yaml:6:16: ")
            && plan.warnings[0].contains("\"n\" is not used by any")
    );
}

#[test]
fn target_without_probes_is_a_located_warning() {
    let text = "targets:\n- name: one\n  binary: /bin/one\n  probes: []\n";
    let read = read_bytes("c.yaml", text.into(), &Overrides::default(), &Environment::new());
    let (_, plan) = plan_draft(read).unwrap_or_else(|diags| panic!("{diags}"));
    assert_eq!(plan.warnings, ["c.yaml:2:3: targets[0]: target \"one\" has no probes: nothing is traced"]);
}
