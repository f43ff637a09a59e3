//! The certificate and its key: loading them, and loading them again when their files change.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{Error, InconsistentKeys};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::certificate::Facts;
use super::error::HttpError;
use super::tls_error::TlsError;

/// No certificate chain or key comes near this many bytes.
const MAX_FILE: u64 = 1 << 20;

/// Files in PEM format.
#[derive(Debug, Clone)]
pub struct TlsPaths {
    /// The certificate, followed by those between it and the root, if any.
    pub certificate: PathBuf,
    /// Its private key, not encrypted.
    pub key: PathBuf,
}

/// A loaded certificate, which follows its files while [`super::serve`] runs.
pub struct Tls {
    paths: TlsPaths,
    loaded: RwLock<Loaded>,
    /// The files as they were when they were last looked at, whether they were good or not.
    seen: Mutex<Fingerprint>,
    /// Whether they were not good then, so that the pair in use is an earlier one.
    failed: AtomicBool,
}

#[derive(Clone)]
struct Loaded {
    config: Arc<ServerConfig>,
    /// Of the server's own certificate, if it could be parsed.
    facts: Option<Facts>,
}

impl Tls {
    /// Reads both files. The strings are warnings, whole sentences, about what is unwise but works.
    ///
    /// # Errors
    /// [`HttpError::Tls`] when a file is missing or unreadable, does not hold what it should, or the two do
    /// not belong together.
    pub fn load(paths: TlsPaths) -> Result<(Self, Vec<String>), HttpError> {
        let seen = Fingerprint::of(&paths);
        let (loaded, warnings) = read(&paths).map_err(HttpError::Tls)?;
        let (loaded, seen) = (RwLock::new(loaded), Mutex::new(seen));
        Ok((Self { paths, loaded, seen, failed: AtomicBool::new(false) }, warnings))
    }

    /// The configuration for the next handshake.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.loaded().config
    }

    /// When the certificate in use ends, in seconds since 1970.
    pub(super) fn not_after(&self) -> Option<i64> {
        self.loaded().facts.map(|facts| facts.not_after)
    }

    /// What is wrong with the time that the certificate in use is valid for.
    pub(super) fn validity(&self) -> Option<String> {
        self.loaded().facts?.validity(&self.paths.certificate.display().to_string(), now())
    }

    fn loaded(&self) -> Loaded {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Loads the files again if they are not as they were at the last look: `None` when they are, the
    /// warnings when the new pair is in use, the reason when it is not good and the old one stays. May block.
    pub(super) fn refresh(&self) -> Option<Result<Vec<String>, TlsError>> {
        // Taken before the files are read: a change in between shows at the next look.
        let now = Fingerprint::of(&self.paths);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == now {
            return None;
        }
        *seen = now;
        let found = read(&self.paths);
        self.failed.store(found.is_err(), Ordering::Relaxed);
        Some(found.map(|(loaded, warnings)| {
            *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = loaded;
            warnings
        }))
    }

    /// Whether its files have changed since it was loaded and could not be loaded again.
    pub(super) fn reload_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    pub(super) fn paths(&self) -> &TlsPaths {
        &self.paths
    }
}

/// Enough of both files' metadata to notice a change; `None` for a file that is not there.
#[derive(PartialEq, Eq)]
struct Fingerprint([Option<(SystemTime, u64, u64, u64)>; 2]);

impl Fingerprint {
    fn of(paths: &TlsPaths) -> Self {
        Self([&paths.certificate, &paths.key].map(|path| {
            let data = fs::metadata(path).ok()?;
            Some((data.modified().ok()?, data.len(), data.dev(), data.ino()))
        }))
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

fn read(paths: &TlsPaths) -> Result<(Loaded, Vec<String>), TlsError> {
    let chain = read_chain(&paths.certificate)?;
    let (key, mut warnings) = read_key(&paths.key)?;

    let provider = Arc::new(ring::default_provider());
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(|source| TlsError::UnsupportedKey { path: paths.key.clone(), source })?;
    let facts = chain.first().and_then(|own| Facts::of(own));
    let certificate = paths.certificate.display().to_string();
    warnings.extend(facts.iter().flat_map(|facts| facts.warnings(&certificate, now())));
    let pair = CertifiedKey::new(chain, key);
    match pair.keys_match() {
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(Error::InconsistentKeys(_)) => {
            return Err(TlsError::Mismatch {
                certificate: paths.certificate.clone(),
                key: paths.key.clone(),
            });
        }
        Err(source) => return Err(TlsError::Certificate { path: paths.certificate.clone(), source }),
    }
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(TlsError::Setup)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((Loaded { config: Arc::new(config), facts }, warnings))
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read_file("certificate", path)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Pem { path: path.to_owned(), source })?;
    if chain.is_empty() {
        let has_key = contains(&bytes, "PRIVATE KEY-----");
        return Err(TlsError::NoCertificate { path: path.to_owned(), has_key });
    }
    Ok(chain)
}

fn read_key(path: &Path) -> Result<(PrivateKeyDer<'static>, Vec<String>), TlsError> {
    let display = path.display();
    let bytes = read_file("private key", path)?;
    // The second form is that of OpenSSL before 1.0, inside a section of the ordinary name.
    if contains(&bytes, "-----BEGIN ENCRYPTED PRIVATE KEY-----") || contains(&bytes, "Proc-Type: 4,ENCRYPTED")
    {
        return Err(TlsError::Encrypted { path: path.to_owned() });
    }
    let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::NoKey {
            path: path.to_owned(),
            has_certificate: contains(&bytes, "-----BEGIN CERTIFICATE-----"),
        },
        source => TlsError::Pem { path: path.to_owned(), source },
    })?;
    let mut warnings = Vec::new();
    // Reading by the group is an ordinary way to give a service its key.
    if let Ok(mode) = fs::metadata(path).map(|data| data.mode() & 0o777)
        && mode & 0o027 != 0
    {
        warnings.push(format!(
            "the private key {display} has unsafe permissions (mode {mode:03o}); run `chmod 600 {display}`"
        ));
    }
    Ok((key, warnings))
}

