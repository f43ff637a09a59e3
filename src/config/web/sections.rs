//! The keys of a web configuration and the words allowed as values.

use std::borrow::Cow;

use crate::config::section::{Key, Schema, Section, words};
use crate::http::Demand;

/// The `web:` section, and the whole of a web configuration file.
pub static WEB: Section = Section {
    name: "web",
    what: "a web configuration",
    about: "How the endpoints are secured, in the format of Prometheus's exporters (exporter-toolkit). A file \
            of this form can be given with `web_config_file` instead. It is read again when it changes.",
    keys: Cow::Borrowed(&[
        Key::new("tls_server_config", Schema::Section(|| &TLS), "Certificates and TLS."),
        Key::new("http_server_config", Schema::Section(|| &HTTP), "HTTP."),
        Key::new(
            "basic_auth_users",
            Schema::Map(&Schema::Text),
            "Users and the bcrypt hashes of their passwords, which `exporter hash-password` prints.",
        ),
        Key::new("rate_limit", Schema::Section(|| &RATE_LIMIT), "Limit of requests, for each client."),
    ]),
    one_of: &[],
};

/// The `tls_server_config:` section.
pub static TLS: Section = Section {
    name: "tls_server_config",
    what: "the TLS configuration",
    about: "Certificate, client certificates and TLS versions. Relative paths start at the file's directory.",
    keys: Cow::Borrowed(&[
        Key::new("cert_file", Schema::Path, "Certificate chain (PEM)."),
        Key::new("key_file", Schema::Path, "Private key of the certificate (PEM)."),
        Key::new("cert", Schema::Text, "The certificate chain itself (PEM), instead of `cert_file`."),
        Key::new("key", Schema::Text, "The private key itself (PEM), instead of `key_file`."),
        Key::new(
            "client_auth_type",
            Schema::Words(client_auth_types),
            "Requirements for client certificates.",
        )
        .or("NoClientCert"),
        Key::new(
            "client_ca_file",
            Schema::Path,
            "Certificates (PEM) of the authorities that issue client certificates. Default: all that the system trusts.",
        ),
        Key::new(
            "client_ca",
            Schema::Text,
            "The same certificates themselves (PEM), instead of `client_ca_file`.",
        ),
        Key::new(
            "client_allowed_sans",
            Schema::List(&Schema::Text),
            "Subject alternative names (DNS, IP, email or URI), one of which a client's certificate must have.",
        ),
        Key::new(
            "min_version",
            Schema::Words(versions),
            "Oldest version of TLS; versions below 1.2 are not supported.",
        )
        .or("TLS12"),
        Key::new("max_version", Schema::Words(versions), "Newest version of TLS.").or("TLS13"),
        Key::new(
            "cipher_suites",
            Schema::List(&Schema::Words(cipher_suites)),
            "Cipher suites for TLS 1.2. Those of TLS 1.3 are always available.",
        ),
        Key::new(
            "prefer_server_cipher_suites",
            Schema::Boolean,
            "Whether the server's order of cipher suites takes precedence over the client's.",
        )
        .or("true"),
        Key::new(
            "curve_preferences",
            Schema::List(&Schema::Words(curves)),
            "Key exchange groups, the preferred first.",
        ),
    ]),
    one_of: &[],
};

/// The `http_server_config:` section.
pub static HTTP: Section = Section {
    name: "http_server_config",
    what: "the HTTP configuration",
    about: "HTTP.",
    keys: Cow::Borrowed(&[
        Key::new(
            "http2",
            Schema::Boolean,
            "Serve HTTP/2, too, over TLS, one request at a time for each connection.",
        )
        .or("false"),
        Key::new("headers", Schema::Section(|| &HEADERS), "Headers of every response."),
    ]),
    one_of: &[],
};

/// The `headers:` section.
pub static HEADERS: Section = Section {
    name: "headers",
    what: "the headers",
    about: "Headers of every response.",
    keys: Cow::Borrowed(&[
        Key::new("Content-Security-Policy", Schema::LabelText, "As it is sent."),
        Key::new("X-Frame-Options", Schema::Words(|| FRAME_OPTIONS.to_vec()), "As it is sent."),
        Key::new("X-Content-Type-Options", Schema::Words(|| CONTENT_TYPE_OPTIONS.to_vec()), "As it is sent.")
            .or("nosniff"),
        Key::new("X-XSS-Protection", Schema::LabelText, "As it is sent."),
        Key::new("Strict-Transport-Security", Schema::LabelText, "As it is sent."),
    ]),
    one_of: &[],
};

