//! The server certificate and its key: loading, and reloading when their files change.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::crypto::{CryptoProvider, ring};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, Error, InconsistentKeys, NamedGroup, ServerConfig, SupportedCipherSuite};

use super::certificate::CertificateInfo;
use super::clients::{Clients, unix_now, verifier};
use super::error::HttpError;
use super::pem::Pem;
use super::tls_error::TlsError;

/// TLS options of the server.
#[derive(Clone)]
pub struct TlsOptions {
    /// The certificate, followed by any intermediate certificates.
    pub certificate: Pem,
    /// The unencrypted private key.
    pub key: Pem,
    pub clients: Clients,
    /// At least one of the two versions is enabled.
    pub tls12: bool,
    pub tls13: bool,
    /// Cipher suites for TLS 1.2 by IANA number, in order of preference; empty for all.
    pub cipher_suites: Vec<u16>,
    /// The server's order of cipher suites takes precedence.
    pub ignore_client_order: bool,
    /// Key exchange groups by IANA number, in order of preference; empty for all.
    pub groups: Vec<u16>,
    /// Whether HTTP/2 is offered.
    pub http2: bool,
}

impl TlsOptions {
    /// Creates options with defaults for everything but the certificate and key.
    #[cfg(test)]
    fn new(certificate: Pem, key: Pem) -> Self {
        Self {
            certificate,
            key,
            clients: Clients::default(),
            tls12: true,
            tls13: true,
            cipher_suites: Vec::new(),
            ignore_client_order: false,
            groups: Vec::new(),
            http2: false,
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let all = [Some(&self.certificate), Some(&self.key), self.clients.authority.as_ref()];
        all.into_iter().flatten().filter_map(|pem| Some(pem.file()?.to_owned())).collect()
    }

    fn provider(&self) -> CryptoProvider {
        let mut provider = ring::default_provider();
        if !self.cipher_suites.is_empty() {
            let place =
                |suite: CipherSuite| self.cipher_suites.iter().position(|code| *code == u16::from(suite));
            let is_tls13 = |suite: CipherSuite| is_tls13_suite(suite.into());
            provider.cipher_suites.retain(|suite| is_tls13(suite.suite()) || place(suite.suite()).is_some());
            provider.cipher_suites.sort_by_key(|suite| (!is_tls13(suite.suite()), place(suite.suite())));
        }
        if !self.groups.is_empty() {
            let place = |group: NamedGroup| self.groups.iter().position(|code| *code == u16::from(group));
            provider.kx_groups.retain(|group| place(group.name()).is_some());
            provider.kx_groups.sort_by_key(|group| place(group.name()));
        }
        provider
    }
}

/// The ALPN protocol ID of HTTP/2.
pub(super) const HTTP2: &[u8] = b"h2";

/// Whether a cipher suite belongs to TLS 1.3, whose suites all start with this byte (RFC 8446, appendix B.4).
pub fn is_tls13_suite(number: u16) -> bool {
    number & 0xff00 == 0x1300
}

/// A loaded certificate, reloaded when its files change while [`super::serve`] runs.
pub struct Tls {
    options: TlsOptions,
    loaded: RwLock<ActiveTls>,
    /// The fingerprint of the files at the last check, whether or not they were valid.
    fingerprint: Mutex<Fingerprint>,
    /// Whether they were invalid then, so that an earlier pair is in use.
    failed: AtomicBool,
}

#[derive(Clone)]
struct ActiveTls {
    config: Arc<ServerConfig>,
    /// The metadata of the server's own certificate, if it could be parsed.
    facts: Option<CertificateInfo>,
}

impl Tls {
    /// Loads all files. Also returns warnings, as whole sentences, about what works but is inadvisable.
    ///
    /// # Errors
    /// [`HttpError::Tls`] if a file is missing or unreadable, if its content is invalid, or if certificate and key do
    /// not match.
    pub fn load(options: TlsOptions) -> Result<(Self, Vec<String>), HttpError> {
        let fingerprint = Fingerprint::of(options.files());
        let (loaded, warnings) = read(&options).map_err(HttpError::Tls)?;
        let (loaded, fingerprint) = (RwLock::new(loaded), Mutex::new(fingerprint));
        Ok((Self { options, loaded, fingerprint, failed: AtomicBool::new(false) }, warnings))
    }

    /// Returns the configuration for the next handshake.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.loaded().config
    }

    /// Whether a client certificate authenticates the client.
    pub(super) fn verifies_clients(&self) -> bool {
        self.options.clients.demand.verifies()
    }

    /// Returns when the certificate in use expires, in seconds since 1970.
    pub(super) fn not_after(&self) -> Option<i64> {
        self.loaded().facts.map(|facts| facts.not_after)
    }

