use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::http::Report;
use crate::http::security::{Secured, Security};
use crate::http::server::follow;
use crate::http::stats::HttpStats;

struct Files {
    dir: TempDir,
    certificate: PathBuf,
    key: PathBuf,
}

/// A self-signed certificate and its key, as PEM.
fn pair() -> (String, String) {
    let pair = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
    (pair.cert.pem(), pair.signing_key.serialize_pem())
}

impl Files {
    fn new(certificate: &str, key: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let (certificate_path, key_path) = (dir.path().join("node.crt"), dir.path().join("node.key"));
        let files = Self { dir, certificate: certificate_path, key: key_path };
        files.write(certificate, key);
        files
    }

    fn write(&self, certificate: &str, key: &str) {
        for (path, text) in [(&self.certificate, certificate), (&self.key, key)] {
            // A new inode each time, as from programs that renew certificates.
            let new = self.dir.path().join("new");
            fs::write(&new, text).unwrap();
            fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
            fs::rename(&new, path).unwrap();
        }
    }

    fn options(&self) -> TlsOptions {
        let file = |path: &Path| Pem::File(path.to_owned());
        TlsOptions::new(file(&self.certificate), file(&self.key))
    }

    fn error(&self) -> String {
        Tls::load(self.options()).err().expect("a bad pair was loaded").to_string()
    }
}

#[test]
fn readable_key_file_raises_a_warning() {
    let (certificate, key) = pair();
    let files = Files::new(&certificate, &key);
    assert_eq!(Tls::load(files.options()).unwrap().1, Vec::<String>::new());
    for (mode, warns) in [(0o640, false), (0o400, false), (0o644, true), (0o660, true)] {
        fs::set_permissions(&files.key, fs::Permissions::from_mode(mode)).unwrap();
        let warnings = Tls::load(files.options()).unwrap().1;
        assert_eq!(warnings.len(), usize::from(warns), "{mode:o}: {warnings:?}");
        if warns {
            assert!(warnings[0].contains(&format!("mode {mode:03o}")), "{warnings:?}");
        }
    }
}

#[test]
fn each_error_has_a_message() {
    let (certificate, key) = pair();
    let (_, other_key) = pair();
    let cut = &key[..key.len() / 2];
    let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let old_encrypted = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: x\n\nAA==\n";
    let not_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let bad_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let not_base64 = "-----BEGIN PRIVATE KEY-----\n!secret!\n-----END PRIVATE KEY-----\n";
    for (certificate, key, reason) in [
        (&certificate[..], &other_key[..], "does not match the first certificate"),
        (&certificate, &encrypted, "is encrypted"),
        (&certificate, old_encrypted, "is encrypted"),
        (&certificate, "", "node.key is empty"),
        (
            &certificate,
            &certificate,
            "node.key contains no private key (no line `-----BEGIN PRIVATE KEY-----`, RSA or EC); it contains a certificate",
        ),
        (&certificate, cut, "truncated"),
        (&certificate, not_base64, "not valid base64"),
        (&certificate, bad_key, "is not supported"),
        ("text", &key, "node.crt contains no certificate"),
        ("", &key, "node.crt is empty"),
        (&format!("\u{feff}{certificate}"), &key, "(BOM)"),
        (&certificate, &format!("\u{feff}{key}"), "node.key begins with a byte order mark"),
        (&key, &key, "swapped?"),
        (not_der, &key, "is damaged"),
    ] {
        let text = Files::new(certificate, key).error();
        assert!(text.contains(reason), "wanted {reason:?}: {text}");
        assert!(text.contains("node.") && !text.contains("!secret!"), "{text}");
    }
}

#[test]
fn missing_file_and_directory_are_reported() {
    let (certificate, key) = pair();
    let files = Files::new(&certificate, &key);
    fs::remove_file(&files.key).unwrap();
    let text = files.error();
    assert!(text.contains("failed to read the private key") && text.contains("No such file"), "{text}");
    fs::create_dir(&files.key).unwrap();
    assert!(files.error().contains("not a regular file"));
}

