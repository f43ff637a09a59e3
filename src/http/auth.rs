//! Basic authentication (RFC 7617).
//!
//! What is configured and what is presented are compared as keyed digests of equal size, in constant time,
//! so neither a prefix nor a length shows in how long an answer takes. User and password are always both
//! compared. With a bcrypt hash the same holds for the user name: the hash is evaluated whoever asks.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_PAD_INDIFFERENT as BASE64;
use hyper::header::HeaderValue;
use ring::hmac;
use ring::rand::SystemRandom;
use subtle::ConstantTimeEq;

use super::error::HttpError;
use super::turns::Turns;

/// Longer `Authorization` headers are refused unread.
const MAX_HEADER: usize = 2048;
/// The most expensive bcrypt hash that is taken: about 5 seconds for an evaluation.
pub const MAX_COST: u32 = 16;
/// Remembered results of bcrypt, for each of right and wrong.
const REMEMBERED: usize = 64;

/// The user and the password that give access. Cheap to clone; holds no password in the clear, and `Debug`
/// shows neither password nor user.
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

struct Inner {
    /// Random at each start, so that the digests are worth nothing elsewhere.
    key: hmac::Key,
    user: hmac::Tag,
    password: Password,
}

enum Password {
    Plain(hmac::Tag),
    Bcrypt {
        hash: String,
        results: Mutex<Results>,
        /// One evaluation at a time: a flood of guesses costs one core at most.
        turns: Arc<Turns>,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(<hidden>)")
    }
}

impl Credentials {
    /// Takes a user and a password. A password that begins with `$2a$`, `$2b$` or `$2y$` is a bcrypt hash,
    /// as `htpasswd -nB` prints it; any other is meant literally.
    ///
    /// # Errors
    /// [`HttpError::Credentials`] when either is empty, when the user holds a colon (basic authentication
    /// cannot send one), or when a bcrypt hash is malformed or too expensive.
    pub fn new(user: &str, password: &str) -> Result<Self, HttpError> {
        let refuse = |text: &str| Err(HttpError::Credentials(text.to_string()));
        if user.is_empty() || password.is_empty() {
            return refuse("the metrics user and password must not be empty");
        }
        if user.contains(':') {
            return refuse(
                "the metrics user name contains a colon, which basic authentication does not allow",
            );
        }
        let Ok(key) = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()) else {
            return refuse("the system's random number generator failed");
        };
        let password = if ["$2a$", "$2b$", "$2y$"].iter().any(|prefix| password.starts_with(prefix)) {
            match password.parse::<bcrypt::HashParts>() {
                Ok(parts) if parts.get_cost() > MAX_COST => {
                    return Err(HttpError::Credentials(format!(
                        "the metrics password is a bcrypt hash of cost {}, which takes many seconds to check; \
                         the maximum cost is {MAX_COST}",
                        parts.get_cost()
                    )));
                }
                Ok(_) => {}
                Err(_) => {
                    return refuse(
                        "the metrics password looks like a bcrypt hash but is not a valid one; `exporter \
                         hash-password` prints one (keep all 60 characters, quoted)",
                    );
                }
            }
            Password::Bcrypt { hash: password.to_string(), results: Mutex::default(), turns: Arc::default() }
        } else {
            Password::Plain(hmac::sign(&key, password.as_bytes()))
        };
        let user = hmac::sign(&key, user.as_bytes());
        Ok(Self(Arc::new(Inner { key, user, password })))
    }

    /// True when an `Authorization` header from `peer` gives access. Waits, off the reactor, for bcrypt where a
    /// hash is configured and this pair has not been seen.
    pub(super) async fn accept(&self, header: Option<&HeaderValue>, peer: IpAddr) -> bool {
        let Some((user, password)) = header.and_then(parse) else { return false };
        let inner = &self.0;
        let user_right = equal(&hmac::sign(&inner.key, &user), &inner.user);
        match &inner.password {
            Password::Plain(right) => {
                let password_right = equal(&hmac::sign(&inner.key, &password), right);
                bool::from(user_right & password_right)
            }
            Password::Bcrypt { hash, results, turns } => {
                // The user has no colon, so the pair is unambiguous.
                let pair = hmac::sign(&inner.key, &[&user[..], b":", &password[..]].concat());
                let known = || lock(results).get(pair.as_ref());
                if let Some(result) = known() {
                    return result;
                }
                let Some(_turn) = turns.take(peer).await else { return false };
                // Another request may have brought the same pair while this one waited.
                if let Some(result) = known() {
                    return result;
                }
                let hash = hash.clone();
                let verified = tokio::task::spawn_blocking(move || bcrypt::verify(&password, &hash)).await;
                let result = matches!(verified, Ok(Ok(true))) & bool::from(user_right);
                lock(results).remember(pair.as_ref(), result);
                result
            }
        }
    }
}

fn equal(a: &hmac::Tag, b: &hmac::Tag) -> subtle::Choice {
    a.as_ref().ct_eq(b.as_ref())
}

fn lock(results: &Mutex<Results>) -> std::sync::MutexGuard<'_, Results> {
    results.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Results by the digest of the pair. Right and wrong ones are kept apart, so that any number of wrong
