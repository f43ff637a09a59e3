//! For every setting, flags override the environment, which overrides the file, which overrides the defaults.

use std::collections::BTreeMap;

use exporter::config::keys::{KEYS, SettingKey};
use exporter::config::model::Config;
use exporter::config::{Diagnostics, Environment, LoadedConfig, Overrides, load, load_bytes};

/// Returns the resulting value of a setting as text. Settings that come in pairs are represented by their own half.
fn shown(config: &Config, name: &str) -> String {
    let settings = &config.settings;
    let target = &config.targets[0];
    match name {
        "bitcoind_path" => target.selector.path().expect("a binary").display().to_string(),
        "pid" => target.selector.processes.pid().map_or("none".into(), |pid| pid.to_string()),
        "node_name" => settings.node_name.clone(),
        "metrics_port" => settings.metrics_port.to_string(),
        "health_port" => settings.health_port.to_string(),
        "verbose" => settings.verbose.to_string(),
        "log_level" => format!("{:?}", settings.log_level),
        "log_file" => settings.log_file.as_ref().map_or("none".into(), |path| path.display().to_string()),
        "metrics_auth_username" => {
            settings.web.users.first().map_or("none".into(), |auth| auth.username.clone())
        }
        "metrics_auth_password" | "metrics_auth_password_file" => {
            settings.web.users.first().map_or("none".into(), |auth| auth.password.clone())
        }
        "tls_cert" => settings.web.tls.as_ref().map_or("none".into(), |tls| format!("{:?}", tls.cert)),
        "tls_key" => settings.web.tls.as_ref().map_or("none".into(), |tls| format!("{:?}", tls.key)),
        "web_config_file" => {
            let file = settings.web.origin.file.as_ref();
            file.map_or("none".into(), |(_, path)| path.display().to_string())
        }
        "web_listen_address" | "web_systemd_socket" => format!("{:?}", settings.listen),
        "bind" => settings.bind.to_string(),
        other => panic!("the table has a setting that this test does not know: {other}"),
    }
}

const DIRECTORY: &str = "tests/config/files";

/// For each setting: the values in the flag, the variable and the file, and the expected result for each of them and
/// for the default.
const CASES: &[(&str, [&str; 3], [&str; 4])] = &[
    ("bitcoind_path", ["/f", "/e", "/y"], ["/f", "/e", "/y", "/base"]),
    ("pid", ["1", "2", "3"], ["1", "2", "3", "none"]),
    ("node_name", ["f", "e", "y"], ["f", "e", "y", "localhost"]),
    ("metrics_port", ["1", "2", "3"], ["1", "2", "3", "9435"]),
    ("health_port", ["1", "2", "3"], ["1", "2", "3", "9436"]),
    ("verbose", ["true", "yes", "true"], ["true", "true", "true", "false"]),
    ("log_level", ["error", "DEBUG", "Warning"], ["Error", "Debug", "Warning", "Info"]),
    ("log_file", ["/f", "/e", "/y"], ["/f", "/e", "/y", "none"]),
    ("metrics_auth_username", ["f", "e", "y"], ["f", "e", "y", "none"]),
    ("metrics_auth_password", ["f", "e", "y"], ["f", "e", "y", "none"]),
    (
        "metrics_auth_password_file",
        ["tests/config/files/password", "tests/config/files/node.crt", "password"],
        [
            "from the file",
            "-----BEGIN CERTIFICATE----- (only its being there matters)",
            "from the file",
            "none",
        ],
    ),
    (
        "tls_cert",
        ["tests/config/files/node.crt", "tests/config/files/node.key", "node.crt"],
        ["tests/config/files/node.crt", "tests/config/files/node.key", "tests/config/files/node.crt", "none"],
    ),
    (
        "tls_key",
        ["tests/config/files/node.crt", "tests/config/files/node.key", "node.key"],
        ["tests/config/files/node.crt", "tests/config/files/node.key", "tests/config/files/node.key", "none"],
    ),
    (
        "web_config_file",
        ["tests/config/files/empty", "tests/config/web/good/empty.yml", "empty"],
        ["tests/config/files/empty", "tests/config/web/good/empty.yml", "tests/config/files/empty", "none"],
    ),
    (
        "web_listen_address",
        [":1", "localhost:2,[::1]:3", "unix:/e.sock"],
        [
            "Addresses([Tcp { host: None, port: 1 }])",
            "Addresses([Tcp { host: Some(\"localhost\"), port: 2 }, Tcp { host: Some(\"::1\"), port: 3 }])",
            "Addresses([Unix(\"/e.sock\")])",
            "Port",
        ],
    ),
    ("web_systemd_socket", ["true", "yes", "true"], ["Inherited", "Inherited", "Inherited", "Port"]),
    ("bind", ["0.0.0.0", "::1", "10.0.0.1"], ["0.0.0.0", "::1", "10.0.0.1", "127.0.0.1"]),
];

