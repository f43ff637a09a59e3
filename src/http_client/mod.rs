//! Requests to other machines: HTTP/1.1, in the clear or by TLS, each on a connection of its own.
//!
//! For threads that may block: [`Client::send`] returns when the whole answer is there, or its time is over. Nothing is
//! followed elsewhere, so that what a request says goes where it was meant to.

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

/// How this program calls itself.
const USER_AGENT: &str = concat!("fibre-exporter/v", env!("CARGO_PKG_VERSION"));

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
mod tests;
