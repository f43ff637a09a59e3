//! The exporter's own keys for a single user and a certificate.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::config::diagnose::Diagnostics;
use crate::config::endpoint::{Auth, PemSetting, PemSource, TlsSettings, TlsVersions};
use crate::config::fields::Node;
use crate::config::layers::{Layers, Sourced};
use crate::config::limits::PASSWORD_FILE_BYTES;
use crate::config::place::Place;
use crate::config::words::quote;
use crate::http::Demand;
use crate::regular;

/// Decodes the user; also returns the file that provides the password, if any.
pub(super) fn auth(layers: &Layers<'_>, complete: bool) -> (Option<Auth>, Option<(Place, PathBuf)>) {
    let username = layers.read("metrics_auth_username", username);
    let inline = layers.read("metrics_auth_password", |n| n.secret().map(str::to_owned));
    let file = layers.read("metrics_auth_password_file", |n| n.path());
    let mut from_file = None;
    let password = match (inline, file) {
        (Some(inline), Some(file)) if inline.rank == file.rank => {
            layers
                .diags
                .error(
                    &file.at,
                    "metrics_auth_password and metrics_auth_password_file are mutually exclusive",
                )
                .help("keep one of them; the file is safer");
            return (None, None);
        }
        (Some(inline), file) if file.as_ref().is_none_or(|file| file.rank < inline.rank) => Some(inline),
        (_, Some(file)) => {
            let read = read_secret(&file.at, &file.value, "password", layers.diags);
            from_file = Some((file.at.clone(), file.value));
            let Some(value) = read else { return (None, None) };
            Some(Sourced { at: file.at, value, rank: file.rank })
        }
        (_, None) => None,
    };
    let auth = match (username, password) {
        (Some(username), Some(password)) => {
            Some(Auth { at: password.at, username: username.value, password: password.value })
        }
        (Some(username), None) if complete && !gave_password(layers) => {
            layers
                .diags
                .error(&username.at, "the user has no password")
                .help("set metrics_auth_password_file (or metrics_auth_password) too, or remove the user");
            None
        }
        (None, Some(password)) if complete && !layers.has("metrics_auth_username") => {
            layers
                .diags
                .error(&password.at, "a password is set without metrics_auth_username")
                .help("set metrics_auth_username too, or remove the password");
            None
        }
        _ => None,
    };
    (auth, from_file)
}

/// Whether a password was set at all: an invalid one has been reported and is not missing.
fn gave_password(layers: &Layers<'_>) -> bool {
    layers.has("metrics_auth_password") || layers.has("metrics_auth_password_file")
}

fn username(node: &Node<'_>) -> Option<String> {
    let name = node.text_as("a user name")?;
    if name.contains(':') || name.chars().any(char::is_control) {
        node.error(format!(
            "{} is not a valid user name: basic authentication does not allow a colon",
            quote(name)
        ));
        return None;
    }
    Some(name.to_owned())
}

/// Reads a file that contains a secret (`what` describes it), without the trailing newline that editors leave.
pub(in crate::config) fn read_secret(
    at: &Place,
    path: &Path,
    what: &str,
    diags: &Diagnostics,
) -> Option<String> {
    let error = |err: String| diags.error(at, err);
    let mut text = String::new();
    let read =
        regular::open_or_pipe(path).and_then(|f| f.take(PASSWORD_FILE_BYTES + 1).read_to_string(&mut text));
    let path = path.display();
    if let Err(err) = read {
        error(format!("failed to read the {what} from {path}: {err}"));
        return None;
    }
    let secret =
        text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    if text.len() as u64 > PASSWORD_FILE_BYTES {
        error(format!("{path} is too large for a {what} file: at most {PASSWORD_FILE_BYTES} bytes"));
    } else if secret.is_empty() {
        error(format!("{path} is empty; it must contain the {what}"));
    } else if secret.starts_with('\u{feff}') {
        error(format!(
            "{path} begins with a byte order mark (BOM), which would belong to the {what}; save it without one"
        ));
    } else if secret.ends_with([' ', '\t', '\r']) || secret.starts_with([' ', '\t']) {
        error(format!("{path} has blanks beside the {what}, which Prometheus would leave out; remove them"));
    } else if secret.contains('\n') {
        error(format!("{path} has more than one line; it must contain only the {what}"));
    } else {
        return Some(secret.to_owned());
    }
    None
}

/// Decodes the certificate and its key.
pub(super) fn tls(layers: &Layers<'_>, complete: bool) -> Option<TlsSettings> {
    let cert = layers.read("tls_cert", |n| n.path());
    let key = layers.read("tls_key", |n| n.path());
    let errors = layers.diags.len();
    for (given, what) in [(&cert, "the certificate"), (&key, "the private key")] {
        if let Some(given) = given {
            check_readable(&given.at, &given.value, what, layers.diags);
        }
    }
    let readable = layers.diags.len() == errors;
    let alone = |given: &Sourced<PathBuf>, what: &str, other: &str| {
        if complete && !layers.has(other) {
            layers
                .diags
                .error(&given.at, what)
                .help(format!("set {other} too, or remove this setting to serve plain HTTP"));
        }
    };
    match (cert, key) {
        (Some(cert), Some(key)) => readable.then(|| of_files(cert, key)),
        (Some(cert), None) => {
            alone(&cert, "tls_cert is set without tls_key", "tls_key");
            None
        }
        (None, Some(key)) => {
            alone(&key, "tls_key is set without tls_cert", "tls_cert");
            None
        }
        (None, None) => None,
    }
}

fn of_files(cert: Sourced<PathBuf>, key: Sourced<PathBuf>) -> TlsSettings {
    let pem = |given: Sourced<PathBuf>| PemSetting { at: given.at, source: PemSource::File(given.value) };
    TlsSettings {
        at: cert.at.clone(),
        cert: pem(cert),
        key: pem(key),
        client_auth: Demand::None,
        client_ca: None,
        client_allowed_sans: Vec::new(),
        versions: TlsVersions::default(),
        cipher_suites: Vec::new(),
        prefer_server_cipher_suites: false,
        curves: Vec::new(),
        left_out: Vec::new(),
    }
}

/// Reports a file that cannot be opened and read. A directory can be opened, so a byte is read too.
pub(super) fn check_readable(at: &Place, path: &Path, what: &str, diags: &Diagnostics) {
    let read = regular::open_or_pipe(path).and_then(|mut file| file.read(&mut [0]));
    match read {
        Ok(0) => diags.error(at, format!("{what} {} is empty", path.display())),
        Ok(_) => return,
        Err(err) => diags.error(at, format!("failed to read {what} {}: {err}", path.display())),
    };
}
