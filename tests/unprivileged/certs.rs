//! `generate-certs.sh` as a user runs it, checked with `openssl verify` and by the file modes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// A private directory, removed on drop.
struct StateDirectory(PathBuf);

impl StateDirectory {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("certs-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).unwrap();
        StateDirectory(path)
    }

    fn certs(&self) -> PathBuf {
        self.0.join("certs")
    }

    /// Runs the script in the directory, so that it writes to `certs` below it.
    fn generate(&self, names: &[&str]) -> Output {
        script().args(names).current_dir(&self.0).output().unwrap()
    }

    fn generated(&self, names: &[&str]) -> String {
        let output = self.generate(names);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.certs().join(file)).unwrap()
    }

    fn write(&self, file: &str, content: &[u8]) {
        fs::write(self.certs().join(file), content).unwrap();
    }

    /// Returns whether openssl trusts the node's certificate, given this authority, for a server called `name`.
    fn verifies(&self, ca: &Path, node: &str, name: &str) -> bool {
        let check = if name.parse::<std::net::IpAddr>().is_ok() { "-verify_ip" } else { "-verify_hostname" };
        let output = Command::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", "sslserver", "-no-CApath", "-CAfile"])
            .arg(ca)
            .args([check, name])
            .arg(self.certs().join(node).join("node.crt"))
            .output()
            .unwrap();
        output.status.success()
    }

    /// Returns every file under `certs` with its permission bits.
    fn modes(&self) -> Vec<(String, u32)> {
        let mut modes = Vec::new();
        let mut directories = vec![self.certs()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    directories.push(entry.path());
                } else {
                    let name = entry.file_name().into_string().unwrap();
                    modes.push((name, entry.metadata().unwrap().permissions().mode() & 0o7777));
                }
            }
        }
        modes
    }
}

impl Drop for StateDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn script() -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/generate-certs.sh"));
    command.env_remove("CERTS_DIR");
    command
}

fn openssl(args: &[&str]) {
    let output = Command::new("openssl").args(args).output().unwrap();
    assert!(output.status.success(), "openssl {args:?}: {output:?}");
}

#[test]
fn certificates_are_renewed_on_request_and_last_a_year() {
    let directory = StateDirectory::new();
    directory.generated(&["one.example", "two.example"]);
    let certificates =
        || ["one.example", "two.example"].map(|name| directory.read(&format!("{name}/node.crt")));
    let first = certificates();
    let authority = directory.read("ca.crt");
    directory.generated(&["one.example"]);
    assert_eq!(certificates(), first, "kept");
    directory.generated(&["--renew", "one.example"]);
    let second = certificates();
    assert!(second[0] != first[0] && second[1] == first[1]);
    directory.generated(&["--renew"]);
    let third = certificates();
    assert!(third[0] != second[0] && third[1] != second[1]);
    assert_eq!(directory.read("ca.crt"), authority);
    let ends_after = |days: u64| {
        let seconds = (days * 24 * 3600).to_string();
        let path = directory.certs().join("one.example/node.crt");
        let mut openssl = Command::new("openssl");
        openssl.args(["x509", "-noout", "-checkend", &seconds, "-in"]).arg(path);
        openssl.output().unwrap().status.success()
    };
    assert!(ends_after(390) && !ends_after(398));
    assert!(!StateDirectory::new().generate(&["--renew"]).status.success(), "there is nothing to renew");
}

#[test]
fn each_certificate_is_valid_for_its_name_and_localhost() {
    let directory = StateDirectory::new();
    let nodes = ["192.168.1.10", "node-1.example.org", "2001:db8::1", "localhost"];
    directory.generated(&nodes);
    let ca = directory.certs().join("ca.crt");
    for node in nodes {
        for name in [node, "localhost", "127.0.0.1", "host.docker.internal"] {
            assert!(directory.verifies(&ca, node, name), "{node} as {name}");
        }
        assert!(!directory.verifies(&ca, node, "elsewhere.example.org"), "{node} as another host");
        assert!(!directory.verifies(&ca, node, "192.168.1.11"), "{node} as another address");
    }
}