/// Returns what the file must also contain for a setting to be complete.
fn companion(name: &str) -> &'static str {
    match name {
        "metrics_auth_username" => "metrics_auth_password: p\n",
        "metrics_auth_password" | "metrics_auth_password_file" => "metrics_auth_username: u\n",
        "tls_cert" => "tls_key: node.key\n",
        "tls_key" => "tls_cert: node.crt\n",
        _ => "",
    }
}

fn key(name: &str) -> &'static SettingKey {
    KEYS.iter().find(|key| key.name == name).unwrap()
}

fn with(file: &str, flags: &[(&str, &str)], env: &[(&str, &str)]) -> Result<LoadedConfig, Diagnostics> {
    let mut overrides = Overrides::default();
    for (name, text) in flags {
        overrides.set(key(name), *text);
    }
    let env: Environment = env.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    load_bytes(format!("{DIRECTORY}/c.yaml"), file.into(), &overrides, &env)
}

#[test]
fn setting_table_is_complete() {
    let tested: Vec<_> = CASES.iter().map(|(name, ..)| *name).collect();
    let mut known: Vec<_> = KEYS.iter().map(|key| key.name).collect();
    assert!(known.iter().all(|name| tested.contains(name)), "{known:?}");
    known.sort_unstable();
    known.dedup();
    assert_eq!(known.len(), KEYS.len());
    let distinct = |of: fn(&SettingKey) -> &'static str| {
        KEYS.iter().map(of).collect::<std::collections::BTreeSet<_>>().len()
    };
    assert_eq!((distinct(|key| key.env), distinct(|key| key.flag)), (KEYS.len(), KEYS.len()));
}

#[test]
fn every_setting_from_every_source() {
    for (name, [flag, env, file], [from_flag, from_env, from_file, default]) in CASES {
        for sources in 0..8 {
            let (has_flag, has_env, has_file) = (sources & 4 != 0, sources & 2 != 0, sources & 1 != 0);
            let mut text = String::new();
            if *name != "bitcoind_path" || !has_file {
                text += "bitcoind_path: /base\n";
            }
            if has_file {
                text += &format!("{name}: {file}\n");
            }
            if has_flag || has_env || has_file {
                text += companion(name);
            }
            let flags = has_flag.then_some((*name, *flag));
            let env = has_env.then_some((key(name).env, *env));
            let loaded = with(&text, flags.as_slice(), env.as_slice());
            let config = loaded.unwrap_or_else(|diags| panic!("{name} from {sources:03b}: {diags}")).config;
            let expected = match (has_flag, has_env, has_file) {
                (true, _, _) => from_flag,
                (_, true, _) => from_env,
                (_, _, true) => from_file,
                _ => default,
            };
            assert_eq!(shown(&config, name), *expected, "{name} from {sources:03b}");
        }
    }
}

