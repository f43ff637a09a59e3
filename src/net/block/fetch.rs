//! Lists that are downloaded: requested with validators, verified, and cached in a file.

use std::cell::Cell;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{
    ETAG, HeaderName, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, LOCATION,
};
use minisign_verify::{PublicKey, Signature};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::list::ListFile;
use super::replace::{age, replace, touch};
use super::stamp::Stamp;
use crate::http_client::{Answer, Client, ClientOptions, Request, Url};
use crate::pins::fingerprint;

/// The timeout of a download.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;

/// An entry of `network.block.blocklist_url`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlConfig {
    pub url: Url,
    pub reason: String,
    /// The pause between two requests.
    pub interval: Duration,
    pub check: ContentCheck,
    /// The largest size of the list in bytes.
    pub most: usize,
    /// Whether plain HTTP is allowed, for the URL and for redirects.
    pub is_insecure_allowed: bool,
    /// The certificate authority of the server.
    pub ca: Option<PathBuf>,
    /// Client certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// How a list is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContentCheck {
    /// Not at all.
    None,
    /// By its SHA-256 digest.
    Sha256([u8; 32]),
    /// By a minisign signature with this key, downloaded from this URL.
    Minisign { key: String, signature: Url },
}

impl fmt::Display for ContentCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Sha256(digest) => write!(f, "sha256 {}", hex(digest)),
            Self::Minisign { key, .. } => write!(f, "minisign {key}"),
        }
    }
}

/// Describes the cached list: where it came from and how it was verified.
#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    url: String,
    checked: String,
    sha256: String,
    etag: Option<String>,
    last_modified: Option<String>,
    /// The time of signing in seconds since 1970, from the signature.
    #[serde(default)]
    signed: Option<u64>,
}

/// The result of a download.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fetched {
    /// The list is unchanged.
    Same,
    /// The file has a new list with this many entries.
    New(usize),
}

/// Downloads one list.
pub(super) struct Fetcher {
    config: UrlConfig,
    client: Client,
    path: PathBuf,
    /// The stamp of the cached list when it was last known to be the verified one; at first, [`verified`] has seen to it.
    seen: Cell<Option<Stamp>>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Parses a digest in hexadecimal.
pub(super) fn digest_of(text: &str) -> Option<[u8; 32]> {
    let text = text.strip_prefix("sha256:").unwrap_or(text);
    let byte = |at: usize| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok();
    let bytes: Vec<u8> = (0..32).map_while(byte).collect();
    (text.len() == 64 && text.bytes().all(|c| c.is_ascii_hexdigit())).then_some(bytes)?.try_into().ok()
}

/// Whether the text is a minisign public key.
pub(super) fn is_key(text: &str) -> bool {
    PublicKey::from_base64(text).is_ok()
}

impl UrlConfig {
    /// The path of the cached list, beside the file of entries.
    pub fn kept_in(&self, file: &Path) -> PathBuf {
        file.with_extension(format!("{}.list", fingerprint(&self.url.text())))
    }
}

fn meta_of(path: &Path) -> PathBuf {
    path.with_extension("list.json")
}

/// The description of the cached list, if it was verified in the way that is configured now.
fn described(config: &UrlConfig, path: &Path) -> Option<Meta> {
    let meta: Meta = serde_json::from_slice(&fs::read(meta_of(path)).ok()?).ok()?;
    (meta.url == config.url.text() && meta.checked == config.check.to_string()).then_some(meta)
}

/// The same, and its content, if it is still the one that was verified.
fn cached(config: &UrlConfig, path: &Path) -> Option<(Meta, Vec<u8>)> {
    let meta = described(config, path)?;
    let content = fs::read(path).ok()?;
    (hex(digest(&SHA256, &content).as_ref()) == meta.sha256).then_some((meta, content))
}

/// Removes the cached list if it must not be used: wrong digest, or another verification is configured. Otherwise
/// returns its age in seconds and its content.
pub(super) fn verified(config: &UrlConfig, path: &Path) -> Option<(i64, Vec<u8>)> {
    let Some((_, content)) = cached(config, path) else {
        for path in [path, &meta_of(path)] {
            if fs::remove_file(path).is_ok() {
                log::warn!(
                    "blocklist: {} is removed: it is not the list that was verified, or its check has changed",
                    path.display()
                );
            }
        }
        return None;
    };
    Some((age(&meta_of(path))?, content))
}

/// The time of signing in minisign's trusted comment: `timestamp:SECONDS`, a tab, `file:NAME`.
fn signed_at(comment: &str) -> Option<u64> {
    comment.split_ascii_whitespace().find_map(|word| word.strip_prefix("timestamp:")?.parse().ok())
}

/// Whether a list may replace the cached one. Without this check, whoever can answer in the server's place could replay
/// an old list with its valid signature.
fn is_no_older(signed: Option<u64>, kept: Option<u64>) -> Result<(), String> {
    match (signed, kept) {
        (Some(signed), Some(kept)) if signed < kept => {
            Err(format!("it was signed {} s before the cached list; older lists are rejected", kept - signed))
        }
        (None, Some(_)) => Err(
            "its signature does not say when it was signed (no timestamp in the trusted comment), unlike that of the cached list"
                .to_string(),
        ),
        _ => Ok(()),
    }
}

impl Fetcher {
    pub fn new(config: &UrlConfig, path: &Path) -> Self {
        let options = ClientOptions {
            authority: config.ca.clone(),
            identity: config.identity.clone(),
            timeout: TIMEOUT,
            most: config.most,
        };
        let (path, seen) = (path.to_owned(), Cell::new(Stamp::of(path).ok()));
        Self { config: config.clone(), client: Client::new(options), path, seen }
    }

