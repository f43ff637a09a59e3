//! The client of CrowdSec's Local API: a full list of decisions first, then the changes at each interval.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};

use super::decisions::{Answered, DecisionScope};
use crate::http_client::{Client, ClientOptions, Request, Url};
use crate::regular;

/// Its name in messages and metrics.
pub(crate) const NAME: &str = "crowdsec";

/// How often all decisions are requested instead of changes. It corrects for changes that were lost, or sent to
/// another bouncer with the same key.
const FULL_INTERVAL: Duration = Duration::from_secs(3600);

/// Decisions that one response must add or remove for the next request to ask for all again. A decision that is made while
/// the server answers is in no later list of changes: it bears an earlier time than the answer, and is written after it.
/// The server writes imported decisions and those of the central API in groups of fifty, for many seconds.
const BULK: usize = 50;

/// The timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a response at most: about a million decisions.
const MAX_RESPONSE: usize = 256 << 20;

/// Bytes of a file with a key or password at most.
const MAX_SECRET: u64 = 4096;

/// Reads a file with a key or password, each time it is needed. `network.block` waits for this, so it must not block.
pub(super) fn read_secret(file: &Path) -> Result<String, String> {
    let failed = |err: &dyn fmt::Display| format!("failed to read {}: {err}", file.display());
    let bytes = regular::read_small(file, MAX_SECRET).map_err(|err| failed(&err))?;
    let text = String::from_utf8(bytes).map_err(|_| failed(&"it is not text in UTF-8"))?;
    Ok(text.trim().to_string())
}

/// `network.block.crowdsec`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrowdsecConfig {
    /// Of the Local API.
    pub url: Url,
    /// The file with the key that `cscli bouncers add` printed; `None` if a client certificate is used.
    pub api_key_file: Option<PathBuf>,
    /// The pause between two requests.
    pub interval: Duration,
    /// Scopes of decisions that are applied.
    pub scopes: Vec<DecisionScope>,
    /// Origins of decisions that are applied; all if empty.
    pub origins: Vec<String>,
    /// The certificate authority of the server.
    pub ca: Option<PathBuf>,
    /// Client certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The credentials for reporting bans of the exporter's own detection; `None`: they are not reported.
    pub push: Option<PushConfig>,
}

/// `network.block.crowdsec.push`: the credentials for sending alerts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushConfig {
    /// The name given to `cscli machines add`.
    pub machine: String,
    pub password_file: PathBuf,
}

/// The HTTP client for it.
pub(super) fn client(config: &CrowdsecConfig) -> Client {
    Client::new(ClientOptions {
        authority: config.ca.clone(),
        identity: config.identity.clone(),
        timeout: TIMEOUT,
        most: MAX_RESPONSE,
    })
}

/// The client.
pub(super) struct Crowdsec {
    config: CrowdsecConfig,
    client: Client,
    /// When the full list was last requested; `None` if it must be requested next.
    asked_all: Option<Instant>,
    /// Decisions in effect after the last response.
    count: usize,
}

impl fmt::Debug for Crowdsec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crowdsec").field("url", &self.config.url).finish_non_exhaustive()
    }
}

impl Crowdsec {
    pub fn new(config: &CrowdsecConfig) -> Self {
        Self { config: config.clone(), client: client(config), asked_all: None, count: 0 }
    }

    /// Sends one request; returns the response and whether it is the full list.
    ///
    /// # Errors
    /// Why it failed. The next request asks for the full list, because the server considers the lost changes delivered.
    pub fn poll(&mut self) -> Result<(Answered, bool), String> {
        let begun = Instant::now();
        let asked_all = self.asked_all.take().filter(|then| begun - *then < FULL_INTERVAL);
        let is_whole = asked_all.is_none();
        let answer = self.client.send(self.request(is_whole)?).map_err(|err| err.to_string())?;
        if answer.status != StatusCode::OK {
            let hint = match answer.status {
                StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
                    "; the key is not known there: `cscli bouncers add NAME` creates one"
                }
                StatusCode::NOT_FOUND => "; is this the URL of CrowdSec's Local API?",
                _ => "",
            };
            return Err(answer.described() + hint);
        }
        let answered = Answered::parse(&answer.body, is_whole)?;
        self.asked_all = asked_all.or(Some(begun));
        Ok((answered, is_whole))
    }

    /// The response was applied, and so many decisions are in effect now.
    pub fn applied(&mut self, count: usize) {
        if self.count.abs_diff(count) >= BULK {
            self.ask_all();
        }
        self.count = count;
    }

    /// The response could not be applied: the next request asks for the full list.
    pub fn ask_all(&mut self) {
        self.asked_all = None;
    }

    fn request(&self, is_whole: bool) -> Result<Request, String> {
        let scopes: Vec<&str> = self.config.scopes.iter().map(|scope| scope.word()).collect();
        // All decisions about a prefix are requested, not only one: when one expires, the others still hold.
        let mut path =
            format!("v1/decisions/stream?startup={is_whole}&dedup=false&scopes={}", scopes.join(","));
        if !self.config.origins.is_empty() {
            path += &format!("&origins={}", self.config.origins.join(","));
        }
        let request = Request::get(self.config.url.below(&path));
        let Some(file) = &self.config.api_key_file else { return Ok(request) };
        let name = file.display();
        let mut key = HeaderValue::try_from(read_secret(file)?)
            .ok()
            .filter(|key| !key.is_empty())
            .ok_or_else(|| {
                format!("{name} has no API key: write what `cscli bouncers add NAME -o raw` prints into it")
            })?;
        key.set_sensitive(true);
        Ok(request.with(HeaderName::from_static("x-api-key"), key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_is_the_text_of_a_small_regular_file() {
        let directory = tempfile::tempdir().unwrap();
        let (key, binary, pipe) =
            (directory.path().join("key"), directory.path().join("binary"), directory.path().join("pipe"));
        std::fs::write(&key, "secret\n").unwrap();
        std::fs::write(&binary, [0xff, 0xfe]).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert_eq!(read_secret(&key).unwrap(), "secret");
        for (file, why) in [
            (binary.as_path(), "it is not text in UTF-8"),
            (&pipe, "not a regular file"),
            (Path::new("/dev/zero"), "not a regular file"),
        ] {
            assert_eq!(read_secret(file).unwrap_err(), format!("failed to read {}: {why}", file.display()));
        }
    }

    #[test]
    fn all_decisions_are_requested_again_until_bulk_changes_end() {
        let config = CrowdsecConfig {
            url: Url::parse("http://127.0.0.1:8080/").unwrap(),
            api_key_file: None,
            interval: Duration::from_secs(10),
            scopes: Vec::new(),
            origins: Vec::new(),
            ca: None,
            identity: None,
            push: None,
        };
        let mut crowdsec = Crowdsec::new(&config);
        let mut asks_all = |count| {
            crowdsec.asked_all = Some(Instant::now());
            crowdsec.applied(count);
            crowdsec.asked_all.is_none()
        };
        assert_eq!(
            [3, 20, 20_000, 20_050, 20_050, 20_060, 0, 0].map(&mut asks_all),
            [false, false, true, true, false, false, true, false]
        );
    }
}