#[test]
fn errors_name_their_source() {
    let wrong = BTreeMap::from([
        ("pid", "0"),
        ("metrics_port", "http"),
        ("health_port", "65536"),
        ("verbose", "maybe"),
        ("log_level", "LOUD"),
        ("metrics_auth_username", "a:b"),
        ("metrics_auth_password_file", "/does/not/exist"),
        ("tls_cert", "/does/not/exist"),
        ("tls_key", "/does/not/exist"),
        ("bind", "localhost"),
    ]);
    for (name, text) in wrong {
        let file = format!("bitcoind_path: /base\n{}", companion(name));
        let flag = with(&file, &[(name, text)], &[]).unwrap_err().render();
        assert!(flag.starts_with(&format!("--{}: ", key(name).flag)), "{flag}");
        assert_eq!(flag.lines().filter(|line| !line.starts_with("    help")).count(), 1, "{flag}");
        let env = with(&file, &[], &[(key(name).env, text)]).unwrap_err().render();
        assert!(env.starts_with(&format!("{}: ", key(name).env)), "{env}");
        let file = with(&format!("{file}{name}: {text}\n"), &[], &[]).unwrap_err().render();
        assert!(
            file.starts_with(&format!("{DIRECTORY}/c.yaml:")) && file.contains(&format!(" {name}: ")),
            "{file}"
        );
    }
}

#[test]
fn errors_of_all_sources_are_reported_together() {
    let found = with(
        "metrics_port: 0\n",
        &[("metrics_port", "x")],
        &[("FIBRE_METRICS_PORT", "y"), ("FIBRE_PID", "z")],
    );
    let found = found.unwrap_err().render();
    let starts: Vec<_> = found.lines().filter_map(|line| line.split(": ").next()).collect();
    let file = format!("{DIRECTORY}/c.yaml:1:1");
    assert_eq!(starts[..4], ["--port", "FIBRE_METRICS_PORT", "FIBRE_PID", file.as_str()], "{found}");
    assert!(found.contains("nothing to trace"));
}

#[test]
fn invalid_file_neither_hides_nor_adds_errors() {
    let found =
        with("a: [\n", &[("metrics_port", "x"), ("metrics_auth_username", "u")], &[]).unwrap_err().render();
    assert!(found.contains("--port: ") && found.contains("not valid YAML"), "{found}");
    assert!(!found.contains("nothing to trace") && !found.contains("without a password"), "{found}");
}

#[test]
fn secrets_are_never_shown() {
    let by_env = with("bitcoind_path: /b\n", &[], &[("FIBRE_METRICS_AUTH_PASSWORD", "hunter2")]).unwrap_err();
    assert!(by_env.render().starts_with("FIBRE_METRICS_AUTH_PASSWORD: "));
    let by_flag = with("bitcoind_path: /b\n", &[("metrics_auth_password", "hunter2")], &[]).unwrap_err();
    assert!(by_flag.render().starts_with("--metrics-auth-password: "));
    for diags in [by_env, by_flag] {
        assert!(!diags.render().contains("hunter2") && !format!("{diags:?}").contains("hunter2"));
    }
    let file = "bitcoind_path: /b\nmetrics_auth_username: u\nmetrics_auth_password: hunter2\n";
    let loaded = with(file, &[], &[]).unwrap();
    assert_eq!(loaded.config.settings.web.users[0].password, "hunter2");
    assert!(!format!("{loaded:?}").contains("hunter2"));
    let mut overrides = Overrides::default();
    overrides.set(key("metrics_auth_password"), "hunter2");
    assert!(!format!("{overrides:?}").contains("hunter2"));
}