    /// Downloads the list if it has changed.
    ///
    /// # Errors
    /// Why it failed. The cached list stays.
    pub fn fetch(&self) -> Result<Fetched, String> {
        let stamp = Stamp::of(&self.path).ok();
        let known = if stamp.is_some() && stamp == self.seen.get() {
            described(&self.config, &self.path)
        } else {
            cached(&self.config, &self.path).map(|(meta, _)| meta)
        };
        self.seen.set(stamp.filter(|_| known.is_some()));
        let fetched = self.fetch_unless(known)?;
        if let Fetched::New(_) = fetched {
            self.seen.set(Stamp::of(&self.path).ok());
        }
        Ok(fetched)
    }

    fn fetch_unless(&self, known: Option<Meta>) -> Result<Fetched, String> {
        let mut headers = Vec::new();
        let mut add = |name: HeaderName, value: Option<&String>| {
            headers.extend(value.and_then(|value| Some((name, HeaderValue::try_from(value).ok()?))));
        };
        if let Some(meta) = &known {
            add(IF_NONE_MATCH, meta.etag.as_ref());
            // A server that knows both uses the first (RFC 9110, section 13.1.3).
            add(IF_MODIFIED_SINCE, meta.last_modified.as_ref());
        }
        let answer = self.get(&self.config.url, &headers)?;
        let mut meta = match answer.status {
            StatusCode::NOT_MODIFIED if known.is_some() => {
                touch(&meta_of(&self.path)).map_err(|err| self.unwritten(&err))?;
                return Ok(Fetched::Same);
            }
            StatusCode::OK => Meta {
                url: self.config.url.text(),
                checked: self.config.check.to_string(),
                sha256: hex(digest(&SHA256, &answer.body).as_ref()),
                etag: answer.header(ETAG).map(str::to_owned),
                last_modified: answer.header(LAST_MODIFIED).map(str::to_owned),
                signed: None,
            },
            _ => return Err(answer.described()),
        };
        meta.signed = self.check(&answer.body)?;
        is_no_older(meta.signed, known.as_ref().and_then(|known| known.signed))?;
        let list = ListFile::parse(&answer.body);
        if list.is_none() {
            let all = list.invalid + list.prefixes.len();
            return Err(format!("most lines of the response are not entries ({} of {all})", list.invalid));
        }
        if answer.body.trim_ascii().is_empty() {
            return Err("the response is empty; an empty list must contain a comment".to_string());
        }
        let is_same = known.is_some_and(|known| known.sha256 == meta.sha256);
        self.store(&answer.body, &meta, is_same).map_err(|err| self.unwritten(&err))?;
        Ok(if is_same { Fetched::Same } else { Fetched::New(list.prefixes.len()) })
    }

