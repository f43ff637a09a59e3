//! Errors of certificates and keys.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustls::CertificateError;
use rustls_pki_types::pem;

/// Why a certificate or its key is unusable. The message names the file, says what to do, and quotes nothing from the
/// file, which may contain a key.
#[derive(Debug)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read; `what` is its expected content.
    Read { what: &'static str, path: PathBuf, source: io::Error },
    /// The file is empty or has another encoding; `what` is its expected content.
    Encoding { what: &'static str, path: PathBuf, problem: &'static str },
    /// The content is not valid PEM.
    Pem { path: PathBuf, source: pem::Error },
    /// The file contains no certificate, but possibly something else.
    NoCertificate { path: PathBuf, found: Option<&'static str> },
    /// The file contains no key, but possibly something else.
    NoKey { path: PathBuf, found: Option<&'static str> },
    /// The key is protected by a passphrase.
    Encrypted { path: PathBuf },
    /// The type of the key is not supported.
    UnsupportedKey { path: PathBuf, kind: Option<&'static str>, source: rustls::Error },
    /// Key and certificate do not match.
    Mismatch { certificate: PathBuf, key: PathBuf },
    /// The certificate's version is below 3.
    OldCertificate { path: PathBuf },
    /// The certificate is unusable.
    Certificate { path: PathBuf, source: rustls::Error },
    /// The certificates are unusable as authorities.
    Authority { path: PathBuf },
    /// With this key and the configured cipher suites, no client could connect.
    NoSuite { path: PathBuf },
    /// They do not result in a valid TLS configuration.
    Setup(rustls::Error),
}

impl TlsError {
    /// Returns the file concerned, or the name in messages; for a pair, that of the certificate.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Read { path, .. }
            | Self::Encoding { path, .. }
            | Self::Pem { path, .. }
            | Self::NoCertificate { path, .. }
            | Self::NoKey { path, .. }
            | Self::Encrypted { path }
            | Self::UnsupportedKey { path, .. }
            | Self::Mismatch { certificate: path, .. }
            | Self::OldCertificate { path }
            | Self::Certificate { path, .. }
            | Self::NoSuite { path }
            | Self::Authority { path } => Some(path),
            Self::Setup(_) => None,
        }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { what, path, source } => {
                write!(f, "failed to read the {what} {}: {source}", path.display())
            }
            Self::Encoding { what, path, problem } => {
                write!(f, "the {what} {} {problem}", path.display())
            }
            Self::Pem { path, source } => {
                write!(f, "{} is not valid PEM: {}", path.display(), pem_problem(source))
            }
            Self::NoCertificate { path, found } => {
                let path = path.display();
                write!(f, "{path} contains no certificate (no line `-----BEGIN CERTIFICATE-----`)")?;
                contents(*found, f)
            }
            Self::NoKey { path, found } => {
                let path = path.display();
                write!(
                    f,
                    "{path} contains no private key (no line `-----BEGIN PRIVATE KEY-----`, RSA or EC)"
                )?;
                contents(*found, f)
            }
            Self::Encrypted { path } => {
                let path = path.display();
                write!(
                    f,
                    "the private key in {path} is encrypted, which is not supported; decrypt it with `openssl pkey \
                     -in {path} -out NEW`, into a directory that only the exporter can read"
                )
            }
            Self::UnsupportedKey { path, kind, source } => {
                let path = path.display();
                match kind {
                    Some(kind) => write!(f, "the private key in {path} is not supported: {kind}")?,
                    None => write!(f, "the private key in {path} is not supported ({source})")?,
                }
                write!(f, "; supported: RSA with 2048 to 8192 bits, ECDSA P-256 and P-384, Ed25519")
            }
            Self::Mismatch { certificate, key } => write!(
                f,
                "the private key in {} does not match the first certificate in {}",
                key.display(),
                certificate.display()
            ),
            Self::OldCertificate { path } => write!(
                f,
                "the certificate {} is X.509 version 1, which clients reject; issue a version 3 certificate",
                path.display()
            ),
            Self::Certificate { path, source } => {
                let path = path.display();
                match source {
                    rustls::Error::InvalidCertificate(CertificateError::BadEncoding) => {
                        write!(
                            f,
                            "the first certificate in {path} is damaged: its base64 text is no certificate"
                        )
                    }
                    other => write!(f, "the first certificate in {path} is not usable: {other}"),
                }
            }
            Self::Authority { path } => {
                write!(f, "a certificate in {} is not usable as that of an authority", path.display())
            }
            Self::NoSuite { path } => write!(
                f,
                "none of the cipher suites is for the key of {}, so no client could connect; TLS 1.2 needs one with ECDSA in its \
                 name for an EC key, with RSA for an RSA key",
                path.display()
            ),
            Self::Setup(source) => write!(f, "failed to set up TLS: {source}"),
        }
    }
}

fn contents(found: Option<&'static str>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match found {
        Some(what @ ("a private key" | "a certificate")) => {
            write!(f, "; it contains {what}: are tls_cert and tls_key swapped?")
        }
        Some(what) => write!(f, "; it contains {what}"),
        None => Ok(()),
    }
}

/// Describes the problem with a PEM file.
fn pem_problem(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no END line; the file may be truncated",
        pem::Error::IllegalSectionStart { .. } => "a BEGIN line is malformed",
        pem::Error::Base64Decode(_) => "a section is not valid base64",
        _ => "it cannot be parsed",
    }
}

impl Error for TlsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Read { source, .. } => Some(source),
            Self::UnsupportedKey { source, .. } | Self::Certificate { source, .. } | Self::Setup(source) => {
                Some(source)
            }
            // A PEM error may quote the file's content.
            Self::Encoding { .. }
            | Self::OldCertificate { .. }
            | Self::Pem { .. }
            | Self::NoCertificate { .. }
            | Self::NoKey { .. }
            | Self::Encrypted { .. }
            | Self::Authority { .. }
            | Self::NoSuite { .. }
            | Self::Mismatch { .. } => None,
        }
    }
}
