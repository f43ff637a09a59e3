//! The committed schema and reference are those that the program generates, and every configuration in the repository
//! is valid according to the schema. Needs `python3` with `jsonschema` as an independent validator.
//!
//! After changing a key, run once with `UPDATE_EXPECT=1` and review the diff.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use exporter::reference;

const SCHEMA: &str = "docs/config.schema.json";

#[test]
fn committed_schema_and_references_are_current() {
    for (path, made) in [
        (SCHEMA, reference::schema()),
        ("docs/configuration.md", reference::page()),
        ("docs/metrics.md", reference::metrics_page()),
    ] {
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(path, &made).unwrap();
        }
        let committed = fs::read_to_string(path).unwrap_or_default();
        assert!(committed == made, "{path} is stale: run this test with UPDATE_EXPECT=1");
    }
}

#[test]
fn every_config_validates_against_the_schema() {
    let example = fs::read_to_string("config.example.yaml").unwrap();
    let (flat, targets) = example.split_at(example.find("# targets:").unwrap());
    let uncommented: String =
        targets.lines().map(|line| format!("{}\n", line.strip_prefix("# ").unwrap_or(""))).collect();
    let mut all = vec![("config.example.yaml".to_owned(), format!("{flat}{uncommented}"))];
    let good = files("tests/config/good", "yaml");
    all.extend(good.iter().map(|path| (path.display().to_string(), fs::read_to_string(path).unwrap())));
    let mut pages = files("docs", "md");
    pages.push("README.md".into());
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for (number, block) in text.split("```yaml\n").skip(1).enumerate() {
            let block = block.split("```").next().unwrap_or_default().to_owned();
            all.push((format!("{} ({number})", page.display()), block));
        }
    }
    assert!(all.len() >= 15, "{}", all.len());
    for ((name, text), errors) in all.iter().zip(validate(all.iter().map(|(_, text)| tree(text)))) {
        assert!(errors.is_empty(), "{name}: {errors}\n{text}");
    }
}

/// The schema rejects what it can express: unknown or missing keys, and values of another type or out of range.
#[test]
fn schema_rejects_detectable_errors() {
    let known = ["unknown key", "is missing\n", "mutually exclusive", "found a list", "from 1 to"];
    let wrong = |path: &PathBuf| {
        let expect = fs::read_to_string(path.with_extension("expect")).unwrap();
        let parsed = serde_yaml::from_str::<serde_yaml::Value>(&fs::read_to_string(path).unwrap_or_default());
        // These depend on other keys, or concern the file as a whole.
        let others = [
            "nothing to trace",
            // `pid` is one of them, or a filter in addition to `binary`.
            "one of `binary`",
            "`process` are mutually exclusive",
            "`process` and `pid`",
            "metrics_auth_password and",
            "`value` is missing",
            "`buckets` is missing",
            "`direction` is missing",
            "`len` is missing",
            "`length` is missing",
        ];
        parsed.is_ok()
            && known.iter().any(|text| expect.contains(text))
            && !others.iter().any(|text| expect.contains(text))
    };
    let bad: Vec<_> = files("tests/config/bad", "yaml").into_iter().filter(wrong).collect();
    assert!(bad.len() >= 20, "{}", bad.len());
    let trees = bad.iter().map(|path| tree(&fs::read_to_string(path).unwrap()));
    for (path, errors) in bad.iter().zip(validate(trees)) {
        assert!(!errors.is_empty(), "{} is valid by the schema", path.display());
    }
}

fn files(directory: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(Path::new(directory)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|is| is == extension)).collect();
    files.sort();
    files
}

/// Parses a configuration, or a part of one (a list of targets or of probes), which is put where it belongs.
fn tree(text: &str) -> serde_json::Value {
    let mut tree: serde_yaml::Value =
        serde_yaml::from_str(text).unwrap_or_else(|err| panic!("{err}\n{text}"));
    tree.apply_merge().unwrap();
    let tree = as_json(&tree);
    match tree.as_array().and_then(|items| items.first()) {
        None => tree,
        Some(first) if first.get("name").is_some() => serde_json::json!({ "targets": tree }),
        Some(_) => serde_json::json!({ "targets": [{ "name": "one", "binary": "one", "probes": tree }] }),
    }
}

fn as_json(value: &serde_yaml::Value) -> serde_json::Value {
    match value {
        serde_yaml::Value::Mapping(map) => {
            let key = |key: &serde_yaml::Value| match key {
                serde_yaml::Value::String(text) => text.clone(),
                other => serde_yaml::to_string(other).unwrap().trim().to_owned(),
            };
            map.iter().map(|(name, value)| (key(name), as_json(value))).collect()
        }
        serde_yaml::Value::Sequence(items) => items.iter().map(as_json).collect(),
        other => serde_json::to_value(other).unwrap(),
    }
}

/// Returns the errors of each document according to the committed schema; empty if it is valid.
fn validate(documents: impl Iterator<Item = serde_json::Value>) -> Vec<String> {
    let script = "
import json, sys, jsonschema
schema = json.load(open(sys.argv[1]))
jsonschema.Draft202012Validator.check_schema(schema)
validator = jsonschema.Draft202012Validator(schema)
told = lambda e: '/'.join(map(str, e.absolute_path)) + ': ' + e.message[:300]
json.dump(['; '.join(map(told, validator.iter_errors(d))) for d in json.load(sys.stdin)], sys.stdout)
";
    let mut python = Command::new("python3")
        .args(["-c", script, SCHEMA])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start python3");
    let documents = serde_json::Value::Array(documents.collect());
    python.stdin.take().unwrap().write_all(documents.to_string().as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "python3 with jsonschema is needed (Debian's python3-jsonschema)");
    serde_json::from_slice(&output.stdout).unwrap()
}
