//! The workflows for a public forge: they cannot run here, so the test checks their format and the scripts that they
//! call.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_yaml::Value;

#[test]
fn workflows_are_well_formed_and_call_existing_files() {
    let mut seen = 0;
    for entry in fs::read_dir(".github/workflows").unwrap() {
        let path = entry.unwrap().path();
        let at = |what: &str| format!("{}: {what}", path.display());
        let workflow: Value = serde_yaml::from_slice(&fs::read(&path).unwrap())
            .unwrap_or_else(|e| panic!("{}", at(&e.to_string())));
        keys(&workflow, &["name", "on", "permissions", "concurrency", "env", "jobs"], &at("workflow"));
        assert!(
            workflow["on"].is_mapping() && workflow["permissions"].is_mapping(),
            "{}",
            at("on, permissions")
        );
        for (name, job) in workflow["jobs"].as_mapping().unwrap() {
            let at = |what: &str| at(&format!("{}: {what}", name.as_str().unwrap()));
            keys(
                job,
                &["name", "runs-on", "container", "timeout-minutes", "strategy", "needs", "steps", "env"],
                &at("job"),
            );
            assert!(
                job["runs-on"].is_string() && job["timeout-minutes"].is_u64(),
                "{}",
                at("runs-on, timeout-minutes")
            );
            for step in job["steps"].as_sequence().unwrap() {
                keys(step, &["name", "uses", "with", "run", "env", "if", "working-directory"], &at("step"));
                seen += 1;
                match (step["uses"].as_str(), step["run"].as_str()) {
                    (Some(action), None) => {
                        let is_pinned = action.contains('@')
                            || action.strip_prefix("docker://").is_some_and(|image| image.contains(':'));
                        assert!(is_pinned, "{}", at(action));
                    }
                    (None, Some(script)) => check_script(script, &at(script)),
                    _ => panic!("{}: neither uses nor run, or both: {step:?}", at("step")),
                }
            }
        }
    }
    assert!(seen >= 8, "{seen} steps");
}

#[track_caller]
fn keys(value: &Value, known: &[&str], at: &str) {
    for key in value.as_mapping().unwrap_or_else(|| panic!("{at}: not a mapping")).keys() {
        // YAML 1.1 reads `on` as true; the forges and this parser do not.
        let key = key.as_str().unwrap_or_else(|| panic!("{at}: {key:?}"));
        assert!(known.contains(&key), "{at}: unknown key {key}");
    }
}

/// Checks that the shell can parse the script, and that the scripts of this repository that it calls exist.
fn check_script(script: &str, at: &str) {
    let checked = Command::new("bash").args(["-n", "-c", script]).output().expect("run bash");
    assert!(checked.status.success(), "{at}: {}", String::from_utf8_lossy(&checked.stderr));
    for word in script
        .split_whitespace()
        .filter(|word| ["./", "scripts/", ".ci/"].iter().any(|own| word.starts_with(own)))
    {
        assert!(Path::new(word).exists(), "{at}: {word} is not there");
    }
    // What is searched for in the compiler's output is the crate's own message.
    for text in script.split("grep '").skip(1).filter_map(|rest| rest.split('\'').next()) {
        assert!(
            fs::read_to_string("src/lib.rs").unwrap().contains(text),
            "{at}: src/lib.rs does not say {text:?}"
        );
    }
}