/// guesses cannot push a right pair out.
#[derive(Default)]
struct Results {
    known: HashMap<Vec<u8>, bool>,
    right: VecDeque<Vec<u8>>,
    wrong: VecDeque<Vec<u8>>,
}

impl Results {
    fn get(&self, pair: &[u8]) -> Option<bool> {
        self.known.get(pair).copied()
    }

    fn remember(&mut self, pair: &[u8], result: bool) {
        if self.known.insert(pair.to_vec(), result).is_some() {
            return;
        }
        let order = if result { &mut self.right } else { &mut self.wrong };
        order.push_back(pair.to_vec());
        if order.len() > REMEMBERED
            && let Some(oldest) = order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

/// User and password out of `Basic BASE64(user:password)`; `None` for anything else.
fn parse(header: &HeaderValue) -> Option<(Vec<u8>, Vec<u8>)> {
    let header = header.as_bytes();
    if header.len() > MAX_HEADER {
        return None;
    }
    let blank = header.iter().position(|&byte| byte == b' ')?;
    let (scheme, rest) = header.split_at(blank);
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let mut user = BASE64.decode(rest.trim_ascii()).ok()?;
    let colon = user.iter().position(|&byte| byte == b':')?;
    let password = user.split_off(colon + 1);
    user.pop();
    Some((user, password))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn header(user_and_password: &str) -> HeaderValue {
        format!("Basic {}", BASE64.encode(user_and_password)).parse().unwrap()
    }

    async fn accepts(credentials: &Credentials, user_and_password: &str) -> bool {
        credentials.accept(Some(&header(user_and_password)), PEER).await
    }

    #[tokio::test]
    async fn only_the_exact_pair_passes() {
        let credentials = Credentials::new("prom", "se:cret").unwrap();
        assert!(accepts(&credentials, "prom:se:cret").await);
        for wrong in
            ["prom:se:cre", "prom:se:crett", "prom:", ":se:cret", "pro:se:cret", "se:cret:prom", "prom"]
        {
            assert!(!accepts(&credentials, wrong).await, "{wrong}");
        }
        assert!(!credentials.accept(None, PEER).await);
    }

    #[test]
    fn headers_of_other_forms_are_refused() {
        assert_eq!(parse(&"basic  dTpw ".parse().unwrap()), Some((b"u".to_vec(), b"p".to_vec())));
        assert_eq!(parse(&"BASIC dTo=".parse().unwrap()), Some((b"u".to_vec(), Vec::new())));
        for bad in ["", "Basic", "Basic !!!", "Bearer dTpw", "dTpw", "Basic dQ=="] {
            assert_eq!(parse(&bad.parse().unwrap()), None, "{bad}");
        }
        let long = format!("u:{}", "p".repeat(MAX_HEADER));
        assert_eq!(parse(&header(&long)), None);
    }

    #[tokio::test]
    async fn a_bcrypt_hash_is_evaluated_and_remembered() {
        let hash = bcrypt::hash("secret", 4).unwrap();
        for version in ["$2a$", "$2b$", "$2y$"] {
            let hash = format!("{version}{}", &hash[4..]);
            let credentials = Credentials::new("prom", &hash).unwrap();
            for _ in 0..2 {
                assert!(accepts(&credentials, "prom:secret").await);
                assert!(!accepts(&credentials, "prom:wrong").await);
                assert!(!accepts(&credentials, "other:secret").await);
                assert!(!accepts(&credentials, &format!("prom:{hash}")).await, "the hash is no password");
            }
            let Password::Bcrypt { results, .. } = &credentials.0.password else { panic!("not bcrypt") };
            let results = lock(results);
            assert_eq!((results.right.len(), results.wrong.len()), (1, 3));
        }
    }

    #[test]
    fn memory_is_bounded_and_wrong_guesses_keep_the_right_pair() {
        let mut results = Results::default();
        results.remember(b"right", true);
        for guess in 0..10_000u32 {
            results.remember(&guess.to_be_bytes(), false);
        }
        assert_eq!(results.known.len(), REMEMBERED + 1);
        assert_eq!(results.get(b"right"), Some(true));
        assert_eq!(results.get(&9_999u32.to_be_bytes()), Some(false));
        assert_eq!(results.get(&0u32.to_be_bytes()), None);
    }

    #[test]
    fn bad_credentials_say_what_is_wrong_and_hide_the_secret() {
        for (user, password, reason) in [
            ("", "p", "empty"),
            ("u", "", "empty"),
            ("a:b", "hunter2", "colon"),
            ("u", "$2y$10$hunter2", "looks like a bcrypt hash"),
            ("u", "$2b$31$7EqJtq98hPqEX7fNZaFWoOhi5BWX4eEG1hZ3bU1bN9S1n9vAqGn1e", "cost 31"),
        ] {
            let text = Credentials::new(user, password).unwrap_err().to_string();
            assert!(text.contains(reason), "{text}");
            assert!(!text.contains("hunter2") && !text.contains("7EqJ"), "{text}");
        }
        let shown = format!("{:?}", Credentials::new("someuser", "hunter2").unwrap());
        assert!(!shown.contains("hunter2") && !shown.contains("someuser"));
    }
}
