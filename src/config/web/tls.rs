//! Decodes `tls_server_config:`.

use super::keys::check_readable;
use super::sections::{CIPHER_SUITES, CLIENT_AUTH, CURVES, Named, TLS, VERSIONS, implemented};
use super::{mapping, present};
use crate::config::endpoint::{PemSetting, PemSource, TlsSettings, TlsVersions};
use crate::config::fields::{Fields, Node};
use crate::http::{Demand, is_tls13_suite};

/// Decodes the settings; `None` if there are none of importance, or if there are errors.
pub(super) fn decode(node: &Node<'_>) -> Option<TlsSettings> {
    let fields = mapping(node, &TLS)?;
    let errors = node.diags.len();
    let cert = pem(&fields, "cert_file", "cert", "the certificate");
    let key = pem(&fields, "key_file", "key", "the private key");
    let client_ca = pem(&fields, "client_ca_file", "client_ca", "the client authorities' certificates");
    let policy =
        present(&fields, "client_auth_type").map(|n| n.one_of("type of client authentication", CLIENT_AUTH));
    let client_auth = policy.unwrap_or(Some(Demand::None));
    let client_allowed_sans = texts(&fields, "client_allowed_sans");
    if client_auth == Some(Demand::None) {
        let needs = |at, what: &str| {
            node.diags
                .error(at, format!("{what} has no meaning without client_auth_type"))
                .help("set client_auth_type: RequireAndVerifyClientCert, or remove this");
        };
        if let Some(ca) = &client_ca {
            needs(&ca.at, "a client authority");
        }
        if let Some(node) = fields.get("client_allowed_sans").filter(|_| !client_allowed_sans.is_empty()) {
            needs(&node.at, "client_allowed_sans");
        }
    }
    let versions = versions(&fields);
    let mut left_out = Vec::new();
    let cipher_suites = codes(&fields, "cipher_suites", "cipher suite", CIPHER_SUITES, &mut left_out);
    if let (Some(node), Some(versions)) = (fields.get("cipher_suites"), versions)
        && !versions.tls13
        && !cipher_suites.is_empty()
        && cipher_suites.iter().all(|code| is_tls13_suite(*code))
    {
        node.error("max_version is TLS12, and none of these cipher suites is for it");
    }
    let curves = codes(&fields, "curve_preferences", "curve", CURVES, &mut left_out);
    let prefer_server_cipher_suites =
        present(&fields, "prefer_server_cipher_suites").map_or(Some(true), |n| n.boolean());
    let names = ["cert_file", "cert", "key_file", "key"];
    let is_meant = TLS.names().any(|name| present(&fields, name).is_some());
    let misspelt = names.iter().any(|name| !fields.has(name) && !fields.lacks(name));
    if is_meant && !misspelt && node.diags.len() == errors {
        for (pem, what) in [(&cert, "`cert_file` or `cert`"), (&key, "`key_file` or `key`")] {
            if pem.is_none() {
                fields
                    .error(format!("one of {what} is missing"))
                    .help("TLS needs a certificate and its private key");
            }
        }
    }
    if node.diags.len() != errors {
        return None;
    }
    Some(TlsSettings {
        at: node.at.clone(),
        cert: cert?,
        key: key?,
        client_auth: client_auth?,
        client_ca,
        client_allowed_sans,
        versions: versions?,
        cipher_suites,
        prefer_server_cipher_suites: prefer_server_cipher_suites?,
        curves,
        left_out,
    })
}

/// Decodes PEM data from a file or given as text.
fn pem(fields: &Fields<'_>, file: &str, text: &str, what: &str) -> Option<PemSetting> {
    match (present(fields, file), present(fields, text)) {
        (Some(_), Some(inline)) => {
            inline.error(format!("`{file}` and `{text}` are mutually exclusive")).help("keep one of them");
            None
        }
        (Some(node), None) => {
            let path = node.path()?;
            check_readable(&node.at, &path, what, node.diags);
            Some(PemSetting { at: node.at, source: PemSource::File(path) })
        }
        (None, Some(node)) => {
            let text = node.secret()?.to_owned();
            Some(PemSetting { at: node.at, source: PemSource::Text(text) })
        }
        (None, None) => None,
    }
}

fn versions(fields: &Fields<'_>) -> Option<TlsVersions> {
    let version = |key, default| {
        present(fields, key).map_or(Some(default), |node| node.one_of("version of TLS", VERSIONS))
    };
    let (oldest, newest) = (version("min_version", 2), version("max_version", 3));
    let (oldest, newest) = (oldest?, newest?);
    let node = present(fields, "max_version");
    if newest < 2 {
        node?
            .error("TLS 1.0 and 1.1 are not supported: they are broken (RFC 8996)")
            .help("set TLS12 or TLS13");
        return None;
    }
    if oldest > newest {
        let at = present(fields, "min_version").or(node)?;
        at.error("min_version is newer than max_version, so no client could connect");
        return None;
    }
    Some(TlsVersions { tls12: oldest <= 2, tls13: newest >= 3 })
}

fn texts(fields: &Fields<'_>, key: &str) -> Vec<String> {
    let Some(items) = present(fields, key).and_then(|node| node.list("a list of names")) else {
        return Vec::new();
    };
    items.iter().filter_map(|node| Some(node.text_as("a name")?.to_owned())).collect()
}

/// Decodes names in a table to their numbers. Those that are not implemented are left out, and added to `left_out`, if
/// others remain.
fn codes(
    fields: &Fields<'_>,
    key: &str,
    what: &str,
    table: &'static [Named],
    left_out: &mut Vec<String>,
) -> Vec<u16> {
    let Some(items) = present(fields, key).and_then(|node| node.list(&format!("a list of {what}s"))) else {
        return Vec::new();
    };
    let codes: Vec<_> = items.iter().map(|node| (node, node.one_of(what, table))).collect();
    let missing: Vec<_> =
        codes.iter().filter(|(_, code)| *code == Some(None)).map(|(node, _)| *node).collect();
    let found: Vec<u16> = codes.iter().filter_map(|(_, code)| code.flatten()).collect();
    if found.is_empty() {
        for node in missing {
            node.error(format!(
                "this {what} is known, but not implemented by this exporter's TLS library (rustls)"
            ))
            .help(format!("remove it; implemented: {}", implemented(table).join(", ")));
        }
    } else if !missing.is_empty() {
        let names: Vec<_> = missing.iter().filter_map(|node| node.text_as(what)).collect();
        left_out.push(format!(
            "{key}: {} left out, as this exporter's TLS library (rustls) does not implement them",
            names.join(", ")
        ));
    }
    found
}
