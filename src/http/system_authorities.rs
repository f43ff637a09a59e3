//! The system's certificate authorities.

use std::path::PathBuf;

use super::pem::Pem;

/// Where Linux distributions keep the bundle; the first existing file is used.
const FILES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Returns the system's bundle.
pub(super) fn system_authorities() -> Pem {
    let found = FILES.iter().map(PathBuf::from).find(|path| path.exists());
    Pem::File(found.unwrap_or_else(|| FILES[0].into()))
}
