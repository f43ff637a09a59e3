//! Requests to other machines: HTTP/1.1, in the clear or by TLS, each on a connection of its own.
//!
//! For threads that may block: [`Client::send`] returns when the whole answer is there, or its time is over. Nothing is
//! followed elsewhere, so that what a request says goes where it was meant to.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::http::{ClientTls, HttpError};

/// How this program calls itself.
const USER_AGENT: &str = concat!("fibre-exporter/v", env!("CARGO_PKG_VERSION"));

/// An `http://` or `https://` URL. It is shown without its query, which may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    is_secure: bool,
    /// A name or an address, the latter without brackets.
    host: String,
    /// As it is written: host and port.
    authority: String,
    port: u16,
    /// With the query.
    path: String,
}

impl Url {
    /// Reads one.
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
            return Err("a user and a password are not possible in a URL".to_string());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_string();
        if host.is_empty() || ServerName::try_from(host.as_str()).is_err() {
            return Err(format!("not a URL: {host:?} is neither a host name nor an address"));
        }
        let port = match (authority.port(), is_secure) {
            // What stands behind the colon was no number.
            (None, _) if authority.as_str().len() > authority.host().len() => {
                return Err("not a URL: the port is wrong".to_string());
            }
            (Some(port), _) => port.as_u16(),
            (None, true) => 443,
            (None, false) => 80,
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let path = if path.starts_with('/') { path.to_string() } else { format!("/{path}") };
        Ok(Self { is_secure, host, authority: authority.to_string(), port, path })
    }

    /// What lies below it: the path goes on with this one, which may have a query.
    pub fn below(&self, path: &str) -> Self {
        let base = self.path.split('?').next().unwrap_or_default().trim_end_matches('/');
        Self { path: format!("{base}/{path}"), ..self.clone() }
    }

    /// What another URL, or a path on the same host, leads to from here.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn leads_to(&self, location: &str) -> Result<Self, String> {
        if location.starts_with('/') && !location.starts_with("//") {
            return Ok(Self { path: location.to_string(), ..self.clone() });
        }
        Self::parse(location)
    }

    /// As it was written, with what may be secret.
    pub fn text(&self) -> String {
        format!("{}://{}{}", if self.is_secure { "https" } else { "http" }, self.authority, self.path)
    }

    /// The same with something more at the end of its path.
    #[must_use]
    pub fn with_suffix(&self, suffix: &str) -> Self {
        let (path, query) = self.path.split_at(self.path.find('?').unwrap_or(self.path.len()));
        Self { path: format!("{path}{suffix}{query}"), ..self.clone() }
    }

    /// Whether nobody else on the network sees what is asked and answered: by TLS, or within this machine.
    pub fn is_private(&self) -> bool {
        let is_loopback = match self.host.parse::<IpAddr>() {
            Ok(address) => address.to_canonical().is_loopback(),
            Err(_) => self.host.eq_ignore_ascii_case("localhost"),
        };
        self.is_secure || is_loopback
    }

    /// Whether it is asked by TLS.
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

/// How a client asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientOptions {
    /// Who must have issued the server's certificate (PEM); without it, somebody whom the system trusts.
    pub authority: Option<PathBuf>,
    /// Certificate and key to show (PEM).
    pub identity: Option<(PathBuf, PathBuf)>,
    /// From the beginning of a request to the end of its answer.
    pub timeout: Duration,
    /// Bytes of an answer's body.
    pub most: usize,
}

/// What sends requests.
pub struct Client {
    tls: ClientTls,
    timeout: Duration,
    most: usize,
}

/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: Method,
    pub url: Url,
    /// Beside those that every request has.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Bytes,
}

impl Request {
    /// `GET`.
    pub fn get(url: Url) -> Self {
        Self { method: Method::GET, url, headers: Vec::new(), body: Bytes::new() }
    }

    /// `POST` of a body of this content type.
    pub fn post(url: Url, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let headers = vec![(header::CONTENT_TYPE, HeaderValue::from_static(content_type))];
        Self { method: Method::POST, url, headers, body: body.into() }
    }

    /// The same with one more header.
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }
}

/// The answer to a request, whatever its status.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// A header, if it is there and is text.
    pub fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Status and the beginning of the body, for a message about an answer that was not wanted.
    pub fn described(&self) -> String {
        let body = String::from_utf8_lossy(&self.body[..self.body.len().min(1000)]);
        let text: String =
            body.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
        let status = self.status;
        if text.is_empty() {
            format!("the answer is {status}")
        } else {
            format!("the answer is {status}: {text}")
        }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum ClientError {
    /// No runtime: out of descriptors, say.
    Begin(io::Error),
    /// The files of certificates cannot be used.
    Files(HttpError),
    /// Nobody could be reached.
    Connect(io::Error),
    /// Certificates were not accepted, by either side, or no TLS is spoken there.
    Handshake(io::Error),
    /// The connection broke, or what came is not HTTP.
    Http(hyper::Error),
    /// The answer is larger than is taken.
    TooLarge(usize),
    /// It took longer than this.
    Late(Duration),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begin(err) => write!(f, "failed to begin a request: {err}"),
            Self::Files(err) => err.fmt(f),
            Self::Connect(err) => write!(f, "failed to connect: {err}"),
            Self::Handshake(err) => write!(f, "TLS handshake failed: {err}"),
            Self::Http(err) => {
                write!(f, "the connection failed: {err}")?;
                match err.source() {
                    Some(source) => write!(f, ": {source}"),
                    None => Ok(()),
                }
            }
            Self::TooLarge(most) => write!(f, "the answer has more than {most} bytes"),
            Self::Late(limit) => write!(f, "no whole answer within {} s", limit.as_secs_f64()),
        }
    }
}