#[test]
fn higher_source_wins_between_password_and_password_file() {
    let password = |loaded: Result<LoadedConfig, Diagnostics>| {
        loaded.unwrap_or_else(|diags| panic!("{diags}")).config.settings.web.users[0].password.clone()
    };
    let file = "bitcoind_path: /b\nmetrics_auth_username: u\n";
    let inline = format!("{file}metrics_auth_password: inline\n");
    let by_file = format!("{file}metrics_auth_password_file: password\n");
    let path = format!("{DIRECTORY}/password");
    assert_eq!(password(with(&by_file, &[("metrics_auth_password", "flag")], &[])), "flag");
    assert_eq!(password(with(&inline, &[("metrics_auth_password_file", &path)], &[])), "from the file");
    assert_eq!(password(with(&inline, &[], &[("FIBRE_METRICS_AUTH_PASSWORD_FILE", &path)])), "from the file");
    let both = [("metrics_auth_password", "x"), ("metrics_auth_password_file", path.as_str())];
    assert!(with(file, &both, &[]).unwrap_err().render().contains("mutually exclusive"));
}

#[test]
fn halves_of_a_pair_may_come_from_different_sources() {
    let cert = format!("{DIRECTORY}/node.crt");
    let loaded = with("bitcoind_path: /b\ntls_key: node.key\n", &[("tls_cert", &cert)], &[]).unwrap();
    assert_eq!(format!("{:?}", loaded.config.settings.web.tls.unwrap().cert), cert);
}

#[test]
fn booleans_and_empty_variables() {
    let verbose = |text: &str| with("bitcoind_path: /b\n", &[], &[("FIBRE_VERBOSE", text)]);
    for (text, expected) in [
        ("true", true),
        ("FALSE", false),
        ("1", true),
        ("0", false),
        ("yes", true),
        ("No", false),
        ("", false),
    ] {
        assert_eq!(verbose(text).unwrap().config.settings.verbose, expected, "{text:?}");
    }
    assert!(verbose("2").is_err());
}

#[test]
fn unknown_variables_raise_a_warning() {
    let loaded = with("bitcoind_path: /b\n", &[], &[("FIBRE_METRIC_PORT", "1"), ("FIBRE_PID", "5")]).unwrap();
    assert_eq!(
        loaded.warnings,
        ["unknown environment variable FIBRE_METRIC_PORT, ignored (did you mean \"FIBRE_METRICS_PORT\"?)"]
    );
}

#[test]
fn config_file_path_precedence() {
    let none = Environment::new();
    let by_env = Environment::from([("FIBRE_CONFIG".to_owned(), "tests/config/good/flat.yaml".to_owned())]);
    assert_eq!(load(&Overrides::default(), &by_env).unwrap().config.settings.node_name, "mynode");
    let by_flag = Overrides::file("tests/config/good/limits.yaml");
    assert_eq!(load(&by_flag, &by_env).unwrap().config.targets.len(), 4);

    let missing = load(&Overrides::file("does/not/exist.yaml"), &none).unwrap_err().render();
    assert_eq!(
        missing,
        "does/not/exist.yaml: failed to read the file: No such file or directory (os error 2)\n"
    );
    let directory = load(&Overrides::file("tests"), &none).unwrap_err().render();
    assert_eq!(directory, "tests: failed to read the file: Is a directory (os error 21)\n");
    let missing = Environment::from([("FIBRE_CONFIG".to_owned(), "nothing.yaml".to_owned())]);
    let missing = load(&Overrides::default(), &missing).unwrap_err().render();
    assert!(missing.starts_with("FIBRE_CONFIG: failed to read nothing.yaml"), "{missing}");
    let nothing = load(&Overrides::default(), &none).unwrap_err().render();
    assert!(nothing.starts_with("configuration: nothing to trace"), "{nothing}");
    let endless = load(&Overrides::file("/dev/zero"), &none).unwrap_err().render();
    assert!(endless.contains("larger than the maximum of 1 MiB"), "{endless}");
    let binary = with_bytes(b"bitcoind_path: \xff\n".to_vec());
    assert_eq!(binary, "c.yaml:1:16: invalid UTF-8 (byte 0xff); save the file as UTF-8\n");
}

fn with_bytes(bytes: Vec<u8>) -> String {
    load_bytes("c.yaml", bytes, &Overrides::default(), &Environment::new()).unwrap_err().render()
}