#[test]
fn other_authority_is_not_trusted() {
    let (directory, other) = (StateDirectory::new(), StateDirectory::new());
    directory.generated(&["node"]);
    other.generated(&["node"]);
    assert!(!directory.verifies(&other.certs().join("ca.crt"), "node", "node"));
}

#[test]
fn keys_are_private_and_certificates_are_public() {
    let directory = StateDirectory::new();
    directory.generated(&["node"]);
    let mut modes = directory.modes();
    modes.sort();
    let expected = [("ca.crt", 0o644), ("ca.key", 0o600), ("node.crt", 0o644), ("node.key", 0o600)];
    assert_eq!(modes, expected.map(|(name, mode)| (name.to_owned(), mode)));
}

/// A wrapper for openssl records the mode of every key after each call, before the script can change the mode.
#[test]
fn keys_are_never_temporarily_readable() {
    let directory = StateDirectory::new();
    let bin = directory.0.join("bin");
    fs::create_dir(&bin).unwrap();
    let real = String::from_utf8(Command::new("which").arg("openssl").output().unwrap().stdout).unwrap();
    let watcher = bin.join("openssl");
    let text = format!(
        "#!/bin/sh\n{} \"$@\"\nrc=$?\nfind '{}' -name '*.key' -printf '%m\\n' >> '{}'\nexit $rc\n",
        real.trim(),
        directory.certs().display(),
        directory.0.join("seen").display(),
    );
    fs::write(&watcher, text).unwrap();
    fs::set_permissions(&watcher, fs::Permissions::from_mode(0o755)).unwrap();

    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let output = Command::new("sh")
        .args(["-c", "umask 000; exec \"$0\" node"])
        .arg(script().get_program())
        .env("PATH", path)
        .env_remove("CERTS_DIR")
        .current_dir(&directory.0)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let seen = fs::read_to_string(directory.0.join("seen")).unwrap();
    assert!(seen.lines().count() >= 4, "the watcher saw too little: {seen:?}");
    assert!(seen.lines().all(|mode| mode == "600"), "{seen:?}");
}

#[test]
fn second_run_keeps_valid_files() {
    let directory = StateDirectory::new();
    directory.generated(&["a", "10.0.0.1"]);
    let files = ["ca.crt", "ca.key", "a/node.crt", "a/node.key", "10.0.0.1/node.crt"];
    let before = files.map(|file| directory.read(file));
    let said = directory.generated(&["a", "10.0.0.1", "b"]);
    assert_eq!(before, files.map(|file| directory.read(file)));
    assert!(said.contains("kept certs/a/node.crt"), "{said}");
    assert!(said.contains("issued certs/b/node.crt (new)"), "{said}");
    assert!(directory.verifies(&directory.certs().join("ca.crt"), "b", "b"));
}

#[test]
fn invalid_certificates_are_reissued_with_a_reason() {
    let directory = StateDirectory::new();
    directory.generated(&["cut", "missing", "swapped", "ending", "copied", "good"]);
    let cut = directory.read("cut/node.crt");
    directory.write("cut/node.crt", &cut[..cut.len() / 2]);
    fs::remove_file(directory.certs().join("missing/node.key")).unwrap();
    directory.write("swapped/node.key", &directory.read("good/node.key"));
    for file in ["node.crt", "node.key"] {
        directory.write(&format!("copied/{file}"), &directory.read(&format!("good/{file}")));
    }
    end_soon(&directory, "ending");

    let said = directory.generated(&["cut", "missing", "swapped", "ending", "copied", "good"]);
    for (node, reason) in [
        ("cut", "damaged"),
        ("missing", "missing"),
        ("swapped", "did not belong together"),
        ("ending", "within 30 days"),
        ("copied", "not for this name"),
    ] {
        let line = said.lines().find(|line| line.starts_with(&format!("issued certs/{node}/")));
        assert!(line.is_some_and(|line| line.contains(reason)), "{node}: {said}");
        assert!(directory.verifies(&directory.certs().join("ca.crt"), node, node), "{node}");
    }
    assert!(said.contains("kept certs/good/node.crt"), "{said}");
    let stored_entries = directory.generated(&["cut", "missing", "swapped", "ending", "copied"]);
    assert!(stored_entries.lines().all(|line| line.starts_with("kept ")), "{stored_entries}");
}

