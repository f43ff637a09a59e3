//! Certificates and keys in PEM format, from files or as text.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::sign::SigningKey;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::mistaken;
use super::tls_error::TlsError;

/// The maximum file size in bytes; no certificate chain, key or list of authorities comes near it.
const MAX_FILE: u64 = 4 << 20;

/// A source of PEM data.
#[derive(Clone)]
pub enum Pem {
    File(PathBuf),
    /// The PEM text, and its name in messages.
    Text {
        name: PathBuf,
        text: String,
    },
}

impl Pem {
    /// Returns the file's path, or the name in messages.
    pub fn name(&self) -> &Path {
        match self {
            Pem::File(path) => path,
            Pem::Text { name, .. } => name,
        }
    }

    pub(super) fn file(&self) -> Option<&Path> {
        match self {
            Pem::File(path) => Some(path),
            Pem::Text { .. } => None,
        }
    }

    fn read(&self, what: &'static str) -> Result<Vec<u8>, TlsError> {
        let bytes = match self {
            Pem::File(path) => read_file(what, path)?,
            Pem::Text { text, .. } => text.clone().into_bytes(),
        };
        match mistaken::encoding(&bytes) {
            Some(problem) => Err(TlsError::Encoding { what, path: self.name().to_owned(), problem }),
            None => Ok(bytes),
        }
    }

    /// Returns all certificates, at least one: a chain, or authorities.
    pub(super) fn certificates(&self, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let bytes = self.read(what)?;
        let path = || self.name().to_owned();
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
            .collect::<Result<_, _>>()
            .map_err(|source| TlsError::Pem { path: path(), source })?;
        if chain.is_empty() {
            return Err(TlsError::NoCertificate { path: path(), found: mistaken::section(&bytes) });
        }
        Ok(chain)
    }

    /// Returns the private key, and warnings about its file.
    pub(super) fn key(&self) -> Result<(PrivateKeyDer<'static>, Vec<String>), TlsError> {
        let bytes = self.read("private key")?;
        let path = || self.name().to_owned();
        // The second form is that of OpenSSL before 1.0, within a section of the usual name.
        if contains(&bytes, "-----BEGIN ENCRYPTED PRIVATE KEY-----")
            || contains(&bytes, "Proc-Type: 4,ENCRYPTED")
        {
            return Err(TlsError::Encrypted { path: path() });
        }
        let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| match error {
            pem::Error::NoItemsFound => TlsError::NoKey { path: path(), found: mistaken::section(&bytes) },
            source => TlsError::Pem { path: path(), source },
        })?;
        let mut warnings = Vec::new();
        // Read permission for the group is a common way to give a service its key.
        if let Some(mode) =
            self.file().and_then(|path| fs::metadata(path).ok()).map(|data| data.mode() & 0o777)
            && mode & 0o027 != 0
        {
            let display = self.name().display();
            warnings.push(format!(
                "the private key {display} has unsafe permissions (mode {mode:03o}); run `chmod 600 {display}`"
            ));
        }
        Ok((key, warnings))
    }

    /// Returns the key that was read from here in the form that signs.
    ///
    /// # Errors
    /// If its type is not supported.
    pub(super) fn signing_key(
        &self,
        key: PrivateKeyDer<'static>,
        provider: &CryptoProvider,
    ) -> Result<Arc<dyn SigningKey>, TlsError> {
        let kind = mistaken::key(&key);
        let unsupported = |source| TlsError::UnsupportedKey { path: self.name().to_owned(), kind, source };
        provider.key_provider.load_private_key(key).map_err(unsupported)
    }
}

fn read_file(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let fail = |source| TlsError::Read { what, path: path.to_owned(), source };
    // Nothing else may be behind this name, which a reading could wait for or never end.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(fail)?;
    if !file.metadata().map_err(fail)?.is_file() {
        return Err(fail(io::Error::other("it is not a regular file")));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(fail(io::Error::other(format!("it has more than {MAX_FILE} bytes"))));
    }
    Ok(bytes)
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
