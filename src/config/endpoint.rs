//! The configuration of the endpoints: where they listen, who has access, and how connections are secured.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use super::place::Place;
use crate::http::{Demand, Rate};

/// Where metrics are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// On port `metrics_port` of the address `bind`.
    Port,
    /// On all of these addresses.
    Addresses(Vec<ListenAddress>),
    /// On the sockets that the service manager opened.
    Inherited,
}

/// A listening address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// Without a host: all addresses of the machine.
    Tcp {
        host: Option<String>,
        port: u16,
    },
    Unix(PathBuf),
}

impl ListenAddress {
    /// Whether the two cannot be bound at the same time. `[::]` next to an IPv4 address with the same port means IPv6
    /// only.
    pub fn excludes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unix(one), Self::Unix(other)) => one == other,
            (Self::Tcp { host, port }, Self::Tcp { host: other, port: of_other }) => {
                port == of_other
                    && match (host, other) {
                        (Some(one), Some(other)) => one == other || overlap(one, other),
                        _ => true,
                    }
            }
            _ => false,
        }
    }

    /// Whether it is `[::]`, and `all` contains an IPv4 address with the same port.
    pub fn is_ipv6_beside(&self, all: &[Self]) -> bool {
        let Self::Tcp { host: Some(host), port } = self else { return false };
        let is_ipv4 = |other: &Self| match other {
            Self::Tcp { host: Some(host), port: of_other } => {
                port == of_other && literal(host).is_some_and(|address| address.is_ipv4())
            }
            _ => false,
        };
        literal(host) == Some(Ipv6Addr::UNSPECIFIED.into()) && all.iter().any(is_ipv4)
    }
}

/// As written on the command line.
impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host: None, port } => write!(f, ":{port}"),
            Self::Tcp { host: Some(host), port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host: Some(host), port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Parses an address. Host names are not resolved, except for `localhost`, which is the same everywhere. The kernel
/// treats `::ffff:127.0.0.1` as an IPv4 address, too.
fn literal(host: &str) -> Option<IpAddr> {
    if host == "localhost" {
        return Some(Ipv4Addr::LOCALHOST.into());
    }
    host.parse().ok().map(|address: IpAddr| address.to_canonical())
}

fn overlap(one: &str, other: &str) -> bool {
    let (Some(one), Some(other)) = (literal(one), literal(other)) else { return false };
    one.is_ipv4() == other.is_ipv4() && (one == other || one.is_unspecified() || other.is_unspecified())
}

/// How the endpoints are secured.
#[derive(Debug, Clone, Default)]
pub struct Web {
    /// The users who have access; if empty, everyone has.
    pub users: Vec<Auth>,
    /// The names of users with write access.
    pub writers: Vec<String>,
    pub tls: Option<TlsSettings>,
    /// Headers added to every response.
    pub headers: Vec<(&'static str, String)>,
    pub rate_limit: Option<Rate>,
    /// Whether HTTP/2 is also served, over TLS.
    pub http2: bool,
    /// The sources of these settings.
    pub origin: Origin,
}

/// The sources of the security settings, so that the files among them can be reloaded.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// From `metrics_auth_username` and one of the password settings.
    pub auth: Option<Auth>,
    /// From `metrics_auth_password_file`, if it provides the password.
    pub password_file: Option<(Place, PathBuf)>,
    /// From `tls_cert` and `tls_key`.
    pub tls: Option<TlsSettings>,
    /// The web configuration file.
    pub file: Option<(Place, PathBuf)>,
    /// From `web_writers`.
    pub writers: Vec<(Place, String)>,
}

impl Origin {
    /// Returns the files whose content is part of the settings, other than those of TLS.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.password_file.iter().chain(&self.file).map(|(_, path)| path)
    }
}

/// A user. The password is never printed: `Debug` hides it.
#[derive(Clone)]
pub struct Auth {
    /// Where the password is set.
    pub at: Place,
    pub username: String,
    /// In plain text, or as a bcrypt hash.
    pub password: String,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("username", &self.username).field("password", &"<hidden>").finish()
    }
}