    fn unwritten(&self, err: &io::Error) -> String {
        format!("failed to write {}: {err}", self.path.display())
    }

    /// If the exporter is killed between the two writes, the digest does not match and the list is downloaded again.
    fn store(&self, body: &[u8], meta: &Meta, is_same: bool) -> io::Result<()> {
        if !is_same {
            replace(&self.path, body)?;
        }
        replace(&meta_of(&self.path), &serde_json::to_vec(meta)?)
    }

    /// Verifies the content; returns the time of signing, if known.
    fn check(&self, body: &[u8]) -> Result<Option<u64>, String> {
        match &self.config.check {
            ContentCheck::None => Ok(None),
            ContentCheck::Sha256(wanted) => {
                let found = digest(&SHA256, body);
                let is_it = found.as_ref() == wanted;
                is_it.then_some(None).ok_or_else(|| {
                    format!("its SHA-256 digest is {}, expected {}", hex(found.as_ref()), hex(wanted))
                })
            }
            ContentCheck::Minisign { key, signature } => {
                let answer = self.get(signature, &[])?;
                if answer.status != StatusCode::OK {
                    return Err(format!("no signature at {signature}: {}", answer.described()));
                }
                let wrong =
                    |err: minisign_verify::Error| format!("the signature at {signature} is not valid: {err}");
                let text = String::from_utf8_lossy(&answer.body);
                let signature = Signature::decode(text.trim_end()).map_err(wrong)?;
                let key = PublicKey::from_base64(key).map_err(wrong)?;
                key.verify(body, &signature, true).map_err(wrong)?;
                Ok(signed_at(signature.trusted_comment()))
            }
        }
    }

    /// Sends a request and follows redirects.
    fn get(&self, url: &Url, headers: &[(HeaderName, HeaderValue)]) -> Result<Answer, String> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let request = Request { headers: headers.to_vec(), ..Request::get(url.clone()) };
            let answer = self.client.send(request).map_err(|err| err.to_string())?;
            let location = answer.header(LOCATION).filter(|_| answer.status.is_redirection());
            let Some(location) = location.filter(|_| answer.status != StatusCode::NOT_MODIFIED) else {
                return Ok(answer);
            };
            url = url.leads_to(location).map_err(|err| format!("it redirects to {location:?}: {err}"))?;
            if !url.is_private() && !self.config.is_insecure_allowed {
                return Err(format!("it redirects to {url}, which is plain HTTP"));
            }
        }
        Err("too many redirects".to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// A server that answers each request with the next response, and the requests that it received.
    fn server(answers: Vec<String>) -> (Url, Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = Url::parse(&format!("http://{}/list", listener.local_addr().unwrap())).unwrap();
        let (sender, asked) = channel();
        std::thread::spawn(move || {
            for answer in answers {
                let mut stream = BufReader::new(listener.accept().unwrap().0);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    assert!(stream.read_line(&mut head).unwrap() > 0);
                }
                stream.get_mut().write_all(answer.as_bytes()).unwrap();
                sender.send(head).unwrap();
            }
        });
        (url, asked)
    }

    fn ok(more: &str, body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\n{more}Content-Length: {}\r\n\r\n{body}", body.len())
    }

    fn config(url: &Url, check: ContentCheck) -> UrlConfig {
        UrlConfig {
            url: url.clone(),
            reason: String::new(),
            interval: Duration::from_secs(1),
            check,
            most: 1 << 20,
            is_insecure_allowed: false,
            ca: None,
            identity: None,
        }
    }