fn read_file(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let fail = |source| TlsError::Read { what, path: path.to_owned(), source };
    let data = fs::metadata(path).map_err(fail)?;
    if !data.is_file() {
        return Err(fail(io::Error::other("it is not a regular file")));
    }
    if data.len() > MAX_FILE {
        return Err(fail(io::Error::other(format!("it is too large ({} bytes)", data.len()))));
    }
    fs::read(path).map_err(fail)
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::http::Report;
    use crate::http::security::Security;
    use crate::http::server::follow;
    use crate::http::stats::HttpStats;

    struct Files {
        dir: TempDir,
        paths: TlsPaths,
    }

    /// A self-signed certificate and its key, as PEM.
    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    impl Files {
        fn new(certificate: &str, key: &str) -> Self {
            let dir = TempDir::new().unwrap();
            let paths =
                TlsPaths { certificate: dir.path().join("node.crt"), key: dir.path().join("node.key") };
            let files = Self { dir, paths };
            files.write(certificate, key);
            files
        }

        fn write(&self, certificate: &str, key: &str) {
            for (path, text) in [(&self.paths.certificate, certificate), (&self.paths.key, key)] {
                // A new inode each time, as programs that replace certificates do it.
                let new = self.dir.path().join("new");
                fs::write(&new, text).unwrap();
                fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
                fs::rename(&new, path).unwrap();
            }
        }

        fn error(&self) -> String {
            Tls::load(self.paths.clone()).err().expect("a bad pair was loaded").to_string()
        }
    }

    #[test]
    fn a_good_pair_loads_in_silence_and_an_open_key_warns() {
        let (certificate, key) = pair();
        let files = Files::new(&certificate, &key);
        assert_eq!(Tls::load(files.paths.clone()).unwrap().1, Vec::<String>::new());
        for (mode, warns) in [(0o640, false), (0o400, false), (0o644, true), (0o660, true)] {
            fs::set_permissions(&files.paths.key, fs::Permissions::from_mode(mode)).unwrap();
            let warnings = Tls::load(files.paths.clone()).unwrap().1;
            assert_eq!(warnings.len(), usize::from(warns), "{mode:o}: {warnings:?}");
            if warns {
                assert!(warnings[0].contains(&format!("mode {mode:03o}")), "{warnings:?}");
            }
        }
    }

    #[test]
    fn each_mistake_is_named() {
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
            (&certificate, "", "node.key contains no private key"),
            (
                &certificate,
                &certificate,
                "node.key contains no private key (no line `-----BEGIN PRIVATE KEY-----`, RSA or EC); it contains a certificate",
            ),
            (&certificate, cut, "truncated"),
            (&certificate, not_base64, "not valid base64"),
            (&certificate, bad_key, "is not supported"),
            ("", &key, "node.crt contains no certificate"),
            (&key, &key, "swapped?"),
            (not_der, &key, "is not usable"),
        ] {
            let text = Files::new(certificate, key).error();
            assert!(text.contains(reason), "wanted {reason:?}: {text}");
            assert!(text.contains("node.") && !text.contains("!secret!"), "{text}");
        }
    }

    #[test]
    fn a_missing_file_and_a_directory_are_named() {
        let (certificate, key) = pair();
        let files = Files::new(&certificate, &key);
        fs::remove_file(&files.paths.key).unwrap();
        let text = files.error();
        assert!(text.contains("failed to read the private key") && text.contains("No such file"), "{text}");
        fs::create_dir(&files.paths.key).unwrap();
        assert!(files.error().contains("not a regular file"));
    }

    #[test]
    fn a_new_pair_is_taken_and_a_bad_one_is_not() {
        let (certificate, key) = pair();
        let files = Files::new(&certificate, &key);
        let (tls, _) = Tls::load(files.paths.clone()).unwrap();
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

    /// It may be of other files, so that those of the one before stay as bad as they are.
    #[tokio::test]
    async fn a_pair_that_is_configured_after_a_bad_one_has_not_failed() {
        let (certificate, key) = pair();
        let load = |files: &Files| Tls::load(files.paths.clone()).unwrap().0;
        let (files, others) = (Files::new(&certificate, &key), Files::new(&certificate, &key));
        let security = Arc::new(Security::new(None, Some(load(&files))));
        let stats = Arc::new(HttpStats::default());
        let (_running, stopped) = tokio::sync::watch::channel(());
        let every = Duration::from_millis(10);
        let report: Report = Arc::new(|_| {});
        let followed = follow(security.clone(), every, vec![stats.clone()], report, stopped);
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
        security.set(None, Some(load(&others)));
        until(false).await;
        followed.abort();
    }
}
