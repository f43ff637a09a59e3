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
mod tests;