/// Replaces the node's certificate with one for the same key that expires in ten days.
fn end_soon(directory: &StateDirectory, node: &str) {
    let path = |file: &str| directory.certs().join(file).into_os_string().into_string().unwrap();
    let (key, crt, request) =
        (path(&format!("{node}/node.key")), path(&format!("{node}/node.crt")), path("request"));
    openssl(&["req", "-new", "-key", &key, "-subj", "/CN=x", "-out", &request]);
    let (ca, ca_key) = (path("ca.crt"), path("ca.key"));
    openssl(&[
        "x509",
        "-req",
        "-in",
        &request,
        "-days",
        "10",
        "-set_serial",
        "7",
        "-CA",
        &ca,
        "-CAkey",
        &ca_key,
        "-out",
        &crt,
    ]);
}

#[test]
fn damaged_authority_is_rejected_and_left_unchanged() {
    let directory = StateDirectory::new();
    directory.generated(&["node"]);
    let certificate = directory.read("node/node.crt");
    fs::remove_file(directory.certs().join("ca.key")).unwrap();
    let output = directory.generate(&["node", "second"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("only one is there"), "{output:?}");
    directory.write("ca.key", b"not a key");
    let output = directory.generate(&["node", "second"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("do not belong together"), "{output:?}");
    assert_eq!(directory.read("node/node.crt"), certificate);
    assert!(!directory.certs().join("second").exists());
}

#[test]
fn invalid_name_is_rejected_before_writing() {
    let long = "a".repeat(64);
    for name in [
        ".",
        "..",
        "a/b",
        "/etc",
        "-x",
        "a..b",
        "1.2.3",
        "256.1.1.1",
        "x,DNS:y",
        "a\nb",
        "a b",
        "ca.key",
        &long,
    ] {
        let directory = StateDirectory::new();
        let output = directory.generate(&["good", name]);
        assert_eq!(output.status.code(), Some(1), "{name:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("nothing was written"), "{name:?}");
        assert!(!directory.certs().exists(), "{name:?}");
    }
    assert_eq!(StateDirectory::new().generate(&[]).status.code(), Some(2));
}

#[test]
fn output_directory_is_configurable() {
    let directory = StateDirectory::new();
    let chosen = directory.0.join("a directory");
    let output = script().arg("node").env("CERTS_DIR", &chosen).current_dir(&directory.0).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(chosen.join("node/node.key").exists());
    assert!(!directory.certs().exists());
}

#[test]
fn client_certificates_are_client_only_and_renewable() {
    let place = StateDirectory::new();
    let made = place.generated(&["--client", "prometheus.example.org"]);
    assert!(made.contains("issued certs/prometheus.example.org/client.crt (new)"), "{made}");
    let is_for = |purpose: &str| {
        let output = Command::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", purpose, "-no-CApath", "-CAfile", "ca.crt"])
            .args(["-verify_hostname", "prometheus.example.org", "prometheus.example.org/client.crt"])
            .current_dir(place.certs())
            .output()
            .unwrap();
        output.status.success()
    };
    assert!(is_for("sslclient") && !is_for("sslserver"));
    let before = place.read("prometheus.example.org/client.crt");
    assert!(place.generated(&["--client", "prometheus.example.org"]).contains("kept "));
    assert_eq!(place.read("prometheus.example.org/client.crt"), before);
    // An exporter on the same machine has a certificate of its own.
    place.generated(&["prometheus.example.org"]);
    assert!(place.verifies(
        &place.certs().join("ca.crt"),
        "prometheus.example.org",
        "prometheus.example.org"
    ));
    let renewed = place.generated(&["--client", "--renew"]);
    assert_eq!(renewed.trim_end(), "issued certs/prometheus.example.org/client.crt (renewed)");
    assert_ne!(place.read("prometheus.example.org/client.crt"), before);
    for (name, mode) in place.modes() {
        assert_eq!(mode, if name.ends_with(".key") { 0o600 } else { 0o644 }, "{name}");
    }
    assert_eq!(place.generate(&["--nonsense", "a"]).status.code(), Some(2));
    assert_eq!(place.generate(&["--client"]).status.code(), Some(2));
}
