//! An HTTP/1.1 client, plain or with TLS, that uses a new connection for each request.
//!
//! For threads that may block: [`Client::send`] returns when the whole response has arrived or the timeout has expired.
//! Redirects are not followed, so that a request's content goes only where it was meant to go.

mod url;

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::http::{ClientTls, HttpError};
pub use url::Url;

/// The `User-Agent` of this program.
const USER_AGENT: &str = concat!("fibre-exporter/v", env!("CARGO_PKG_VERSION"));

/// The options of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientOptions {
    /// The authority that must have issued the server's certificate (PEM); the system's authorities if `None`.
    pub authority: Option<PathBuf>,
    /// The client certificate and its key (PEM).
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The timeout from the start of a request to the end of its response.
    pub timeout: Duration,
    /// The maximum size of a response's body.
    pub most: usize,
}

/// An HTTP client.
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
    /// Headers besides those of every request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Bytes,
}

impl Request {
    /// Creates a `GET` request.
    pub fn get(url: Url) -> Self {
        Self { method: Method::GET, url, headers: Vec::new(), body: Bytes::new() }
    }

    /// Creates a `POST` request with a body of this content type.
    pub fn post(url: Url, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let headers = vec![(header::CONTENT_TYPE, HeaderValue::from_static(content_type))];
        Self { method: Method::POST, url, headers, body: body.into() }
    }

    /// Adds a header.
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }
}

/// A response, whatever its status.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// Returns a header's value, if present and text.
    pub fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Formats the status and the beginning of the body, for a message about an unexpected response.
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

/// Why there is no response.
#[derive(Debug)]
pub enum ClientError {
    /// The runtime cannot be created (no descriptors left, for example).
    Begin(io::Error),
    /// The certificate files are unusable.
    Files(HttpError),
    /// The connection could not be established.
    Connect(io::Error),
    /// Either side rejected the other's certificate, or the server does not speak TLS.
    Handshake(io::Error),
    /// The connection broke, or the response is not valid HTTP.
    Http(hyper::Error),
    /// The response is larger than the given maximum.
    TooLarge(usize),
    /// The timeout has expired.
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
            Self::TooLarge(most) => write!(f, "the response has more than {most} bytes"),
            Self::Late(limit) => write!(f, "no complete response within {} s", limit.as_secs_f64()),
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
    /// Creates a client. Certificate files are loaded on the first request, and reloaded when they change.
    pub fn new(options: ClientOptions) -> Self {
        let ClientOptions { authority, identity, timeout, most } = options;
        Self { tls: ClientTls::new(authority, identity), timeout, most }
    }

    /// Sends a request and waits for the response, on a thread that may block.
    ///
    /// # Errors
    /// If there is no response. A response with an error status is not an error.
    pub fn send(&self, request: Request) -> Result<Answer, ClientError> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ClientError::Begin)?;
        let answered = runtime.block_on(self.answer(request));
        // A lookup of the host's name may still be running; do not wait for it.
        runtime.shutdown_background();
        answered
    }

    /// Like [`Self::send`], within a runtime.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub async fn answer(&self, request: Request) -> Result<Answer, ClientError> {
        match tokio::time::timeout(self.timeout, self.exchange(request)).await {
            Ok(answered) => answered,
            Err(_) => Err(ClientError::Late(self.timeout)),
        }
    }

    async fn exchange(&self, request: Request) -> Result<Answer, ClientError> {
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

    /// Speaks HTTP on a stream that is ready for it.
    async fn speak<S>(&self, stream: S, request: Request) -> Result<Answer, ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::Http)?;
        // Ends with the runtime; its errors surface in the response.
        tokio::spawn(connection);
        let Request { method, url, headers, body } = request;
        let mut message = hyper::Request::new(Full::new(body));
        *message.method_mut() = method;
        // Parsed before as part of a URL, or composed of such parts.
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
mod tests;