/// TLS settings; the place is where the configuration enables TLS.
#[derive(Debug, Clone)]
pub struct TlsSettings {
    pub at: Place,
    pub cert: PemSetting,
    pub key: PemSetting,
    pub client_auth: Demand,
    /// The authority that issues client certificates; the system's authorities if `None`.
    pub client_ca: Option<PemSetting>,
    /// A client certificate must have one of these names; an empty list allows any.
    pub client_allowed_sans: Vec<String>,
    pub versions: TlsVersions,
    /// Cipher suites for TLS 1.2 by IANA number, in order of preference; empty for all.
    pub cipher_suites: Vec<u16>,
    /// The server's order of preference takes precedence over the client's.
    pub prefer_server_cipher_suites: bool,
    /// Key exchange groups by IANA number, in order of preference; empty for all.
    pub curves: Vec<u16>,
    /// Warnings about what is configured but not implemented.
    pub left_out: Vec<String>,
}

/// PEM data, and where the configuration refers to it.
#[derive(Clone)]
pub struct PemSetting {
    pub at: Place,
    pub source: PemSource,
}

#[derive(Clone)]
pub enum PemSource {
    File(PathBuf),
    /// The PEM text itself.
    Text(String),
}

/// Hides the text, which may be a private key.
impl fmt::Debug for PemSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            PemSource::File(path) => write!(f, "{}", path.display()),
            PemSource::Text(_) => f.write_str("<hidden>"),
        }
    }
}

/// The enabled versions of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlsVersions {
    pub tls12: bool,
    pub tls13: bool,
}

impl Default for TlsVersions {
    fn default() -> Self {
        Self { tls12: true, tls13: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str) -> ListenAddress {
        ListenAddress::Tcp { host: Some(host.to_owned()), port: 1 }
    }

    #[test]
    fn conflicting_addresses_are_detected() {
        let all = ListenAddress::Tcp { host: None, port: 1 };
        let other_port = ListenAddress::Tcp { host: None, port: 2 };
        for (one, other, is_excluded) in [
            (&all, &all, true),
            (&all, &other_port, false),
            (&all, &tcp("127.0.0.1"), true),
            (&tcp("0.0.0.0"), &tcp("10.0.0.1"), true),
            (&tcp("10.0.0.2"), &tcp("10.0.0.1"), false),
            (&tcp("0.0.0.0"), &tcp("::"), false),
            (&tcp("::"), &tcp("::1"), true),
            (&tcp("::1"), &tcp("127.0.0.1"), false),
            (&tcp("localhost"), &tcp("127.0.0.1"), true),
            (&tcp("::ffff:127.0.0.1"), &tcp("127.0.0.1"), true),
            (&tcp("::ffff:127.0.0.1"), &tcp("0.0.0.0"), true),
            (&tcp("::ffff:127.0.0.1"), &tcp("::"), false),
            (&tcp("a.example"), &tcp("a.example"), true),
            (&tcp("a.example"), &tcp("b.example"), false),
            (&ListenAddress::Unix("/a".into()), &ListenAddress::Unix("/a".into()), true),
            (&ListenAddress::Unix("/a".into()), &all, false),
        ] {
            assert_eq!(
                (one.excludes(other), other.excludes(one)),
                (is_excluded, is_excluded),
                "{one} {other}"
            );
        }
        assert!(tcp("::").is_ipv6_beside(&[tcp("::"), tcp("0.0.0.0")]));
        assert!(!tcp("::").is_ipv6_beside(&[tcp("::"), other_port]));
        assert!(tcp("::").is_ipv6_beside(&[tcp("::"), tcp("::ffff:127.0.0.1")]));
        assert!(!tcp("::1").is_ipv6_beside(&[tcp("::1"), tcp("0.0.0.0")]));
    }
}
