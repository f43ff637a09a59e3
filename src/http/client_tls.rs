//! TLS for outgoing connections: the trusted authorities and the client certificate.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::crypto::ring;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, Error, InconsistentKeys, RootCertStore};

use super::error::HttpError;
use super::pem::Pem;
use super::system_authorities::system_authorities;
use super::tls::Fingerprint;
use super::tls_error::TlsError;

/// The TLS files of a client, which are reloaded when they change.
pub struct ClientTls {
    /// The authority that must have issued the server's certificate; the system's authorities if `None`.
    authority: Option<Pem>,
    /// The client certificate and its key.
    identity: Option<(Pem, Pem)>,
    loaded: Mutex<Option<(Fingerprint, Arc<ClientConfig>)>>,
}

impl ClientTls {
    /// Uses `authority` instead of the system's authorities, and `identity` as the client certificate and key, where
    /// given.
    pub fn new(authority: Option<PathBuf>, identity: Option<(PathBuf, PathBuf)>) -> Self {
        let identity = identity.map(|(certificate, key)| (Pem::File(certificate), Pem::File(key)));
        Self { authority: authority.map(Pem::File), identity, loaded: Mutex::new(None) }
    }

    /// Returns the configuration for the next connection.
    ///
    /// # Errors
    /// [`HttpError::Tls`] if a file is missing or its content is invalid.
    pub fn current(&self) -> Result<Arc<ClientConfig>, HttpError> {
        let authority = self.authority.clone().unwrap_or_else(system_authorities);
        let pems = [Some(&authority)]
            .into_iter()
            .chain(self.identity.as_ref().map_or([None, None], |(a, b)| [Some(a), Some(b)]));
        let now = Fingerprint::of(pems.flatten().filter_map(|pem| Some(pem.file()?.to_owned())));
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, config)) = loaded.as_ref().filter(|(then, _)| *then == now) {
            return Ok(config.clone());
        }
        let config = Arc::new(self.read(&authority).map_err(HttpError::Tls)?);
        *loaded = Some((now, config.clone()));
        Ok(config)
    }

    fn read(&self, authority: &Pem) -> Result<ClientConfig, TlsError> {
        let mut roots = RootCertStore::empty();
        let certificates = authority.certificates("authorities' certificates")?;
        // The system's bundle may contain certificates that cannot be parsed.
        let (_, refused) = roots.add_parsable_certificates(certificates);
        if roots.is_empty() || (refused > 0 && self.authority.is_some()) {
            return Err(TlsError::Authority { path: authority.name().to_owned() });
        }
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .with_root_certificates(roots);
        let Some((certificate, key)) = &self.identity else { return Ok(builder.with_no_client_auth()) };
        let chain = certificate.certificates("certificate")?;
        let (der, _) = key.key()?;
        let pair = CertifiedKey::new(chain, key.signing_key(der, &provider)?);
        // A certificate that cannot be checked (X.509 version 1, for example) is left to the server to judge.
        if let Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) = pair.keys_match() {
            let certificate = certificate.name().to_owned();
            return Err(TlsError::Mismatch { certificate, key: key.name().to_owned() });
        }
        Ok(builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair))))
    }
}
