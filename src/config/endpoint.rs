//! What a configuration says of the endpoints: where they listen, who may ask, and how connections are secured.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use super::place::Place;
use crate::http::{Demand, Rate};

/// Where the metrics are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// On the port `metrics_port` of the address `bind`.
    Port,
    /// On all of these.
    Addresses(Vec<ListenAddress>),
    /// On the sockets that the service manager has opened.
    Inherited,
}

/// One of several addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// Without a host, on all addresses of the machine.
    Tcp {
        host: Option<String>,
        port: u16,
    },
    Unix(PathBuf),
}

impl ListenAddress {
    /// Whether only one of the two can be listened on. `[::]` beside an IPv4 address of its port means those of IPv6 alone.
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

    /// Whether it is every IPv6 address, beside an IPv4 address of the same port among these.
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

/// As it is written on the command line.
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

/// Names are not looked up, but for the one that is the same everywhere. `::ffff:127.0.0.1` is an IPv4 address to the kernel, too.
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
    /// Who may ask; everybody if there are none.
    pub users: Vec<Auth>,
    /// Names of those users who may also change something.
    pub writers: Vec<String>,
    pub tls: Option<TlsSettings>,
    /// Headers of every response.
    pub headers: Vec<(&'static str, String)>,
    pub rate_limit: Option<Rate>,
    /// HTTP/2 is served, too, over TLS.
    pub http2: bool,
    /// What it was made from.
    pub origin: Origin,
}

/// Where the security settings come from, so that the files among it can be read anew.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// Of `metrics_auth_username` and one of the passwords.
    pub auth: Option<Auth>,
    /// Of `metrics_auth_password_file`, if that is where the password is.
    pub password_file: Option<(Place, PathBuf)>,
    /// Of `tls_cert` and `tls_key`.
    pub tls: Option<TlsSettings>,
    /// The web configuration file.
    pub file: Option<(Place, PathBuf)>,
    /// Of `web_writers`.
    pub writers: Vec<(Place, String)>,
}

impl Origin {
    /// Files whose content is part of the settings; those that TLS names are not among them.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.password_file.iter().chain(&self.file).map(|(_, path)| path)
    }
}

/// One user. The password is never printed: `Debug` hides it.
#[derive(Clone)]
pub struct Auth {
    /// Where the password is given.
    pub at: Place,
    pub username: String,
    /// In clear text, or as a bcrypt hash.
    pub password: String,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("username", &self.username).field("password", &"<hidden>").finish()
    }
}

/// TLS; the place is where the configuration asks for it.
#[derive(Debug, Clone)]
pub struct TlsSettings {
    pub at: Place,
    pub cert: Pem,
    pub key: Pem,
    pub client_auth: Demand,
    /// Who issues client certificates; if there is nobody, all authorities that the system trusts.
    pub client_ca: Option<Pem>,
    /// One of these names must be in a client's certificate; any will do if there are none.
    pub client_allowed_sans: Vec<String>,
    pub versions: TlsVersions,
    /// Cipher suites for TLS 1.2 by their IANA numbers, the preferred first; all if there are none.
    pub cipher_suites: Vec<u16>,
    /// The server's preferences count, not the client's.
    pub prefer_server_cipher_suites: bool,
    /// Key exchange groups by their IANA numbers, the preferred first; all if there are none.
    pub curves: Vec<u16>,
}

/// PEM text, and where the configuration has it.
#[derive(Clone)]
pub struct Pem {
    pub at: Place,
    pub source: PemSource,
}

#[derive(Clone)]
pub enum PemSource {
    File(PathBuf),
    /// The text itself.
    Text(String),
}

/// Hides the text, which may be a private key.
impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            PemSource::File(path) => write!(f, "{}", path.display()),
            PemSource::Text(_) => f.write_str("<hidden>"),
        }
    }
}

/// Versions of TLS that are spoken.
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
    fn addresses_that_exclude_each_other() {
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
