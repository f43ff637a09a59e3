//! The receiver of events: its URL, the authority for its certificate, and the secret that authenticates the sender.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};
use ring::hmac;
use tokio::time::timeout;

use crate::clock::wall_seconds;
use crate::http::{ClientTls, HttpError, JSON};
use crate::http_client::{Answer, Client, ClientOptions, Request, Url};

/// How long a request may take, from the name look-up to the end of the response.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of a response, whose body is ignored.
const MAX_RESPONSE: usize = 1 << 20;

const TIME: HeaderName = HeaderName::from_static("x-exporter-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("x-exporter-signature");

/// A receiver of events.
pub(crate) struct Receiver {
    url: Url,
    secret: hmac::Key,
    client: Client,
}

/// Why events were not accepted.
#[derive(Debug)]
pub(super) enum Failure {
    /// A retry may succeed; the receiver may say when to try.
    Temporary(String, Option<Duration>),
    /// The receiver rejects the events.
    Rejected(String),
}

/// Formats a URL without its path, which many receivers treat as a secret.
pub(crate) fn shown(url: &Url) -> String {
    let text = url.to_string();
    let host = text.match_indices('/').nth(2).map_or(text.len(), |(at, _)| at);
    text[..host].to_owned()
}

impl Receiver {
    /// Creates a receiver. Its certificate must be issued by the authority (a file), or by one that the system trusts
    /// if `None`.
    ///
    /// # Errors
    /// If the authority has no usable certificates.
    pub fn new(url: Url, secret: &str, authority: Option<PathBuf>) -> Result<Self, HttpError> {
        if url.is_secure() {
            ClientTls::new(authority.clone(), None).current()?;
        }
        let client = Client::new(ClientOptions {
            authority,
            identity: None,
            timeout: ATTEMPT_TIMEOUT,
            most: MAX_RESPONSE,
        });
        Ok(Self { url, secret: hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), client })
    }

    /// Sends this body once.
    pub(super) async fn send(&self, body: Bytes, limit: Duration) -> Result<(), Failure> {
        let time = wall_seconds().to_string();
        let mut request = Request::post(self.url.clone(), JSON, body.clone());
        for (name, text) in [(SIGNATURE, self.signature(&time, &body)), (TIME, time)] {
            // Contains only ASCII letters, digits and `=`.
            if let Ok(value) = HeaderValue::try_from(text) {
                request = request.with(name, value);
            }
        }
        match timeout(limit, self.client.answer(request)).await {
            Err(_) => Err(Failure::Temporary(format!("no response in {} s", limit.as_secs_f64()), None)),
            Ok(Err(error)) => Err(Failure::Temporary(error.to_string(), None)),
            Ok(Ok(answer)) => judge(&answer),
        }
    }

    /// Signs time and body together, to prevent replay.
    pub(super) fn signature(&self, time: &str, body: &[u8]) -> String {
        let mut signed = hmac::Context::with_key(&self.secret);
        for part in [time.as_bytes(), b".", body] {
            signed.update(part);
        }
        let hex: String = signed.sign().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256={hex}")
    }
}

fn judge(answer: &Answer) -> Result<(), Failure> {
    let status = answer.status;
    if status.is_success() {
        return Ok(());
    }
    let reason = format!("the response was {status}");
    let is_temporary =
        matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS);
    if status.is_server_error() || is_temporary {
        let after = answer.header(header::RETRY_AFTER).and_then(|after| after.trim().parse().ok());
        return Err(Failure::Temporary(reason, after.map(Duration::from_secs)));
    }
    let next = if status.is_redirection() {
        "; redirects are not followed: set `url` to where it leads"
    } else {
        ""
    };
    Err(Failure::Rejected(format!("{reason}{next}")))
}

impl fmt::Display for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.url))
    }
}

/// Hides the secret.
impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("url", &shown(&self.url)).finish_non_exhaustive()
    }
}