/// The `rate_limit:` section.
pub static RATE_LIMIT: Section = Section {
    name: "rate_limit",
    what: "the rate limit",
    about: "A token bucket for each client: by its address, and apart for those whose password or certificate is \
            known already, so that strangers cannot use up the requests of a scraper behind the same address. \
            Further requests get the status 429.",
    keys: Cow::Borrowed(&[
        Key::new(
            "interval",
            Schema::Either(&[Schema::Text, Schema::Integer(0, 0)]),
            "Time between two requests, such as 1s; 0 means no limit.",
        )
        .or("0"),
        Key::new(
            "burst",
            Schema::Integer(0, 1_000_000),
            "Burst of requests that is allowed at once; with 0, none is served.",
        )
        .or("0"),
    ]),
    one_of: &[],
};

const FRAME_OPTIONS: &[&str] = &["deny", "sameorigin"];
const CONTENT_TYPE_OPTIONS: &[&str] = &["nosniff"];

/// Returns the allowed values of a header; empty for any.
pub(super) fn header_values(name: &str) -> &'static [&'static str] {
    match name {
        "X-Frame-Options" => FRAME_OPTIONS,
        "X-Content-Type-Options" => CONTENT_TYPE_OPTIONS,
        _ => &[],
    }
}

/// `RequireClientCert` is an older name in exporter-toolkit.
pub(super) const CLIENT_AUTH: &[(&str, Demand)] = &[
    ("NoClientCert", Demand::None),
    ("RequestClientCert", Demand::Request),
    ("RequireAnyClientCert", Demand::RequireAny),
    ("RequireClientCert", Demand::RequireAny),
    ("VerifyClientCertIfGiven", Demand::VerifyIfGiven),
    ("RequireAndVerifyClientCert", Demand::RequireAndVerify),
];

/// Versions as the minor number after "TLS 1.".
pub(super) const VERSIONS: &[(&str, u8)] = &[("TLS10", 0), ("TLS11", 1), ("TLS12", 2), ("TLS13", 3)];

/// A name in the format, and its number (IANA, TLS parameters); `None` if it is not implemented.
pub(super) type Named = (&'static str, Option<u16>);

/// The cipher suites of Go that exporter-toolkit accepts. For TLS 1.3 the choice has no effect in Go either.
pub(super) const CIPHER_SUITES: &[Named] = &[
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", Some(0xc02b)),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", Some(0xc02c)),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", Some(0xc02f)),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", Some(0xc030)),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", Some(0xcca9)),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", Some(0xcca8)),
    ("TLS_AES_128_GCM_SHA256", Some(0x1301)),
    ("TLS_AES_256_GCM_SHA384", Some(0x1302)),
    ("TLS_CHACHA20_POLY1305_SHA256", Some(0x1303)),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", None),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA", None),
    ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", None),
    ("TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA", None),
    // Accepted by exporters that were built with Go before 1.22.
    ("TLS_RSA_WITH_AES_128_CBC_SHA", None),
    ("TLS_RSA_WITH_AES_256_CBC_SHA", None),
    ("TLS_RSA_WITH_AES_128_GCM_SHA256", None),
    ("TLS_RSA_WITH_AES_256_GCM_SHA384", None),
];

/// The key exchange groups that exporter-toolkit accepts.
pub(super) const CURVES: &[Named] = &[
    ("X25519", Some(0x001d)),
    ("CurveP256", Some(0x0017)),
    ("CurveP384", Some(0x0018)),
    ("CurveP521", None),
];

fn client_auth_types() -> Vec<&'static str> {
    words(CLIENT_AUTH)
}

fn versions() -> Vec<&'static str> {
    words(VERSIONS)
}

/// Returns the names in a table that are implemented.
pub(super) fn implemented(table: &'static [Named]) -> Vec<&'static str> {
    table.iter().filter(|(_, code)| code.is_some()).map(|(name, _)| *name).collect()
}

fn cipher_suites() -> Vec<&'static str> {
    implemented(CIPHER_SUITES)
}

fn curves() -> Vec<&'static str> {
    implemented(CURVES)
}