impl Error for ClientError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Begin(err) | Self::Connect(err) | Self::Handshake(err) => Some(err),
            Self::Files(err) => Some(err),
            Self::Http(err) => Some(err),
            Self::TooLarge(_) | Self::Late(_) => None,
        }
    }
}

impl Client {
    /// One that asks so. Files are read at the first request, and again when they change.
    pub fn new(options: ClientOptions) -> Self {
        let ClientOptions { authority, identity, timeout, most } = options;
        Self { tls: ClientTls::new(authority, identity), timeout, most }
    }

    /// Sends a request and waits for the answer, on a thread that may block.
    ///
    /// # Errors
    /// If there is none. One that says that something is wrong is an answer, too.
    pub fn send(&self, request: Request) -> Result<Answer, ClientError> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ClientError::Begin)?;
        let answered = runtime.block_on(self.answer(request));
        // A look-up of the host's name may still go on, which nobody waits for.
        runtime.shutdown_background();
        answered
    }

    /// As [`Self::send`], in a runtime.
    ///
    /// # Errors
    /// Likewise.
    pub async fn answer(&self, request: Request) -> Result<Answer, ClientError> {
        match tokio::time::timeout(self.timeout, self.ask(request)).await {
            Ok(answered) => answered,
            Err(_) => Err(ClientError::Late(self.timeout)),
        }
    }

    async fn ask(&self, request: Request) -> Result<Answer, ClientError> {
        let url = &request.url;
        let secured = url.is_secure.then(|| self.tls.current()).transpose().map_err(ClientError::Files)?;
        let stream = TcpStream::connect((url.host.as_str(), url.port)).await.map_err(ClientError::Connect)?;
        let Some(config) = secured else { return self.speak(stream, request).await };
        let name = ServerName::try_from(url.host.clone())
            .map_err(|err| ClientError::Handshake(io::Error::other(err)))?;
        let stream =
            TlsConnector::from(config).connect(name, stream).await.map_err(ClientError::Handshake)?;
        self.speak(stream, request).await
    }

    /// HTTP, on a stream that is ready for it.
    async fn speak<S>(&self, stream: S, request: Request) -> Result<Answer, ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::Http)?;
        // It ends with the runtime; what goes wrong with it, the answer says.
        tokio::spawn(connection);
        let Request { method, url, headers, body } = request;
        let mut message = hyper::Request::new(Full::new(body));
        *message.method_mut() = method;
        // Read as a part of a URL before, or put together from such parts.
        *message.uri_mut() = url.path.parse().unwrap_or_default();
        let all = message.headers_mut();
        all.extend(headers);
        if let Ok(host) = HeaderValue::try_from(&url.authority) {
            all.insert(header::HOST, host);
        }
        all.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        all.insert(header::CONNECTION, HeaderValue::from_static("close"));
        let (head, mut body) = sender.send_request(message).await.map_err(ClientError::Http)?.into_parts();
        let is_too_large = |size: u64| size > self.most as u64;
        if is_too_large(body.size_hint().lower()) {
            return Err(ClientError::TooLarge(self.most));
        }
        let mut taken = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(ClientError::Http)?;
            let Some(data) = frame.data_ref() else { continue };
            if is_too_large(taken.len() as u64 + data.len() as u64) {
                return Err(ClientError::TooLarge(self.most));
            }
            taken.extend_from_slice(data);
        }
        Ok(Answer { status: head.status, headers: head.headers, body: taken.into() })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{SocketAddr, TcpListener};
    use std::sync::Arc;
    use std::thread::JoinHandle;

    use rustls::server::WebPkiClientVerifier;
    use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};

    use super::*;

    fn options() -> ClientOptions {
        ClientOptions { authority: None, identity: None, timeout: Duration::from_secs(60), most: 1000 }
    }

    fn answered(stream: impl Read + Write, answer: &str) -> String {
        let mut stream = BufReader::new(stream);
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let before = head.len();
            if stream.read_line(&mut head).unwrap_or(0) == 0 {
                return head;
            }
            let line = head[before..].trim().to_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        let _ = stream.get_mut().write_all(answer.as_bytes());
        head + std::str::from_utf8(&body).unwrap()
    }

    /// Somebody who answers one request so, and what the request was.
    fn server(answer: &str) -> (SocketAddr, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, answer) = (listener.local_addr().unwrap(), answer.to_string());
        (address, std::thread::spawn(move || answered(listener.accept().unwrap().0, &answer)))
    }

    fn url(address: SocketAddr, rest: &str) -> Url {
        Url::parse(&format!("http://{address}{rest}")).unwrap()
    }

    #[test]
    fn urls_are_read_and_shown_without_what_may_be_secret() {
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

    #[test]
    fn a_request_is_answered() {
        let (address, asked) = server("HTTP/1.1 201 Created\r\nETag: \"a\"\r\nContent-Length: 2\r\n\r\nok");
        let request = Request::post(url(address, "/hook?a=1"), "application/json", "{\"a\":1}")
            .with(header::AUTHORIZATION, HeaderValue::from_static("Bearer x"));
        let answer = Client::new(options()).send(request).unwrap();
        assert_eq!((answer.status, &answer.body[..]), (StatusCode::CREATED, &b"ok"[..]));
        assert_eq!(answer.header(header::ETAG), Some("\"a\""));
        let asked = asked.join().unwrap();
        assert!(asked.starts_with("POST /hook?a=1 HTTP/1.1\r\n") && asked.ends_with("{\"a\":1}"), "{asked}");
        for header in
            ["authorization: Bearer x", "content-type: application/json", &format!("host: {address}")]
        {
            assert!(asked.contains(header), "{asked}");
        }
    }

    #[test]
    fn what_is_too_large_late_cut_off_or_no_answer_is_told() {
        let long = "x".repeat(1001);
        for (answer, said) in [
            (format!("HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n{long}"), "more than 1000 bytes"),
            (
                format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n{long}\r\n0\r\n\r\n"),
                "more than 1000",
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort".to_string(), "the connection failed"),
            ("SSH-2.0-OpenSSH_9.2\r\n".to_string(), "the connection failed"),
        ] {
            let (address, asked) = server(&answer);
            let error = Client::new(options()).send(Request::get(url(address, "/"))).unwrap_err().to_string();
            assert!(error.contains(said), "{said}: {error}");
            asked.join().unwrap();
        }
        // Nobody accepts there, though the kernel does.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Client::new(ClientOptions { timeout: Duration::from_millis(50), ..options() });
        let address = silent.local_addr().unwrap();
        let error = client.send(Request::get(url(address, "/"))).unwrap_err();
        assert!(matches!(error, ClientError::Late(_)), "{error}");
        drop(silent);
        let error = client.send(Request::get(url(address, "/"))).unwrap_err().to_string();
        assert!(error.contains("failed to connect"), "{error}");
    }

    struct Issued {
        certificate: String,
        key: String,
    }

    /// An authority, and what it has issued for a name.
    fn issued(name: &str) -> (String, Issued) {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec![name.to_string()]).unwrap().signed_by(&key, &issuer).unwrap().pem();
        (authority, Issued { certificate, key: key.serialize_pem() })
    }

    /// Somebody who answers a request by TLS, of clients only with a certificate of this authority.
    fn tls_server(own: &Issued, clients: &str) -> (SocketAddr, JoinHandle<String>) {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(clients.as_bytes()).unwrap()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let chain = vec![CertificateDer::from_pem_slice(own.certificate.as_bytes()).unwrap()];
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serve = move || {
            let connection = ServerConnection::new(Arc::new(config)).unwrap();
            let stream = StreamOwned::new(connection, listener.accept().unwrap().0);
            answered(stream, "HTTP/1.1 204 No Content\r\n\r\n")
        };
        (address, std::thread::spawn(serve))
    }

    #[test]
    fn by_tls_both_sides_say_who_they_are() {
        let ((authority, own), (other, client)) = (issued("localhost"), issued("client"));
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let identity = Some((file("client.crt", &client.certificate), file("client.key", &client.key)));
        let (trusted, strange) = (file("ca.crt", &authority), file("other.crt", &other));
        let ask = |authority: &PathBuf, identity: Option<(PathBuf, PathBuf)>, host: &str| {
            let (address, asked) = tls_server(&own, &other);
            let url = Url::parse(&format!("https://{host}:{}/", address.port())).unwrap();
            let options = ClientOptions { authority: Some(authority.clone()), identity, ..options() };
            let answer = Client::new(options).send(Request::get(url));
            asked.join().unwrap();
            answer.map(|answer| answer.status.as_u16()).map_err(|error| error.to_string())
        };
        assert_eq!(ask(&trusted, identity.clone(), "localhost"), Ok(204));
        for (authority, identity, host) in [
            (&trusted, None, "localhost"),
            (&strange, identity.clone(), "localhost"),
            (&trusted, identity.clone(), "127.0.0.1"),
        ] {
            assert!(ask(authority, identity, host).is_err());
        }
        let wrong = identity.map(|(certificate, _)| (certificate, file("wrong.key", &own.key)));
        let client = Client::new(ClientOptions { authority: Some(trusted), identity: wrong, ..options() });
        let error = client.send(Request::get(Url::parse("https://localhost:1/").unwrap())).unwrap_err();
        assert!(
            matches!(error, ClientError::Files(_)) && error.to_string().contains("does not match"),
            "{error}"
        );
    }
}
