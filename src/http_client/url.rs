//! URLs of remote servers.

use std::fmt;
use std::net::IpAddr;

use hyper::Uri;
use rustls_pki_types::ServerName;

/// An `http://` or `https://` URL. Displayed without its query, which may contain a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    pub(super) is_secure: bool,
    /// A host name or an address, the latter without brackets.
    pub(super) host: String,
    /// Host and port as written.
    pub(super) authority: String,
    pub(super) port: u16,
    /// The path with the query.
    pub(super) path: String,
}

impl Url {
    /// Parses a URL.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|err| format!("not a URL: {err}"))?;
        let is_secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("not a URL: it begins with neither https:// nor http://".to_string()),
        };
        let authority = uri.authority().ok_or("not a URL: it has no host")?;
        if authority.as_str().contains('@') {
            return Err("a user and a password are not allowed in a URL".to_string());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_string();
        if host.is_empty() || ServerName::try_from(host.as_str()).is_err() {
            return Err(format!("not a URL: {host:?} is neither a host name nor an address"));
        }
        let port = match (authority.port(), is_secure) {
            // There is a colon, but no number after it.
            (None, _) if authority.as_str().len() > authority.host().len() => {
                return Err("not a URL: invalid port".to_string());
            }
            (Some(port), _) => port.as_u16(),
            (None, true) => 443,
            (None, false) => 80,
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let path = if path.starts_with('/') { path.to_string() } else { format!("/{path}") };
        Ok(Self { is_secure, host, authority: authority.to_string(), port, path })
    }

    /// Appends `path`, which may have a query, to the URL's path.
    pub fn below(&self, path: &str) -> Self {
        let base = self.path.split('?').next().unwrap_or_default().trim_end_matches('/');
        Self { path: format!("{base}/{path}"), ..self.clone() }
    }

    /// Resolves a URL, or an absolute path on the same host, relative to this URL.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn leads_to(&self, location: &str) -> Result<Self, String> {
        if location.starts_with('/') && !location.starts_with("//") {
            return Ok(Self { path: location.to_string(), ..self.clone() });
        }
        Self::parse(location)
    }

    /// Returns the full URL as written, including the query, which may be secret.
    pub fn text(&self) -> String {
        format!("{}://{}{}", if self.is_secure { "https" } else { "http" }, self.authority, self.path)
    }

    /// Appends `suffix` to the path, before any query.
    #[must_use]
    pub fn with_suffix(&self, suffix: &str) -> Self {
        let (path, query) = self.path.split_at(self.path.find('?').unwrap_or(self.path.len()));
        Self { path: format!("{path}{suffix}{query}"), ..self.clone() }
    }

    /// Whether requests and responses are hidden from the network: by TLS, or because they stay on this machine.
    pub fn is_private(&self) -> bool {
        let is_loopback = match self.host.parse::<IpAddr>() {
            Ok(address) => address.to_canonical().is_loopback(),
            Err(_) => self.host.eq_ignore_ascii_case("localhost"),
        };
        self.is_secure || is_loopback
    }

    /// Whether it uses TLS.
    pub fn is_secure(&self) -> bool {
        self.is_secure
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_secure { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.path.split('?').next().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_displayed_without_secrets() {
        for (text, port, private, shown) in [
            ("https://example.org/a?token=x", 443, true, "https://example.org/a"),
            ("http://127.0.0.1:8080", 8080, true, "http://127.0.0.1:8080/"),
            ("http://[::1]:80/x", 80, true, "http://[::1]:80/x"),
            ("http://localhost/?a", 80, true, "http://localhost/"),
            ("http://192.0.2.1/", 80, false, "http://192.0.2.1/"),
            ("http://localhost.example.org/", 80, false, "http://localhost.example.org/"),
        ] {
            let url = Url::parse(text).unwrap();
            assert_eq!((url.port, url.is_private(), url.to_string()), (port, private, shown.to_string()));
        }
        for text in
            ["", "example.org", "ftp://example.org/", "/path", "http://", "http://u:p@h/", "http://h:x/"]
        {
            assert!(Url::parse(text).is_err(), "{text}");
        }
        let base = Url::parse("http://localhost:8080/lapi/").unwrap();
        assert_eq!(base.below("v1/x?y=1").path, "/lapi/v1/x?y=1");
        assert_eq!(base.leads_to("/z?q").unwrap().path, "/z?q");
        assert_eq!(base.leads_to("https://other/").unwrap().to_string(), "https://other/");
        assert_eq!(Url::parse("http://h/a?b").unwrap().with_suffix(".sig").text(), "http://h/a.sig?b");
        assert!(base.leads_to("//other/").is_err() && base.leads_to("z").is_err());
    }
}