    /// Returns what is wrong with the validity period of the certificate in use.
    pub(super) fn validity(&self) -> Option<String> {
        self.loaded().facts?.validity(&self.name(), unix_now())
    }

    /// The name of the certificate in messages.
    pub(super) fn name(&self) -> String {
        self.options.certificate.name().display().to_string()
    }

    fn loaded(&self) -> ActiveTls {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reloads the files if they have changed since the last check. Returns `None` if they have not, warnings if the
    /// new pair is in use, or the reason why it is invalid and the old pair stays in use. May block.
    pub(super) fn refresh(&self) -> Option<Result<Vec<String>, TlsError>> {
        // Taken before reading the files, so that a change in between is noticed by the next check.
        let now = Fingerprint::of(self.options.files());
        let mut fingerprint = self.fingerprint.lock().unwrap_or_else(PoisonError::into_inner);
        if *fingerprint == now {
            return None;
        }
        *fingerprint = now;
        let found = read(&self.options);
        self.failed.store(found.is_err(), Ordering::Relaxed);
        Some(found.map(|(loaded, warnings)| {
            *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = loaded;
            warnings
        }))
    }

    /// Whether the files have changed since they were loaded and could not be reloaded.
    pub(super) fn reload_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }
}

/// Enough file metadata to notice a change; `None` for a missing file.
#[derive(Debug, PartialEq, Eq)]
pub struct Fingerprint(Vec<Option<(SystemTime, u64, u64, u64)>>);

impl Fingerprint {
    /// Returns the current fingerprint of files.
    pub fn of(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let one = |path: PathBuf| {
            let data = fs::metadata(path).ok()?;
            Some((data.modified().ok()?, data.len(), data.dev(), data.ino()))
        };
        Self(paths.into_iter().map(one).collect())
    }
}

fn read(options: &TlsOptions) -> Result<(ActiveTls, Vec<String>), TlsError> {
    let chain = options.certificate.certificates("certificate")?;
    let (key, mut warnings) = options.key.key()?;
    let (certificate_path, key_path) =
        (|| options.certificate.name().to_owned(), || options.key.name().to_owned());

    let provider = Arc::new(options.provider());
    let key = options.key.signing_key(key, &provider)?;
    let facts = chain.first().and_then(|own| CertificateInfo::of(own));
    let certificate = options.certificate.name().display().to_string();
    warnings.extend(facts.iter().flat_map(|facts| facts.warnings(&certificate, unix_now())));
    let pair = CertifiedKey::new(chain, key);
    match pair.keys_match() {
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(Error::InconsistentKeys(_)) => {
            return Err(TlsError::Mismatch { certificate: certificate_path(), key: key_path() });
        }
        Err(_) if facts.is_some_and(|facts| !facts.is_v3) => {
            return Err(TlsError::OldCertificate { path: certificate_path() });
        }
        Err(source) => return Err(TlsError::Certificate { path: certificate_path(), source }),
    }
    let serves = |suite: &SupportedCipherSuite| match suite {
        SupportedCipherSuite::Tls13(_) => options.tls13,
        SupportedCipherSuite::Tls12(suite) => options.tls12 && pair.key.choose_scheme(suite.sign).is_some(),
    };
    if !provider.cipher_suites.iter().any(serves) {
        return Err(TlsError::NoSuite { path: certificate_path() });
    }
    warnings.extend(useless_suites(options, &provider, &pair));
    let (clients, advice) = verifier(&options.clients, &provider)?;
    warnings.extend(advice);
    let mut versions = Vec::new();
    versions.extend(options.tls13.then_some(&TLS13));
    versions.extend(options.tls12.then_some(&TLS12));
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .map_err(TlsError::Setup)?;
    let builder = match clients {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    if options.http2 {
        config.alpn_protocols.insert(0, HTTP2.to_vec());
    }
    config.ignore_client_order = options.ignore_client_order;
    Ok((ActiveTls { config: Arc::new(config), facts }, warnings))
}

/// Returns a warning if no client can get any of the configured cipher suites. Those of TLS 1.3 are not configurable.
fn useless_suites(options: &TlsOptions, provider: &CryptoProvider, pair: &CertifiedKey) -> Option<String> {
    let is_useful = |suite: &SupportedCipherSuite| match suite {
        SupportedCipherSuite::Tls12(suite) => pair.key.choose_scheme(suite.sign).is_some(),
        SupportedCipherSuite::Tls13(_) => false,
    };
    if options.cipher_suites.is_empty() {
        None
    } else if !options.tls12 {
        Some("cipher_suites has no effect: it is for TLS 1.2, which is off".to_owned())
    } else if !provider.cipher_suites.iter().any(is_useful) {
        Some(format!(
            "clients that speak only TLS 1.2 cannot connect: none of cipher_suites is for TLS 1.2 and the key of {}; add \
             one, or set min_version: TLS13",
            options.certificate.name().display()
        ))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
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
}
