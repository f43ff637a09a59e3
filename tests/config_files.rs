//! Whole configurations: every file of `tests/config/good` loads, and every file of `tests/config/bad` is
//! refused with exactly the text of the `.expect` file beside it.
//!
//! After changing a message, run once with `UPDATE_EXPECT=1` and read the difference.

use std::fs;
use std::path::{Path, PathBuf};

#[path = "config/language.rs"]
mod language;
#[path = "config/precedence.rs"]
mod precedence;

use exporter::config::{Environment, Overrides, load, load_bytes};

fn files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(Path::new("tests/config").join(folder)).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    files
}

#[test]
fn good_files_load() {
    let files = files("good");
    assert!(files.len() >= 9);
    for path in files {
        let loaded = load(&Overrides::file(&path), &Environment::new());
        let loaded = loaded.unwrap_or_else(|diags| panic!("{}:\n{diags}", path.display()));
        assert!(loaded.warnings.is_empty());
        assert!(!loaded.config.targets.is_empty() || loaded.config.network.is_some());
    }
}

#[test]
fn bad_files_are_refused_with_the_expected_text() {
    let files = files("bad");
    assert!(files.len() >= 60);
    let mut wrong = String::new();
    for path in files {
        let found = match load(&Overrides::file(&path), &Environment::new()) {
            Ok(_) => "it loads\n".to_owned(),
            Err(diags) => diags.render().replace("tests/config/bad/", ""),
        };
        let expect = path.with_extension("expect");
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(&expect, &found).unwrap();
        }
        let expected = fs::read_to_string(&expect).unwrap_or_default();
        if found != expected {
            wrong += &format!("{}\n--- expected\n{expected}--- found\n{found}\n", path.display());
        }
        assert!(!found.contains("hunter2"), "a secret is shown: {found}");
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// One mistake each, but for the file that shows many at once.
#[test]
fn one_mistake_is_reported_once() {
    for path in files("bad") {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let expect = fs::read_to_string(path.with_extension("expect")).unwrap();
        let count = expect.lines().filter(|line| !line.starts_with("    help: ")).count();
        assert_eq!(count == 1, name != "many", "{name}:\n{expect}");
    }
}

#[test]
fn the_example_loads_and_so_do_the_examples_in_its_comments() {
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

/// What a slip of the editor makes of a good file: it may load or not, and must say why without falling over.
#[test]
fn mangled_files_never_panic() {
    let (overrides, env) = (Overrides::default(), Environment::new());
    let (mut loaded, mut refused) = (0, 0);
    let mut check = |bytes: Vec<u8>| match load_bytes("tests/config/good/x.yaml", bytes, &overrides, &env) {
        Ok(_) => loaded += 1,
        Err(diags) => {
            assert!(!diags.render().is_empty());
            refused += 1;
        }
    };
    for path in files("good") {
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