#[test]
fn refresh_accepts_only_valid_pairs() {
    let (certificate, key) = pair();
    let files = Files::new(&certificate, &key);
    let (tls, _) = Tls::load(files.options()).unwrap();
    let first = tls.current();
    assert!(tls.refresh().is_none(), "nothing changed");

    let (new_certificate, new_key) = pair();
    files.write(&new_certificate, &key);
    let reason = tls.refresh().unwrap().unwrap_err();
    assert!(reason.to_string().contains("does not match"), "{reason}");
    assert!(Arc::ptr_eq(&first, &tls.current()), "the old pair stays");
    assert!(tls.refresh().is_none(), "a bad pair is reported once");

    files.write(&new_certificate, &new_key);
    assert!(tls.refresh().unwrap().unwrap().is_empty());
    assert!(!Arc::ptr_eq(&first, &tls.current()));
}

/// The new pair may come from other files, while the previous files remain invalid.
#[tokio::test]
async fn new_pair_clears_an_earlier_failure() {
    let (certificate, key) = pair();
    let load = |files: &Files| {
        let tls = Some(Arc::new(Tls::load(files.options()).unwrap().0));
        Secured { tls, ..Secured::default() }
    };
    let (files, others) = (Files::new(&certificate, &key), Files::new(&certificate, &key));
    let security = Arc::new(Security::new(load(&files)));
    let stats = Arc::new(HttpStats::default());
    let (_running, stopped) = tokio::sync::watch::channel(());
    let every = Duration::from_millis(10);
    let report: Report = Arc::new(|_| {});
    let followed = follow(security.clone(), None, every, vec![stats.clone()], report, stopped);
    let followed = tokio::spawn(followed);
    let until = async |failed: bool| {
        let is_so = || stats.certificate_reload_failed.load(Ordering::Relaxed) == failed;
        for _ in 0..6000 {
            if is_so() {
                return;
            }
            tokio::time::sleep(every).await;
        }
        panic!("not {failed}");
    };
    files.write(&certificate, &pair().1);
    until(true).await;
    security.set(load(&others));
    until(false).await;
    followed.abort();
}

/// Everything that the configuration regards as supported is supported.
#[test]
fn suites_and_groups_are_selected_by_number() {
    let (certificate, key) = pair();
    let text = |text: &str| Pem::Text { name: "text".into(), text: text.to_owned() };
    let options = |cipher_suites: &[u16], groups: &[u16]| TlsOptions {
        cipher_suites: cipher_suites.to_vec(),
        groups: groups.to_vec(),
        ..TlsOptions::new(text(&certificate), text(&key))
    };
    let provider = options(&[0xc030, 0x1301, 0xc02b], &[0x18, 0x1d]).provider();
    let suites: Vec<_> = provider.cipher_suites.iter().map(|suite| u16::from(suite.suite())).collect();
    assert_eq!(suites[suites.len() - 2..], [0xc030, 0xc02b]);
    assert!(suites.len() == 5 && suites[..3].iter().all(|suite| suite & 0xff00 == 0x1300), "{suites:x?}");
    let groups: Vec<_> = provider.kx_groups.iter().map(|group| u16::from(group.name())).collect();
    assert_eq!(groups, [0x18, 0x1d]);
    let all = ring::default_provider();
    let all: Vec<_> = all.cipher_suites.iter().map(|suite| u16::from(suite.suite())).collect();
    for suite in [0xc02b, 0xc02c, 0xc02f, 0xc030, 0xcca8, 0xcca9, 0x1301, 0x1302, 0x1303] {
        assert!(all.contains(&suite), "{suite:x}");
    }
    for options in [options(&[], &[]), options(&[0x1301], &[0x17]), options(&[0xc02f], &[])] {
        assert!(Tls::load(options).is_ok());
    }
    // The key is an EC key.
    let warned = |options: TlsOptions| Tls::load(options).unwrap().1.join("\n");
    for good in [&[][..], &[0xc02b], &[0x1301, 0xc02b], &[0xc02f, 0xc02b]] {
        assert_eq!(warned(options(good, &[])), "");
    }
    for none in [&[0xc02f][..], &[0x1301]] {
        let none = warned(options(none, &[]));
        assert!(none.starts_with("clients that speak only TLS 1.2 cannot connect"), "{none}");
    }
    let off = warned(TlsOptions { tls12: false, ..options(&[0xc02b], &[]) });
    assert!(off.contains("TLS 1.2, which is off"), "{off}");
    let of_tls12 = |suite| TlsOptions { tls13: false, ..options(&[suite], &[]) };
    assert!(Tls::load(of_tls12(0xc02b)).is_ok());
    let refused = Tls::load(of_tls12(0xc02f)).err().expect("no client could connect").to_string();
    assert!(refused.contains("none of the cipher suites is for the key"), "{refused}");
}
