//! Web configuration files in the format of Prometheus's exporters: every file in `tests/config/web/good` loads, and
//! every file in `tests/config/web/bad` is rejected with the text of the `.expect` file beside it; both as a separate
//! file and under `web:`.

use std::fs;
use std::path::Path;

use exporter::config::keys::KEYS;
use exporter::config::{Environment, LoadedConfig, Overrides, load, load_bytes, read_again};

use super::{difference, files};

const DIRECTORY: &str = "tests/config/web";

fn flags(pairs: &[(&str, &str)]) -> Overrides {
    let mut overrides = Overrides::default();
    for (name, text) in pairs {
        overrides.set(KEYS.iter().find(|key| key.name == *name).unwrap(), *text);
    }
    overrides
}

/// Loads a configuration with this file named by the flag.
fn by_flag(path: &Path) -> Result<LoadedConfig, String> {
    let overrides = flags(&[("bitcoind_path", "/b"), ("web_config_file", path.to_str().unwrap())]);
    load(&overrides, &Environment::new()).map_err(|diags| diags.render())
}

/// Loads a configuration in the file's directory with the file's text under `web:`.
fn inline(path: &Path) -> Result<LoadedConfig, String> {
    let text = fs::read_to_string(path).unwrap();
    let indented: String = text.lines().map(|line| format!("  {line}\n")).collect();
    let yaml = format!("bitcoind_path: /b\nweb:\n{indented}").into_bytes();
    let config = path.with_file_name("config.yaml");
    load_bytes(config, yaml, &Overrides::default(), &Environment::new()).map_err(|diags| diags.render())
}

#[test]
fn good_files_load_separately_and_inline() {
    let files = files("web/good", "yml");
    assert!(files.len() >= 15);
    for path in files {
        let [file, inline] = [by_flag(&path), inline(&path)].map(|loaded| {
            let web = loaded.unwrap_or_else(|text| panic!("{}:\n{text}", path.display())).config.settings.web;
            (web.users.len(), web.tls.is_some(), web.headers, web.rate_limit)
        });
        assert_eq!(file, inline, "{}", path.display());
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert_eq!(file.0, if name == "users" { 3 } else { usize::from(name == "everything") }, "{name}");
        assert_eq!(file.1, fs::read_to_string(&path).unwrap().contains("cert"), "{name}");
        assert_eq!(file.3.is_some(), ["burst", "everything"].contains(&name.as_str()), "{name}");
    }
}

#[test]
fn bad_files_produce_the_expected_errors() {
    let mut wrong = String::new();
    let files = files("web/bad", "yml");
    assert!(files.len() >= 40);
    for path in files {
        let found = by_flag(&path).map_or_else(|text| text, |_| "it is accepted\n".to_owned());
        let found = found.replace(&format!("{DIRECTORY}/bad/"), "");
        wrong += &difference(&path, &found);
        // A text that changes when it is indented under a key may be rejected for another reason.
        if inline(&path).is_ok() {
            wrong += &format!("{} is accepted under `web:`\n", path.display());
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn rejects_settings_given_in_both_places() {
    let users = format!("{DIRECTORY}/good/users.yml");
    let certificate = format!("{DIRECTORY}/good/certificate.yml");
    let with = |file: &str, more: &[(&str, &str)]| {
        let flags = flags(&[&[("bitcoind_path", "/b"), ("web_config_file", file)], more].concat());
        load(&flags, &Environment::new()).map_err(|diags| diags.render())
    };
    let user = [("metrics_auth_username", "u"), ("metrics_auth_password", "hunter2")];
    let tls = [("tls_cert", "tests/config/files/node.crt"), ("tls_key", "tests/config/files/node.key")];
    let both = with(&users, &user).unwrap_err();
    assert!(
        both.starts_with(&format!("{users}:2:3: basic_auth_users: metrics_auth_username and the web")),
        "{both}"
    );
    assert!(!both.contains("hunter2") && both.lines().count() == 2, "{both}");
    let both = with(&certificate, &tls).unwrap_err();
    assert!(
        both.starts_with(&format!("{certificate}:2:3: tls_server_config: tls_cert and the web")),
        "{both}"
    );
    assert!(with(&users, &tls).unwrap().config.settings.web.users.len() == 3);
    assert!(with(&certificate, &user).unwrap().config.settings.web.tls.is_some());

    let yaml =
        b"bitcoind_path: /b\nweb: { rate_limit: { interval: 1s, burst: 1 } }\nweb_config_file: c\n".to_vec();
    let both = load_bytes("c.yaml", yaml, &Overrides::default(), &Environment::new()).unwrap_err().render();
    assert!(both.contains("mutually exclusive"), "{both}");
    for (name, text) in [("metrics_port", "9000"), ("bind", "::1")] {
        let listen = flags(&[("bitcoind_path", "/b"), ("web_listen_address", ":1"), (name, text)]);
        let both = load(&listen, &Environment::new()).unwrap_err().render();
        assert!(both.starts_with(&format!("--web.listen-address: {name} and this both say")), "{both}");
    }
    let both =
        flags(&[("bitcoind_path", "/b"), ("web_listen_address", ":1"), ("web_systemd_socket", "true")]);
    assert!(load(&both, &Environment::new()).unwrap_err().render().contains("mutually exclusive"));
}

#[test]
fn rejects_overlapping_listen_addresses() {
    for (addresses, error) in [
        (":9100,:9100", ":9100 is listed twice"),
        (":9100,127.0.0.1:9100", "127.0.0.1:9100 and :9100 overlap: only one of them can be listened on"),
        ("0.0.0.0:9100,[::]:9100,[::1]:9100", "[::1]:9100 and [::]:9100 overlap: only one"),
        ("unix:/run/e.sock,unix:///run/e.sock", "unix:/run/e.sock is listed twice"),
        ("localhost:9436", "localhost:9436 overlaps with 127.0.0.1:9436, where health_port is served"),
    ] {
        let listen = flags(&[("bitcoind_path", "/b"), ("web_listen_address", addresses)]);
        let found = load(&listen, &Environment::new()).unwrap_err().render();
        assert!(found.starts_with(&format!("--web.listen-address: {error}")), "{addresses}: {found}");
    }
    let apart = "0.0.0.0:9100,[::]:9100,127.0.0.2:9436,[::1]:9436,unix:/run/e.sock";
    load(&flags(&[("bitcoind_path", "/b"), ("web_listen_address", apart)]), &Environment::new()).unwrap();
}

#[test]
fn files_are_reread() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("web.yml");
    let hash = "$2y$04$abcdefghijklmnopqrstuuK1AVqIGvi0eYf1L3S0dyzjWXdJIVLyG";
    fs::write(&path, format!("basic_auth_users: {{ ada: {hash} }}\n")).unwrap();
    let before = by_flag(&path).unwrap().config.settings.web;
    fs::write(&path, format!("basic_auth_users: {{ ada: {hash}, grace: {hash} }}\n")).unwrap();
    assert_eq!(read_again(&before).unwrap().users.len(), 2);
    fs::write(&path, "basic_auth_users: { ada: hunter2 }\nrate_limit: 7\n").unwrap();
    let wrong = read_again(&before).unwrap_err();
    assert_eq!(wrong.len(), 2, "{wrong}");
    fs::remove_file(&path).unwrap();
    assert!(read_again(&before).unwrap_err().render().contains("failed to read the web configuration"));
}