    #[test]
    fn skips_unchanged_lists_and_keeps_the_last_good_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.list");
        let (url, asked) = server(vec![
            ok("ETag: \"a\"\r\nLast-Modified: x\r\n", "192.0.2.1\n"),
            "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n".to_string(),
            ok("ETag: \"b\"\r\n", "192.0.2.1\n"),
            "HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\nsick".to_string(),
            ok("", "<html>\n<body>\nNot\nfound\n"),
            ok("", " \n"),
            ok("", "# nobody\n"),
        ]);
        let config = config(&url, ContentCheck::None);
        let fetcher = Fetcher::new(&config, &path);
        assert_eq!(fetcher.fetch(), Ok(Fetched::New(1)));
        assert!(!asked.recv().unwrap().contains("if-none-match"));
        assert_eq!(fetcher.fetch(), Ok(Fetched::Same));
        let head = asked.recv().unwrap();
        assert!(head.contains("if-none-match: \"a\"") && head.contains("if-modified-since: x"), "{head}");
        assert_eq!(fetcher.fetch(), Ok(Fetched::Same));
        for expected in ["500 Internal Server Error: sick", "most lines", "is empty"] {
            let error = fetcher.fetch().unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "192.0.2.1\n");
        assert!(verified(&config, &path).is_some());
        assert_eq!(fetcher.fetch(), Ok(Fetched::New(0)));
        assert!(asked.iter().last().unwrap().contains("if-none-match: \"b\""));

        // A modified file is not used, nor one that was verified in another way.
        let other = UrlConfig { check: ContentCheck::Sha256([0; 32]), ..config.clone() };
        assert!(cached(&config, &path).is_some() && cached(&other, &path).is_none());
        fs::write(&path, "192.0.2.2\n").unwrap();
        assert!(verified(&config, &path).is_none() && !path.exists());
    }

    #[test]
    fn rejects_an_older_list() {
        assert_eq!(signed_at("timestamp:1700000000\tfile:list.txt\thashed"), Some(1_700_000_000));
        assert_eq!((signed_at("by hand"), signed_at("timestamp:soon"), signed_at("")), (None, None, None));
        for (signed, kept, is_taken) in [
            (Some(5), Some(5), true),
            (Some(6), Some(5), true),
            (Some(4), Some(5), false),
            (None, Some(5), false),
            (Some(4), None, true),
            (None, None, true),
        ] {
            assert_eq!(is_no_older(signed, kept).is_ok(), is_taken, "{signed:?} {kept:?}");
        }
    }

    #[test]
    fn rejects_digest_mismatch_and_unsafe_redirects() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.list");
        let moved = |to: &str| format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
        let list = "192.0.2.1\n";
        let mut answers =
            vec![ok("", list), moved("/there"), ok("", "192.0.2.2\n"), moved("http://192.0.2.1/")];
        answers.extend((0..=MAX_REDIRECTS).map(|_| moved("/round")));
        let (url, asked) = server(answers);
        let wanted = digest(&SHA256, list.as_bytes()).as_ref().try_into().unwrap();
        let fetcher = Fetcher::new(&config(&url, ContentCheck::Sha256(wanted)), &path);
        assert_eq!(fetcher.fetch(), Ok(Fetched::New(1)));
        for expected in [", expected ", "which is plain HTTP", "too many redirects"] {
            let error = fetcher.fetch().unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert!(asked.iter().nth(2).unwrap().starts_with("GET /there HTTP/1.1"));
        assert_eq!(fs::read_to_string(&path).unwrap(), list);
        assert_eq!(digest_of(&hex(&wanted)), Some(wanted));
        for text in ["", "abc", &"zz".repeat(32), &"ab".repeat(33)] {
            assert_eq!(digest_of(text), None, "{text}");
        }
    }
}
